"""FC-CLIP's and FrozenSeg's trained part: deformable attention, both pixel decoders, both mask decoders, full-size names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lexiseg.backbones.clip import build_clip
from lexiseg.layers.deformable import DeformableAttention, deformable_attention, reread_with_levels
from lexiseg.layers.mask_decoder import DecodedMasks, MaskDecoder, class_logits, mask_pool
from lexiseg.layers.pixel_decoder import PixelDecoder, PixelFeatures
from lexiseg.layers.position import sine_positions
from lexiseg.methods.cmpf.injectors import FeatureInjector, QueryInjector, SamInjection
from lexiseg.methods.cmpf.sam_features import SamFeatures
from lexiseg.methods.fcclip.weights import names_from_official, names_to_official
from lexiseg.structures import Size, TextEmbeddings
from tests.parity.cases.clip import ARCHITECTURES
from tests.parity.report import Row, load_case, max_difference

RELATIVE = 1e-5
ATTENTION = {
    "sampling_offsets": "offsets",
    "attention_weights": "weights",
    "value_proj": "value",
    "output_proj": "output",
}
PIXELS, MASKS = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."


def compared(case: str, quantity: str, ours: Tensor, reference: Tensor) -> Row:
    """A row whose tolerance follows the largest number of the reference."""
    return Row(case, quantity, max_difference(ours, reference), RELATIVE * max(1.0, float(reference.abs().max())))


def _sizes(tensors: Mapping[str, Tensor]) -> list[Size]:
    return [(int(high), int(wide)) for high, wide in tensors["spatial_shapes"]]


def _state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("state_dict."): tensor for name, tensor in tensors.items() if name.startswith("state_dict.")}


def _load(module: nn.Module, state: Mapping[str, Tensor], official: str, ours: str) -> None:
    """Give a part of ours its official parameters, named relative to the official part."""
    names = names_from_official(official + name for name in state)
    module.load_state_dict(
        {name.removeprefix(ours): state[key.removeprefix(official)] for key, name in names.items() if name.startswith(ours)}
    )


@torch.enable_grad()
def deformable_core(path: Path) -> list[Row]:
    """Samples and sums, with gradients."""
    tensors, _ = load_case(path)
    value, locations, weights = (
        tensors[name].requires_grad_() for name in ("value", "sampling_locations", "attention_weights")
    )
    output = deformable_attention(value, _sizes(tensors), locations, weights)
    output.backward(tensors["grad_output"])
    rows = [compared(path.name, name, output, tensors[name]) for name in ("output", "output_cuda_kernel")]
    gradients = {"value": value, "sampling_locations": locations, "attention_weights": weights}
    for name, tensor in gradients.items():
        assert tensor.grad is not None
        rows.append(compared(path.name, f"grad_{name}", tensor.grad, tensors[f"grad_{name}"]))
    return rows


def _attention(tensors: Mapping[str, Tensor], *, official_mismatch: bool = False) -> DeformableAttention:
    module = DeformableAttention(32, levels=3, heads=4, points=4, official_mismatch=official_mismatch)
    names = {key: key.replace(key.split(".")[0], ATTENTION[key.split(".")[0]]) for key in _state(tensors)}
    module.load_state_dict({names[key]: tensor for key, tensor in _state(tensors).items()})
    return module


@torch.no_grad()
def deformable_module(path: Path) -> list[Row]:
    """The module on its three levels, with and without padding, and how it starts."""
    tensors, _ = load_case(path)
    fresh = DeformableAttention(32, levels=3, heads=4, points=4)
    module = _attention(tensors)
    given = (tensors["query"], tensors["reference_points"], tensors["input_flatten"], _sizes(tensors))
    return [
        compared(path.name, "init_sampling_offsets_bias", fresh.offsets.bias, tensors["init_sampling_offsets_bias"]),
        compared(path.name, "output", module(*given), tensors["output"]),
        compared(
            path.name, "output_with_padding_mask", module(*given, tensors["padding_mask"]), tensors["output_with_padding_mask"]
        ),
    ]


@torch.no_grad()
def deformable_mismatch(path: Path) -> list[Row]:
    """Three levels predicted, one fed: what the GPU operator makes of it."""
    tensors, _ = load_case(path)
    module = _attention(tensors, official_mismatch=True)
    sizes = _sizes(tensors)
    rows = []
    for batch in ("batch1", "batch2"):
        query, reference, tokens, locations, weights, output = (
            tensors[f"{batch}.{name}"]
            for name in (
                "query", "reference_points", "input_flatten", "sampling_locations", "attention_weights", "output",
            )
        )  # fmt: skip
        rows.append(compared(path.name, f"{batch}.output", module(query, reference, tokens, sizes), output))
        value = module.value(tokens).unflatten(-1, (4, -1))
        reread = deformable_attention(value, sizes, reread_with_levels(locations, 1), reread_with_levels(weights, 1))
        rows.append(compared(path.name, f"{batch}.output of given buffers", module.output(reread), output))
    return rows


@torch.no_grad()
def pixel_decoder(path: Path) -> list[Row]:
    """FC-CLIP's pixel decoder, and FrozenSeg's branch for SAM beside it."""
    tensors, document = load_case(path)
    config, state = document["config"], _state(tensors)
    sizes = {
        "width": config["conv_dim"],
        "layers": config["transformer_enc_layers"],
        "heads": config["transformer_nheads"],
        "feedforward": config["transformer_dim_feedforward"],
    }
    decoder = PixelDecoder(config["in_channels"], config["strides"], **sizes).eval()
    _load(decoder, state, PIXELS, "pixel_decoder.")
    positions = sine_positions((3, 5), config["conv_dim"], like=tensors["position_encoding"])
    rows = [compared(path.name, "position_encoding", positions, tensors["position_encoding"])]
    for batch in ("batch1", "batch2"):
        if f"{batch}.mask_features" in tensors:
            features = decoder([tensors[f"{batch}.inputs.res{level}"] for level in (2, 3, 4, 5)])
            rows.append(
                compared(path.name, f"{batch}.mask_features", features.mask_features, tensors[f"{batch}.mask_features"])
            )
            for number, level in enumerate(features.levels):
                name = f"{batch}.multi_scale_features.{number}"
                rows.append(compared(path.name, name, level, tensors[name]))
            name = f"{batch}.transformer_encoder_features"
            rows += [compared(path.name, name, features.levels[0], tensors[name])] if name in tensors else []
        if f"{batch}.sam_outs.0" in tensors:
            branch = SamFeatures(config["conv_dim"], **sizes, behaviour="official").eval()
            _load(branch, state, PIXELS, "sam_features.")
            context = branch(tensors[f"{batch}.inputs.sam_embedding_0"])
            rows.append(compared(path.name, f"{batch}.sam_outs.0", context, tensors[f"{batch}.sam_outs.0"]))
    return rows


def _text(rows: Tensor, synonyms: list[int]) -> TextEmbeddings:
    """The vocabulary of an official classifier matrix, its last row ("no object") left out."""
    class_index = torch.arange(len(synonyms)).repeat_interleave(torch.tensor(synonyms))
    names = tuple(f"class {number}" for number in range(len(synonyms)))
    return TextEmbeddings(rows[:-1], class_index, names, torch.ones(len(synonyms), dtype=torch.bool))


@torch.no_grad()
def mask_decoder(path: Path) -> list[Row]:
    """Both mask decoders: every layer's prediction, injectors on and off, what each layer hands on."""
    tensors, document = load_case(path)
    config, synonyms = document["config"], document["num_templates"]
    decoder = MaskDecoder(
        config["clip_embedding_dim"],
        width=config["hidden_dim"],
        queries=config["num_queries"],
        layers=config["dec_layers"],
        heads=config["nheads"],
        feedforward=config["dim_feedforward"],
    )
    state = _state(tensors)
    feature = FeatureInjector(width=config["hidden_dim"], heads=config["nheads"], behaviour="official")
    injectors = {"feature_injector.": feature} if "sam_query_fuse_layer" in config else {}
    ours = names_from_official(MASKS + name for name in state)
    decoder_state = {
        name.removeprefix("mask_decoder."): state[key.removeprefix(MASKS)]
        for key, name in ours.items()
        if name.startswith("mask_decoder.")
    }
    decoder.load_state_dict(decoder_state | {"void.weight": decoder.void.weight})  # recorded with each batch
    for prefix, module in injectors.items():
        _load(module, state, MASKS, prefix)
    rows = _units(path.name, tensors, synonyms)
    for batch in ("batch1", "batch2"):
        if f"{batch}.inputs.mask_features" not in tensors:
            continue
        inputs = {
            name.removeprefix(f"{batch}.inputs."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"{batch}.inputs.")
        }
        features = PixelFeatures(
            inputs["mask_features"], tuple(inputs[f"multi_scale_features.{number}"] for number in range(3))
        )
        text = _text(inputs["text_classifier"], synonyms)
        decoder.void.weight.copy_(inputs["text_classifier"][-1:])
        for run in sorted({name.split(".")[1] for name in tensors if name.startswith(f"{batch}.")} - {"inputs", "trace"}):
            injection = _injection(run, inputs, feature, config) if injectors else None
            for module in (decoder, feature):
                module.train(run == "train")
            with Hooks(decoder, feature) as hooks:
                decoded = decoder(features, text, injection=injection, auxiliary=True)
            rows += _prediction_rows(path.name, f"{batch}.{run}", decoded, tensors)
            if run == "eval":
                rows += _trace_rows(path.name, f"{batch}.trace", hooks, tensors)
                lean = decoder(features, text, injection=injection)
                rows.append(Row(path.name, f"{batch}.auxiliary changes masks", max_difference(lean.masks, decoded.masks), 1e-5))
    return rows


