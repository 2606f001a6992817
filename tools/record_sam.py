"""Record small HQ-SAM and SAM 2 as their programs compute them, as cases for ``python -m tests.parity``.

    pip install --no-deps --target REFERENCES segment-anything-hq sam2
    PYTHONPATH=REFERENCES python tools/record_sam.py sam_hq tests/parity/data
    PYTHONPATH=REFERENCES python tools/record_sam.py sam2 /tmp/cases
    python -m tools.pack_parity tests/parity/data/sam_hq_tiny.safetensors --seeds 0 --output tests/parity/data  # and delete it

segment-anything-hq 0.3 is by the authors of HQ-SAM; sam2 1.1.0 on PyPI is a copy of Meta's program by others. Both want
packages that their models do not need; those are replaced by empty ones. All weights are random.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torchvision  # noqa: F401 - before the empty modules, which confuse its start
from safetensors.torch import save_file
from torch import Tensor, nn

SIDE, PATCH, SPREAD = 64, 16, 1.2
POINTS = torch.tensor([[[20.0, 30.0], [50.0, 10.0]], [[5.0, 60.0], [33.0, 33.0]]])
LABELS = torch.tensor([[1, 0], [1, 1]])
BOXES = torch.tensor([[4.0, 8.0, 40.0, 44.0], [10.0, 20.0, 60.0, 62.0]])
CONFIGS: dict[str, dict[str, Any]] = {
    "sam_hq": {
        "img_size": SIDE, "patch": PATCH, "embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_ratio": 2, "window_size": 3,
        "global_attn_indexes": [0, 1], "out_chans": 16, "use_rel_pos": True, "prompt": {"embed_dim": 16, "mask_in_chans": 4},
        "decoder": {
            "depth": 2, "mlp_dim": 32, "num_heads": 2, "num_multimask_outputs": 3, "iou_head_depth": 3, "iou_head_hidden_dim": 16,
        },
    },
    "sam2": {
        "img_size": SIDE, "embed_dim": 16, "stages": [1, 2, 2, 1], "global_att_blocks": [2, 4], "window_spec": [8, 4, 4, 2],
        "background": [4, 4], "channels": 32, "mask_in_chans": 4, "mlp_dim": 64, "num_heads": 2, "iou_head_hidden_dim": 32,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=CONFIGS)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with torch.no_grad():
        tensors = {"sam_hq": sam_hq, "sam2": sam2}[arguments.which](CONFIGS[arguments.which])
    stem = arguments.output / f"{arguments.which}_tiny"
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, f"{stem}.safetensors")
    document = {"what": "recorded by tools/record_sam.py, random weights", "config": CONFIGS[arguments.which]}
    Path(f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def sam_hq(config: dict[str, Any]) -> dict[str, Tensor]:
    _empty("cv2")
    from segment_anything_hq.modeling import ImageEncoderViT, MaskDecoderHQ, PromptEncoder, TwoWayTransformer

    width, grid, masks = config["out_chans"], (SIDE // PATCH, SIDE // PATCH), config["decoder"]
    encoder = ImageEncoderViT(
        depth=config["depth"], embed_dim=config["embed_dim"], img_size=SIDE, mlp_ratio=config["mlp_ratio"],
        norm_layer=partial(nn.LayerNorm, eps=1e-6), num_heads=config["num_heads"], patch_size=PATCH, qkv_bias=True,
        use_rel_pos=True, global_attn_indexes=config["global_attn_indexes"], window_size=config["window_size"], out_chans=width,
    )  # fmt: skip
    prompts = PromptEncoder(width, grid, (SIDE, SIDE), config["prompt"]["mask_in_chans"])
    transformer = TwoWayTransformer(masks["depth"], width, masks["num_heads"], masks["mlp_dim"])
    decoder = MaskDecoderHQ(
        transformer_dim=width, transformer=transformer, num_multimask_outputs=3, iou_head_depth=3,
        iou_head_hidden_dim=masks["iou_head_hidden_dim"], vit_dim=config["embed_dim"],
    )  # fmt: skip
    tensors = _randomised({"image_encoder": encoder, "prompt_encoder": prompts, "mask_decoder": decoder})
    tensors |= (given := _given())
    embedding, early = encoder(given["in.image"])
    tensors["out.embedding"] = embedding
    asked = {
        "points": {"points": (POINTS, LABELS), "boxes": None, "masks": None},
        "boxes": {"points": None, "boxes": BOXES, "masks": None},
        "points_masks": {"points": (POINTS, LABELS), "boxes": None, "masks": given["in.masks"]},
    }
    for kind, prompt in asked.items():
        sparse, dense = prompts(**prompt)
        for mode in ("multi", "single"):
            found = decoder(embedding, prompts.get_dense_pe(), sparse, dense, mode == "multi", False, early)
            tensors |= {f"out.{kind}.{mode}.{name}": one for name, one in zip(("logits", "quality"), found, strict=True)}
    return tensors


def sam2(config: dict[str, Any]) -> dict[str, Tensor]:
    for name in ("hydra", "hydra.utils", "omegaconf", "iopath", "iopath.common", "iopath.common.file_io"):
        _empty(name)
    package, found = ModuleType("sam2"), find_spec("sam2")  # its own start wants a configuration of hydra
    assert found is not None, "sam2 is not installed"
    package.__path__ = list(found.submodule_search_locations or ())
    sys.modules["sam2"] = package
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam.mask_decoder import MaskDecoder
    from sam2.modeling.sam.prompt_encoder import PromptEncoder
    from sam2.modeling.sam.transformer import TwoWayTransformer

    width, grid = config["channels"], (SIDE // PATCH, SIDE // PATCH)
    trunk = Hiera(
        embed_dim=config["embed_dim"], num_heads=1, stages=tuple(config["stages"]), window_spec=tuple(config["window_spec"]),
        global_att_blocks=tuple(config["global_att_blocks"]), window_pos_embed_bkg_spatial_size=tuple(config["background"]),
    )  # fmt: skip
    places = PositionEmbeddingSine(num_pos_feats=width, normalize=True, scale=None, temperature=10000)
    channels = [config["embed_dim"] * 2**stage for stage in (3, 2, 1, 0)]
    encoder = ImageEncoder(
        trunk, FpnNeck(places, width, channels, fpn_interp_model="nearest", fpn_top_down_levels=[2, 3]), scalp=1
    )
    prompts = PromptEncoder(width, grid, (SIDE, SIDE), config["mask_in_chans"])
    decoder = MaskDecoder(
        transformer_dim=width, transformer=TwoWayTransformer(2, width, config["num_heads"], config["mlp_dim"]),
        num_multimask_outputs=3, iou_head_depth=3, iou_head_hidden_dim=config["iou_head_hidden_dim"], use_high_res_features=True,
        iou_prediction_use_sigmoid=True, pred_obj_scores=True, pred_obj_scores_mlp=True, use_multimask_token_for_obj_ptr=True,
        dynamic_multimask_via_stability=True,
    )  # fmt: skip
    tensors = _randomised({"image_encoder": encoder, "sam_prompt_encoder": prompts, "sam_mask_decoder": decoder})
    tensors["sd.no_mem_embed"] = torch.randn(1, 1, width)
    tensors |= (given := _given())
    fine, middle, coarse = encoder(given["in.image"])["backbone_fpn"]
    skips = [decoder.conv_s0(fine), decoder.conv_s1(middle)]
    embedding = coarse + tensors["sd.no_mem_embed"].reshape(1, -1, 1, 1)
    tensors |= {"out.embedding": embedding, "out.fine": skips[0], "out.middle": skips[1]}
    corners, nowhere = (BOXES.reshape(-1, 2, 2), torch.tensor([[2, 3]] * 2)), (torch.zeros(2, 1, 2), -torch.ones(2, 1).int())
    asked = {
        "points": ((POINTS, LABELS), None),
        "boxes": (corners, None),  # as its predictor gives them
        "points_masks": ((POINTS, LABELS), given["in.masks"]),
        "masks": (nowhere, given["in.masks"]),
    }
    for kind, (points, masks) in asked.items():
        sparse, dense = prompts(points=points, boxes=None, masks=masks)
        for mode in ("multi", "single"):
            logits, quality, *_ = decoder(embedding, prompts.get_dense_pe(), sparse, dense, mode == "multi", True, skips)
            tensors |= {f"out.{kind}.{mode}.logits": logits, f"out.{kind}.{mode}.quality": quality}
    return tensors


def _randomised(parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Random weights under which no path is silent, and the state dictionary of the whole."""
    for part in parts.values():
        part.eval()
        for name, parameter in part.named_parameters():
            spread = 0.5 if parameter.dim() < 2 else SPREAD * parameter[0].numel() ** -0.5
            parameter.copy_(spread * torch.randn_like(parameter) + float("norm" in name and name.endswith("weight")))
    return {f"sd.{name}.{key}": tensor for name, part in parts.items() for key, tensor in part.state_dict().items()}


def _given() -> dict[str, Tensor]:
    inputs = {"image": torch.randn(1, 3, SIDE, SIDE), "points": POINTS, "labels": LABELS, "boxes": BOXES}
    return {f"in.{name}": tensor for name, tensor in {**inputs, "masks": torch.randn(2, 1, SIDE // 4, SIDE // 4)}.items()}


def _empty(name: str) -> None:
    """A package that has everything, and nothing behind it."""
    if name not in sys.modules:
        module = ModuleType(name)
        module.__getattr__ = lambda _: lambda *_, **__: None  # type: ignore[method-assign]
        sys.modules.setdefault(name, module)


if __name__ == "__main__":
    main()
