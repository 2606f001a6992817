"""Readings of FOV-Seg's paper compared on the emoji world, with equal budgets, on features of CLIP that are computed once.

``python benchmarks/readings.py --output runs/readings [--rows query add] [--seeds 0 1] [--steps 150] [--scenes 60]`` trains
`fovseg-tiny` a few steps a row and seed: TeVA, the adapter, FiSeR's predictor, and the query projections as the mask tokens use
them. The image tokens are those of the frozen CLIP, which is what makes it fast; a training by the recipe also tunes them
(`benchmarks/ablation.py`). Shown are, on scenes that no training saw, the class loss of matched masks (with its weight 2) and
FiSeR's loss in nats (chance is the logarithm of the number of candidates), and PQ and mIoU among all names. ``--predictor``
trains FiSeR's predictor alone, on the tokens of the frozen CLIP.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lexiseg.backbones.clip_base import ClipFeatures
from lexiseg.backbones.proposals import MaskProposer, Proposals
from lexiseg.losses.fiser import Fiser
from lexiseg.methods import model_named, recipe_named
from lexiseg.methods.fovseg.model import FovSeg
from lexiseg.methods.recipe import Recipe, with_overrides
from lexiseg.structures import ImageBatch, MaskTarget
from lexiseg.training.batches import Batch, batches, points_of, seed_of
from lexiseg.training.dist import distributed
from lexiseg.training.examples import open_examples
from lexiseg.training.objective import Objective, fiser_of, image_tokens
from lexiseg.training.optimiser import clip_gradients, optimiser_of, set_lr
from lexiseg.training.text_sampler import TextSampler
from lexiseg.training.validation import Validation

MODEL, BATCH, TRAINED, HELD = "fovseg-tiny", 4, 110, 20  # batches of 4 scenes
UNTRAINED = "untrained"
ROWS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    UNTRAINED: ("MaskCLIP, nothing trained", ("model.teva=False", "model.adapter_layers=0", "fiser.weight=0.0")),
    "query": ("defaults", ()),
    "replace": ("class embeddings are the query", ("model.teva_update=replace",)),
    "add": ("class embeddings added to the mask token", ("model.teva_update=add",)),
    "shared": ("one g_q, g_k, g_v for all blocks", ("model.teva_shared=True",)),
    "none": ("no class besides the names in training", ("model.void=none",)),
    "vector": ("a learned vector of no object", ("model.void=vector", "loss.void=0.1")),
    "empty": ("class token for empty masks only", ("model.class_token=empty",)),
    "rate": ("f_q at the full rate", ("lr_multipliers.clip=1.0",)),
    "single": ("'a photo of a {}.'", ("model.templates=single",)),
    "both": ("P: patch and mask tokens", ("fiser.visual=both",)),
    "patches": ("P: patch tokens", ("fiser.visual=patches",)),
    "tokens": ("O: word pieces", ("fiser.words=tokens",)),
    "image": ("candidates: T", ("fiser.candidates=image",)),
    "cosines": ("bare cosines", ("fiser.temperature=1.0",)),
    "sharp": ("temperature 0.01", ("fiser.temperature=0.01",)),
    "learned": ("learned temperature", ("fiser.learn_temperature=True",)),
    "random": ("classifier starts at random", ("fiser.identity=False",)),
}
Scores = dict[str, float]


class Kept(MaskProposer):
    """A frozen proposer whose masks are kept: of a training batch in ``current``, of other images in a folder."""

    def __init__(self, inner: MaskProposer, folder: Path) -> None:
        super().__init__()
        self.inner, self.queries, self.folder = inner, inner.queries, folder
        self.current: Proposals | None = None

    def forward(self, images: Tensor) -> Proposals:
        return self.current or Proposals(torch.cat([self._of(image) for image in images]), (images.shape[-2], images.shape[-1]))

    def _of(self, image: Tensor) -> Tensor:
        digest = hashlib.sha256((image * 255).round().byte().numpy().tobytes()).hexdigest()
        path = self.folder / f"{digest}.pt"
        if not path.is_file():
            torch.save(self.inner(image[None]).masks.half(), path)
        masks: Tensor = torch.load(path)
        return masks.float()


@dataclass(frozen=True)
class Scenes:
    """A batch of training scenes.

    Attributes:
        batch: images and targets.
        proposals: masks of the frozen proposer.
        features: inputs of the blocks of the frozen CLIP [B, depth, 1 + L, C], half precision.
    """

    batch: Batch
    proposals: Proposals
    features: Tensor

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Scenes:
        targets = tuple(MaskTarget(masks, labels) for masks, labels in saved["targets"])
        sizes = (tuple(saved["pixels"].shape[-2:]),) * len(targets)
        batch = Batch(ImageBatch(saved["pixels"].float() / 255, sizes), targets, tuple(saved["positions"]))
        return cls(batch, Proposals(saved["masks"].float(), tuple(saved["padded_size"])), saved["features"])


def scenes(folder: Path) -> list[Scenes]:
    """The training batches of seed 0, then those held out; computed once."""
    path = folder / "scenes.pt"
    if not path.is_file():
        torch.save(rendered(), path)
    return [Scenes.of(saved) for saved in torch.load(path)]


@torch.no_grad()
def rendered() -> list[dict[str, Any]]:
    """Batches with their proposals and features, as `Scenes` keeps them."""
    recipe, segmenter = recipe_named(MODEL), untrained(recipe_named(MODEL))
    stream = batches(open_examples(recipe.data, None), recipe.jitter, seed=0, batch_size=BATCH, first=0, steps=TRAINED + HELD)
    rows = []
    for batch in stream:
        proposals = segmenter.proposer(batch.images.pixels)
        rows.append(
            {
                "pixels": (batch.images.pixels * 255).round().byte(),
                "targets": [(target.masks, target.labels) for target in batch.targets],
                "positions": batch.positions,
                "masks": proposals.masks.half(),
                "padded_size": proposals.padded_size,
                "features": segmenter.encode_images(batch.images.pixels).last.half(),
            }
        )
    return rows


def untrained(recipe: Recipe) -> FovSeg:
    torch.manual_seed(seed_of(recipe.seed))
    segmenter = model_named(recipe.name).untrained({}, recipe.model)
    assert isinstance(segmenter, FovSeg)
    return segmenter


class Run:
    """The training of a row on the features of the frozen CLIP."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.scenes = recipe, scenes(folder)
        self.segmenter: Any = untrained(recipe)
        self.segmenter.proposer = Kept(self.segmenter.proposer, folder).requires_grad_(False)
        self.examples = open_examples(recipe.data, None)
        sampler = TextSampler(self.segmenter, self.examples.vocabulary, torch.device("cpu"), max_classes=0, seed=recipe.seed)
        self.fiser = fiser_of(self.segmenter, recipe.fiser)
        self.objective = Objective(self.segmenter, sampler, recipe, self.fiser)
        self.text = sampler.text

    def losses(self, row: Scenes, positions: Sequence[int]) -> dict[str, Tensor]:
        clip, kept = self.segmenter.clip, features_of(row)

        def encode(_: Tensor) -> ClipFeatures:
            if clip._record is not None:
                clip._record.features.append(kept)
            return kept

        self.segmenter.proposer.current, self.segmenter.encode_images = row.proposals, encode
        try:
            result = self.objective(row.batch, points_of(positions, self.recipe.seed, torch.device("cpu")))
        finally:
            self.segmenter.proposer.current = None
            del self.segmenter.encode_images
        return result

    def train(self) -> None:
        stage, order = self.recipe.stages[0], torch.Generator().manual_seed(self.recipe.seed)
        optimiser = optimiser_of(self.segmenter, stage, self.fiser)
        self.segmenter.train()
        left: list[int] = []
        for step in range(stage.steps):
            left = left or torch.randperm(TRAINED, generator=order).tolist()
            set_lr(optimiser, stage.lr_at(step))
            positions = range(BATCH * step, BATCH * step + BATCH)
            torch.stack(list(self.losses(self.scenes[left.pop()], positions).values())).sum().backward()
            clip_gradients(optimiser, stage.max_grad_norm or math.inf)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    @torch.no_grad()
    def held_out(self) -> Scores:
        """Mean losses of the batches held out."""
        self.segmenter.train()
        rows = [
            self.losses(row, range(10**6 + BATCH * number, 10**6 + BATCH * number + BATCH))
            for number, row in enumerate(self.scenes[TRAINED:])
        ]
        return {f"{name} loss": statistics.mean(float(row[name]) for row in rows) for name in rows[0]}

    def measured(self, folder: Path, limit: int) -> Scores:
        """PQ and mIoU of scenes of the validation."""
        self.segmenter.eval()
        self.segmenter.training_classes = self.examples.vocabulary.class_names
        with distributed("cpu") as dist, tempfile.TemporaryDirectory() as results:
            validation = Validation(("world:val",), limit, self.examples.vocabulary, folder, None, dist)
            validation.folder = Path(results)
            numbers = validation(self.segmenter, 0)
        return {name: numbers[f"world:val/{name}"] for name in ("PQ", "mIoU")}


