"""SAM, HQ-SAM and SAM 2 through transformers, behind one interface: preprocess, encode, decode.

Segment Anything (Kirillov et al., 2023), Segment Anything in High Quality (Ke et al., 2023), SAM 2 (Ravi et al., 2024).
An image is encoded once; the mask decoder then takes any number of independent prompts. The parts of the decoder are called
one by one here, so that all prompts share the image up to the first layer that depends on the prompt.

Letters: N prompts, P points per prompt, M masks per prompt, C channels, g grid cells per side, S input pixels per side,
m = 4 g.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.two_way import is_shorter, two_way
from lexiseg.errors import UsageError, WeightsError
from lexiseg.ops.masks import stability_score
from lexiseg.structures import Geometry, Size

if TYPE_CHECKING:
    from transformers import Sam2Model, SamHQModel, SamModel

Skips = tuple[Tensor, ...]

SAM_MEAN, SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of RGB in 0..255


class SamFamily(nn.Module, ABC):
    """Base class of SAM, HQ-SAM, MobileSAM and SAM 2.

    Attributes:
        model: the transformers model.
        image_size: S, side of the square input in pixels.
        grid: g, side of the image embedding in cells.
        stride: input pixels per cell.
        channels: C.
        mask_size: m, side of the low-resolution masks in cells.
    """

    model: Any  # transformers' submodules have no type hints

    def __init__(self, model: nn.Module, *, image_size: int, stride: int, channels: int) -> None:
        super().__init__()
        self.model = model
        self.image_size = image_size
        self.stride = stride
        self.grid = image_size // stride
        self.channels = channels
        self.mask_size = 4 * self.grid

    def num_parameters(self) -> dict[str, int]:
        """Number of parameters of the image encoder, and of prompt encoder and mask decoder."""
        image = sum(parameter.numel() for parameter in self.model.vision_encoder.parameters())
        total = sum(parameter.numel() for parameter in self.parameters())
        return {"image encoder": image, "prompt encoder and mask decoder": total - image}

    @abstractmethod
    def geometry(self, size: Size) -> Geometry:
        """Return the geometry of the mask grid on an image of ``size`` (height, width)."""

    @abstractmethod
    def preprocess(self, image: Tensor) -> Tensor:
        """Convert an image [3, H, W], float RGB in 0..1, to network input [1, 3, S, S]."""

    @abstractmethod
    def encode_with_skips(self, images: Tensor) -> tuple[Tensor, Skips]:
        """Encode network inputs [B, 3, S, S] as image embeddings [B, C, g, g] and the decoder's skip connections."""

    @abstractmethod
    def _answer(self, tokens: Tensor, image: Tensor, skips: Skips, *, multimask: bool) -> tuple[Tensor, Tensor]:
        """Apply the heads to output tokens [N, T, C] and image features per prompt [N, C, g, g]: logits and pred_iou."""

    @abstractmethod
    def _output_tokens(self) -> Tensor:
        """Return the learned tokens in front of the prompt tokens, [T, C]."""

    def encode(self, images: Tensor) -> Tensor:
        """Encode network inputs [B, 3, S, S] as image embeddings [B, C, g, g]."""
        return self.encode_with_skips(images)[0]

    def scale_points(self, points: Tensor, size: Size) -> Tensor:
        """Scale points [..., 2], (x, y) in pixels of an image of ``size`` (height, width), to pixels of the S × S input."""
        high, wide = self.geometry(size).resized_size if self._keeps_aspect else (self.image_size, self.image_size)
        return points * points.new_tensor([wide / size[1], high / size[0]])

    def decode(
        self,
        embeddings: Tensor,
        *,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = True,
        skips: Skips = (),
    ) -> tuple[Tensor, Tensor]:
        """Decode masks for N independent prompts on one image; the result does not depend on how prompts are batched.

        Args:
            embeddings: [1, C, g, g], output of `encode`.
            points: [N, P, 2], (x, y) in pixels of the S × S input.
            labels: [N, P], 1 foreground, 0 background, -1 no point; defaults to foreground.
            boxes: [N, 4], (left, top, right, bottom) in pixels of the S × S input.
            masks: [N, 1, m, m] logits of an earlier call.
            multimask: predict several masks per prompt instead of one.
            skips: output of `encode_with_skips`; empty for SAM itself.

        Returns:
            Logits [N, M, m, m] and predicted IoU [N, M].

        Raises:
            UsageError: no prompt, or different numbers of points, boxes and masks.
        """
        tokens, image = self._attended(embeddings, points, labels, boxes, masks)
        return self._answer(tokens, image, skips, multimask=multimask)

    def decode_promising(
        self, embeddings: Tensor, points: Tensor, threshold: float, *, multimask: bool = True, skips: Skips = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode masks as `decode`, of those prompts alone that have one with a predicted IoU above a threshold.

        The predicted IoU is known before the masks are upsampled, which is spared for the other prompts.

        Args:
            embeddings, points, multimask, skips: as for `decode`.
            threshold: of the predicted IoU; all prompts are decoded for 0, and where it depends on the masks.

        Returns:
            Logits [K, M, m, m] and predicted IoU [K, M] of K prompts, and their indices [K].
        """
        tokens, image = self._attended(embeddings, points)
        rows = torch.arange(len(tokens), device=tokens.device)
        if threshold > 0 and (pred_iou := self._early_pred_iou(tokens, multimask=multimask)) is not None:
            rows = torch.nonzero((pred_iou.float() > threshold).any(1)).flatten()
            tokens, image = tokens[rows], image[rows]
        return (*self._answer(tokens, image, skips, multimask=multimask), rows)

    def _early_pred_iou(self, tokens: Tensor, *, multimask: bool) -> Tensor | None:
        """Predicted IoU [N, M] of output tokens [N, T, C]; None if it depends on the masks."""

    def _attended(
        self,
        embeddings: Tensor,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embed prompts and apply the two-way transformer, see `decode` and `_attend`."""
        counts = {len(prompt) for prompt in (points, boxes, masks) if prompt is not None}
        if len(counts) != 1:
            listed = " and ".join(map(str, sorted(counts))) or "none"
            raise UsageError(f"give N points, boxes or masks, the same N of each; got {listed}")
        count = counts.pop()
        sparse, dense = self._embed_prompts(points, labels, boxes, masks)
        if sparse is None:
            sparse = embeddings.new_zeros(1, count, 0, self.channels)
        tokens = torch.cat([self._output_tokens().expand(1, count, -1, -1), sparse.to(embeddings.dtype)], dim=2)
        return self._attend(tokens, embeddings + dense)

    def _embed_prompts(
        self, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        """Embed prompts as tokens [1, N, P', C] (None without points and boxes) and as a map [N or 1, C, g, g]."""
        if points is not None and labels is None:
            labels = torch.ones(points.shape[:2], device=points.device)
        sparse, dense = self.model.prompt_encoder(
            input_points=None if points is None else points[None].float(),
            input_labels=None if labels is None else labels[None].long(),
            input_boxes=None if boxes is None else boxes[None].float(),
            input_masks=masks,
        )
        return sparse, dense

    def _attend(self, tokens: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the two-way transformer to tokens [1, N, T, C] and an image [1 or N, C, g, g]: [N, T, C], [N, C, g, g].

        An image shared by all prompts is broadcast by the first attention, whose output has batch size N.
        """
        tokens, cells = self.model.mask_decoder.transformer(
            point_embeddings=tokens,
            image_embeddings=image,
            image_positional_embeddings=self.model.get_image_wide_positional_embeddings(),
            attention_similarity=None,
        )
        return tokens[0], cells.transpose(2, 3).reshape(-1, self.channels, self.grid, self.grid)

    @property
    @abstractmethod
    def _keeps_aspect(self) -> bool:
        """Whether the image keeps its aspect ratio inside the square input."""


class _PaddedInput(SamFamily):
    """SAM's input: the longer side is resized to S, the shorter one padded."""

    @property
    def _keeps_aspect(self) -> bool:
        return True

    def _attend(self, tokens: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        transformer = self.model.mask_decoder.transformer
        if not is_shorter(transformer, tokens.shape[2]):
            return super()._attend(tokens, image)
        cells, positions = (
            maps.flatten(2).transpose(1, 2).contiguous() for maps in (image, self.model.get_image_wide_positional_embeddings())
        )
        attended, cells = two_way(transformer, tokens[0], cells, positions)
        return attended, cells.transpose(1, 2).reshape(-1, self.channels, self.grid, self.grid)

    def _early_pred_iou(self, tokens: Tensor, *, multimask: bool) -> Tensor | None:
        return _pred_iou(self.model.mask_decoder, tokens, multimask=multimask)

    def geometry(self, size: Size) -> Geometry:
        scale = self.image_size / max(size)
        high, wide = (max(1, int(side * scale + 0.5)) for side in size)
        return Geometry((self.image_size, self.image_size), (high, wide), size)

    def preprocess(self, image: Tensor) -> Tensor:
        """Convert an image [3, H, W], float RGB in 0..1, to [1, 3, S, S].

        As in the official predictor: resized in 8 bits by Pillow if needed, normalised, then zero-padded on the right and
        below.
        """
        high, wide = self.geometry((image.shape[1], image.shape[2])).resized_size
        weight = next(self.model.parameters())
        values = image.to(weight.device).float() * 255
        if image.shape[1:] != (high, wide):
            pixels = values.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
            resized = np.array(Image.fromarray(pixels).resize((wide, high), Image.Resampling.BILINEAR))
            values = torch.from_numpy(resized).to(weight.device).permute(2, 0, 1).float()
        mean, std = (values.new_tensor(rgb)[:, None, None] for rgb in (SAM_MEAN, SAM_STD))
        padding = (0, self.image_size - wide, 0, self.image_size - high)
        return functional.pad((values - mean) / std, padding)[None].to(weight.dtype)


class SamBackbone(_PaddedInput):
    """Segment Anything."""

    def __init__(self, model: SamModel) -> None:
        vision = model.config.vision_config
        super().__init__(model, image_size=vision.image_size, stride=vision.patch_size, channels=vision.output_channels)

    def encode_with_skips(self, images: Tensor) -> tuple[Tensor, Skips]:
        return self.model.vision_encoder(images).last_hidden_state, ()

    def _output_tokens(self) -> Tensor:
        decoder = self.model.mask_decoder
        return torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])

    def _answer(
        self,
        tokens: Tensor,
        image: Tensor,
        skips: Skips,  # noqa: ARG002 - unused by SAM
        *,
        multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        return _sam_masks(self.model.mask_decoder, tokens, _upscale(self.model.mask_decoder, image), multimask=multimask)


class SamHqBackbone(_PaddedInput):
    """HQ-SAM: SAM's mask refined by an extra token and fused early features.

    As in the authors' code a prompt has one mask even with ``multimask``: the best of SAM's three plus the refinement.
    Like the authors' decoder, this one upsamples the output of the two-way transformer; transformers' own (5.23) upsamples
    its input.
    """

    def __init__(self, model: SamHQModel) -> None:
        vision = model.config.vision_config
        super().__init__(model, image_size=vision.image_size, stride=vision.patch_size, channels=vision.output_channels)

    def encode_with_skips(self, images: Tensor) -> tuple[Tensor, Skips]:
        """Encode network inputs [B, 3, S, S] as image embeddings [B, C, g, g] and the HQ feature [B, C / 8, m, m]."""
        encoded, decoder = self.model.vision_encoder(images), self.model.mask_decoder
        late, early = encoded.last_hidden_state, encoded.intermediate_embeddings[0].permute(0, 3, 1, 2)
        late_fine = decoder.encoder_conv2(decoder.activation(decoder.encoder_norm(decoder.encoder_conv1(late))))
        early_fine = decoder.compress_vit_conv2(
            decoder.activation(decoder.compress_vit_norm(decoder.compress_vit_conv1(early)))
        )
        return late, (late_fine + early_fine,)

    def _output_tokens(self) -> Tensor:
        decoder = self.model.mask_decoder
        return torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, decoder.hq_token.weight])

    def _answer(self, tokens: Tensor, image: Tensor, skips: Skips, *, multimask: bool) -> tuple[Tensor, Tensor]:
        if len(skips) != 1:
            raise UsageError("HQ-SAM's decoder needs skips; pass those of encode_with_skips")
        decoder = self.model.mask_decoder
        fine = _upscale(decoder, image)
        logits, pred_iou = _sam_masks(decoder, tokens, fine, multimask=multimask)
        logits, pred_iou = best_of(logits, pred_iou)
        sharp = decoder.mask_conv2(decoder.activation(decoder.mask_norm(decoder.mask_conv1(fine)))) + skips[0]
        token = decoder.hq_mask_mlp(tokens[:, 1 + len(decoder.output_hypernetworks_mlps)])
        return logits + _dot(token[:, None], sharp), pred_iou


class Sam2Backbone(SamFamily):
    """SAM 2 on single images (no memory of earlier frames)."""

    def __init__(self, model: Sam2Model) -> None:
        prompt = model.config.prompt_encoder_config
        super().__init__(model, image_size=prompt.image_size, stride=prompt.patch_size, channels=prompt.hidden_size)

    @property
    def _keeps_aspect(self) -> bool:
        return False

    def geometry(self, size: Size) -> Geometry:
        """Return the geometry of the mask grid, which covers exactly the image; masks are upsampled in one step."""
        grid = (self.mask_size, self.mask_size)
        return Geometry(grid, grid, size)

    def preprocess(self, image: Tensor) -> Tensor:
        """Convert an image [3, H, W], float RGB in 0..1, to [1, 3, S, S]: stretched, with ImageNet's mean and std."""
        weight = next(self.model.parameters())
        square = functional.interpolate(
            image[None].to(weight.device).float(), (self.image_size, self.image_size), mode="bilinear", antialias=True
        )
        mean, std = (square.new_tensor(rgb)[:, None, None] / 255 for rgb in (SAM_MEAN, SAM_STD))
        return ((square - mean) / std).to(weight.dtype)

    def encode_with_skips(self, images: Tensor) -> tuple[Tensor, Skips]:
        """Encode as image embeddings [B, C, g, g] and two finer maps, [B, C / 8, m, m] and [B, C / 4, m / 2, m / 2]."""
        try:
            fine, middle, coarse = self.model.vision_encoder(images).fpn_hidden_states
        except (IndexError, ValueError, ZeroDivisionError) as error:
            raise WeightsError(f"the config of this SAM does not fit its image encoder ({error}); fetch both again") from error
        decoder = self.model.mask_decoder
        no_memory = self.model.no_memory_embedding.reshape(1, -1, 1, 1)
        return coarse + no_memory, (decoder.conv_s0(fine), decoder.conv_s1(middle))

    def _early_pred_iou(self, tokens: Tensor, *, multimask: bool) -> Tensor | None:
        decoder = self.model.mask_decoder
        if not multimask and decoder.dynamic_multimask_via_stability:
            return None
        return _pred_iou(decoder, tokens[:, 1:], multimask=multimask)

    def _output_tokens(self) -> Tensor:
        decoder = self.model.mask_decoder
        return torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])

    def _embed_prompts(
        self, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        if points is None and boxes is None and masks is not None:  # SAM 2 has a token for "no point"
            points, labels = masks.new_zeros(len(masks), 1, 2), masks.new_full((len(masks), 1), -1)
        return super()._embed_prompts(points, labels, boxes, masks)

    def _attend(self, tokens: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        return super()._attend(tokens, image.expand(tokens.shape[1], -1, -1, -1))  # its attention does not broadcast

    def _answer(self, tokens: Tensor, image: Tensor, skips: Skips, *, multimask: bool) -> tuple[Tensor, Tensor]:
        if len(skips) != 2:
            raise UsageError("SAM 2's decoder needs skips; pass those of encode_with_skips")
        decoder = self.model.mask_decoder
        middle = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(image) + skips[1]))
        fine = decoder.activation(decoder.upscale_conv2(middle) + skips[0])
        logits, pred_iou = _sam_masks(decoder, tokens[:, 1:], fine, multimask=multimask)
        if multimask or not decoder.dynamic_multimask_via_stability:
            return logits, pred_iou
        # replace an unstable single mask by the best of several
        best, best_pred_iou = best_of(*_sam_masks(decoder, tokens[:, 1:], fine, multimask=True))
        stability = stability_score(logits, offset=decoder.dynamic_multimask_stability_delta).nan_to_num(1.0)
        stable = stability >= decoder.dynamic_multimask_stability_thresh
        return (
            torch.where(stable[..., None, None], logits, best),
            torch.where(stable, pred_iou, best_pred_iou),
        )


