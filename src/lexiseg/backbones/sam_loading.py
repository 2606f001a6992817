"""Construction of SAM, HQ-SAM, MobileSAM and SAM 2, and loading of published weights.

Weights are official files, folders of transformers or of ``lexiseg convert``, or repositories on the hub.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lexiseg.backbones import sam2_weights
from lexiseg.backbones.configs import agreed_options, check_timm_arguments, own_options, read_config, timm_name
from lexiseg.backbones.hub import ModelFiles
from lexiseg.backbones.relative_attention import with_relative_attention
from lexiseg.backbones.sam import Sam2Backbone, SamBackbone, SamFamily, SamHqBackbone
from lexiseg.backbones.sam_mobile import CHANNELS, STRIDE, MobileSamBackbone, TinyViTEncoder
from lexiseg.backbones.sam_weights import MOBILE_KEY, TIED, check_keys, from_official
from lexiseg.backbones.state_dicts import has_names, read_state
from lexiseg.errors import UsageError, WeightsError
from lexiseg.ops.files import is_file, is_folder

if TYPE_CHECKING:
    from transformers import SamConfig, SamHQConfig

FILES = ModelFiles("a folder with SAM weights", "config.json and model.safetensors", "an official file (sam_vit_b_01ec64.pth)")

_TRANSFORMERS = "vision_encoder."  # prefix in transformers' and our names; official names have image_encoder
DECODER_NORM_EPS = 1e-5  # of the official two-way transformer; transformers' default, 1e-6, moves logits by 2e-4

# width, layers, heads, layers with global attention
_VISION = {
    "b": (768, 12, 12, (2, 5, 8, 11)),
    "l": (1024, 24, 16, (5, 11, 17, 23)),
    "h": (1280, 32, 16, (7, 15, 23, 31)),
}
# ``model_type`` -> prefix of transformers' class names; video models contain the image model.
FAMILIES = {
    "sam": "Sam",
    "sam_hq": "SamHQ",
    "sam2": "Sam2",
    "sam2_video": "Sam2",
    "edgetam": "EdgeTam",
    "edgetam_video": "EdgeTam",
}
# Common to all SAM 2: the encoder has an output stride of 16, and the neck keeps it.
_STRIDES = {
    "patch_kernel_size": [7, 7],
    "patch_stride": [4, 4],
    "patch_padding": [3, 3],
    "query_stride": [2, 2],
    "num_query_pool_stages": 3,
}
_NECK = {"fpn_kernel_size": 1, "fpn_stride": 1, "fpn_padding": 0, "num_feature_levels": 3}
MOST_PIXELS = 4096  # per side of the input
Architecture = Literal["b", "l", "h"]
MOBILE = "mobile_sam"
SAM_NAMES = (*(f"{family}-vit-{size}" for family in ("sam", "sam_hq") for size in _VISION), MOBILE)


def sam_config(architecture: Architecture) -> SamConfig:
    """Return transformers' configuration of SAM ViT-B, -L or -H, with the official LayerNorm epsilon in the decoder."""
    from transformers import SamConfig

    return SamConfig(vision_config=_vision_options(architecture), mask_decoder_config={"layer_norm_eps": DECODER_NORM_EPS})


def sam_hq_config(architecture: Architecture) -> SamHQConfig:
    """Return transformers' configuration of HQ-SAM ViT-B, -L or -H, with the official LayerNorm epsilon in the decoder."""
    from transformers import SamHQConfig

    width = _VISION[architecture][0]
    return SamHQConfig(
        vision_config=_vision_options(architecture),
        mask_decoder_config={"layer_norm_eps": DECODER_NORM_EPS, "vit_dim": width},
    )


def _vision_options(architecture: Architecture) -> dict[str, Any]:
    width, layers, heads, global_layers = _VISION[architecture]
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "global_attn_indexes": list(global_layers),
    }


def build_sam(config: SamConfig | SamHQConfig | Any) -> SamFamily:
    """Build SAM, HQ-SAM or SAM 2 from a transformers configuration, with random weights and in evaluation mode.

    Works under ``torch.device("meta")``.

    Raises:
        WeightsError: configuration of another model.
    """
    import transformers

    match config.model_type:
        case "sam":
            return SamBackbone(with_relative_attention(transformers.SamModel(config))).eval()
        case "sam_hq":
            return SamHqBackbone(with_relative_attention(transformers.SamHQModel(config))).eval()
        case "sam2":
            return Sam2Backbone(transformers.Sam2Model(config)).eval()
        case "edgetam":
            return Sam2Backbone(transformers.EdgeTamModel(config)).eval()
        case other:
            raise WeightsError(f"the configuration is of a '{other}' model; supported are sam, sam_hq, sam2 and edgetam")


