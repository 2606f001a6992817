"""The papers' ablations on the emoji world: what each module adds, by trainings with equal budgets and several seeds.

``python benchmarks/ablation.py --output runs/ablation [--study cmpf] [--seeds 0 1 2] [--rows none both] [--json]`` trains the
tiny model of a method once a row and seed, in the same few steps on the same scenes, and measures it on scenes it never saw,
in the styles of the training and in a new one. What is there already is not done again. Shown are means over the seeds and
their standard deviation, and the same of the difference to the study's first row with the same seed, whose scenes and order of
scenes are equal.

    cmpf     Tables 6 and 7; the row without modules is FC-CLIP. Its ensemble of masks needs no training: it is switched on
             in rows that are there
    escnet   Tables 2 and 3, and other readings of Sec. 3.3 to 3.5
    fovseg   Table IV a, c, f and g, and readings of Eq. (7) and (9)
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from lexiseg.inference.pipeline import load
from lexiseg.methods import recipe_named
from lexiseg.methods.base import Segmenter
from lexiseg.methods.cmpf.model import Cmpf
from lexiseg.methods.cmpf.sam_masks import SamMasks
from lexiseg.methods.recipe import Recipe, with_overrides
from lexiseg.methods.sam_clip.model import SamClip
from lexiseg.methods.variant import ASSETS
from lexiseg.methods.weights import digest_of
from lexiseg.ops.files import write_json
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.training.dist import distributed
from lexiseg.training.loop import train
from lexiseg.training.validation import Validation

BATCH, SCENES = 4, 200


@dataclass(frozen=True)
class Study:
    """The ablation of a method.

    Attributes:
        model: what is trained.
        steps: of a training, if nobody says otherwise.
        rows: by a short name, the title and what is changed in the recipe; the others are compared with the first.
        precision: of the trainings.
    """

    model: str
    steps: int
    rows: Mapping[str, tuple[str, tuple[str, ...]]]
    precision: str = "float32"

    @property
    def plain(self) -> str:
        """The title of the row that the others are compared with."""
        return next(iter(self.rows.values()))[0]


STUDIES = {
    "cmpf": Study(
        "cmpf-tiny",
        1200,
        {
            "none": ("no module (FC-CLIP)", ("model.query_layers=[]", "model.feature_layers=[]")),
            "qi": ("Query Injector", ("model.feature_layers=[]",)),
            "fi": ("Feature Injector", ("model.query_layers=[]",)),
            "both": ("both injectors", ()),
            "q1": ("both, Query Injector after layer 1 only", ("model.query_layers=[1]",)),
            "q2": ("both, Query Injector after layer 2 only", ("model.query_layers=[2]",)),
        },
        "bfloat16",
    ),
    "escnet": Study(
        "escnet-tiny",
        400,
        {
            "none": ("without SAM", ("model.sam_blocks=none",)),
            "random": ("SAM blocks, random", ("model.sam_blocks=random",)),
            "pretrained": ("SAM blocks, pretrained (points and masks)", ()),
            "unanchored": ("the same, no loss between blocks", ("loss.maps=0.0",)),
            "points": ("points", ("model.prompts=['points']",)),
            "boxes": ("boxes", ("model.prompts=['boxes']",)),
            "points_boxes": ("points and boxes", ("model.prompts=['points', 'boxes']",)),
            "boxes_masks": ("boxes and masks", ("model.prompts=['boxes', 'masks']",)),
            "all": ("points, boxes and masks", ("model.prompts=['points', 'boxes', 'masks']",)),
            "mean": ("one map for all classes, their mean", ("model.guidance=mean", "model.bypass=True")),
            "cell": ("one map, weighted per cell", ("model.guidance=cell", "model.bypass=True")),
            "bypass": ("F_v added to F'_v", ("model.bypass=True",)),
            "each_mask": ("mean of five embedded masks", ("model.mask_prompts=mean",)),
            "normalised": ("each class's probabilities normalised", ("model.normalise=True",)),
            "space": ("softmax over space", ("model.probability=space", "model.normalise=True")),
            "queries": ("guide in queries and keys only", ("model.guide_values=False",)),
            "swin1": ("one Swin block", ("model.num_swin_blocks=1",)),
        },
    ),
    "fovseg": Study(
        "fovseg-tiny",
        600,
        {
            "none": ("queries of CLIP alone", ("model.teva=False", "model.adapter_layers=0", "fiser.weight=0.0")),
            "fiser": ("FiSeR", ("model.teva=False", "model.adapter_layers=0")),
            "teva": ("TeVA", ("fiser.weight=0.0",)),
            "both": ("FiSeR and TeVA", ()),
            "add": ("both, class embeddings added to the mask token", ("model.teva_update=add",)),
            "replace": ("both, class embeddings in place of the query", ("model.teva_update=replace",)),
            "shared": ("both, one g_q, g_k, g_v for all blocks", ("model.teva_shared=True",)),
            "vector": ("both, a learned vector of no object", ("model.void=vector", "loss.void=0.1")),
            "k": ("both, tuned f_k", ("model.tuned=['f_k']",)),
            "v": ("both, tuned f_v", ("model.tuned=['f_v']",)),
            "qk": ("both, tuned f_q and f_k", ("model.tuned=['f_q', 'f_k']",)),
            "qv": ("both, tuned f_q and f_v", ("model.tuned=['f_q', 'f_v']",)),
            "qkv": ("both, tuned f_q, f_k and f_v", ("model.tuned=['f_q', 'f_k', 'f_v']",)),
            "mlp": ("both, tuned MLP", ("model.tuned=['mlp']",)),
            "all": ("both, tuned all of the tower", ("model.tuned=['all']",)),
            "lora": ("both, LoRA of rank 64", ("model.lora_rank=64",)),
            "a0": ("both, no adapter", ("model.adapter_layers=0",)),
            "a1": ("both, adapter of 1 layer", ("model.adapter_layers=1",)),
            "a3": ("both, adapter of 3 layers", ("model.adapter_layers=3",)),
        },
    ),
}
ENSEMBLES = ("none", "both")  # rows of CMPF that are measured with the ensemble of masks, too
NUMBERS = {
    "PQ": "world:val/PQ",
    "mIoU": "world:val/mIoU",
    "mIoU, unseen names": "world:val/mIoU unseen",
    "PQ, new style": "world:style/PQ",
    "mIoU, new style": "world:style/mIoU",
}
Scores = Mapping[str, float]


def recipe_of(study: Study, settings: Sequence[str], seed: int, steps: int, scenes: int) -> Recipe:
    """A row's training."""
    budget = (f"steps={steps}", f"batch_size={BATCH}", f"precision={study.precision}")
    validation = (f"validate_every={steps}", f"validate_limit={scenes}")
    return with_overrides(recipe_named(study.model), [*budget, *validation, f"seed={seed}", *settings])


