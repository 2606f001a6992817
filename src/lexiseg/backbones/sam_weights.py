"""Key mapping of SAM's weights between the official code (segment-anything, sam-hq, MobileSAM) and transformers.

The same prefix rules map both ways. Every key is mapped, dropped with a reason, or an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from lexiseg.backbones.state_dicts import compiled, rename_all, some
from lexiseg.errors import WeightsError

_MLP = (("layers.0.", "proj_in."), ("layers.1.", "layers.0."), ("layers.2.", "proj_out."))
_ENCODER = "image_encoder.", "vision_encoder."
_NECK = (
    ("neck.0.", "neck.conv1."),
    ("neck.1.", "neck.layer_norm1."),
    ("neck.2.", "neck.conv2."),
    ("neck.3.", "neck.layer_norm2."),
)

_TRUNK = "vision_encoder.trunk."  # of MobileSAM, with timm's names
MOBILE_KEY = f"{_TRUNK}patch_embed.conv1.conv.weight"  # only in MobileSAM


def _convolution(official: str, ours: str) -> list[tuple[str, str]]:
    """Rules of a convolution and its norm."""
    return [(f"{_ENCODER[0]}{official}.{a}.", f"{_TRUNK}{ours}.{b}.") for a, b in (("c", "conv"), ("bn", "bn"))]


# Prefixes of keys: (official, ours). <n> matches any index, the same on both sides.
_RULES: tuple[tuple[str, str], ...] = (
    ("image_encoder.pos_embed", "vision_encoder.pos_embed"),
    ("image_encoder.patch_embed.proj.", "vision_encoder.patch_embed.projection."),
    *(
        (f"image_encoder.blocks.<n>.{a}", f"vision_encoder.layers.<n>.{b}")
        for a, b in (("norm1.", "layer_norm1."), ("norm2.", "layer_norm2."), ("attn.", "attn."), ("mlp.", "mlp."))
    ),
    *((_ENCODER[0] + official, _ENCODER[1] + ours) for official, ours in _NECK),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"),
    ("prompt_encoder.point_embeddings.<n>.", "prompt_encoder.point_embed.<n>."),
    ("prompt_encoder.not_a_point_embed.", "prompt_encoder.not_a_point_embed."),
    ("prompt_encoder.no_mask_embed.", "prompt_encoder.no_mask_embed."),
    *(
        (f"prompt_encoder.mask_downscaling.{a}.", f"prompt_encoder.mask_embed.{b}.")
        for a, b in (("0", "conv1"), ("1", "layer_norm1"), ("3", "conv2"), ("4", "layer_norm2"), ("6", "conv3"))
    ),
    ("mask_decoder.iou_token.", "mask_decoder.iou_token."),
    ("mask_decoder.mask_tokens.", "mask_decoder.mask_tokens."),
    *(
        (f"mask_decoder.transformer.layers.<n>.norm{k}.", f"mask_decoder.transformer.layers.<n>.layer_norm{k}.")
        for k in (1, 2, 3, 4)
    ),
    *(
        (f"mask_decoder.transformer.layers.<n>.{part}.", f"mask_decoder.transformer.layers.<n>.{part}.")
        for part in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token", "mlp")
    ),
    ("mask_decoder.transformer.final_attn_token_to_image.", "mask_decoder.transformer.final_attn_token_to_image."),
    ("mask_decoder.transformer.norm_final_attn.", "mask_decoder.transformer.layer_norm_final_attn."),
    *(
        (f"mask_decoder.output_upscaling.{a}.", f"mask_decoder.{b}.")
        for a, b in (("0", "upscale_conv1"), ("1", "upscale_layer_norm"), ("3", "upscale_conv2"))
    ),
    *((f"mask_decoder.output_hypernetworks_mlps.<n>.{a}", f"mask_decoder.output_hypernetworks_mlps.<n>.{b}") for a, b in _MLP),
    *((f"mask_decoder.iou_prediction_head.{a}", f"mask_decoder.iou_prediction_head.{b}") for a, b in _MLP),
    # MobileSAM's encoder: downsampling layers end a stage there, and begin the next one in timm
    *_convolution("patch_embed.seq.0", "patch_embed.conv1"),
    *_convolution("patch_embed.seq.2", "patch_embed.conv2"),
    *(rule for k in (1, 2, 3) for rule in _convolution(f"layers.0.blocks.<n>.conv{k}", f"stages.0.blocks.<n>.conv{k}")),
    *(
        rule
        for stage in (0, 1, 2)
        for k in (1, 2, 3)
        for rule in _convolution(f"layers.{stage}.downsample.conv{k}", f"stages.{stage + 1}.downsample.conv{k}")
    ),
    *(
        rule
        for stage in (1, 2, 3)
        for rule in (
            *_convolution(f"layers.{stage}.blocks.<n>.local_conv", f"stages.{stage}.blocks.<n>.local_conv"),
            *(
                (f"{_ENCODER[0]}layers.{stage}.blocks.<n>.{part}.", f"{_TRUNK}stages.{stage}.blocks.<n>.{part}.")
                for part in ("attn", "mlp")
            ),
        )
    ),
    # HQ-SAM's additions
    ("mask_decoder.hf_token.", "mask_decoder.hq_token."),
    *((f"mask_decoder.hf_mlp.{a}", f"mask_decoder.hq_mask_mlp.{b}") for a, b in _MLP),
    *(
        (f"mask_decoder.{a}.{index}.", f"mask_decoder.{b}_{layer}.")
        for a, b in (("compress_vit_feat", "compress_vit"), ("embedding_encoder", "encoder"), ("embedding_maskfeature", "mask"))
        for index, layer in (("0", "conv1"), ("1", "norm"), ("3", "conv2"))
    ),
)

# Copy -> original of parameters that transformers ties; one tensor in official files.
TIED = {"prompt_encoder.shared_embedding.positional_embedding": "shared_image_embedding.positional_embedding"}

# Official keys that are not parameters of the network, and why.
DROPPED = {
    "pixel_mean": "constant of the preprocessing",
    "pixel_std": "constant of the preprocessing",
    **{
        f"image_encoder.{key}": "classification head of MobileSAM's encoder, unused in SAM"
        for key in ("norm_head.weight", "norm_head.bias", "head.weight", "head.bias")
    },
}


_TO_OURS, _TO_OFFICIAL = compiled(_RULES, 0), compiled(_RULES, 1)


def names_from_official(keys: Iterable[str]) -> dict[str, str]:
    """Map official keys of parameters to ours.

    Raises:
        WeightsError: keys without a rule.
    """
    return rename_all((key for key in keys if key not in DROPPED), _TO_OURS, "official SAM's, HQ-SAM's or MobileSAM's")


def names_to_official(keys: Iterable[str]) -> dict[str, str]:
    """Map our keys to official ones; tied copies are left out.

    Raises:
        WeightsError: keys without a rule.
    """
    return rename_all((key for key in keys if key not in TIED), _TO_OFFICIAL, "SAM's, HQ-SAM's or MobileSAM's of ours")


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dictionary to our keys, including tied copies.

    Raises:
        WeightsError: keys without a rule.
    """
    ours = {name: state[key] for key, name in names_from_official(state).items()}
    ours.update({copy: ours[original] for copy, original in TIED.items() if original in ours})
    return ours


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dictionary of ours to official keys.

    Raises:
        WeightsError: keys without a rule.
    """
    return {name: state[key] for key, name in names_to_official(state).items()}


def check_keys(shapes: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Check that a state dictionary has exactly the expected keys and shapes.

    Raises:
        WeightsError: keys that are missing, unknown, or of another shape.
    """
    problems = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "unknown": sorted(shapes.keys() - expected.keys()),
        "of another shape": sorted(
            f"{key} {tuple(shapes[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in expected.keys() & shapes.keys()
            if shapes[key].shape != expected[key].shape
        ),
    }
    summary = "; ".join(f"{len(keys)} {problem}: {some(keys)}" for problem, keys in problems.items() if keys)
    if summary:
        raise WeightsError(f"{source} does not fit the model: {summary}; check that checkpoint and architecture match")
