"""CMPF's Tables 6 and 7 on the emoji world: what each module adds, by trainings with equal budgets and several seeds.

``python benchmarks/ablation.py --output runs/ablation [--seeds 0 1 2] [--rows none both] [--json]`` trains `cmpf-tiny` once
a row and seed, in the same few steps on the same scenes, and measures it on scenes it never saw, in the styles of the
training and in a new one. What is there already is not done again. A row without modules is FC-CLIP. The ensemble of masks
needs no training: it is switched on in rows that are there. Shown are means over the seeds and their standard deviation, and
the same of the difference to the row without modules with the same seed, whose scenes and order of scenes are equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from lexiseg.inference.pipeline import load
from lexiseg.methods import recipe_named
from lexiseg.methods.base import ASSETS, Segmenter
from lexiseg.methods.cmpf.model import Cmpf
from lexiseg.methods.cmpf.sam_masks import SamMasks
from lexiseg.methods.recipe import Recipe, changed
from lexiseg.methods.sam_clip.model import SamClip
from lexiseg.methods.weights import digest_of
from lexiseg.ops.files import write_json
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.training.loop import train
from lexiseg.training.processes import joined
from lexiseg.training.validation import Validation

STEPS, BATCH, SCENES = 1200, 4, 200
NONE = ("model.query_layers=[]", "model.feature_layers=[]")
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "none": ("no module (FC-CLIP)", NONE),
    "qi": ("Query Injector", ("model.feature_layers=[]",)),
    "fi": ("Feature Injector", ("model.query_layers=[]",)),
    "both": ("both injectors", ()),
    "q1": ("both, Query Injector after layer 1 only", ("model.query_layers=[1]",)),
    "q2": ("both, Query Injector after layer 2 only", ("model.query_layers=[2]",)),
}
ENSEMBLES = ("none", "both")  # rows that are measured with the ensemble of masks, too
NUMBERS = {
    "PQ": "world:val/PQ",
    "mIoU": "world:val/mIoU",
    "mIoU, unseen names": "world:val/mIoU unseen",
    "PQ, new style": "world:style/PQ",
    "mIoU, new style": "world:style/mIoU",
}
Scores = Mapping[str, float]


def recipe_of(settings: Sequence[str], seed: int, steps: int, scenes: int) -> Recipe:
    """A row's training."""
    budget = (f"steps={steps}", f"batch={BATCH}", "precision=bfloat16", f"validate_every={steps}", f"validate_limit={scenes}")
    return changed(recipe_named("cmpf-tiny"), [*budget, f"seed={seed}", *settings])


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
        with joined("cpu") as processes:
            validation = Validation(
                ("world:val", "world:style"), scenes, Vocabulary.builtin("emoji-seen"), output / "measured", None, processes
            )
            write_json(path, validation(build().eval(), 0), indent=1)
    found: Scores = json.loads(path.read_text(encoding="utf-8"))
    return found


def with_masks(folder: Path, cache: Path) -> Segmenter:
    """A trained row with the ensemble of masks: SAM is asked as by SAM + CLIP, and its masks are kept for the next row."""
    segmenter, asked = load("cmpf-tiny", weights={"cmpf": folder / "model"}, device="cpu").segmenter, sam_clip()
    assert isinstance(segmenter, Cmpf)
    identity = digest_of(ASSETS / "sam-tiny" / "model.safetensors")
    segmenter.masks = SamMasks(points=asked.points, options=asked.options, cache=cache, identity=identity)
    return segmenter


def sam_clip() -> SamClip:
    segmenter = load("sam_clip-tiny", device="cpu").segmenter
    assert isinstance(segmenter, SamClip)
    return segmenter


def rows(arguments: argparse.Namespace) -> Iterator[tuple[str, list[Scores]]]:
    """(what, scores of each seed) of every line of the table."""
    output: Path = arguments.output
    yield "SAM's masks only (SAM + CLIP, nothing trained)", [measured("sam_clip", sam_clip, output, arguments.scenes)]
    for row in arguments.rows:
        title, settings = ROWS[row]
        folders = [output / f"{row}-{seed}" for seed in arguments.seeds]
        found = [
            trained(folder, recipe_of(settings, seed, arguments.steps, arguments.scenes))
            for folder, seed in zip(folders, arguments.seeds, strict=True)
        ]
        yield title, found
        if row in ENSEMBLES and not arguments.without_masks:
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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--scenes", type=int, default=SCENES, help="of each style, to measure on")
    parser.add_argument("--without-masks", action="store_true", help="leave out the ensemble of masks")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = dict(rows(arguments))
    if arguments.json:
        numbers = {
            title: [{name: scores[key] for name, key in NUMBERS.items()} for scores in seeds] for title, seeds in found.items()
        }
        print(json.dumps(numbers))
        return
    print(f"{arguments.steps} steps of {BATCH} scenes, seeds {arguments.seeds}; measured on {arguments.scenes} scenes a style")
    print("\n".join(table(found, ROWS["none"][0])))


if __name__ == "__main__":
    main()
