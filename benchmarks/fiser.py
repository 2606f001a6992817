"""FiSeR's predictor trained alone, on tokens of the frozen CLIP that are computed once: does it learn to name what is masked?

``python benchmarks/fiser.py --output runs/fiser [--rows defaults both] [--seeds 0 1] [--steps 150]`` trains the predictor of
`fovseg-tiny` a few steps a row and seed, and prints its loss on scenes held out, in nats; chance is the logarithm of the number
of candidates. Trainings of whole models by these options: `lexiseg reproduce fov-seg readings --tiny`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lexiseg.backbones.clip_base import ClipFeatures
from lexiseg.losses.fiser import Fiser
from lexiseg.methods import model_named, recipe_named
from lexiseg.methods.fovseg.model import FovSeg
from lexiseg.methods.recipe import with_overrides
from lexiseg.structures import MaskTarget
from lexiseg.training.batches import batches, seed_of
from lexiseg.training.examples import open_examples
from lexiseg.training.objective import image_tokens
from lexiseg.training.text_sampler import TextSampler

MODEL, BATCH, TRAINED, HELD = "fovseg-tiny", 4, 110, 20  # batches of 4 scenes
FROZEN = ("model.teva=False", "model.adapter_layers=0")
ROWS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "defaults": ("defaults", ()),
    "both": ("P: patch and mask tokens", ("fiser.visual=both",)),
    "patches": ("P: patch tokens", ("fiser.visual=patches",)),
    "tokens": ("O: word pieces", ("fiser.words=tokens",)),
    "cosines": ("bare cosines", ("fiser.temperature=1.0",)),
    "sharp": ("temperature 0.01", ("fiser.temperature=0.01",)),
    "image": ("candidates: T", ("fiser.candidates=image",)),
    "learned": ("learned temperature", ("fiser.learn_temperature=True",)),
    "random": ("classifier starts at random", ("fiser.identity=False",)),
}
Scores = dict[str, float]


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes.

    Attributes:
        targets: one per image.
        masks: of the frozen proposer.
        features: inputs of the blocks of the frozen CLIP [B, depth, 1 + L, C], half precision.
    """

    targets: tuple[MaskTarget, ...]
    masks: Tensor
    features: Tensor

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Scenes:
        targets = tuple(MaskTarget(masks, labels) for masks, labels in saved["targets"])
        return cls(targets, saved["masks"].float(), saved["features"])

    def clip_features(self) -> ClipFeatures:
        last = self.features.float()
        side = math.isqrt(last.shape[2] - 1)
        return ClipFeatures((last[:, -1, 1:].mT.unflatten(-1, (side, side)),), last)


def scenes(folder: Path, segmenter: FovSeg, batches_of_scenes: int) -> list[Scenes]:
    """The batches of seed 0, then those held out; computed once."""
    path = folder / f"scenes-{batches_of_scenes}.pt"
    if not path.is_file():
        torch.save(rendered(segmenter, batches_of_scenes), path)
    return [Scenes.of(saved) for saved in torch.load(path)]


@torch.no_grad()
def rendered(segmenter: FovSeg, batches_of_scenes: int) -> list[dict[str, Any]]:
    """Batches with their proposals and features, as `Scenes` keeps them."""
    recipe = recipe_named(MODEL)
    examples = open_examples(recipe.data, None)
    rows = []
    for batch in batches(examples, recipe.jitter, seed=0, batch_size=BATCH, first=0, steps=batches_of_scenes):
        rows.append(
            {
                "targets": [(target.masks, target.labels) for target in batch.targets],
                "masks": segmenter.proposer(batch.images.pixels).masks.half(),
                "features": segmenter.encode_images(batch.images.pixels).last.half(),
            }
        )
    return rows


def trained(name: str, seed: int, steps: int, folder: Path, trained_on: int, held: int) -> Scores:
    """The predictor's loss on scenes held out, and that of chance."""
    recipe = with_overrides(recipe_named(MODEL), [f"seed={seed}", *FROZEN, *ROWS[name][1]])
    torch.manual_seed(seed_of(seed))
    segmenter = model_named(MODEL).untrained({}, recipe.model)
    assert isinstance(segmenter, FovSeg)
    known, clip, options = scenes(folder, segmenter, trained_on + held), segmenter.clip, recipe.fiser
    vocabulary = open_examples(recipe.data, None).vocabulary
    text = TextSampler(segmenter, vocabulary, torch.device("cpu"), max_classes=0, seed=seed).text
    torch.manual_seed(seed)
    fiser = Fiser(clip, options)
    with torch.no_grad():
        tokens = []
        for row in known:
            with clip.recorded() as computed:
                computed.features.append(row.clip_features())
                segmenter.embed(row.clip_features(), row.masks, text)
            tokens.append(image_tokens(clip, computed, options))
    optimiser = torch.optim.AdamW(fiser.parameters(), lr=recipe.stages[0].lr, weight_decay=0.05)
    chance, draws = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        number = int(torch.randint(trained_on, (1,), generator=draws))
        targets = known[number].targets
        fiser(clip, tokens[number], text, targets, torch.rand(len(targets), generator=draws)).backward()
        torch.nn.utils.clip_grad_norm_(fiser.parameters(), 0.1)
        optimiser.step()
        optimiser.zero_grad()
    losses, candidates = [], []
    with torch.no_grad():
        for number in [*range(trained_on, trained_on + held)] * 3:
            targets = known[number].targets
            losses.append(float(fiser(clip, tokens[number], text, targets, torch.rand(len(targets), generator=chance))))
            counts = (len(text) if options.candidates == "training" else len(target.labels.unique()) for target in targets)
            candidates += [math.log(count) for count in counts]
    return {"FiSeR loss": statistics.mean(losses), "chance": statistics.mean(candidates)}


def spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the scenes, which are computed once")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batches", type=int, nargs=2, default=[TRAINED, HELD], help="of 4 scenes, to train on and held out")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    lines = {
        ROWS[name][0]: [trained(name, seed, arguments.steps, arguments.output, *arguments.batches) for seed in arguments.seeds]
        for name in arguments.rows
    }
    if arguments.json:
        print(json.dumps(lines))
        return
    print(f"{arguments.steps} steps of {BATCH} scenes, seeds {arguments.seeds}")
    print("| | FiSeR loss | chance |\n|---|---|---|")
    for title, scores in lines.items():
        print(f"| {title} | {' | '.join(spread([score[key] for score in scores]) for key in scores[0])} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
