"""SAM + CLIP, CMPF's "Model 1" (paper: CMPF, Table 6): SAM says where, CLIP says what; nothing is trained.

SAM's automatic generator proposes masks of everything. CLIP's features are pooled under each mask (ConvNeXt, ResNet:
the region head; ViT: one class token a mask) and compared with the names. It works with any CLIP and any SAM.

    m_q, iou_q     = SAM(image)                                mask logits and predicted IoU
    v_q            = CLIP(image pooled under m_q)              joint space
    p(k | q)       = softmax_k( τ max_{s of k} cos(v_q, t_s) ) as Eq. (10)-(11) of CMPF do (τ: CLIP's 1 / τ)
    score(k, q)    = iou_q p(k | q)                            [decided] of masks that overlap, the better one wins
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip import ClipBackbone
from lexiseg.backbones.mask_generator import GeneratedMasks, generate_masks, grid_points
from lexiseg.backbones.sam import SamFamily
from lexiseg.methods.base import Segmenter, check_trace
from lexiseg.methods.sam_clip.config import SamClipConfig
from lexiseg.structures import ImageBatch, MaskPrediction, Size, TextEmbeddings, Trace

OUTSIDE = -100.0  # logits of the rows that only fill up a batch
LOWEST = 1e-6  # quality, so that its logarithm is finite


class SamClip(Segmenter):
    """Any SAM × any CLIP.

    Args:
        clip: names the masks.
        sam: proposes them.
        config: sizes of images, and how SAM is asked.
    """

    tasks = ("panoptic", "semantic", "instance")

    key = "sam_clip"
    config: SamClipConfig

    def __init__(self, clip: ClipBackbone, sam: SamFamily, config: SamClipConfig = SamClipConfig()) -> None:
        super().__init__(config)
        self.clip, self.sam = clip, sam

    def parts(self) -> Mapping[str, nn.Module]:
        return {"clip": self.clip, "sam": self.sam}

    @torch.no_grad()
    def forward(self, images: ImageBatch, text: TextEmbeddings, *, trace: Trace | None = None) -> MaskPrediction:
        """Masks with classes; there is no "no object", for the generator has dropped poor masks already.

        A trace gets ``clip`` [C, h, w], CLIP's coarsest map.
        """
        check_trace(images, trace)
        found = [self._segment(images.image(index), text, trace) for index in range(len(images))]
        most, grid = max(1, *(len(masks) for masks, _ in found)), self.sam.mask_size
        first = images.pixels
        masks = first.new_full((len(images), most, grid, grid), OUTSIDE)
        classes = first.new_full((len(images), most, len(text)), OUTSIDE)
        valid = torch.zeros(len(images), most, dtype=torch.bool, device=first.device)
        for index, (generated, names) in enumerate(found):
            count = len(generated)
            masks[index, :count], classes[index, :count], valid[index, :count] = generated.image_logits(), names, True
        extents = tuple(generated.extent for generated, _ in found)
        return MaskPrediction(masks, classes, False, images.sizes, extents, valid)

    def _segment(self, image: Tensor, text: TextEmbeddings, trace: Trace | None = None) -> tuple[GeneratedMasks, Tensor]:
        """Masks of one image [3, H, W], and the logarithms of their scores [Q, K]."""
        generated = generate_masks(self.sam, image, self.config.generator, grid_points(self.config.points_per_side))
        if len(generated) == 0:
            return generated, image.new_zeros((0, len(text)))
        size = self.clip_size((int(image.shape[-2]), int(image.shape[-1])))
        resized = functional.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)
        weights = over_image(generated, (size[0] // 4, size[1] // 4)).sigmoid()
        features = self.clip.features(resized)
        if trace is not None:
            trace["clip"] = features.levels[-1][0]
        vectors = self.clip.embed_regions(features, (weights * (weights > 0.5))[None])[0]  # Eq. (10)
        cosine = functional.normalize(vectors.float(), dim=-1) @ text.vectors.float().T
        logits = self.clip.logit_scale * text.per_class(cosine)
        names = logits.log_softmax(-1)  # Eq. (11)
        return generated, names + generated.quality.float().clamp(LOWEST, 1)[:, None].log()

    def clip_size(self, size: Size) -> Size:
        """(height, width) of the image that CLIP sees, both multiples of its coarsest stride."""
        scale = min(self.config.shortest_edge / min(size), self.config.longest_edge / max(size))
        stride = self.clip.strides[-1]
        high, wide = (max(stride, round(length * scale / stride) * stride) for length in size)
        return high, wide


def over_image(generated: GeneratedMasks, size: Size) -> Tensor:
    """Mask logits resampled to a grid [Q, h, w] over exactly the image, without SAM's padding."""
    step = [part / whole for part, whole in zip(generated.size, generated.extent, strict=True)]
    centres = [((torch.arange(cells) + 0.5) / cells * share * 2 - 1) for cells, share in zip(size, step, strict=True)]
    y, x = torch.meshgrid(*centres, indexing="ij")
    places = torch.stack([x, y], -1).to(generated.logits).expand(1, *size, 2)
    return functional.grid_sample(
        generated.image_logits()[None], places, mode="bilinear", padding_mode="border", align_corners=False
    )[0]
