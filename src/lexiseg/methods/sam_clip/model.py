"""SAM + CLIP, CMPF's "Model 1" (paper: CMPF, Table 6): CLIP classifies the masks of SAM, without training.

SAM's automatic mask generator proposes masks. CLIP's features are pooled inside each mask (ConvNeXt, ResNet: pooling and
head; ViT: one class token per mask) and compared with the class embeddings. It supports any CLIP and any SAM.

    m_q, iou_q     = SAM(image)                                mask logits and predicted IoU
    v_q            = CLIP(image pooled under m_q)              joint space
    p(k | q)       = softmax_k( τ max_{s of k} cos(v_q, t_s) ) as Eq. (10)-(11) of CMPF (τ: CLIP's 1 / τ)
    score(k, q)    = iou_q p(k | q)                            [decided] of overlapping masks the best score wins
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip import ClipBackbone
from lexiseg.backbones.clip_base import ClipFeatures
from lexiseg.backbones.mask_generator import generate_each, grid_points
from lexiseg.backbones.sam import SamFamily
from lexiseg.ensembles import classify_vectors
from lexiseg.methods.base import Segmenter, check_trace, in_groups
from lexiseg.methods.prompts import Prompt, prompted_masks
from lexiseg.methods.sam_clip.config import SamClipConfig
from lexiseg.ops.progress import report
from lexiseg.structures import OUTSIDE, Geometry, ImageBatch, MaskPrediction, Size, TextEmbeddings, Trace, size_of

LOWEST = 1e-6  # minimum of pred_iou, so that its logarithm is finite


class SamClip(Segmenter):
    """SAM + CLIP.

    Args:
        clip: classifies the masks.
        sam: proposes the masks.
        config: image sizes and mask generator.
    """

    tasks = ("panoptic", "semantic", "instance")

    key = "sam_clip"
    reference = '"CMPF: Harmonizing Cross-Model Prior Fusion for Open-Vocabulary Segmentation", Table 6'
    config: SamClipConfig

    def __init__(self, clip: ClipBackbone, sam: SamFamily, config: SamClipConfig = SamClipConfig()) -> None:
        super().__init__(config)
        self.clip, self.sam = clip, sam

    def parts(self) -> Mapping[str, nn.Module]:
        return {"clip": self.clip, "sam": self.sam}

    @torch.no_grad()
    def forward(self, images: ImageBatch, text: TextEmbeddings, *, trace: Trace | None = None) -> MaskPrediction:
        """Predict masks with classes, without "no object": the generator has filtered the masks already.

        A trace receives ``clip`` [C, h, w], CLIP's coarsest map.
        """
        check_trace(images, trace)
        pictures, prompter = list(images), grid_points(self.config.points_per_side)
        generated = generate_each(self.sam, pictures, self.config.generator, [prompter] * len(pictures))
        report("name")
        features = in_groups(pictures, lambda image: self.clip_size(size_of(image)), self._features)
        if trace is not None:
            trace["clip"] = features[0].levels[-1][0]
        predictions = [
            self._named(masks.image_logits(), masks.pred_iou, masks.geometry.one_step(), of_image, text)
            for masks, of_image in zip(generated, features, strict=True)
        ]
        return MaskPrediction.join(predictions)

    @torch.no_grad()
    def predict_prompts(self, image: Tensor, prompts: Sequence[Prompt], text: TextEmbeddings) -> MaskPrediction:
        """Predict the mask of each prompt, see `TakesPrompts`."""
        logits, pred_iou = prompted_masks(self.sam, image, prompts)
        report("name")
        return self._named(logits, pred_iou, self.sam.geometry(size_of(image)), self._features([image])[0], text)

    def _features(self, images: Sequence[Tensor]) -> list[ClipFeatures]:
        """CLIP features of each of some images [3, H, W] of equal `clip_size`."""
        size = self.clip_size(size_of(images[0]))
        resized = [
            functional.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False) for image in images
        ]
        return self.clip.features(torch.cat(resized)).split()

    def _named(
        self, logits: Tensor, pred_iou: Tensor, geometry: Geometry, features: ClipFeatures, text: TextEmbeddings
    ) -> MaskPrediction:
        """Prediction of one image: its masks [N, m, m] with log scores; a single invalid row if there are no masks."""
        count = len(logits)
        if count == 0:
            masks = logits.new_full((1, 1, self.sam.mask_size, self.sam.mask_size), OUTSIDE)
            classes = masks.new_full((1, 1, len(text)), OUTSIDE)
        else:
            high, wide = self.clip_size(geometry.size)
            weights = geometry.sample(logits, (high // 4, wide // 4)).sigmoid()
            vectors = self.clip.embed_regions(features, (weights * (weights > 0.5))[None])  # Eq. (10)
            names = classify_vectors(vectors, text, self.clip.logit_scale)  # Eq. (11)
            masks, classes = logits[None], names + pred_iou.float().clamp(LOWEST, 1).log()[:, None]
        valid = torch.full(masks.shape[:2], count > 0, device=masks.device)
        return MaskPrediction(masks, classes, False, (geometry,), valid)

    def clip_size(self, size: Size) -> Size:
        """(height, width) of CLIP's input for an image, multiples of its coarsest stride."""
        scale = min(self.config.shortest_edge / min(size), self.config.longest_edge / max(size))
        stride = self.clip.strides[-1]
        high, wide = (max(stride, round(length * scale / stride) * stride) for length in size)
        return high, wide