def features_of(row: Scenes) -> ClipFeatures:
    last = row.features.float()
    side = math.isqrt(last.shape[2] - 1)
    return ClipFeatures((last[:, -1, 1:].mT.unflatten(-1, (side, side)),), last)


def recipe_of(settings: Sequence[str], seed: int, steps: int) -> Recipe:
    return with_overrides(recipe_named(MODEL), [f"steps={steps}", f"seed={seed}", *settings])


def row_of(name: str, seed: int, steps: int, limit: int, folder: Path) -> Scores:
    """The scores of a row; kept in a file."""
    path = folder / f"{name}-{seed}-{steps}-{limit}.json"
    if not path.is_file():
        run = Run(recipe_of(ROWS[name][1], seed, steps), folder)
        if name != UNTRAINED:
            run.train()
        path.write_text(json.dumps({**run.held_out(), **(run.measured(folder, limit) if limit else {})}), encoding="utf-8")
    scores: Scores = json.loads(path.read_text(encoding="utf-8"))
    return scores


def predictor(name: str, seed: int, steps: int, folder: Path) -> Scores:
    """FiSeR's held-out loss when its predictor alone is trained, and that of chance."""
    run = Run(recipe_of(("model.teva=False", "model.adapter_layers=0", *ROWS[name][1]), seed, steps), folder)
    clip, options = run.segmenter.clip, run.recipe.fiser
    torch.manual_seed(seed)
    fiser = Fiser(clip, options)
    with torch.no_grad():
        tokens = []
        for row in run.scenes:
            with clip.recorded() as computed:
                computed.features.append(features_of(row))
                run.segmenter.embed(features_of(row), row.proposals.masks, run.text)
            tokens.append(image_tokens(clip, computed, options))
    optimiser = torch.optim.AdamW(fiser.parameters(), lr=run.recipe.stages[0].lr, weight_decay=0.05)
    chance, draws = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        number = int(torch.randint(TRAINED, (1,), generator=draws))
        targets = run.scenes[number].batch.targets
        fiser(clip, tokens[number], run.text, targets, torch.rand(len(targets), generator=draws)).backward()
        torch.nn.utils.clip_grad_norm_(fiser.parameters(), 0.1)
        optimiser.step()
        optimiser.zero_grad()
    losses, candidates = [], []
    with torch.no_grad():
        for number in [*range(TRAINED, TRAINED + HELD)] * 3:
            targets = run.scenes[number].batch.targets
            losses.append(float(fiser(clip, tokens[number], run.text, targets, torch.rand(len(targets), generator=chance))))
            candidates += [math.log(candidates_of(run, target)) for target in targets]
    return {"fiser loss": statistics.mean(losses), "chance": statistics.mean(candidates)}