def sam_vit(architecture: Architecture) -> SamBackbone:
    """Build SAM ViT-B, -L or -H with random weights; works under ``torch.device("meta")``.

    Raises:
        UsageError: unknown size.
    """
    if architecture not in _VISION:
        raise UsageError(f"unknown SAM size '{architecture}'; there are {', '.join(_VISION)}")
    from transformers import SamModel

    return SamBackbone(with_relative_attention(SamModel(sam_config(architecture)))).eval()


def mobile_sam(image_size: int = 1024) -> MobileSamBackbone:
    """Build MobileSAM with random weights, in evaluation mode.

    Args:
        image_size: S, a multiple of 16. No parameter depends on it; MobileSAM was trained at 1024.
    """
    from transformers import SamConfig, SamModel

    without_encoder = {"hidden_size": 16, "num_attention_heads": 1, "num_hidden_layers": 0, "output_channels": CHANNELS}
    config = SamConfig(
        vision_config={"image_size": image_size, "patch_size": STRIDE, **without_encoder},
        prompt_encoder_config={"image_size": image_size, "patch_size": STRIDE},
        mask_decoder_config={"layer_norm_eps": DECODER_NORM_EPS},
    )
    model = SamModel(config)
    model.vision_encoder = TinyViTEncoder()
    return MobileSamBackbone(model).eval()


def sam_name(sam: SamFamily) -> str:
    """Return the name in `SAM_NAMES` of an official SAM, HQ-SAM or MobileSAM.

    Raises:
        WeightsError: any other model.
    """
    if isinstance(sam, MobileSamBackbone):
        return MOBILE
    width = sam.model.config.vision_config.hidden_size
    families: dict[type[SamFamily], str] = {SamBackbone: "sam", SamHqBackbone: "sam_hq"}
    family = families.get(type(sam))
    for size, (known, *_) in _VISION.items():
        if family is not None and width == known:
            return f"{family}-vit-{size}"
    raise WeightsError(f"a SAM of width {width} has no name; known are {', '.join(SAM_NAMES)}")


def config_document(sam: SamFamily) -> dict[str, Any]:
    """Return the content of ``config.json`` with which `load_sam` reads these weights from a folder."""
    if isinstance(sam, MobileSamBackbone):
        return {"model_type": MOBILE, "image_size": sam.image_size}
    document: dict[str, Any] = sam.model.config.to_dict()
    return document


def load_sam(source: str | Path) -> SamFamily:
    """Load SAM, HQ-SAM, MobileSAM or SAM 2 with its weights, float32, in evaluation mode, on the CPU.

    Args:
        source: a file as published (``sam_vit_b_01ec64.pth``, ``sam_hq_vit_l.pth``, ``mobile_sam.pt``,
            ``sam2.1_hiera_tiny.pt``, or safetensors with the same keys); a folder of transformers or of ``lexiseg convert``
            (``config.json`` and ``model.safetensors``), or that ``model.safetensors`` with its config beside it; or a hub id
            (``facebook/sam-vit-base``), which is downloaded unless it is in the cache.

    Raises:
        WeightsError: missing, unreadable, or weights of another model.
    """
    path = Path(source)
    if is_folder(path):
        return _from_transformers(FILES.in_folder(path, "config.json"), FILES.in_folder(path, "model.safetensors"), str(path))
    if is_file(path):
        if has_names(path, _TRANSFORMERS):
            return _from_transformers(FILES.in_folder(path.parent, "config.json"), path, str(path))
        return from_official_state(read_state(path), str(path))
    name = str(source)
    if path.suffix in {".pth", ".pt", ".safetensors"} or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise WeightsError(
            f"no SAM weights at {name}; give a file as published (sam_vit_b_01ec64.pth), a folder with config.json and "
            "model.safetensors, or a hub id such as facebook/sam-vit-base"
        )
    return _from_transformers(FILES.from_hub(name, "config.json"), FILES.from_hub(name, "model.safetensors"), name)