def trained(folder: Path, recipe: Recipe) -> Scores:
    """The scores after the last step of a training; it is carried out, or finished, first."""
    log = folder / "metrics.jsonl"
    if not (folder / "model").is_dir():
        train(recipe, folder, device="cpu", workers=0)
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return next(line for line in reversed(lines) if NUMBERS["PQ"] in line)


def measured(name: str, build: Callable[[], Segmenter], output: Path, scenes: int) -> Scores:
    """The scores of a model that nothing is trained for; kept in a file."""
    path = output / f"{name}.json"
    if not path.is_file():
        with distributed("cpu") as dist:
            validation = Validation(
                ("world:val", "world:style"), scenes, Vocabulary.builtin("emoji-seen"), output / "measured", None, dist
            )
            write_json(path, validation(build().eval(), 0), indent=1)
    found: Scores = json.loads(path.read_text(encoding="utf-8"))
    return found


def with_masks(folder: Path, cache: Path) -> Segmenter:
    """A trained row with the ensemble of masks: SAM is asked as by SAM + CLIP, and its masks are kept for the next row."""
    segmenter, asked = load("cmpf-tiny", weights={"cmpf": folder / "model"}, device="cpu").segmenter, sam_clip().config
    assert isinstance(segmenter, Cmpf)
    identity = digest_of(ASSETS / "sam-tiny" / "model.safetensors")
    masks = SamMasks(points=asked.points_per_side, options=asked.generator, cache=cache, identity=identity)
    segmenter.config = replace(segmenter.config, mask_ensemble=True, masks=masks)
    return segmenter


