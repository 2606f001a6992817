"""Train the tiny SAM on the emoji world: one click or box in, the mask of what was meant out.

    python -m lexiseg.training.sam_tiny --steps 10300 --run runs/sam-tiny

A `transformers.SamModel` of small sizes. Each image gets several prompts, each on a random visible region, thing or
stuff: a point inside it, at times with corrections, or its box with noise. As in SAM, the loss is that of the best of
three masks (cross-entropy and dice), and the quality head learns the IoU of all three.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from lexiseg.training.tiny import CHECKPOINT_EVERY, Replay, Run, as_images, colour_augmented, learning_rate, parameter_groups
from lexiseg.world import Scene, scenes

SIZE, BATCH, PROMPTS, FRESH = 256, 8, 8, 4
EVERY = 0.3  # weight of all three masks; a click in this world means one thing, so none of them need be useless
MIN_PIXELS = 40  # of a region that is prompted for
POSITIVE, NEGATIVE, PADDING = 1, 0, -10  # SAM's point labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10300)
    parser.add_argument(
        "--run", type=Path, required=True, help="folder of the log and the checkpoint; an existing one is resumed"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--cooldown", type=float, default=0.5, help="share of the steps in which the learning rate falls")
    arguments = parser.parse_args()
    train(arguments.run, steps=arguments.steps, seed=arguments.seed, peak=arguments.lr, cooldown=arguments.cooldown)


def tiny_sam() -> Any:
    """The architecture: 6 global-attention ViT layers of width 192 on 16-pixel patches, decoder width 128."""
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

    vision = SamVisionConfig(
        hidden_size=192, output_channels=128, num_hidden_layers=6, num_attention_heads=6, mlp_dim=768, image_size=SIZE,
        patch_size=16, window_size=0, global_attn_indexes=list(range(6)), num_pos_feats=64, use_rel_pos=False,
        scale=1.0,
    )  # fmt: skip
    prompt = SamPromptEncoderConfig(hidden_size=128, image_size=SIZE, patch_size=16, mask_input_channels=16)
    decoder = SamMaskDecoderConfig(
        hidden_size=128, mlp_dim=512, num_attention_heads=4, iou_head_hidden_dim=128, layer_norm_eps=1e-5
    )
    model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))
    # As in SAM the code is fixed. Its spread is SAM's, 1; transformers' default, half the encoder's width, gives neighbouring
    # cells unrelated codes, so that a click says nothing of where it is (no learning in 250 steps).
    model.shared_image_embedding.positional_embedding.requires_grad_(False)
    model.prompt_encoder.shared_embedding.positional_embedding.requires_grad_(False)
    _let_colours_through(model)
    return model


@torch.no_grad()
def _let_colours_through(model: Any) -> None:
    """Start with a path on which the colours of all 4 × 4-pixel cells reach the decoder's fine features unchanged.

    A vision transformer otherwise needs most of a short training to learn that a patch has an inside. Each patch carries
    its 16 cells × 3 colours in its first 48 channels; the neck hands them on, and the two upscalings sort them back into
    place, once with each sign so that the activations lose nothing. All else starts at random as usual.
    """
    encoder, neck, decoder = model.vision_encoder, model.vision_encoder.neck, model.mask_decoder
    patch, carried = encoder.patch_embed.projection, 48
    patch.weight[:carried] = 0
    for row, column, colour in product(range(4), range(4), range(3)):
        channel = (row * 4 + column) * 3 + colour
        patch.weight[channel, colour, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1 / 16
    for block in encoder.layers:
        for last in (block.attn.proj, block.mlp.lin2):
            last.weight[:carried] *= 0.1
    neck.conv1.weight[:carried] = 0
    neck.conv1.weight[range(carried), range(carried)] = 1
    neck.conv2.weight[:carried] = 0
    neck.conv2.weight[range(carried), range(carried), 1, 1] = 1
    decoder.upscale_conv1.weight[:carried] = 0
    decoder.upscale_conv2.weight[:24] = 0
    for colour, sign in product(range(3), (0, 1)):
        value = 1.0 - 2.0 * sign
        for row, column in product(range(4), range(4)):
            inner = (row % 2) * 2 + column % 2
            decoder.upscale_conv1.weight[
                (row * 4 + column) * 3 + colour, inner * 6 + 2 * colour + sign, row // 2, column // 2
            ] = value
        for row, column in product(range(2), range(2)):
            decoder.upscale_conv2.weight[(row * 2 + column) * 6 + 2 * colour + sign, 2 * colour + sign, row, column] = 1.0


def train(folder: Path, *, steps: int, seed: int, peak: float, cooldown: float) -> None:
    torch.manual_seed(seed)
    model = tiny_sam()
    optimiser = torch.optim.AdamW(parameter_groups([(model, 1.0)], 0.05), lr=peak, betas=(0.9, 0.98))
    run, first = Run(folder), 0
    if (state := run.load()) is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    replay, generator = Replay(seed + 2000 + first, SIZE), torch.Generator().manual_seed(seed + first)
    rng = np.random.default_rng(seed + first)
    held_out = {"trained": list(scenes("val", 24, seed=777)), "new_style": list(scenes("style", 24, seed=777))}
    for step in range(first, steps):
        model.train()
        rate = learning_rate(step, steps, peak, cooldown=cooldown)
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = replay.draw(BATCH, fresh=FRESH)
        prompts = [_prompted(scene, rng) for scene in batch]
        points, labels, masks = (torch.from_numpy(np.stack(column)) for column in zip(*prompts, strict=True))
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # flash attention is slower on few tokens
            embeddings = encode(model, colour_augmented(as_images(batch), generator))
            logits, quality = decode(model, embeddings, points, labels)
            near = likeness(model, embeddings, points)
        loss, overlap = losses(logits.float(), quality.float(), masks)
        # Likeness is for the beginning: it fades with the learning rate.
        loss = loss + rate / peak * mask_loss(near.float(), masks)[labels[..., 0] == POSITIVE].mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
        optimiser.step()
        if step % 50 == 49:
            run.log(step=step + 1, loss=loss.item(), best_iou=overlap.amax(-1).mean().item(), norm=norm.item())
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            run.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1})
        if (step + 1) % 500 == 0 or step + 1 == steps:
            run.log(step=step + 1, **evaluate(model, held_out))


def encode(model: Any, images: Tensor) -> Tensor:
    """Embeddings [B, C, g, g] of images [B, 3, H, W] in 0..1."""
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    return model.vision_encoder((images - mean[:, None, None]) / std[:, None, None]).last_hidden_state


def decode(model: Any, embeddings: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Masks [B, N, 3, m, m] (logits) and qualities [B, N, 3] of N prompts of P points [B, N, P, 2] in pixels."""
    sparse, dense = model.prompt_encoder(points, labels, None, None)
    positions = model.get_image_wide_positional_embeddings().repeat(len(embeddings), 1, 1, 1)
    logits, quality = model.mask_decoder(
        image_embeddings=embeddings,
        image_positional_embeddings=positions,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )[:2]
    return logits, quality