def from_official_state(state: Mapping[str, Tensor], source: str, config: Any | None = None) -> SamFamily:
    """Build SAM, HQ-SAM, MobileSAM or SAM 2 from an official state dictionary.

    Args:
        state: official key -> tensor.
        source: name of the weights in messages.
        config: transformers configuration; defaults to the one that fits the encoder's weights.

    Raises:
        WeightsError: keys or shapes that are not SAM's.
    """
    if sam2_weights.SAM2_KEY in state:
        return _filled(_empty(config or sam2_weights.sam2_config(state, source)), sam2_weights.from_official(state), source)
    ours = from_official(state)
    if MOBILE_KEY in ours:
        return _filled(mobile_sam(), ours, source)
    if config is None:
        position = ours.get("vision_encoder.pos_embed")
        width = 0 if position is None else position.shape[-1]
        sizes: dict[int, Architecture] = {768: "b", 1024: "l", 1280: "h"}
        if width not in sizes:
            raise WeightsError(f"{source} has an image encoder of width {width}; SAM ViT-B, -L and -H have 768, 1024, 1280")
        hq = "mask_decoder.hq_token.weight" in ours
        config = sam_hq_config(sizes[width]) if hq else sam_config(sizes[width])
    return _filled(_empty(config), ours, source)


def _from_transformers(config_file: Path, weights_file: Path, source: str) -> SamFamily:
    options = read_config(config_file)
    if options.get("model_type") == MOBILE:
        size = options.get("image_size")
        if not isinstance(size, int) or not 0 < size <= MOST_PIXELS or size % STRIDE:
            raise WeightsError(
                f"{config_file}: image_size must be a multiple of {STRIDE} up to {MOST_PIXELS}, not {reprlib.repr(size)}"
            )
        return _filled(mobile_sam(size), read_state(weights_file), source)
    try:
        model = _empty(_config(options, config_file, source))
    except (UsageError, WeightsError):
        raise
    except Exception as error:  # sizes that fit no model can raise anything in transformers
        raise WeightsError(f"transformers cannot build the model that {config_file} describes: {error!r:.300}") from error
    return _filled(model, read_state(weights_file), source)


def _config(options: Mapping[str, Any], config_file: Path, source: str) -> Any:
    """Build a transformers configuration with the sizes of a ``config.json``; everything else in that file is ignored.

    Sizes that must agree are taken from the encoder.
    """
    import transformers

    kind = options.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise WeightsError(
            f"{source} holds a {reprlib.repr(kind)} model; supported are sam, sam_hq, mobile_sam, sam2 and edgetam"
        )

    def part(key: str, name: str, agreed: Mapping[str, object] | None = None, **ours: object) -> Any:
        config_class, values = getattr(transformers, f"{family}{name}Config"), options.get(key, {})
        where = f"{config_file}, {key}"
        return config_class(**own_options(config_class, values, where, **agreed_options(values, agreed or {}, where), **ours))

    if family in {"Sam", "SamHQ"}:
        vision = part("vision_config", "Vision")
        channels = vision.output_channels
        sizes = {"hidden_size": channels, "image_size": vision.image_size, "patch_size": vision.patch_size}
        ours = {"layer_norm_eps": DECODER_NORM_EPS}
    else:
        encoder = options.get("vision_config", {})
        if family == "Sam2":
            trunk = _trunk(transformers.Sam2HieraDetConfig, encoder, config_file)
        else:
            print_without_hub()
            trunk = _timm_trunk(encoder, config_file)
        vision = part("vision_config", "Vision", _NECK, backbone_config=trunk)
        channels, sizes, ours = vision.fpn_hidden_size, {"hidden_size": vision.fpn_hidden_size, "patch_size": STRIDE}, {}
    prompts = part("prompt_encoder_config", "PromptEncoder", sizes)
    size, patch = prompts.image_size, prompts.patch_size
    if not isinstance(size, int) or not isinstance(patch, int) or not 0 < patch <= size <= MOST_PIXELS or size % patch:
        raise WeightsError(
            f"{config_file}: image_size must be a multiple of patch_size up to {MOST_PIXELS}, not {reprlib.repr(size)} and "
            f"{reprlib.repr(patch)}"
        )
    sizes = {"hidden_size": channels, **({"vit_dim": vision.hidden_size} if family == "SamHQ" else {})}
    decoder = part("mask_decoder_config", "MaskDecoder", sizes, **ours)
    width, heads, rate = decoder.hidden_size, decoder.num_attention_heads, decoder.attention_downsample_rate
    if not (isinstance(heads, int) and isinstance(rate, int) and heads > 0 and rate > 0) or width % (heads * rate):
        raise WeightsError(
            f"{config_file}, mask_decoder_config: num_attention_heads times attention_downsample_rate must divide hidden_size "
            f"{width}, not {reprlib.repr(heads)} and {reprlib.repr(rate)}"
        )
    return getattr(transformers, f"{family}Config")(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )


