"""FC-CLIP (Yu et al., "Convolutions Die Hard: Open-Vocabulary Segmentation with Single Frozen Convolutional CLIP", 2023).

Feature maps of one frozen convolutional CLIP feed Mask2Former's pixel and mask decoder, whose class logits are cosines with
text embeddings. The same maps, pooled inside the predicted masks, are classified by CLIP itself; both results are averaged.

    F, levels  = pixel decoder(CLIP's maps)            `layers/pixel_decoder.py`
    M, p_in    = mask decoder(F, levels, text)         CMPF's Eq. (1)-(4), `layers/mask_decoder.py`
    p_out      = CLIP(its last map pooled under M)     CMPF's Eq. (8)-(9), `ensembles.py`
    p          = p_in^(1-w) p_out^w                    CMPF's Eq. (7), `ensembles.py`; w is alpha for seen classes, else beta

CMPF (FrozenSeg) is this model with SAM features injected into features and queries, see `Injection`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip import ClipMeanPooled, ClipResNet
from lexiseg.backbones.clip_base import ClipFeatures
from lexiseg.ensembles import class_ensemble, classify_masks, classify_vectors
from lexiseg.layers.mask_decoder import DecodedMasks, Injection, MaskDecoder
from lexiseg.layers.pixel_decoder import PixelDecoder
from lexiseg.losses.matching import PointSource
from lexiseg.losses.set_loss import SetLossOptions, set_loss
from lexiseg.methods.base import Segmenter, check_trace, in_groups
from lexiseg.methods.fcclip.config import FcClipConfig
from lexiseg.postprocess import Policy, as_mask2former
from lexiseg.structures import Geometry, ImageBatch, MaskPrediction, MaskTarget, Size, TextEmbeddings, Trace, size_of

STRIDE = 32  # network inputs are padded to multiples of it


@dataclass(frozen=True)
class EncodedImages:
    """Images with network inputs of equal size, encoded by the frozen CLIP.

    Attributes:
        pixels: network inputs [B, 3, H', W'].
        geometries: of the network inputs on the original images.
        features: CLIP features of ``pixels``.
    """

    pixels: Tensor
    geometries: tuple[Geometry, ...]
    features: ClipFeatures

    def split(self) -> list[EncodedImages]:
        """Split into single images."""
        parts = zip(self.pixels.split(1), self.geometries, self.features.split(), strict=True)
        return [EncodedImages(pixels, (geometry,), features) for pixels, geometry, features in parts]


class FcClip(Segmenter):
    """FC-CLIP: masked-attention decoder on a frozen convolutional CLIP.

    Args:
        clip: a ConvNeXt or a ResNet; frozen, in evaluation mode.
        config: options of the model.
    """

    key = "fcclip"
    reference = (
        'Yu et al.: "Convolutions Die Hard: Open-Vocabulary Segmentation with Single Frozen Convolutional CLIP", NeurIPS 2023'
    )
    tasks = ("panoptic", "semantic", "instance")
    config: FcClipConfig

    def __init__(self, clip: ClipMeanPooled | ClipResNet, config: FcClipConfig = FcClipConfig()) -> None:
        super().__init__(config)
        self.clip: ClipMeanPooled | ClipResNet = clip.requires_grad_(False)
        self.pixel_decoder = PixelDecoder(
            clip.channels,
            clip.strides,
            width=config.hidden_dim,
            layers=config.pixel_decoder_layers,
            heads=config.num_heads,
            feedforward=config.pixel_decoder_ffn_dim,
        )
        self.mask_decoder = MaskDecoder(
            clip.width,
            width=config.hidden_dim,
            queries=config.num_queries,
            layers=config.num_layers,
            heads=config.num_heads,
            feedforward=config.ffn_dim,
        )

    @property
    def policy(self) -> Policy:
        """Post-processing of its predictions; with "official" behaviour that of Mask2Former's code."""
        return as_mask2former(super().policy) if self.config.behaviour == "official" else super().policy

    def parts(self) -> Mapping[str, nn.Module]:
        return {"clip": self.clip, "pixel_decoder": self.pixel_decoder, "mask_decoder": self.mask_decoder}

    def trained_parts(self) -> frozenset[str]:
        return frozenset({"pixel_decoder", "mask_decoder"})

    def train(self, mode: bool = True) -> FcClip:
        """Set the training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        return self

    @torch.no_grad()
    def forward(self, images: ImageBatch, text: TextEmbeddings, *, trace: Trace | None = None) -> MaskPrediction:
        """Predict masks with classes, "no object" last. Images with network inputs of equal size are processed together.

        A trace receives ``clip`` [C, h, w], CLIP's coarsest map; ``pixels`` [C, h, w], the mask features; ``masks.0`` to
        ``masks.L`` [Q, h, w], mask logits before the first decoder layer and after each; and ``attention.1`` to
        ``attention.L`` [Q, h, w], cross-attention weights (mean over heads).
        """
        check_trace(images, trace)
        predictions = in_groups(
            list(images),
            lambda image: self.network_size(size_of(image)),
            lambda group: self._predictions(group, text, trace),
        )
        return MaskPrediction.join(predictions)

    def loss(
        self,
        images: ImageBatch,
        text: TextEmbeddings,
        targets: Sequence[MaskTarget],
        options: SetLossOptions | None = None,
        draw: PointSource | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of a training batch of images of one size; their sum is minimised.

        Args:
            images: B images with sides that are multiples of 32.
            text: embeddings of the training classes.
            targets: ground truth of each image.
            options, draw: see `set_loss`.
        """
        features = self.clip_features(images.pixels)
        decoded = self.decode(images.pixels, images.sizes[0], features, text, auxiliary=True)
        geometries = tuple(Geometry.unresized(size, size_of(images.pixels)) for size in images.sizes)
        return set_loss(_prediction(decoded, geometries), targets, options or SetLossOptions(), draw)

    @torch.no_grad()
    def encode_images(self, images: Sequence[Tensor]) -> EncodedImages:
        """Encode images [3, H, W] of equal `network_size` by CLIP."""
        pixels = torch.cat([self.network_input(image)[0] for image in images])
        sizes = [size_of(image) for image in images]
        geometries = tuple(Geometry(size_of(pixels), self.network_size(size), size) for size in sizes)
        return EncodedImages(pixels, geometries, self.clip_features(pixels))

    @torch.no_grad()
    def clip_features(self, pixels: Tensor) -> ClipFeatures:
        """Features of the frozen CLIP for pixels [B, 3, H, W]."""
        return self.clip.features(pixels)

    def decode(
        self,
        pixels: Tensor,
        resized_size: Size,
        features: ClipFeatures,
        text: TextEmbeddings,
        *,
        auxiliary: bool = False,
        trace: Trace | None = None,
    ) -> DecodedMasks:
        """Masks and class logits of the decoder, without ensemble.

        Args:
            pixels: network inputs [B, 3, H, W].
            resized_size: (height, width) of the resized images in them.
            features: CLIP features of ``pixels``.
            text: K classes.
            auxiliary: also return the predictions of earlier layers, for training.
            trace: see `forward`.
        """
        injection = self.injection(pixels, resized_size, trace)
        decoded: DecodedMasks = self.mask_decoder(
            self.pixel_decoder(features.levels), text, injection=injection, auxiliary=auxiliary, trace=trace
        )
        return decoded

    def injection(self, _pixels: Tensor, _inner: Size, _trace: Trace | None = None, /) -> Injection | None:
        """Return the injection into the decoder; None: FC-CLIP has none."""
        return None

    def network_size(self, size: Size) -> Size:
        """(height, width) to which an image is resized, before padding."""
        shortest = self.config.shortest_edge
        return size if shortest is None else shortest_side(size, shortest, self.config.longest_edge)

    def network_input(self, image: Tensor) -> tuple[Tensor, Size]:
        """Resize and pad an image [3, H, W]. Returns the input [1, 3, H', W'], and the size without padding."""
        resized_size = self.network_size(size_of(image))
        if resized_size != size_of(image):
            image = functional.interpolate(image[None], resized_size, mode="bilinear", antialias=True, align_corners=False)[0]
        return self.clip.padded(image, STRIDE)[None], resized_size

    def _predictions(self, images: Sequence[Tensor], text: TextEmbeddings, trace: Trace | None) -> Sequence[MaskPrediction]:
        """Predict for images [3, H, W] of equal `network_size`, one prediction per image."""
        return self._segment(self.encode_images(images), text, trace).split()

    def _segment(self, encoded: EncodedImages, text: TextEmbeddings, trace: Trace | None = None) -> MaskPrediction:
        geometry = encoded.geometries[0]
        decoded = self.decode(encoded.pixels, geometry.resized_size, encoded.features, text, trace=trace)
        if trace is not None:
            trace["clip"], trace.geometry = encoded.features.levels[-1][0], geometry
        prediction = _prediction(decoded, encoded.geometries)
        names, covered = self._clip_classes(encoded.features, decoded.masks, text)
        seen = torch.zeros(len(text), dtype=torch.bool, device=names.device) if text.seen is None else text.seen
        return class_ensemble(
            prediction,
            names,
            seen,
            alpha=self.config.alpha,
            beta=self.config.beta,
            behaviour=self.config.behaviour,
            covered=covered,
        )

    def _clip_classes(self, features: ClipFeatures, masks: Tensor, text: TextEmbeddings) -> tuple[Tensor, Tensor | None]:
        """CLIP's log-probabilities of the masks [B, Q, K]; for a ResNet also [B, Q] bool, True for non-empty masks.

        The attention pool of a ResNet cannot pool empty masks, so the ensemble skips them; for a ConvNeXt the official code
        classifies their zero vector.
        """
        if self.config.behaviour == "official" and isinstance(self.clip, ClipMeanPooled):
            vectors = self.clip.embed_regions_official(features, masks)
            return classify_vectors(vectors, text, self.clip.logit_scale), None
        names, covered = classify_masks(self.clip, features, masks, text)
        return names, covered if isinstance(self.clip, ClipResNet) else None


def shortest_side(size: Size, side: int, longest: int) -> Size:
    """Scale (height, width) to a shorter side of ``side`` and a longer side of at most ``longest`` pixels."""
    scale = min(side / min(size), longest / max(size))
    high, wide = (max(1, int(length * scale + 0.5)) for length in size)
    return high, wide


def _prediction(decoded: DecodedMasks, geometries: tuple[Geometry, ...]) -> MaskPrediction:
    return MaskPrediction(
        masks=decoded.masks,
        classes=decoded.classes.float().log_softmax(-1),  # P_d of Eq. (4) of CMPF, with "no object" as a further class
        void=True,
        geometries=geometries,
        auxiliary=tuple(_prediction(earlier, geometries) for earlier in decoded.auxiliary),
    )