def _injection(run: str, inputs: Mapping[str, Tensor], feature: FeatureInjector, config: Mapping[str, Any]) -> SamInjection:
    """The injectors of a run; variants are called variant_q{level}_f{level}, 99 for none."""
    levels = {"q": config["sam_query_fuse_layer"], "f": config["sam_feature_fuse_layer"]}
    if run.startswith("variant_"):
        levels = {part[0]: int(part[1:]) for part in run.removeprefix("variant_").split("_")}
    after = [layer for layer in range(1, config["dec_layers"] + 1) if (layer - 1) % 3 == levels["q"]]
    return SamInjection(
        inputs["sam_embedding_0"],
        inputs["sam_fpn_0"],
        query=QueryInjector(after) if after else None,
        feature=feature if levels["f"] == 0 else None,
    )


def _units(case: str, tensors: Mapping[str, Tensor], synonyms: list[int]) -> list[Row]:
    rows = []
    for kind in ("same", "other"):
        pooled = mask_pool(tensors["mask_pooling.x"], tensors[f"mask_pooling.mask_{kind}"])
        rows.append(compared(case, f"mask_pooling.out_{kind}", pooled, tensors[f"mask_pooling.out_{kind}"]))
    given = {
        name.removeprefix("classification_logits."): tensor
        for name, tensor in tensors.items()
        if name.startswith("classification_logits.")
    }
    classifier = given["text_classifier"]
    for kind in ("", "_big"):
        logits = class_logits(given["x"], _text(classifier, synonyms), classifier[-1:], given[f"logit_scale{kind}"])
        rows.append(compared(case, f"classification_logits.out{kind}", logits, given[f"out{kind}"]))
    return rows


