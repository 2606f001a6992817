"""Train the tiny CLIPs on the emoji world, in two steps.

    python -m lexiseg.training.clip_tiny images resnet --run runs/clip-tiny-resnet
    python -m lexiseg.training.clip_tiny names  resnet --run runs/clip-tiny-resnet
    python -m lexiseg.training.clip_tiny images vit --names-of clip-tiny-resnet --run runs/clip-tiny-vit

First the image tower: every region of a scene (pooled under its true mask) and every box cut out of a scene (encoded
whole) is drawn to a free vector of its class and away from all others. Then, with the image tower locked, the text tower
learns to hit those vectors with any name of the class in any prompt, synonyms as captions of their own (locked-image
tuning, LiT). Pairs of regions and names are RegionCLIP's; contrast with the full bank of names is UniCL's.

One text tower serves all image towers: a further one learns to hit the names of the first CLIP, which stay as they are.

Why not both towers at once: as long as the image tower cannot tell things apart, the gradient pulls their names together
(to a mean cosine of 0.7 in 600 steps), and neither tower recovers in the time there is. `docs/tiny.md` has the figures.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
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
from lexiseg.text.embed import embed_vocabulary
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.training.tiny import CHECKPOINT_EVERY, Replay, Run, as_images, colour_augmented, learning_rate, parameter_groups
from lexiseg.world import Scene, scenes, world_classes

ASSETS = Path(__file__).parent.parent / "assets"
SIZE, CROP, SIDE = 192, 96, 256  # pixels of a training scene, of a box cut out of it, and of the picture when in use
BATCH, FRESH, LOG_EVERY = 16, 6, 100  # scenes a step, how many of them new; steps
PEAK = {"convnext": 2e-3, "resnet": 2e-3, "vit": 1e-3}  # learning rate
CROPS = {"convnext": 40, "resnet": 40, "vit": 64}  # boxes cut out of the scenes of a step
MIN_PIXELS = 90  # of a visible region at SIZE; what is smaller has no name one could see
PROMPTS = tuple(
    """{};{};{};a photo of a {}.;a {};a photo of the {}.;there is a {} in the scene.;a picture of a {};a photo of a small {}.;
    a photo of a large {}.;the {};an emoji of a {};a photo of many {}.;a bad photo of a {}.;a close-up photo of a {}.;
    a drawing of a {}.;a cropped photo of the {}.;this is a photo of a {};a {} in the scene""".replace("\n    ", "").split(";")
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("images", "names"))
    parser.add_argument("tower", choices=tuple(PEAK))
    parser.add_argument("--names-of", help="images: take over the text tower of this embedded CLIP in place of free vectors")
    parser.add_argument("--steps", type=int, help="default: 8000 for images, 1500 for names")
    parser.add_argument(
        "--run", type=Path, required=True, help="folder of the log and the checkpoint; an existing one is resumed"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.stage == "images":
        train_images(
            arguments.tower, arguments.run, steps=arguments.steps or 8000, seed=arguments.seed, names_of=arguments.names_of
        )
    else:
        train_names(arguments.tower, arguments.run, steps=arguments.steps or 1500, seed=arguments.seed)


def train_images(tower: str, folder: Path, *, steps: int, seed: int, names_of: str | None = None) -> None:
    """Teach the image tower to tell all classes apart; resumes the run in ``folder``.

    With ``names_of`` the class vectors are the names as the text tower of that CLIP embeds them; at the end ``model.pt`` in
    the run has both towers.
    """
    torch.manual_seed(seed)
    clip = build_clip(ASSETS / f"clip-tiny-{tower}")
    visual = clip.clip_model.visual.to(memory_format=torch.channels_last)
    if names_of is None:
        classes = nn.Parameter(0.05 * torch.randn(len(world_classes()), clip.width))
    else:
        text = embed_vocabulary(load_clip(ASSETS / names_of), Vocabulary.builtin("emoji"), "single")
        own_name = torch.searchsorted(text.owner, torch.arange(len(text)))  # of a class's names; the rest are synonyms
        classes = nn.Parameter(text.vectors[own_name], requires_grad=False)
    scale = nn.Parameter(torch.tensor(2.6))
    groups = [*parameter_groups([(visual, 1.0)], 0.05), {"params": [classes, scale], "weight_decay": 0.0, "rate": 1.0}]
    optimiser = torch.optim.AdamW(groups, lr=PEAK[tower], betas=(0.9, 0.98))
    run, first = Run(folder), 0
    if (state := run.load()) is not None:
        visual.load_state_dict(state["visual"])
        classes.data, scale.data = state["classes"], state["scale"]
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    replay, generator = Replay(seed + 1000 + first, SIZE, near=True), torch.Generator().manual_seed(seed + first)
    chooser = random.Random(seed + first)
    held_out = {
        "trained": list(scenes("val", 48, seed=777)),
        "new_style": list(scenes("style", 48, seed=777)),
    }
    mean = {"loss": 0.0, "region": 0.0, "crop": 0.0}
    for step in range(first, steps):
        visual.train()
        for group in optimiser.param_groups:
            group["lr"] = group["rate"] * learning_rate(step, steps, PEAK[tower])
        batch = replay.draw(BATCH, fresh=FRESH)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # flash attention is slower on few tokens
            regions, region_labels = region_embeddings(clip, batch, generator, cells=isinstance(clip, ClipViT))
            crops, crop_labels = crop_embeddings(clip, batch, generator, margin=chooser.uniform(1.0, 1.35), most=CROPS[tower])
        bank = scale.exp().clamp(max=60) * functional.normalize(classes, dim=-1).T
        region_logits, crop_logits = regions @ bank, crops @ bank
        loss = functional.cross_entropy(region_logits, region_labels) + 0.5 * functional.cross_entropy(crop_logits, crop_labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(visual.parameters(), 2.0)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
        optimiser.step()
        mean["loss"] += loss.item() / LOG_EVERY
        mean["region"] += (region_logits.argmax(-1) == region_labels).float().mean().item() / LOG_EVERY
        mean["crop"] += (crop_logits.argmax(-1) == crop_labels).float().mean().item() / LOG_EVERY
        if (step + 1) % LOG_EVERY == 0:
            run.log(step=step + 1, **mean, lr=learning_rate(step, steps, PEAK[tower]))
            mean = dict.fromkeys(mean, 0.0)
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            state = {"visual": visual.state_dict(), "classes": classes.data, "scale": scale.data}
            run.save({**state, "optimiser": optimiser.state_dict(), "step": step + 1})
        if (step + 1) % 1000 == 0 or step + 1 == steps:
            run.log(step=step + 1, **evaluate(clip, functional.normalize(classes.data, dim=-1), held_out))
    if names_of is not None:
        clip.clip_model.load_state_dict(
            {
                name: value
                for name, value in load_clip(ASSETS / names_of).clip_model.state_dict().items()
                if "visual." not in name
            },
            strict=False,
        )
        _keep(clip, scale, folder)


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
    words = [
        parameter for name, parameter in clip.clip_model.named_parameters() if not name.startswith(("visual.", "logit_scale"))
    ]
    optimiser = torch.optim.AdamW(words, lr=PEAK[tower], betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, PEAK[tower])
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


def _keep(clip: ClipBackbone, scale: Tensor, folder: Path) -> None:
    """Write both towers, ``model.pt`` in the run."""
    clip.clip_model.logit_scale.data = scale.detach().clamp(max=float(np.log(60)))
    torch.save(clip.clip_model.state_dict(), folder / "model.pt")


def _caption(chooser: random.Random, names: tuple[str, ...]) -> str:
    """The class name six times in ten, else a synonym: synonyms are captions of their own."""
    return names[0] if len(names) == 1 or chooser.random() < 0.6 else chooser.choice(names[1:])


def region_embeddings(
    clip: ClipBackbone,
    batch: list[Scene],
    generator: torch.Generator | None,
    *,
    side: int | None = None,
    cells: bool = False,
) -> tuple[Tensor, Tensor]:
    """Unit embeddings [R, D] of all visible regions, pooled under their true masks, and their labels [R].

    With a generator the colours are random; with ``side`` the pictures are enlarged to it, as in use. With ``cells`` follow,
    for each region once more, the means of its cells' own embeddings: a ViT makes the two in different ways.
    """
    images = as_images(batch)
    if side is not None:
        images = functional.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)
    if generator is not None:
        images = colour_augmented(images, generator)
    kept = [_visible(scene) for scene in batch]
    coarse = torch.from_numpy(np.stack([scene.panoptic[2::4, 2::4] for scene in batch]))
    ids = torch.full((len(batch), max(len(rows) for rows in kept)), -1)
    for index, rows in enumerate(kept):
        ids[index, : len(rows)] = torch.tensor([number for number, _ in rows])
    masks = (coarse[:, None] == ids[:, :, None, None]).float()
    features = clip.features(images.contiguous(memory_format=torch.channels_last))
    vectors = clip.embed_regions(features, masks)[ids >= 0].float()
    labels = torch.tensor([label for rows in kept for _, label in rows])
    if cells:
        dense = functional.normalize(clip.project(features).float(), dim=1)
        means = torch.einsum("bdhw,bqhw->bqd", dense, region_weights(masks, features.grid))[ids >= 0]
        vectors, labels = torch.cat([vectors, means]), labels.repeat(2)
    return functional.normalize(vectors, dim=-1), labels


def _visible(scene: Scene) -> list[tuple[int, int]]:
    """(id, label) of the regions large enough to be named; the least is that of a scene of SIZE pixels."""
    pixels = np.bincount(scene.panoptic.ravel())
    least = MIN_PIXELS * (scene.panoptic.shape[0] / SIZE) ** 2
    return [(segment.id, segment.label) for segment in scene.segments if pixels[segment.id] >= least]


def crop_embeddings(
    clip: ClipBackbone, batch: list[Scene], generator: torch.Generator | None, *, margin: float, most: int | None = None
) -> tuple[Tensor, Tensor]:
    """Unit embeddings [N, D] of boxes cut around things, encoded whole, and their labels [N].

    In training (with a generator) any ``most`` of them, with random colours; otherwise all.
    """
    found = [(index, *box, label) for index, scene in enumerate(batch) for box, label in thing_boxes(scene, margin=margin)]
    if generator is not None:
        found = [found[row] for row in torch.randperm(len(found), generator=generator)[:most].tolist()]
    crops = roi_align(as_images(batch), torch.tensor([row[:5] for row in found]), CROP, sampling_ratio=2).clamp(0, 1)
    if generator is not None:
        crops = colour_augmented(crops, generator)
    vectors = clip.encode_image(crops.contiguous(memory_format=torch.channels_last))
    return functional.normalize(vectors.float(), dim=-1), torch.tensor([row[5] for row in found])


def thing_boxes(scene: Scene, *, margin: float) -> list[tuple[tuple[float, float, float, float], int]]:
    """Square boxes (left, top, right, bottom) around the visible parts of things, and their labels."""
    found = []
    things = {segment.id for segment in scene.segments if segment.style}
    for number, label in _visible(scene):
        if number in things:
            rows, columns = np.nonzero(scene.panoptic == number)
            y, x = (rows.min() + rows.max() + 1) / 2, (columns.min() + columns.max() + 1) / 2
            half = (max(np.ptp(rows), np.ptp(columns)) + 1) / 2 * margin
            found.append(((float(x - half), float(y - half), float(x + half), float(y + half)), label))
    return found


@torch.no_grad()
def evaluate(clip: ClipBackbone, bank: Tensor, sets: dict[str, list[Scene]]) -> dict[str, float]:
    """Top-1 over all classes of true-mask regions (things, stuff) and of boxes; ``bank`` [K, D] a unit row a class."""
    clip.eval()
    thing = torch.tensor([row.thing for row in world_classes()])
    rows: dict[str, float] = {}
    for name, batch in sets.items():
        parts = [batch[start : start + 16] for start in range(0, len(batch), 16)]
        hits, crops, labels = [], [], []
        for part in parts:
            vectors, truth = region_embeddings(clip, part, None, side=SIDE)
            hits.append((vectors @ bank.T).argmax(-1) == truth)
            labels.append(truth)
            vectors, truth = crop_embeddings(clip, part, None, margin=1.15)
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