def candidates_of(run: Run, target: MaskTarget) -> int:
    return len(run.text) if run.recipe.fiser.candidates == "training" else len(target.labels.unique())


def spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of scenes and scores; what is there is kept")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[UNTRAINED, "query", "replace", "add", "none", "vector"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--scenes", type=int, default=60, help="to measure PQ and mIoU on; 0: neither")
    parser.add_argument("--predictor", action="store_true", help="train FiSeR's predictor alone")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    lines: list[tuple[str, list[Scores]]] = []
    for name in arguments.rows:
        if arguments.predictor:
            scores = [predictor(name, seed, arguments.steps, arguments.output) for seed in arguments.seeds]
        else:
            scores = [row_of(name, seed, arguments.steps, arguments.scenes, arguments.output) for seed in arguments.seeds]
        lines.append((ROWS[name][0], scores))
    if arguments.json:
        print(json.dumps(dict(lines)))
        return
    columns = list(dict.fromkeys(key for _, scores in lines for key in scores[0]))
    print(f"{arguments.steps} steps of {BATCH} scenes, seeds {arguments.seeds}")
    print(f"| | {' | '.join(columns)} |\n{'|---' * (len(columns) + 1)}|")
    for title, scores in lines:
        cells = [spread([score[key] for score in scores]) if key in scores[0] else "" for key in columns]
        print(f"| {title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