def _trunk(config_class: type[Any], vision: object, config_file: Path) -> Any:
    """Build the configuration of the encoder in ``vision_config``."""
    options = vision.get("backbone_config", {}) if isinstance(vision, Mapping) else {}
    where = f"{config_file}, vision_config.backbone_config"
    trunk = config_class(**own_options(config_class, options, where, **agreed_options(options, _STRIDES, where)))
    channels, heads, windows = trunk.embed_dim_per_stage, trunk.num_attention_heads_per_stage, trunk.window_size_per_stage
    counts = [*heads, *windows] if isinstance(heads, list) and isinstance(windows, list) else [0]
    if not all(isinstance(count, int) and count > 0 for count in counts) or any(
        width % count for width, count in zip(channels, heads, strict=False)
    ):
        raise WeightsError(
            f"{where}: num_attention_heads_per_stage must divide embed_dim_per_stage, and windows have a cell or more, not "
            f"{reprlib.repr(heads)} and {reprlib.repr(windows)}"
        )
    if any(side < max(trunk.query_stride) for side in windows[:-1]):  # the next stage pools within them
        raise WeightsError(
            f"{where}: windows of all stages but the last have {trunk.query_stride} cells or more, not {windows}"
        )
    return trunk


def _timm_trunk(vision: object, config_file: Path) -> Any:
    """Build the configuration of EdgeTAM's encoder, which must be in timm's own table: other names make timm read files."""
    from transformers import TimmWrapperConfig

    options = vision.get("backbone_config", {}) if isinstance(vision, Mapping) else {}
    name = options.get("architecture", "repvit_m1") if isinstance(options, Mapping) else options
    name = name.removeprefix("timm/") if isinstance(name, str) else name
    if not timm_name(name):
        raise WeightsError(
            f"{config_file}: vision_config.backbone_config.architecture must be a model of timm, not {reprlib.repr(name)}"
        )
    published = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
    stated = options.get("model_args") if isinstance(options, Mapping) else None
    arguments = check_timm_arguments(stated or published, config_file, "vision_config.backbone_config.model_args")
    return TimmWrapperConfig(architecture=name, model_args=arguments)


def print_without_hub() -> None:
    """Let configurations of EdgeTAM be built without a connection.

    The ``repr`` of one, which its type checks call, downloads the published encoder's configuration in transformers before
    5.23.
    """
    from transformers import EdgeTamConfig, EdgeTamVisionConfig

    for config_class in (EdgeTamConfig, EdgeTamVisionConfig):
        config_class.__repr__ = object.__repr__


def _empty(config: Any) -> SamFamily:
    """Build the model of a configuration on the meta device, without initialising weights."""
    with torch.device("meta"):
        return build_sam(config)


def _filled(backbone: SamFamily, state: Mapping[str, Tensor], source: str) -> SamFamily:
    """Load exactly these weights into a model."""
    expected = backbone.model.state_dict()
    tensors = {key: tensor for key, tensor in state.items() if not _only_for_video(key)}
    for pair in TIED.items():
        for copy, original in (pair, pair[::-1]):
            if copy in expected and copy not in tensors and original in tensors:
                tensors[copy] = tensors[original]
    check_keys(tensors, expected, source)
    floats = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    backbone.model.load_state_dict(floats, assign=True)
    return backbone


_VIDEO_KEYS = re.compile(
    r"memory_(attention|encoder|temporal)|mask_downsample|object_pointer_proj|temporal_positional_encoding_projection_layer"
    r"|no_memory_positional_encoding|no_object_pointer|occlusion_spatial_embedding_parameter"
)


def _only_for_video(key: str) -> bool:
    """Whether a key of a SAM 2 checkpoint belongs to the video tracker."""
    return _VIDEO_KEYS.match(key) is not None