def _prediction_rows(case: str, run: str, decoded: DecodedMasks, tensors: Mapping[str, Tensor]) -> Iterator[Row]:
    predictions = {run: decoded} | {f"{run}.aux.{number}": earlier for number, earlier in enumerate(decoded.auxiliary)}
    recorded = {name.rpartition(".")[0] for name in tensors if name.startswith(f"{run}.")}
    assert recorded <= predictions.keys(), f"no prediction for {recorded - predictions.keys()}"
    for name in sorted(recorded):
        for quantity, ours in (("pred_logits", predictions[name].classes), ("pred_masks", predictions[name].masks)):
            if f"{name}.{quantity}" in tensors:
                yield compared(case, f"{name}.{quantity}", ours, tensors[f"{name}.{quantity}"])


class Hooks:
    """Outputs, and the cells that cross-attention was allowed, of every layer of one pass."""

    def __init__(self, decoder: MaskDecoder, feature: FeatureInjector) -> None:
        self.outputs: dict[str, Tensor] = {}
        self._watched: dict[str, nn.Module] = {}
        parts = {"cross": "cross_attention", "self": "self_attention", "ffn": "feed_forward"}
        for number, layer in enumerate(decoder.layers):
            for official, ours in parts.items():
                self._watched[f"layer{number}.{official}"] = layer.get_submodule(ours)
        for layer_number, attention in feature.attentions.items():
            self._watched[f"layer{int(layer_number) - 1}.feature_injector"] = attention

    def __enter__(self) -> Hooks:
        self._handles = [module.register_forward_hook(self._keep(name)) for name, module in self._watched.items()]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.outputs[f"{name}.out"] = output
            if name.endswith("cross"):
                self.outputs[f"{name}.in_tgt"] = inputs[0]
                self.outputs[f"{name}.memory_mask"] = ~inputs[4]

        return hook