def likeness(model: Any, embeddings: Tensor, points: Tensor) -> Tensor:
    """Logits [B, N, m, m] of belonging together with the first point of each prompt, from the encoder alone.

    The embeddings go through the decoder's upscaling without its transformer; cells are alike that are close. It teaches
    the encoder what belongs together before the transformer knows what a click is.
    """
    decoder = model.mask_decoder
    fine = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(embeddings)))
    fine = decoder.activation(decoder.upscale_conv2(fine)).float()  # [B, C / 8, m, m]
    x, y = (points[:, :, 0].div(4).long().clamp(0, fine.shape[-1] - 1)).unbind(-1)
    clicked = fine[torch.arange(len(fine))[:, None], :, y, x]  # [B, N, C / 8]
    distance = fine.pow(2).sum(1)[:, None] + clicked.pow(2).sum(-1)[..., None, None]
    return 3 - distance + 2 * torch.einsum("bnc,bchw->bnhw", clicked, fine)


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy and dice of masks [..., m, m] against shares in 0..1 of each cell, [...].

    Where SAM has a focal loss stands a cross-entropy whose positives weigh the more the smaller the region is: with the
    focal loss all masks stay empty for hundreds of steps, because things fill a few hundredths of a scene.
    """
    probability = logits.sigmoid()
    share = target.mean((-2, -1), keepdim=True).clamp(min=1e-4)
    weight = torch.where(target > 0.5, share.rsqrt(), 1.0)
    entropy = functional.binary_cross_entropy_with_logits(logits, target, weight, reduction="none").sum((-2, -1)) / weight.sum(
        (-2, -1)
    )
    dice = 1 - (2 * (probability * target).sum((-2, -1)) + 1) / (probability.sum((-2, -1)) + target.sum((-2, -1)) + 1)
    return 2 * entropy + dice


def losses(logits: Tensor, quality: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """SAM's loss of the best of three masks, a share of that of all three, and the IoU [B, N, 3] of every mask.

    ``masks`` [B, N, m, m] are shares in 0..1 of each cell that the true region covers.
    """
    target = masks[:, :, None].expand_as(logits)
    each = mask_loss(logits, target)
    inside, truth = logits > 0, target > 0.5
    union = (inside | truth).sum((-2, -1)).clamp(min=1)
    overlap = (inside & truth).sum((-2, -1)) / union
    return each.amin(-1).mean() + EVERY * each.mean() + functional.mse_loss(quality, overlap), overlap


def _prompted(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompts on a scene: points [N, 2, 2] (x, y), labels [N, 2], and the regions meant, [N, m, m] shares."""
    visible = np.bincount(scene.panoptic.ravel())
    regions = [segment.id for segment in scene.segments if visible[segment.id] >= MIN_PIXELS]
    things = [segment.id for segment in scene.segments if segment.style and visible[segment.id] >= MIN_PIXELS] or regions
    points, labels, masks = np.zeros((PROMPTS, 2, 2), np.float32), np.full((PROMPTS, 2), PADDING, np.int64), []
    for prompt in range(PROMPTS):
        chosen = int(rng.choice(things if rng.random() < 0.7 else regions))
        mask = scene.panoptic == chosen
        rows, columns = np.nonzero(mask)
        kind = rng.random()
        if kind < 0.2:  # its box, with noise
            noise = rng.normal(0, 0.04, 4) * np.array([np.ptp(columns), np.ptp(rows)] * 2)
            box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) + noise
            points[prompt], labels[prompt] = box.reshape(2, 2), (2, 3)
        else:
            pick = rng.integers(len(rows), size=2)
            points[prompt] = np.stack([columns[pick], rows[pick]], -1) + 0.5
            labels[prompt, 0] = POSITIVE
            if kind < 0.35:
                labels[prompt, 1] = POSITIVE
            elif kind < 0.5 and not mask.all():
                other_rows, other_columns = np.nonzero(~mask)
                spot = rng.integers(len(other_rows))
                points[prompt, 1], labels[prompt, 1] = (other_columns[spot] + 0.5, other_rows[spot] + 0.5), NEGATIVE
            if labels[prompt, 1] == PADDING:
                points[prompt, 1] = 0
        side = SIZE // 4
        masks.append(mask.reshape(side, 4, side, 4).mean((1, 3), dtype=np.float32))
    return points, labels, np.stack(masks)


