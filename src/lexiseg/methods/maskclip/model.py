"""MaskCLIP (Ding et al., "Open-Vocabulary Universal Image Segmentation with MaskCLIP", ICML 2023).

CLIP classifies the masks of a frozen mask proposer. Each mask has its own class token in CLIP's vision transformer, which
attends to the patches that the mask touches; no other token attends to it, so image tokens are those of CLIP.

    masks         of Mask2Former, class-agnostic                                  `backbones/mask2former.py`
    tokens        one class token per mask, in all blocks                         `ClipViT.mask_tokens`
    attention     masked; in four blocks relative mask attention and refinement   `relative.py`
    classes       softmax of cosine similarities / 0.01

Training (official configuration): relative attention by Mask2Former's set loss with a weight of 0 for "no object"; the text of
the training has the further class "other". [decided] Mask losses count once: the official auxiliary masks are the final ones.

FOV-Seg is this model without relative attention, with mask tokens that also attend to class embeddings
(`lexiseg.methods.fovseg`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip_base import ClipFeatures
from lexiseg.backbones.clip_vit import Attend, ClipViT, Interpolation, Projection, attended, visible
from lexiseg.backbones.low_rank import add_low_rank, low_rank_parameters
from lexiseg.backbones.proposals import MaskProposer
from lexiseg.ensembles import classify_vectors
from lexiseg.errors import UsageError
from lexiseg.losses.matching import PointSource
from lexiseg.losses.set_loss import SetLossOptions, set_loss
from lexiseg.methods.base import Segmenter, Trained, check_trace, in_groups
from lexiseg.methods.fcclip.model import shortest_side
from lexiseg.methods.maskclip.config import MaskClipConfig, MaskTokenConfig
from lexiseg.methods.maskclip.relative import RelativeMaskAttention
from lexiseg.postprocess import Policy, as_mask2former
from lexiseg.structures import Geometry, ImageBatch, MaskPrediction, MaskTarget, Size, TextEmbeddings, Trace, size_of

TEMPERATURE = 0.01
SURE = 20.0  # absolute logit of given binary masks
PROJECTIONS: tuple[Projection, ...] = ("f_q", "f_k", "f_v")
OTHER = "other"  # name of the further class in training
ROWS = 16  # masks resized to pixels at once


class MaskClip(Segmenter):
    """MaskCLIP on a vision transformer CLIP and a mask proposer.

    Args:
        clip: classifies the masks; frozen but for what the config says.
        proposer: proposes masks; frozen, in evaluation mode.
        config: image sizes and relative attention.

    Raises:
        UsageError: ``relative_blocks`` exceed the blocks of the CLIP.
    """

    key = "maskclip"
    reference = 'Ding et al.: "Open-Vocabulary Universal Image Segmentation with MaskCLIP", ICML 2023'
    tasks = ("panoptic", "semantic", "instance")
    position_interpolation: ClassVar[Interpolation] = "bicubic"  # of CLIP's position embeddings
    loss_options: ClassVar[SetLossOptions] = SetLossOptions(void=0.0)
    config: MaskTokenConfig

    def __init__(self, clip: ClipViT, proposer: MaskProposer, config: MaskTokenConfig = MaskClipConfig()) -> None:
        super().__init__(config)
        blocks = config.relative_blocks if isinstance(config, MaskClipConfig) else ()
        if wrong := [number for number in blocks if number >= clip.depth]:
            raise UsageError(f"relative_blocks names block {wrong[0]}, but this CLIP has blocks 0 to {clip.depth - 1}")
        self.clip: ClipViT = clip.requires_grad_(False)
        self.proposer: MaskProposer = proposer.requires_grad_(False).eval()
        width, patch = clip.channels[0], clip.strides[0]
        self.relative = nn.ModuleDict({str(number): RelativeMaskAttention(width, patch) for number in blocks})
        self.void: nn.Module = nn.Embedding(1, clip.width) if config.void == "vector" else nn.Identity()
        if config.lora_rank:
            add_low_rank(clip, config.lora_rank)

    @property
    def policy(self) -> Policy:
        """Post-processing of its predictions; with ``mask2former_rules`` that of Mask2Former's code."""
        rules = isinstance(self.config, MaskClipConfig) and self.config.mask2former_rules
        return as_mask2former(super().policy) if rules else super().policy

    def parts(self) -> Mapping[str, nn.Module]:
        return {"clip": self.clip, "proposer": self.proposer, "relative": self.relative, "void": self.void}

    def trained_parts(self) -> frozenset[str]:
        return frozenset(entry.name.split(".", 1)[0] for entry in self.trainable())

    def trainable(self) -> Iterator[Trained]:
        """Trainable parameters: of CLIP what ``tuned`` or ``lora_rank`` say, and all new modules."""
        yield from (Trained(f"clip.{name}", parameter, rows) for name, parameter, rows in self._tuned())
        for entry in super().trainable():
            if entry.name.split(".", 1)[0] not in ("clip", "proposer"):
                yield entry

    def _tuned(self) -> Iterator[tuple[str, nn.Parameter, tuple[slice, ...]]]:
        """Trained parameters of CLIP and their frozen rows."""
        tuned, tower = self.config.tuned, "clip_model.visual."
        if self.config.lora_rank:
            yield from ((name, parameter, ()) for name, parameter in low_rank_parameters(self.clip))
        elif "all" in tuned:
            named = self.clip.named_parameters()
            yield from ((name, parameter, ()) for name, parameter in named if name.startswith(tower))
        else:
            if projections := [kind for kind in PROJECTIONS if kind in tuned]:
                yield from self.clip.projection_rows(projections)
            if "mlp" in tuned:
                named = self.clip.named_parameters()
                yield from ((name, value, ()) for name, value in named if name.startswith(tower) and ".mlp." in name)

    def loss(
        self,
        images: ImageBatch,
        text: TextEmbeddings,
        targets: Sequence[MaskTarget],
        options: SetLossOptions | None = None,
        draw: PointSource | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of a training batch of images of one size.

        Args:
            images: B images.
            text: embeddings of the training classes.
            targets: ground truth of each image.
            options: see `SetLossOptions`; default is ``loss_options``.
            draw: random source of the points.
        """
        with torch.no_grad():
            proposals = self.proposer(images.pixels)
        features = self.encode_images(padded_to(images.pixels, proposals.padded_size, self.clip.mean))
        classes, masks = self.names(features, proposals.masks, text)
        geometries = tuple(Geometry.unresized(size, proposals.padded_size) for size in images.sizes)
        prediction = MaskPrediction(masks, classes, classes.shape[-1] > len(text), geometries)
        return set_loss(prediction, targets, options or self.loss_options, draw)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        self.proposer.eval()
        return self

    @torch.no_grad()
    def forward(self, images: ImageBatch, text: TextEmbeddings, *, trace: Trace | None = None) -> MaskPrediction:
        """Predict masks with classes. Images with network inputs of equal size are processed together.

        A trace receives ``clip`` [D, h, w], CLIP's patch features in the joint space, and ``masks`` [Q, h, w], the proposer's
        logits.
        """
        check_trace(images, trace)
        predictions = in_groups(
            list(images),
            lambda image: self.network_size(size_of(image)),
            lambda group: self._segment(group, text, trace).split(),
        )
        prediction = MaskPrediction.join(predictions)
        official = isinstance(self.config, MaskClipConfig) and self.config.behaviour == "official"
        return without_last(prediction) if official else prediction

    @torch.no_grad()
    def name_regions(self, image: Tensor, regions: Tensor, text: TextEmbeddings) -> MaskPrediction:
        """Classify regions [R, H, W] bool of an image [3, H, W], see `NamesRegions`."""
        size = size_of(image)
        masks = torch.where(regions, SURE, -SURE)[None]
        if len(regions) == 0:
            classes = image.new_zeros(1, 0, len(text))
            return MaskPrediction(masks, classes, False, (Geometry.unresized(size),))
        classes, _ = self.names(self.encode_images(self.network_input(image)), masks, text)
        return MaskPrediction(masks, classes, classes.shape[-1] > len(text), (Geometry.unresized(size),))

    def names(self, features: ClipFeatures, masks: Tensor, text: TextEmbeddings) -> tuple[Tensor, Tensor]:
        """Classify masks: log-probabilities [B, Q, K], or [B, Q, K + 1] with "no object", and refined masks.

        Args:
            features: CLIP features of B square images.
            masks: logits [B, Q, h, w] over the same images.
            text: K classes.
        """
        vectors, masks = self.embed(features, masks, text)
        classes = classify_vectors(vectors, text, 1 / TEMPERATURE, self.void_vector())
        return classes, masks

    def void_vector(self) -> Tensor | None:
        """Vector [D] of "no object"; None if there is none, as with "word" in evaluation mode."""
        if isinstance(self.void, nn.Embedding):
            return self.void.weight[0]
        if self.config.void == "word" and self.training:
            with torch.no_grad():
                return self.clip.encode_text(self.clip.tokenize([OTHER]))[0]
        return None

    def embed(self, features: ClipFeatures, masks: Tensor, text: TextEmbeddings) -> tuple[Tensor, Tensor]:
        """Embeddings of masks in the joint space [B, Q, D], and refined masks, see `names`."""
        parts = masks.split(self.config.masks_at_once or masks.shape[1], dim=1)
        outputs = [self._embedded(features, part, text) for part in parts]
        vectors, refined = (torch.cat(each, dim=1) for each in zip(*outputs, strict=True))
        return vectors, refined

    def _embedded(self, features: ClipFeatures, masks: Tensor, _text: TextEmbeddings, /) -> tuple[Tensor, Tensor]:
        if len(self.relative):  # masks are refined at pixel resolution
            size = [side * self.clip.strides[0] for side in features.grid]
            masks = functional.interpolate(masks, size, mode="bilinear", align_corners=False)
        return self.clip.mask_tokens(features, masks, self.attend(features.grid))

    def attend(self, grid: Size) -> Attend:
        """Return the attention of mask tokens on a grid of h × w patches, see `ClipViT.mask_tokens`."""

        def take(number: int, block: Any, tokens: Tensor, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
            attn_mask = visible(touched(masks, grid, self.clip.strides[0]))
            if str(number) not in self.relative:
                return attended(block, tokens, image, attn_mask), masks
            output: tuple[Tensor, Tensor] = self.relative[str(number)](block, tokens, image, attn_mask, masks)
            return output

        return take

    def encode_images(self, pixels: Tensor) -> ClipFeatures:
        """CLIP features of pixels [B, 3, H, W], resized to its square input."""
        side = (self.config.clip_image_size, self.config.clip_image_size)
        squares = functional.interpolate(pixels, side, mode="bicubic", align_corners=False)
        return self.clip.features(squares, self.position_interpolation, last_block=False)

    def network_size(self, size: Size) -> Size:
        """(height, width) of an image in the mask proposer."""
        shortest = self.config.shortest_edge
        return size if shortest is None else shortest_side(size, shortest, self.config.longest_edge)

    def network_input(self, image: Tensor) -> Tensor:
        """Resize an image [3, H, W] for the mask proposer, [1, 3, H', W']."""
        resized_size = self.network_size(size_of(image))
        if resized_size != size_of(image):
            image = functional.interpolate(image[None], resized_size, mode="bilinear", antialias=True, align_corners=False)[0]
        return image[None]

    def _segment(self, images: Sequence[Tensor], text: TextEmbeddings, trace: Trace | None) -> MaskPrediction:
        """Predict for images [3, H, W] of equal `network_size`."""
        pixels = torch.cat([self.network_input(image) for image in images])
        proposals = self.proposer(pixels)
        geometries = tuple(Geometry(proposals.padded_size, size_of(pixels), size_of(image)) for image in images)
        features = self.encode_images(padded_to(pixels, proposals.padded_size, self.clip.mean))
        classes, masks = self.names(features, proposals.masks, text)
        if trace is not None:
            trace["clip"] = self.clip.patch_tokens(features)[0].T.unflatten(-1, features.grid)
            trace["masks"], trace.geometry = proposals.masks[0], geometries[0]
        return MaskPrediction(masks, classes, classes.shape[-1] > len(text), geometries)


def without_last(prediction: MaskPrediction) -> MaskPrediction:
    """Exclude the last class of a prediction from semantic results."""
    classes = prediction.classes.clone()
    classes[..., -1] = -torch.inf
    return replace(prediction, semantic_ensemble=(replace(prediction, classes=classes),))


def touched(masks: Tensor, grid: Size, patch: int) -> Tensor:
    """Patches that contain any pixel of a mask, [B, Q, h, w] bool.

    Args:
        masks: logits [B, Q, H, W], resized bilinearly to the pixels of the patches.
        grid: (h, w) patches over the same area.
        patch: side of a patch in pixels.
    """
    size = [side * patch for side in grid]
    pixels = (functional.interpolate(part, size, mode="bilinear", align_corners=False) for part in masks.split(ROWS, dim=1))
    return torch.cat([functional.max_pool2d(part, patch) >= 0 for part in pixels], dim=1)


def padded_to(pixels: Tensor, size: Size, colour: Sequence[float]) -> Tensor:
    """Pad pixels [B, 3, H, W] to ``size``, right and bottom, with a colour."""
    high, wide = pixels.shape[-2:]
    if (high, wide) == size:
        return pixels
    whole = pixels.new_tensor(colour)[:, None, None].expand(len(pixels), 3, *size).clone()
    whole[..., :high, :wide] = pixels
    return whole