def _trace_rows(case: str, prefix: str, hooks: Hooks, tensors: Mapping[str, Tensor]) -> Iterator[Row]:
    for name, reference in tensors.items():
        if not name.startswith(f"{prefix}."):
            continue
        ours = hooks.outputs[name.removeprefix(f"{prefix}.")]
        if name.endswith("memory_mask"):  # [B heads, Q, N], the same for every head
            repeated = ours.repeat_interleave(len(reference) // len(ours), dim=0)
            yield Row(case, name, max_difference(repeated, reference), 0)
        else:
            yield compared(case, name, ours.transpose(0, 1), reference)


def full_size_head(path: Path) -> list[Row]:
    """Names and shapes of a full-size official head are those of our parts on the meta device, both ways; and their number."""
    _, document = load_case(path)
    method, backbone = document["model"].split("_")[:2]
    keys = document["keys"]
    with torch.device("meta"):
        clip = build_clip(ARCHITECTURES[backbone])
        parts: dict[str, nn.Module] = {
            "pixel_decoder": PixelDecoder(clip.channels, clip.strides),
            "mask_decoder": MaskDecoder(clip.width),
        }
        if method == "frozenseg":
            parts |= {
                "sam_features": SamFeatures(behaviour="official"),
                "feature_injector": FeatureInjector(behaviour="official"),
                "query_injector": QueryInjector(),
            }
    ours = {name: list(tensor.shape) for name, tensor in nn.ModuleDict(parts).state_dict().items()}
    names = names_from_official(keys)
    shapes = {name: keys[key]["shape"] for key, name in names.items()}
    back = names_to_official(ours)
    return [
        Row(path.name, "head names missing", float(len(ours.keys() - shapes.keys())), 0),
        Row(path.name, "head names left over", float(len(shapes.keys() - ours.keys())), 0),
        Row(
            path.name,
            "head shapes that differ",
            float(sum(ours[name] != shapes[name] for name in ours.keys() & shapes.keys())),
            0,
        ),
        Row(path.name, "head names lost on the way back", float(len(set(names) ^ set(back.values()))), 0),
        Row(path.name, "trainable parameters", abs(_count(ours) - document["trainable_params"]), 0),
    ]


def _count(shapes: Mapping[str, list[int]]) -> float:
    return float(sum(torch.Size(shape).numel() for shape in shapes.values()))


CASES = {
    "01_msdeform_core": deformable_core,
    "01b_msdeform_module": deformable_module,
    "01c_msdeform_level_mismatch": deformable_mismatch,
    "02*_pixel_decoder": pixel_decoder,
    "0[34]_*_transformer_decoder": mask_decoder,
    "07_keys_f*": full_size_head,
}
