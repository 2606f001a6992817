"""CMPF: "Harmonizing Cross-Model Prior Fusion for Open-Vocabulary Segmentation"; FrozenSeg is an earlier name of it.

FC-CLIP with a frozen SAM besides the frozen CLIP. SAM features, which are spatially precise, are injected into the queries
(`QueryInjector`, Eq. (5)) and into the coarsest features (`FeatureInjector`, Eq. (6)) of the mask decoder. Without injectors
this is FC-CLIP exactly; both share the class ensemble, Eq. (7). The mask ensemble, Eq. (12), is optional: CLIP classifies the
masks of SAM's mask generator, and they contribute to the semantic scores of unseen classes.

    Eq. (1)-(4)    `layers/mask_decoder.py`              Eq. (5), (6)     `methods/cmpf/injectors.py`
    Eq. (7)-(12)   `ensembles.py`                        SAM's features   `methods/cmpf/sam_features.py`
                                                         SAM's masks      `methods/cmpf/sam_masks.py`

Where the paper and the official program differ, ``behaviour`` selects:

                          "paper"                               "official"
    SAM's features        an encoder of one level               built for three levels, fed one     `sam_features.py`
    Feature Injector      keys keep their positions             the next layer's keys lose them     `injectors.py`
    class ensemble        a distribution                        plus 1e-8                           `ensembles.py`
    CLIP's classes        of empty masks: all equal             of a zero vector, with a ConvNeXt   `Cmpf.sam_classes`, `FcClip`
    SAM's masks on CLIP   where they are                        moved and squeezed                  `sam_masks.py`
    classes of those      softmax over the classes              "no object" competes                `Cmpf.sam_classes`
    those kept            best class above ξ                    best unseen class above ξ           `ensembles.py`
    masks of Eq. (12)     inside or outside                     probabilities                       `ensembles.py`
    post-processing       ours                                  Mask2Former's                       `postprocess.py`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip import ClipMeanPooled, ClipResNet
from lexiseg.backbones.clip_base import ClipFeatures
from lexiseg.backbones.sam import SAM_MEAN, SAM_STD, SamFamily
from lexiseg.ensembles import classify_masks, classify_vectors, mask_ensemble
from lexiseg.methods.cmpf.config import CmpfConfig
from lexiseg.methods.cmpf.injectors import FeatureInjector, QueryInjector, SamInjection
from lexiseg.methods.cmpf.sam_features import SamFeatures
from lexiseg.methods.cmpf.sam_masks import SamMasks, official_cells
from lexiseg.methods.fcclip.model import EncodedImages, FcClip
from lexiseg.methods.prompts import Prompt, prompted_masks
from lexiseg.structures import Geometry, ImageBatch, MaskPrediction, Size, TextEmbeddings, Trace, size_of


class Cmpf(FcClip):
    """CMPF: FC-CLIP with SAM.

    Args:
        clip: see `FcClip`.
        sam: frozen, in evaluation mode.
        mask_sam: frozen SAM that generates masks for the mask ensemble; None: ``sam``.
        config: options of the model.
    """

    key = "cmpf"
    reference = '"CMPF: Harmonizing Cross-Model Prior Fusion for Open-Vocabulary Segmentation" (FrozenSeg)'
    config: CmpfConfig

    def __init__(
        self,
        clip: ClipMeanPooled | ClipResNet,
        sam: SamFamily,
        mask_sam: SamFamily | None = None,
        config: CmpfConfig = CmpfConfig(),
    ) -> None:
        super().__init__(clip, config)
        width = config.hidden_dim
        self.sam: SamFamily = sam.requires_grad_(False)
        self.mask_sam: SamFamily | None = None if mask_sam is None else mask_sam.requires_grad_(False)
        self.query_injector, self.feature_injector, self.sam_features = None, None, None
        if config.query_layers:
            own_projection = None if sam.channels == width else width
            self.query_injector = QueryInjector(config.query_layers, channels=sam.channels, own_projection=own_projection)
        if config.feature_layers:
            self.feature_injector = FeatureInjector(
                config.feature_layers, width=width, heads=config.num_heads, behaviour=config.behaviour
            )
            self.sam_features = SamFeatures(
                sam.channels,
                width=width,
                layers=config.sam_layers,
                heads=config.num_heads,
                feedforward=config.pixel_decoder_ffn_dim,
                behaviour=config.behaviour,
            )

    @property
    def masks(self) -> SamMasks | None:
        """Options of SAM's masks for Eq. (12); None if the mask ensemble is disabled."""
        config = self.config
        wanted = self.mask_sam is not None if config.mask_ensemble is None else config.mask_ensemble
        if not wanted or config.epsilon == 0:
            return None
        return config.masks

    def parts(self) -> Mapping[str, nn.Module]:
        own: dict[str, nn.Module | None] = {
            "sam": self.sam,
            "mask_sam": self.mask_sam,
            "sam_features": self.sam_features,
            "query_injector": self.query_injector,
            "feature_injector": self.feature_injector,
        }
        return {**super().parts(), **{name: part for name, part in own.items() if part is not None}}

    def trained_parts(self) -> frozenset[str]:
        return frozenset(self.parts()) - {"clip", "sam", "mask_sam"}

    def train(self, mode: bool = True) -> Cmpf:
        """Set the training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        self.sam.eval()
        if self.mask_sam is not None:
            self.mask_sam.eval()
        return self

    @torch.no_grad()
    def forward(self, images: ImageBatch, text: TextEmbeddings, *, trace: Trace | None = None) -> MaskPrediction:
        """Predict as `FcClip.forward`; with the mask ensemble, ``semantic_ensemble`` of the prediction is set.

        A trace also receives ``sam`` [C, g, g], SAM's image embedding, and ``sam_features`` [C, h, w], the injected features.
        """
        return super().forward(images, text, trace=trace)

    def _predictions(self, images: Sequence[Tensor], text: TextEmbeddings, trace: Trace | None) -> Sequence[MaskPrediction]:
        encoded, generator, config = self.encode_images(images), self.masks, self.config
        predictions = self._segment(encoded, text, trace).split()
        if generator is None:
            return predictions
        sam_predictions = self.sam_predictions(images, encoded, text, generator)
        seen = torch.zeros(len(text), dtype=torch.bool, device=encoded.pixels.device) if text.seen is None else text.seen
        return [
            mask_ensemble(prediction, sam, seen, epsilon=config.epsilon, xi=config.xi, behaviour=config.behaviour)  # Eq. (12)
            for prediction, sam in zip(predictions, sam_predictions, strict=True)
        ]

    @property
    def _segmenting_sam(self) -> SamFamily:
        return self.sam if self.mask_sam is None else self.mask_sam

    @torch.no_grad()
    def predict_prompts(self, image: Tensor, prompts: Sequence[Prompt], text: TextEmbeddings) -> MaskPrediction:
        """Predict the mask of each prompt, classified by CLIP as SAM's masks of Eq. (12), see `TakesPrompts`."""
        sam = self._segmenting_sam
        masks, _ = prompted_masks(sam, image, prompts)
        geometry = sam.geometry(size_of(image))
        classes, valid = self.sam_classes(self.encode_images([image]), masks, geometry, text)
        return MaskPrediction(masks[None], classes, False, (geometry,), valid)

    @torch.no_grad()
    def sam_predictions(
        self, images: Sequence[Tensor], encoded: EncodedImages, text: TextEmbeddings, generator: SamMasks
    ) -> list[MaskPrediction]:
        """Predict SAM's masks of images [3, H, W], classified by their encoded CLIP features."""
        predictions = []
        for generated, own in zip(generator.of(self._segmenting_sam, images), encoded.split(), strict=True):
            masks = generated.image_logits()
            classes, valid = self.sam_classes(own, masks, generated.geometry, text)
            predictions.append(MaskPrediction(masks[None], classes, False, (generated.geometry,), valid))
        return predictions

    def sam_classes(
        self, encoded: EncodedImages, masks: Tensor, geometry: Geometry, text: TextEmbeddings
    ) -> tuple[Tensor, Tensor]:
        """Classify masks of an image by CLIP.

        Args:
            encoded: a single image.
            masks: logits [N, m, m].
            geometry: of the masks.
            text: K classes.

        Returns:
            Log-probabilities [1, N, K], and [1, N] bool, True where the masks can be classified.
        """
        if len(masks) == 0:
            return masks.new_zeros((1, 0, len(text))), torch.zeros(1, 0, dtype=torch.bool, device=masks.device)
        features = encoded.features
        if self.config.behaviour == "official":
            return self._official_sam_classes(features, official_cells(masks, geometry, features.grid), text)
        cells = geometry.sample(masks, features.grid, encoded.geometries[0].padded_box)
        return classify_masks(self.clip, features, cells[None], text)  # Eq. (10)-(11)

    def _official_sam_classes(self, features: ClipFeatures, cells: Tensor, text: TextEmbeddings) -> tuple[Tensor, Tensor]:
        """The same by the official program: "no object" competes, and a ConvNeXt says something of nothing, too."""
        vectors = self.clip.embed_regions_official(features, cells)
        void = self.mask_decoder.void.weight[0]
        classes = classify_vectors(vectors, text, self.clip.logit_scale, void)[..., :-1]
        inside = functional.interpolate(cells, features.grid, mode="bilinear", align_corners=False) > 0
        return classes, inside.any(-1).any(-1) | isinstance(self.clip, ClipMeanPooled)

    def injection(self, pixels: Tensor, resized_size: Size, trace: Trace | None = None, /) -> SamInjection | None:
        """Compute SAM features for the injectors; None without injectors."""
        if self.query_injector is None and self.feature_injector is None:
            return None
        embedding = self.sam_embedding(pixels, resized_size)
        context = None if self.sam_features is None else self.sam_features(embedding)
        if trace is not None:
            trace |= {"sam": embedding[0]} if context is None else {"sam": embedding[0], "sam_features": context[0]}
        return SamInjection(embedding, context, self.query_injector, self.feature_injector)

    @torch.no_grad()
    def sam_embedding(self, pixels: Tensor, resized_size: Size) -> Tensor:
        """SAM's image embedding [B, C_sam, g, g] of network inputs [B, 3, H, W] that hold images of ``resized_size``.

        The padded image is resized to SAM's square input regardless of its aspect ratio. [official code]
        """
        mean, std = (pixels.new_tensor(rgb)[:, None, None] for rgb in (SAM_MEAN, SAM_STD))
        normalised = torch.zeros_like(pixels)
        normalised[..., : resized_size[0], : resized_size[1]] = ((255 * pixels - mean) / std)[
            ..., : resized_size[0], : resized_size[1]
        ]
        side = (self.sam.image_size, self.sam.image_size)
        return self.sam.encode(functional.interpolate(normalised, side, mode="bilinear", align_corners=False))