def sam_clip() -> SamClip:
    segmenter = load("sam_clip-tiny", device="cpu").segmenter
    assert isinstance(segmenter, SamClip)
    return segmenter


def rows(arguments: argparse.Namespace) -> Iterator[tuple[str, list[Scores]]]:
    """(what, scores of each seed) of every line of the table."""
    output, study = arguments.output, STUDIES[arguments.study]
    masks = arguments.study == "cmpf" and not arguments.without_masks
    if arguments.study == "cmpf":
        yield "SAM's masks only (SAM + CLIP, nothing trained)", [measured("sam_clip", sam_clip, output, arguments.scenes)]
    for row in arguments.rows:
        title, settings = study.rows[row]
        folders = [output / f"{row}-{seed}" for seed in arguments.seeds]
        found = [
            trained(folder, recipe_of(study, settings, seed, arguments.steps, arguments.scenes))
            for folder, seed in zip(folders, arguments.seeds, strict=True)
        ]
        yield title, found
        if row in ENSEMBLES and masks:
            builders = {folder.name: partial(with_masks, folder, output / "masks") for folder in folders}
            again = [measured(f"{name}-masks", build, output, arguments.scenes) for name, build in builders.items()]
            yield f"{title}, ensemble of masks", again


def table(found: Mapping[str, Sequence[Scores]], plain: str) -> list[str]:
    """The rows as Markdown; ``plain`` is the row the others are compared with."""
    lines = [f"| | {' | '.join(NUMBERS)} |", "|---" * (len(NUMBERS) + 1) + "|"]
    for title, seeds in found.items():
        cells = []
        for key in NUMBERS.values():
            values = [scores[key] for scores in seeds]
            cell = spread(values)
            if title != plain and len(values) == len(found.get(plain, ())) > 0:
                gains = [value - base[key] for value, base in zip(values, found[plain], strict=True)]
                cell += f" ({spread(gains, sign='+')})"
            cells.append(cell)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def spread(values: Sequence[float], *, sign: str = "") -> str:
    """Mean and standard deviation; the mean alone of one value."""
    mean = f"{statistics.mean(values):{sign}.3f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the trainings; what is there is not done again")
    parser.add_argument("--study", choices=STUDIES, default="cmpf")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="some rows of the study only")
    parser.add_argument("--steps", type=int, help="of each training (cmpf: 1200, escnet: 400, fovseg: 600)")
    parser.add_argument("--scenes", type=int, default=SCENES, help="of each style, to measure on")
    parser.add_argument("--without-masks", action="store_true", help="leave out the ensemble of masks")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    study = STUDIES[arguments.study]
    arguments.rows, arguments.steps = arguments.rows or list(study.rows), arguments.steps or study.steps
    if unknown := [row for row in arguments.rows if row not in study.rows]:
        parser.error(f"the study {arguments.study} has no row '{unknown[0]}'; it has {', '.join(study.rows)}")
    torch.set_num_threads(1)
    found = dict(rows(arguments))
    if arguments.json:
        numbers = {
            title: [{name: scores[key] for name, key in NUMBERS.items()} for scores in seeds] for title, seeds in found.items()
        }
        print(json.dumps(numbers))
        return
    print(f"{arguments.steps} steps of {BATCH} scenes, seeds {arguments.seeds}; measured on {arguments.scenes} scenes a style")
    print("\n".join(table(found, study.plain)))


if __name__ == "__main__":
    main()