def of_image(skips: Skips, index: int) -> Skips:
    """Select the skip connections of image ``index`` of a batch."""
    return tuple(maps[index : index + 1] for maps in skips)


def best_of(logits: Tensor, pred_iou: Tensor) -> tuple[Tensor, Tensor]:
    """Select of M masks per prompt the one with the highest predicted IoU: logits [N, 1, m, m] and predicted IoU [N, 1]."""
    best = pred_iou.argmax(dim=1, keepdim=True)
    return logits.take_along_dim(best[..., None, None], dim=1), pred_iou.take_along_dim(best, dim=1)


def _upscale(decoder: Any, image: Tensor) -> Tensor:
    """Upsample image features [N, C, g, g] to [N, C / 8, m, m]."""
    middle = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(image)))
    fine: Tensor = decoder.activation(decoder.upscale_conv2(middle))
    return fine


def _sam_masks(decoder: Any, tokens: Tensor, fine: Tensor, *, multimask: bool) -> tuple[Tensor, Tensor]:
    """Compute logits [N, M, m, m] and pred_iou [N, M] of IoU and mask tokens [N, 1 + M + …, C], features [N, C / 8, m, m].

    Mask token 0 is for a single mask, the others are for ``multimask``.
    """
    mlps = decoder.output_hypernetworks_mlps
    weights = torch.stack([mlps[index](tokens[:, 1 + index]) for index in _used(decoder, multimask)], dim=1)
    return _dot(weights, fine), _pred_iou(decoder, tokens, multimask=multimask)


def _pred_iou(decoder: Any, tokens: Tensor, *, multimask: bool) -> Tensor:
    """Predicted IoU [N, M] of the IoU token, the first of [N, 1 + M + …, C]."""
    used = _used(decoder, multimask)
    predicted: Tensor = decoder.iou_prediction_head(tokens[:, 0])[:, used.start : used.stop]
    return predicted


def _used(decoder: Any, multimask: bool) -> range:
    """Indices of the mask tokens used."""
    return range(1, len(decoder.output_hypernetworks_mlps)) if multimask else range(1)


def _dot(weights: Tensor, features: Tensor) -> Tensor:
    """Dot product of weights [N, M, D] with features [N, D, m, m], [N, M, m, m]."""
    high, wide = features.shape[2:]
    return (weights @ features.flatten(2)).reshape(*weights.shape[:2], high, wide)