@torch.no_grad()
def evaluate(model: Any, sets: dict[str, list[Scene]]) -> dict[str, float]:
    """Mean IoU at full resolution of the mask with the best predicted quality after one click, things and stuff."""
    model.eval()
    rows: dict[str, float] = {}
    for name, batch in sets.items():
        overlaps: dict[bool, list[float]] = {True: [], False: []}
        rng = np.random.default_rng(5)
        for scene in batch:
            embeddings = encode(model, as_images([scene]))
            for segment in scene.segments:
                mask = scene.panoptic == segment.id
                if mask.sum() < MIN_PIXELS:
                    continue
                overlaps[segment.style is not None].append(one_click(model, embeddings, mask, rng))
        rows |= {f"{name}_things": float(np.mean(overlaps[True])), f"{name}_stuff": float(np.mean(overlaps[False]))}
    return rows


@torch.no_grad()
def one_click(model: Any, embeddings: Tensor, mask: np.ndarray, rng: np.random.Generator) -> float:
    """IoU with ``mask`` [H, W] of the mask the model itself thinks best after one click at a random pixel of it."""
    spots = np.argwhere(mask)
    y, x = spots[rng.integers(len(spots))]
    points = torch.tensor([[[[x + 0.5, y + 0.5]]]], dtype=torch.float32)
    logits, quality = decode(model, embeddings, points, torch.tensor([[[POSITIVE]]]))
    best = logits[0, 0, quality[0, 0].argmax()]
    found = functional.interpolate(best[None, None], mask.shape, mode="bilinear", align_corners=False)[0, 0].numpy() > 0
    return float((found & mask).sum() / (found | mask).sum())


if __name__ == "__main__":
    main()
