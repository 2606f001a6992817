"""Train the tiny SAM on the emoji world: a click or box in, the mask of its region out.

    python -m lexiseg.training.sam_tiny --steps 12000 --run runs/sam-tiny
    python -m lexiseg.training.sam_tiny --device cuda --minutes 7 --batch-size 96 --prompts 16 --run runs/sam-tiny

The model is a `transformers.EdgeTamModel`: SAM 2's prompt encoder and mask decoder on a small ResNet, with skip connections
from strides 4 and 8 to the decoder. Each image gets several prompts (`lexiseg.training.sam_prompts`), some of which are then
corrected. As in SAM, the loss is that of the best of three masks (cross-entropy and dice), and the IoU head learns the IoU of
all three.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.sam import Sam2Backbone, SamFamily
from lexiseg.backbones.sam_loading import print_without_hub
from lexiseg.backbones.state_dicts import read_state
from lexiseg.inference.pipeline import resolve_device
from lexiseg.ops.allocator import keep_freed_memory
from lexiseg.training.sam_prompts import CELL, MIN_PIXELS, POSITIVE, Prompts, corrections, prompts_on
from lexiseg.training.tiny import (
    CHECKPOINT_EVERY,
    Budget,
    Run,
    ScenePool,
    SceneStream,
    colour_augmented,
    fast,
    learning_rate,
    parameter_groups,
)
from lexiseg.world import Scene, scenes

SIZE, PATCH = 256, 16  # side of the input and stride of the image embedding, in pixels
EVERY = 0.3  # weight of the loss of all three masks; clicks in this world are unambiguous
CORRECTED = 0.3  # weight of the loss of corrected prompts
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Embeddings = tuple[Tensor, Tensor, Tensor]  # [B, C, g, g], and the skips [B, C / 8, 4g, 4g] and [B, C / 4, 2g, 2g]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--minutes", type=float, help="end sooner, with the learning rate at zero by then")
    parser.add_argument(
        "--run", type=Path, required=True, help="folder of the log and the checkpoint; an existing one is resumed"
    )
    parser.add_argument("--start", type=Path, help="weights to begin with, as in the package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--cooldown", type=float, default=0.6, help="fraction of the training in which the learning rate falls")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=8, help="of each image")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1, help="processes that render scenes")
    parser.add_argument("--pool", type=int, default=3000, help="scenes that are kept to draw from")
    parser.add_argument("--fresh", type=int, default=1, help="groups of eight new scenes that may enter it before a step")
    parser.add_argument("--evaluate-every", type=int, default=500, help="steps")
    keep_freed_memory()
    train(parser.parse_args())


def tiny_sam() -> Any:
    """Build the model with initial weights: 4.1 M parameters, of which 3.5 M are the image encoder's."""
    from transformers import EdgeTamConfig, EdgeTamModel
    from transformers.models.edgetam.configuration_edgetam import (
        EdgeTamMaskDecoderConfig,
        EdgeTamPromptEncoderConfig,
        EdgeTamVisionConfig,
    )
    from transformers.models.timm_wrapper import TimmWrapperConfig

    print_without_hub()
    channels, width = [48, 96, 160, 224], 128
    backbone = TimmWrapperConfig(
        architecture="resnet10t",
        model_args={
            "in_chans": 3,
            "features_only": True,
            "out_indices": [1, 2, 3, 4],
            "layers": [2, 2, 3, 2],
            "channels": channels,
            "stem_width": 16,
            "stem_type": "deep",
        },
    )
    side = SIZE // PATCH
    vision = EdgeTamVisionConfig(
        backbone_config=backbone,
        backbone_channel_list=channels[::-1],
        backbone_feature_sizes=[[4 * side, 4 * side], [2 * side, 2 * side], [side, side]],
        fpn_hidden_size=width,
        fpn_top_down_levels=[0, 1, 2, 3],
        fpn_kernel_size=1,
        fpn_padding=0,
    )
    prompt = EdgeTamPromptEncoderConfig(hidden_size=width, image_size=SIZE, patch_size=PATCH, mask_input_channels=16)
    decoder = EdgeTamMaskDecoderConfig(hidden_size=width, mlp_dim=2 * width, num_attention_heads=4, iou_head_hidden_dim=width)
    model = EdgeTamModel(EdgeTamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))
    _init_weights(model)
    return model


