"""Every method in a size that runs in a blink, with random weights; a new method adds a line to `BUILDERS`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from transformers import BertConfig, GroundingDinoConfig, MMGroundingDinoConfig, SamConfig, SwinConfig

from lexiseg.backbones.clip import ClipBackbone, ClipViT, assemble_clip
from lexiseg.backbones.grounding_dino import GroundingDino, build_grounding_dino
from lexiseg.backbones.mask_generator import MaskGeneratorOptions
from lexiseg.backbones.proposals import MaskProposer, Proposals
from lexiseg.backbones.sam import SamFamily
from lexiseg.backbones.sam_loading import build_sam
from lexiseg.methods.base import Segmenter
from lexiseg.methods.catseg.config import CatSegConfig
from lexiseg.methods.catseg.model import CatSeg
from lexiseg.methods.cmpf.config import CmpfConfig
from lexiseg.methods.cmpf.model import Cmpf
from lexiseg.methods.cmpf.sam_masks import SamMasks
from lexiseg.methods.escnet.config import EscNetConfig
from lexiseg.methods.escnet.model import EscNet
from lexiseg.methods.fcclip.config import FcClipConfig
from lexiseg.methods.fcclip.model import FcClip
from lexiseg.methods.fovseg.config import FovSegConfig
from lexiseg.methods.fovseg.model import FovSeg
from lexiseg.methods.grounded_sam.config import GroundedSamConfig
from lexiseg.methods.grounded_sam.model import GroundedSam
from lexiseg.methods.maskclip.config import MaskClipConfig
from lexiseg.methods.maskclip.model import MaskClip
from lexiseg.methods.sam_clip.config import SamClipConfig
from lexiseg.methods.sam_clip.model import SamClip
from lexiseg.methods.sam_mi.config import SamMiConfig
from lexiseg.methods.sam_mi.model import SamMi
from lexiseg.structures import ImageBatch, TextEmbeddings

Model = TypeVar("Model", bound=FcClip)

GREY = (0.5, 0.5, 0.5)
TEXT = {"context_length": 12, "vocab_size": 300, "width": 16, "heads": 2, "layers": 1}
VISION = {
    "convnext": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": 64},
    "efficientnet": {"timm_model_name": "test_efficientnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64},
    "resnet": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64},
    "vit": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 64},
}


def tiny_clip(kind: str) -> ClipBackbone:
    torch.manual_seed(1)
    model = {"embed_dim": 24, "vision_cfg": VISION[kind], "text_cfg": TEXT}
    return assemble_clip(model, _letters, mean=GREY, std=GREY).eval()


def _letters(texts: list[str]) -> torch.Tensor:
    """A tokenizer of a letter a token; the end token is the largest number."""
    rows = [[298, *(ord(letter) % 290 + 1 for letter in text[:10]), 299] for text in texts]
    return torch.tensor([row + [0] * (12 - len(row)) for row in rows])


def tiny_sam(mask_channels: int = 4) -> SamFamily:
    sam = build_sam(
        SamConfig(
            vision_config={
                "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 32, "image_size": 64,
                "patch_size": 16, "window_size": 0, "global_attn_indexes": [0, 1], "output_channels": 16, "num_pos_feats": 8,
            },
            prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": mask_channels},
            mask_decoder_config={"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
        )
    )  # fmt: skip
    with torch.no_grad():
        sam.model.mask_decoder.iou_prediction_head.proj_out.bias.fill_(0.8)  # sure of its masks, or nothing would be named
    return sam


def tiny_sam_clip(kind: str) -> SamClip:
    torch.manual_seed(2)
    generator = MaskGeneratorOptions(pred_iou_threshold=0.0, stability_threshold=0.0, box_nms_threshold=0.9)
    config = SamClipConfig(shortest_edge=64, points_per_side=3, generator=generator)
    return SamClip(tiny_clip(kind), tiny_sam(), config).eval()


def tiny_dino_config(family: str = "grounding-dino", **options: Any) -> Any:
    """A Grounding DINO of 12 queries and prompts of 40 tokens."""
    swin = SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, out_indices=[2, 3, 4])
    bert = BertConfig(
        vocab_size=1030, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64,
    )  # fmt: skip
    sizes = {
        "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 12, "max_text_len": 40,
    }  # fmt: skip
    config_class = GroundingDinoConfig if family == "grounding-dino" else MMGroundingDinoConfig
    return config_class(backbone_config=swin, text_config=bert, **{**sizes, **options})


def tiny_dino(family: str = "grounding-dino", **options: Any) -> GroundingDino:
    """Random in all its parameters: as transformers makes them, boxes and fusion do not depend on the picture or the text."""
    torch.manual_seed(8)
    detector = build_grounding_dino(tiny_dino_config(family, **options))
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if parameter.dim() == 0:
                parameter.zero_()  # MM-Grounding-DINO's first opinion is that no box has a name
            elif "norm" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return detector.eval()


def tiny_grounded_sam(family: str = "grounding-dino", **options: Any) -> GroundedSam:
    """The five names of `some_text` make two prompts."""
    detector = tiny_dino(family)
    given = {"shortest_edge": 64, "longest_edge": 128, "box_threshold": 0.1, "text_threshold": 0.1, "boxes_per_batch": 5}
    sam = loud_sam(gain=4)  # a louder one turns the rounding of boxes into other masks
    with torch.no_grad():
        sam.model.mask_decoder.iou_prediction_head.proj_out.bias.add_(
            torch.tensor([0.0, 0.05, 0.1, -0.05])
        )  # or rounding chooses
    return GroundedSam(detector, sam, GroundedSamConfig(**{**given, **options})).eval()


SIZES: dict[str, Any] = {
    "num_queries": 9, "hidden_dim": 64, "num_layers": 3, "pixel_decoder_ffn_dim": 48, "ffn_dim": 48, "shortest_edge": 64
}  # fmt: skip


def tiny_fcclip(kind: str) -> FcClip:
    torch.manual_seed(2)
    return _finding(FcClip(tiny_clip(kind), FcClipConfig(**SIZES)))  # type: ignore[arg-type]  # none with a vision transformer


def tiny_cmpf(kind: str, mask_sam: SamFamily | None = None, **options: Any) -> Cmpf:
    torch.manual_seed(2)
    injectors = {"query_layers": (1, 2), "feature_layers": (1, 2), "sam_layers": 1}
    config = CmpfConfig(**{**SIZES, **injectors, **options})
    return _finding(Cmpf(tiny_clip(kind), tiny_sam(), mask_sam, config))  # type: ignore[arg-type]


COST_SIZES: dict[str, Any] = {
    "image_size": 64, "guide_channels": (8, 8), "classes_at_once": 2, "hidden_dim": 16, "appearance_dim": 8, "text_dim": 8,
    "decoder_channels": (16, 16), "decoder_guide_channels": (4, 4), "window_size": 2, "max_classes": 4,
}  # fmt: skip


def tiny_catseg(**options: Any) -> CatSeg:
    """Sees 4 × 4 cells, in windows of two."""
    torch.manual_seed(2)
    clip = tiny_clip("vit")
    assert isinstance(clip, ClipViT)
    segmenter = CatSeg(clip, CatSegConfig(**{**COST_SIZES, **options}))
    with torch.no_grad():
        segmenter.aggregation.head.weight.mul_(8)  # sure of its pixels
        for name, parameter in segmenter.aggregation.named_parameters():
            if "filling" in name:
                parameter.normal_()
    return segmenter.eval()


def tiny_sam_mi(**options: Any) -> SamMi:
    """The same with the masks of a loud SAM."""
    torch.manual_seed(2)
    clip = tiny_clip("vit")
    assert isinstance(clip, ClipViT)
    generator = MaskGeneratorOptions(
        best_mask_per_point=True, pred_iou_threshold=0.0, stability_threshold=0.0, box_nms_threshold=0.9
    )
    given = {**COST_SIZES, "prompter_dim": 8, "generator": generator}
    segmenter = SamMi(clip, loud_sam(), SamMiConfig(**{**given, **options}))
    with torch.no_grad():
        segmenter.aggregation.head.weight.mul_(8)
        segmenter.prompter.point_head.bias.sub_(4)  # few points
    return segmenter.eval()


def tiny_escnet(**options: Any) -> EscNet:
    """Sees 4 × 4 cells, in windows of two."""
    torch.manual_seed(2)
    clip = tiny_clip("vit")
    assert isinstance(clip, ClipViT)
    sizes = {
        "image_size": 64, "hidden_dim": 16, "decoder_channels": (16, 16), "skip_channels": (4, 4), "window_size": 2,
        "num_regions": 3, "classes_at_once": 2,
    }  # fmt: skip
    segmenter = EscNet(clip, loud_sam(mask_channels=16), EscNetConfig(**{**sizes, **options}))
    with torch.no_grad():
        segmenter.decoder.head.weight.mul_(8)  # sure of its pixels
        for name, parameter in segmenter.named_parameters():
            if ".map." in name:
                parameter.normal_(std=0.3)  # as if it had learnt
    return segmenter.eval()


def tiny_maskclip(**options: Any) -> MaskClip:
    """Sees 4 × 4 patches; relative mask attention in its last block."""
    torch.manual_seed(2)
    clip = tiny_clip("vit")
    assert isinstance(clip, ClipViT)
    given = {"clip_image_size": 64, "shortest_edge": 64, "relative_blocks": (1,), "masks_at_once": 3}
    return MaskClip(clip, SomeProposals(), MaskClipConfig(**{**given, **options})).eval()


def tiny_fovseg(**options: Any) -> FovSeg:
    """The same with names to ask, as if it had learnt."""
    torch.manual_seed(2)
    clip = tiny_clip("vit")
    assert isinstance(clip, ClipViT)
    given = {"clip_image_size": 96, "shortest_edge": 64, "teva_bottleneck": 8, "masks_at_once": 3}
    segmenter = FovSeg(clip, SomeProposals(), FovSegConfig(**{**given, **options}))
    with torch.no_grad():
        for name, parameter in segmenter.named_parameters():
            if name.startswith(("teva", "adapter")) and parameter.count_nonzero() == 0:
                parameter.normal_()
    return segmenter.eval()


class SomeProposals(MaskProposer):
    """Masks of a picture by its colours, from a picture padded to multiples of 32."""

    queries = 7

    def __init__(self) -> None:
        super().__init__()
        self.colours = torch.nn.Conv2d(3, self.queries, 4, 4)

    def forward(self, images: torch.Tensor) -> Proposals:
        high, wide = (-(-side // 32) * 32 for side in images.shape[-2:])
        whole = torch.nn.functional.pad(images - 0.5, (0, wide - images.shape[-1], 0, high - images.shape[-2]))
        return Proposals(20 * self.colours(whole), (high, wide))


def loud_sam(seed: int = 7, gain: float = 10, **options: Any) -> SamFamily:
    """A SAM whose masks differ from each other, and are sure of their pixels."""
    torch.manual_seed(seed)
    sam = tiny_sam(**options)
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if parameter.dim() > 1 and "iou_prediction_head" not in name:
                parameter.mul_(gain)
        for network in sam.model.mask_decoder.output_hypernetworks_mlps:
            network.proj_out.weight.mul_(200)
    return sam


EVERY_MASK = SamMasks(
    points=2, options=MaskGeneratorOptions(pred_iou_threshold=0.0, stability_threshold=0.0, box_nms_threshold=1.0)
)


def tiny_cmpf_with_masks(kind: str, **options: Any) -> Cmpf:
    """CMPF with its ensemble of masks."""
    return tiny_cmpf(kind, **{"masks": EVERY_MASK, "mask_sam": loud_sam(), **options})


def _finding(segmenter: Model) -> Model:
    """With masks of some size and names for them, or the laws would be empty."""
    with torch.no_grad():
        segmenter.mask_decoder.mask_head[-1].weight.mul_(8)
        segmenter.mask_decoder.void.weight.copy_(-segmenter.mask_decoder.class_head[-1].bias)
    return segmenter.eval()


BUILDERS: dict[str, Callable[[], Segmenter]] = {
    **{f"sam_clip ({kind})": partial(tiny_sam_clip, kind) for kind in VISION},
    "grounded_sam": tiny_grounded_sam,
    "grounded_sam (MM, names alone, several masks)": partial(
        tiny_grounded_sam, "mm-grounding-dino", names_per_prompt=1, name_score="max", multimask=True
    ),
    **{f"fcclip ({kind})": partial(tiny_fcclip, kind) for kind in ("convnext", "efficientnet", "resnet")},
    **{f"cmpf ({kind})": partial(tiny_cmpf, kind) for kind in ("convnext", "efficientnet", "resnet")},
    **{f"cmpf with masks ({kind})": partial(tiny_cmpf_with_masks, kind) for kind in ("convnext", "resnet")},
    "catseg": tiny_catseg,
    "sam_mi": tiny_sam_mi,
    "sam_mi (whole pictures, likeliest points)": partial(tiny_sam_mi, sliding=False, point_sampling="top"),
    "escnet": tiny_escnet,
    "escnet (crops, nearest classes, all prompts)": partial(
        tiny_escnet, sliding=True, max_classes=4, prompts=("points", "boxes", "masks"), probability="space"
    ),
    "escnet (without SAM)": partial(tiny_escnet, sam_blocks="none", classes_at_once=None),
    "maskclip": tiny_maskclip,
    "maskclip (plain attention)": partial(tiny_maskclip, relative_blocks=(), masks_at_once=None),
    "fovseg": tiny_fovseg,
    "fovseg (other readings, no object)": partial(tiny_fovseg, teva_update="add", void="vector", class_token="empty"),
    "catseg (whole pictures, all classes)": partial(tiny_catseg, sliding=False, max_classes=0, classes_at_once=None),
}


def some_text(classes: int = 5, width: int = 24) -> TextEmbeddings:
    """Random embeddings; class 1 has two names, every other class is stuff."""
    generator = torch.Generator().manual_seed(3)
    class_index = torch.tensor(sorted([*range(classes), min(1, classes - 1)]))
    vectors = torch.nn.functional.normalize(torch.randn(len(class_index), width, generator=generator), dim=-1)
    names = tuple(f"class {number}" for number in range(classes))
    all_names = tuple(f"name {number}" for number in range(len(class_index)))
    return TextEmbeddings(vectors, class_index, names, torch.arange(classes) % 2 == 0, all_names=all_names)


def some_images(*sizes: tuple[int, int]) -> ImageBatch:
    """Smooth random pictures of the sizes given."""
    generator = torch.Generator().manual_seed(4)
    coarse = [torch.rand(1, 3, 5, 5, generator=generator) for _ in sizes]
    images = [
        torch.nn.functional.interpolate(image, size, mode="bicubic")[0].clamp(0, 1)
        for image, size in zip(coarse, sizes, strict=True)
    ]
    return ImageBatch.of(images)
