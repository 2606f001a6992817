"""MaskCLIP (Ding et al., "Open-Vocabulary Universal Image Segmentation with MaskCLIP", ICML 2023).

A frozen generator proposes masks of everything; CLIP names them. Each mask has a class token of its own in CLIP's vision
transformer, which sees the patches its mask touches and is seen by nobody; so the image's tokens are CLIP's.

    masks         Mask2Former's, without its classes                              `backbones/mask2former.py`
    tokens        copies of the class token, through all blocks                   `ClipViT.mask_tokens`
    attention     to touched patches; in four blocks relative to the mask,        `relative.py`
                  which is drawn again there
    classes       cosines with the names / 0.01

FOV-Seg is this model without the relative attention and with tokens that ask the names, too: see `lexiseg.methods.fovseg`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip_base import ClipFeatures
from lexiseg.backbones.clip_vit import Attend, ClipViT, Interpolation, attended, visible
from lexiseg.backbones.proposals import MaskProposer
from lexiseg.ensembles import classify_vectors
from lexiseg.errors import UsageError
from lexiseg.methods.base import Segmenter, check_trace, in_groups
from lexiseg.methods.fcclip.model import shortest_side
from lexiseg.methods.maskclip.config import MaskClipConfig, MaskTokenConfig
from lexiseg.methods.maskclip.relative import RelativeMaskAttention
from lexiseg.structures import ImageBatch, MaskPrediction, Size, TextEmbeddings, Trace, size_of

TEMPERATURE = 0.01
SURE = 20.0  # logit of a cell of a mask that is given


class MaskClip(Segmenter):
    """Mask tokens of a CLIP with a vision transformer on the masks of a frozen generator.

    Args:
        clip: names the masks; frozen.
        proposer: proposes them; frozen, and in evaluation mode.
        config: sizes of images, and relative attention.

    Raises:
        UsageError: CLIP has no such blocks.
    """

    key = "maskclip"
    tasks = ("panoptic", "semantic", "instance")
    position_interpolation: ClassVar[Interpolation] = "bicubic"  # of CLIP's positions, for another grid than its own
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

    def parts(self) -> Mapping[str, nn.Module]:
        return {"clip": self.clip, "proposer": self.proposer, "relative": self.relative}

    def trained_parts(self) -> frozenset[str]:
        return frozenset({"relative"} if len(self.relative) else ())

    def train(self, mode: bool = True) -> Self:
        """As usual, but what is frozen stays in evaluation mode."""
        super().train(mode)
        self.proposer.eval()
        return self

    @torch.no_grad()
    def forward(self, images: ImageBatch, text: TextEmbeddings, *, trace: Trace | None = None) -> MaskPrediction:
        """Masks with classes. Images that have one size in the network are seen together.

        A trace gets ``clip`` [D, h, w], CLIP's patches in the joint space, and ``masks`` [Q, h, w], the generator's logits.
        """
        check_trace(images, trace)
        found = in_groups(
            list(images),
            lambda image: self.network_size(size_of(image)),
            lambda group: self._segment(group, text, trace).split(),
        )
        prediction = MaskPrediction.join(found)
        official = isinstance(self.config, MaskClipConfig) and self.config.behaviour == "official"
        return without_last(prediction) if official else prediction

    @torch.no_grad()
    def name_regions(self, image: Tensor, regions: Tensor, text: TextEmbeddings) -> MaskPrediction:
        """What the regions [R, H, W] bool of an image [3, H, W] are called; see `NamesRegions`."""
        size = size_of(image)
        masks = torch.where(regions, SURE, -SURE)[None]
        if len(regions) == 0:
            classes = image.new_zeros(1, 0, len(text))
            return MaskPrediction(masks, classes, False, (size,), (size,))
        classes, _ = self.names(self.encode_images(self.network_input(image)), masks, text)
        return MaskPrediction(masks, classes, classes.shape[-1] > len(text), (size,), (size,))

    def names(self, features: ClipFeatures, masks: Tensor, text: TextEmbeddings) -> tuple[Tensor, Tensor]:
        """Log-probabilities of classes [B, Q, K], or [B, Q, K + 1] with "no object", and the masks as CLIP leaves them.

        Args:
            features: of B squares.
            masks: logits [B, Q, h, w] over the same squares.
            text: K classes.
        """
        vectors, masks = self.embed(features, masks, text)
        classes = classify_vectors(vectors, text, 1 / TEMPERATURE, self.void_vector())
        return classes, masks

    def void_vector(self) -> Tensor | None:
        """The vector [D] of "no object"; None where nothing competes with the names."""
        return None

    def embed(self, features: ClipFeatures, masks: Tensor, text: TextEmbeddings) -> tuple[Tensor, Tensor]:
        """Embeddings of masks in the joint space [B, Q, D], and the masks drawn again; see `names`."""
        parts = masks.split(self.config.masks_at_once or masks.shape[1], dim=1)
        found = [self._embedded(features, part, text) for part in parts]
        vectors, drawn = (torch.cat(each, dim=1) for each in zip(*found, strict=True))
        return vectors, drawn

    def _embedded(self, features: ClipFeatures, masks: Tensor, _text: TextEmbeddings, /) -> tuple[Tensor, Tensor]:
        if len(self.relative):  # masks are drawn again pixel by pixel
            size = tuple(side * self.clip.strides[0] for side in features.grid)
            masks = functional.interpolate(masks, size, mode="bilinear", align_corners=False)

        return self.clip.mask_tokens(features, masks, self.attend(features.grid))

    def attend(self, grid: Size) -> Attend:
        """What mask tokens take from a picture of h × w patches, of masks as logits [B, Q, H, W]; see `ClipViT.mask_tokens`."""

        def take(number: int, block: Any, tokens: Tensor, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
            seen = visible(touched(masks, grid))
            if str(number) not in self.relative:
                return attended(block, tokens, image, seen), masks
            found: tuple[Tensor, Tensor] = self.relative[str(number)](block, tokens, image, seen, masks)
            return found

        return take

    def encode_images(self, pixels: Tensor) -> ClipFeatures:
        """What CLIP sees of pixels [B, 3, H, W], squeezed into its square."""
        side = (self.config.clip_image_size, self.config.clip_image_size)
        squares = functional.interpolate(pixels, side, mode="bicubic", align_corners=False)
        return self.clip.features(squares, self.position_interpolation)

    def network_size(self, size: Size) -> Size:
        """(height, width) at which the generator sees an image."""
        shortest = self.config.shortest_edge
        return size if shortest is None else shortest_side(size, shortest, self.config.longest_edge)

    def network_input(self, image: Tensor) -> Tensor:
        """An image [3, H, W] as the generator sees it, [1, 3, H', W']."""
        resized_size = self.network_size(size_of(image))
        if resized_size != size_of(image):
            image = functional.interpolate(image[None], resized_size, mode="bilinear", antialias=True, align_corners=False)[0]
        return image[None]

    def _segment(self, images: Sequence[Tensor], text: TextEmbeddings, trace: Trace | None) -> MaskPrediction:
        """The prediction for images [3, H, W] that have one size in the network."""
        pixels = torch.cat([self.network_input(image) for image in images])
        resized_size, sizes = size_of(pixels), tuple(size_of(image) for image in images)
        proposals = self.proposer(pixels)
        features = self.encode_images(padded_to(pixels, proposals.padded_size, self.clip.mean))
        classes, masks = self.names(features, proposals.masks, text)
        if trace is not None:
            trace["clip"] = self.clip.patch_tokens(features)[0].T.unflatten(-1, features.grid)
            trace["masks"] = proposals.masks[0]
            trace.fraction = resized_size[0] / proposals.padded_size[0], resized_size[1] / proposals.padded_size[1]
        padded_sizes, resized_sizes = (proposals.padded_size,) * len(images), (resized_size,) * len(images)
        return MaskPrediction(masks, classes, classes.shape[-1] > len(text), sizes, padded_sizes, resized_sizes=resized_sizes)


def without_last(prediction: MaskPrediction) -> MaskPrediction:
    """A prediction without "no object" whose last class has no place in semantic results."""
    classes = prediction.classes.clone()
    classes[..., -1] = -torch.inf
    return replace(prediction, semantic=(replace(prediction, classes=classes),))


def touched(masks: Tensor, grid: Size) -> Tensor:
    """The patches in which a mask has any pixel, [B, Q, h, w] bool, of logits [B, Q, H, W]."""
    return functional.adaptive_max_pool2d(masks, grid) >= 0


def padded_to(pixels: Tensor, size: Size, colour: Sequence[float]) -> Tensor:
    """Pixels [B, 3, H, W] in the top-left corner of a larger area of one colour."""
    high, wide = pixels.shape[-2:]
    if (high, wide) == size:
        return pixels
    whole = pixels.new_tensor(colour)[:, None, None].expand(len(pixels), 3, *size).clone()
    whole[..., :high, :wide] = pixels
    return whole