@torch.no_grad()
def _init_weights(model: Any) -> None:
    """Initialise the weights for a short training; it does not converge from transformers' default, 0.02 everywhere."""
    # Clicks and cells are compared by their position encodings, which nothing in the model ties.
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(model.shared_image_embedding.positional_embedding)
    for part in (model.vision_encoder.neck, model.mask_decoder, model.prompt_encoder.mask_embed):
        for module in part.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                fan_in = module.weight.shape[0] if isinstance(module, nn.ConvTranspose2d) else module.weight[0].numel()
                nn.init.normal_(module.weight, std=fan_in**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    for module in model.vision_encoder.backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for module in model.vision_encoder.backbone.modules():
        if hasattr(module, "conv2") and hasattr(module, "bn2"):  # residual branches start small
            nn.init.constant_(module.bn2.weight, 0.2)
    for convolution in model.vision_encoder.neck.convs:
        convolution.weight.mul_(0.5)
    decoder, prompts = model.mask_decoder, model.prompt_encoder
    for head in (*decoder.output_hypernetworks_mlps, decoder.iou_prediction_head):
        for layer in (head.proj_in, *head.layers):
            layer.weight.mul_(2**0.5)
    for head in decoder.output_hypernetworks_mlps:
        head.proj_out.weight.mul_(0.3)
    decoder.iou_prediction_head.proj_out.weight.mul_(0.1)
    nn.init.zeros_(prompts.no_mask_embed.weight)
    prompts.mask_embed.conv3.weight.mul_(0.1)
    _init_click_attention(model)


@torch.no_grad()
def _init_click_attention(model: Any) -> None:
    """Initialise the decoder so that the tokens of a prompt attend to the cells at its click.

    Every attention between tokens and cells initially compares half of the frequencies of the position encoding
    (``compared``); the other half of the channels (``own``) identifies the token. The first self-attention of the decoder,
    which has no residual, keeps each token's own half in two of its heads, and gives all tokens the mean encoding of the
    prompt in the others.
    """
    decoder, prompts = model.mask_decoder, model.prompt_encoder
    layers, width = decoder.transformer.layers, decoder.hidden_size
    half = width // 2
    frequency = torch.randperm(half)  # the encoding is [sines, cosines], `half` of each
    compared = torch.stack([frequency[: half // 2], frequency[: half // 2] + half], dim=1).flatten()
    own = torch.stack([frequency[half // 2 :], frequency[half // 2 :] + half], dim=1).flatten()
    rows = torch.arange(half)

    def noise(weight: Tensor, spread: float) -> None:
        nn.init.normal_(weight, std=spread * weight.shape[1] ** -0.5)

    crossed = [side for layer in layers for side in (layer.cross_attn_token_to_image, layer.cross_attn_image_to_token)]
    for attention in (*crossed, decoder.transformer.final_attn_token_to_image):
        noise(attention.q_proj.weight, 0.2)
        attention.q_proj.weight[rows, compared] += 2.0
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        nn.init.orthogonal_(attention.v_proj.weight)
        attention.o_proj.weight.copy_(attention.v_proj.weight.T)
    first, second = (layer.self_attn for layer in layers)
    noise(first.q_proj.weight[:half], 3.0)
    noise(first.q_proj.weight[half:], 0.2)
    first.k_proj.weight.copy_(first.q_proj.weight)
    nn.init.zeros_(first.v_proj.weight)
    first.v_proj.weight[rows, own] = 1.0
    first.v_proj.weight[rows + half, compared] = 1.0
    first.o_proj.weight.copy_(first.v_proj.weight.T)
    first.v_proj.weight[half:] *= 3.0
    nn.init.orthogonal_(second.v_proj.weight)
    second.o_proj.weight.copy_(0.5 * second.v_proj.weight.T)
    tokens = (decoder.iou_token, decoder.mask_tokens, decoder.obj_score_token, prompts.point_embed, prompts.not_a_point_embed)
    for token in tokens:
        nn.init.normal_(token.weight, std=0.3)
        token.weight[:, compared] = 0
    for layer in layers:
        layer.mlp.proj_out.weight.mul_(0.5)


def train(options: argparse.Namespace) -> None:
    """Train with the options of the command line; resumes from the run's checkpoint."""
    device = resolve_device(options.device)
    torch.manual_seed(options.seed)
    model = tiny_sam()
    if options.start is not None:
        model.load_state_dict(read_state(options.start))
    model.to(device)
    model.vision_encoder.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(parameter_groups([(model, 1.0)], 0.05), lr=options.lr, betas=(0.9, 0.98))
    run, step = Run(options.run), 0
    if (state := run.load()) is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    stream = SceneStream(options.seed + 2000 + step, SIZE, count=8, near=False, restyle=True)
    pool = ScenePool(stream, device, workers=options.workers, capacity=options.pool, fresh=options.fresh, seed=step)
    held_out = {"trained": list(scenes("val", 24, seed=777)), "new_style": list(scenes("style", 24, seed=777))}
    budget = Budget(options.steps, options.minutes)
    torch.manual_seed(options.seed + step)
    while (progress := budget.progress(step, run.seconds)) < 1:
        model.train()
        rate = learning_rate(progress, step, options.lr, cooldown=options.cooldown)
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = pool.draw(options.batch_size)
        prompts = prompts_on(batch, options.prompts)
        with fast(device):
            embeddings = encode(model, colour_augmented(batch.floats()))
            logits, pred_iou = decode(model, embeddings, prompts)
            near = likeness(model, embeddings, prompts.points)
        loss, overlap = losses(logits.float(), pred_iou.float(), prompts.masks)
        # The similarity loss helps at the beginning only: its weight decays with the learning rate.
        clicked = (prompts.labels[..., 0] == POSITIVE).float()
        similarity = (mask_loss(near.float(), prompts.masks) * clicked).sum() / clicked.sum()
        corrected = corrections(prompts, logits.detach().float(), pred_iou.detach())
        with fast(device):
            logits, pred_iou = decode(model, _first_images(embeddings, len(corrected.points)), corrected)
        corrected_loss, _ = losses(logits.float(), pred_iou.float(), corrected.masks)
        loss = loss + rate / options.lr * similarity + CORRECTED * corrected_loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % 50 == 0:
            run.log(step=step, loss=loss.item(), best_iou=overlap.amax(-1).mean().item(), norm=norm.item(), fresh=pool.arrived)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
        if step % CHECKPOINT_EVERY == 0:
            run.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step})
        if step % options.evaluate_every == 0:
            run.log(step=step, **evaluate(model, held_out))
    run.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step})
    run.log(step=step, **evaluate(model, held_out))


# --- the model --------------------------------------------------------------------------------------------------------


def encode(model: Any, images: Tensor) -> Embeddings:
    """Encode images [B, 3, H, W] in 0..1 into their embedding and skip features."""
    mean, std = (images.new_tensor(colour)[:, None, None] for colour in (MEAN, STD))
    normalised = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
    fine, middle, coarse = model.vision_encoder(normalised).fpn_hidden_states
    decoder = model.mask_decoder
    return coarse + model.no_memory_embedding.reshape(1, -1, 1, 1), decoder.conv_s0(fine), decoder.conv_s1(middle)


def decode(model: Any, embeddings: Embeddings, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Decode prompts into mask logits [B, N, 3, m, m] and predicted IoU [B, N, 3]."""
    points, labels = prompts.points, prompts.labels
    if prompts.given is not None:  # a mask prompt is added to the image embedding, so each prompt needs its own copy
        number, count = points.shape[:2]
        repeated = tuple(part.repeat_interleave(count, dim=0) for part in embeddings)
        decoded = _decode(
            model, repeated, points.flatten(0, 1)[:, None], labels.flatten(0, 1)[:, None], prompts.given.flatten(0, 1)[:, None]
        )
        return decoded[0].unflatten(0, (number, count))[:, :, 0], decoded[1].unflatten(0, (number, count))[:, :, 0]
    split = prompts.singles
    single = _decode(model, embeddings, points[:, :split, :1], labels[:, :split, :1], None)
    double = _decode(model, embeddings, points[:, split:], labels[:, split:], None)
    return torch.cat([single[0], double[0]], dim=1), torch.cat([single[1], double[1]], dim=1)


def _decode(
    model: Any, embeddings: Sequence[Tensor], points: Tensor, labels: Tensor, given: Tensor | None
) -> tuple[Tensor, Tensor]:
    embedding, fine, middle = embeddings
    with torch.autocast(points.device.type, enabled=False):  # bfloat16 cannot tell neighbouring pixels apart
        sparse, dense = model.prompt_encoder(points, labels, None, given)
        positions = model.get_image_wide_positional_embeddings()
    logits, pred_iou = model.mask_decoder(
        image_embeddings=embedding.contiguous(),
        image_positional_embeddings=positions.expand(len(embedding), -1, -1, -1),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
        high_resolution_features=[fine.contiguous(), middle.contiguous()],
    )[:2]
    return logits, pred_iou


def _first_images(embeddings: Embeddings, number: int) -> Embeddings:
    embedding, fine, middle = embeddings
    return embedding[:number], fine[:number], middle[:number]


def likeness(model: Any, embeddings: Embeddings, points: Tensor) -> Tensor:
    """Similarity logits [B, N, m, m] of each cell to the first point of each prompt, from the encoder alone.

    The embeddings pass the decoder's upscaling without its transformer; the logits fall with the squared distance. This
    teaches the encoder to group cells before the transformer has learnt to use clicks.
    """
    embedding, skip, middle = embeddings
    decoder = model.mask_decoder
    fine = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(embedding) + middle))
    fine = decoder.activation(decoder.upscale_conv2(fine) + skip).float()  # [B, C / 8, m, m]
    x, y = points[:, :, 0].div(CELL).long().clamp(0, fine.shape[-1] - 1).unbind(-1)
    clicked = fine[torch.arange(len(fine), device=fine.device)[:, None], :, y, x]  # [B, N, C / 8]
    with torch.autocast(fine.device.type, enabled=False):
        distance = fine.pow(2).sum(1)[:, None] + clicked.pow(2).sum(-1)[..., None, None]
        return 3 - distance + 2 * torch.einsum("bnc,bchw->bnhw", clicked, fine)


# --- losses and scores ------------------------------------------------------------------------------------------------


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy and dice loss of mask logits [..., m, m] against coverage in 0..1 of each cell. Returns [...].

    In place of SAM's focal loss, a cross-entropy with positives weighted by the inverse square root of their fraction: with
    the focal loss all masks stay empty for hundreds of steps, because things fill a few hundredths of a scene.
    """
    probability = logits.sigmoid()
    fraction = target.mean((-2, -1), keepdim=True).clamp(min=1e-4)
    weight = torch.where(target > 0.5, fraction.rsqrt(), 1.0)
    entropy = functional.binary_cross_entropy_with_logits(logits, target, weight, reduction="none").sum((-2, -1)) / weight.sum(
        (-2, -1)
    )
    dice = 1 - (2 * (probability * target).sum((-2, -1)) + 1) / (probability.sum((-2, -1)) + target.sum((-2, -1)) + 1)
    return 2 * entropy + dice


def losses(logits: Tensor, pred_iou: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """SAM's loss of the best of three masks plus `EVERY` times the mean loss of all three; and the IoU [B, N, 3] of each.

    ``masks`` [B, N, m, m] is the fraction in 0..1 of each cell that the true region covers.
    """
    target = masks[:, :, None].expand_as(logits)
    each = mask_loss(logits, target)
    inside, truth = logits > 0, target > 0.5
    union = (inside | truth).sum((-2, -1)).clamp(min=1)
    overlap = (inside & truth).sum((-2, -1)) / union
    return each.amin(-1).mean() + EVERY * each.mean() + functional.mse_loss(pred_iou, overlap), overlap


@torch.no_grad()
def evaluate(model: Any, sets: dict[str, list[Scene]]) -> dict[str, float]:
    """Mean IoU on things of one click anywhere, one at the centre, and a box; and of one click anywhere on stuff."""
    sam = Sam2Backbone(model.eval())
    rows: dict[str, float] = {}
    for name, chosen in sets.items():
        rng = np.random.default_rng(5)
        regions = [region for scene in chosen for region in prompted(sam, scene, rng)]
        things = [row for row in regions if row.thing]
        rows[f"{name}_things"] = float(np.mean([row.click for row in things]))
        rows[f"{name}_centres"] = float(np.mean([row.centre for row in things]))
        rows[f"{name}_boxes"] = float(np.mean([row.box for row in things]))
        rows[f"{name}_stuff"] = float(np.mean([row.click for row in regions if not row.thing]))
    return rows


@dataclass(frozen=True)
class PromptedRegion:
    """IoU of SAM's masks of a region at full resolution, taking the mask with the highest predicted IoU.

    Attributes:
        thing: whether the region is a thing.
        click: with a click at a random pixel of the region.
        centre: with a click where the border is farthest.
        box: with the region's box.
    """

    thing: bool
    click: float
    centre: float
    box: float


@torch.no_grad()
def prompted(sam: SamFamily, scene: Scene, rng: np.random.Generator) -> list[PromptedRegion]:
    """Prompt a SAM with every region of a scene: a random click, a click at its centre, and its box."""
    masks = [(segment.style is not None, scene.panoptic == segment.id) for segment in scene.segments]
    masks = [(thing, mask) for thing, mask in masks if mask.sum() >= MIN_PIXELS]
    device, size = next(sam.parameters()).device, scene.panoptic.shape
    image = torch.from_numpy(scene.image).to(device).permute(2, 0, 1).float() / 255
    embedding, skips = sam.encode_with_skips(sam.preprocess(image))
    clicks, centres, boxes = [], [], []
    for _, mask in masks:
        pixels = np.argwhere(mask)
        clicks.append(pixels[rng.integers(len(pixels))][::-1] + 0.5)
        depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        centres.append(np.array(np.unravel_index(depth.argmax(), size))[::-1] + 0.5)
        boxes.append([*pixels.min(0)[::-1], *(pixels.max(0)[::-1] + 1)])

    def overlaps(points: Tensor | None = None, boxes: Tensor | None = None) -> list[float]:
        logits, pred_iou = sam.decode(embedding, points=points, boxes=boxes, skips=skips)
        best = logits[torch.arange(len(logits)), pred_iou.argmax(1)]
        upsampled = functional.interpolate(best[None].float(), size, mode="bilinear", align_corners=False)[0]
        predicted = upsampled.cpu().numpy() > 0
        return [float((mask & true).sum() / (mask | true).sum()) for mask, (_, true) in zip(predicted, masks, strict=True)]

    def scaled(points: list[Any]) -> Tensor:
        return sam.scale_points(torch.tensor(np.array(points), dtype=torch.float32, device=device).unflatten(1, (-1, 2)), size)

    columns = overlaps(points=scaled(clicks)), overlaps(points=scaled(centres)), overlaps(boxes=scaled(boxes).flatten(1))
    return [PromptedRegion(thing, *row) for (thing, _), row in zip(masks, zip(*columns, strict=True), strict=True)]


if __name__ == "__main__":
    main()
