"""SAM, HQ-SAM and SAM 2 through transformers, behind one interface: preprocess, encode, decode.

Segment Anything (Kirillov et al., 2023), Segment Anything in High Quality (Ke et al., 2023), SAM 2 (Ravi et al., 2024).
An image is encoded once; the mask decoder then answers any number of independent prompts on it. The decoder is driven
part by part here, so that the image is shared by all prompts until the first layer that tells them apart.

Letters: N prompts, P points a prompt, M masks a prompt, C channels, g grid cells a side, S input pixels a side, m = 4 g.
"""

from __future__ import annotations

import pickle
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.sam_weights import TIED, check_keys, from_official
from lexiseg.errors import UsageError, WeightsError
from lexiseg.ops.masks import GridGeometry, stability_score
from lexiseg.structures import Size

if TYPE_CHECKING:
    from transformers import Sam2Model, SamConfig, SamHQConfig, SamHQModel, SamModel

Skips = tuple[Tensor, ...]

SAM_MEAN, SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of RGB in 0..255
DECODER_NORM_EPS = 1e-5  # of the official two-way transformer; transformers' default, 1e-6, moves logits by 2e-4

# width, layers, heads, layers with global attention
_VISION = {
    "b": (768, 12, 12, (2, 5, 8, 11)),
    "l": (1024, 24, 16, (5, 11, 17, 23)),
    "h": (1280, 32, 16, (7, 15, 23, 31)),
}
Architecture = Literal["b", "l", "h"]


class SamFamily(nn.Module, ABC):
    """What every SAM declares and does.

    Attributes:
        model: the transformers model.
        image_size: S, pixels a side of the square input.
        grid: g, cells a side of the image embedding.
        stride: input pixels a cell.
        channels: C.
        mask_size: m, cells a side of the low-resolution masks.
    """

    model: Any  # transformers leaves its modules' parts without types

    def __init__(self, model: nn.Module, *, image_size: int, stride: int, channels: int) -> None:
        super().__init__()
        self.model = model
        self.image_size = image_size
        self.stride = stride
        self.grid = image_size // stride
        self.channels = channels
        self.mask_size = 4 * self.grid

    @abstractmethod
    def geometry(self, size: Size) -> GridGeometry:
        """How the mask grid lies on an image of ``size`` (height, width)."""

    @abstractmethod
    def preprocess(self, image: Tensor) -> Tensor:
        """An image [3, H, W], float RGB in 0..1 -> network input [1, 3, S, S]."""

    @abstractmethod
    def encode_with_skips(self, images: Tensor) -> tuple[Tensor, Skips]:
        """Network inputs [B, 3, S, S] -> image embeddings [B, C, g, g] and what else the decoder needs of the encoder."""

    @abstractmethod
    def _answer(self, tokens: Tensor, image: Tensor, skips: Skips, *, multimask: bool) -> tuple[Tensor, Tensor]:
        """Heads: output tokens [N, T, C] and the image as each prompt sees it [N, C, g, g] -> logits and quality."""

    @abstractmethod
    def _output_tokens(self) -> Tensor:
        """The learned tokens in front of the prompts, [T, C]."""

    def encode(self, images: Tensor) -> Tensor:
        """Network inputs [B, 3, S, S] -> image embeddings [B, C, g, g]."""
        return self.encode_with_skips(images)[0]

    def scale_points(self, points: Tensor, size: Size) -> Tensor:
        """Points [..., 2], (x, y) in pixels of an image of ``size`` (height, width) -> pixels of the S × S input."""
        high, wide = self.geometry(size).resized if self._keeps_aspect else (self.image_size, self.image_size)
        return points * points.new_tensor([wide / size[1], high / size[0]])

    def decode(
        self,
        embeddings: Tensor,
        *,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = True,
        skips: Skips = (),
    ) -> tuple[Tensor, Tensor]:
        """Masks for N independent prompts on one image. Large N can be decoded in chunks with the same result.

        Args:
            embeddings: [1, C, g, g] of `encode`.
            points: [N, P, 2], (x, y) in pixels of the S × S input.
            labels: [N, P], 1 inside, 0 outside, -1 no point; all inside if left out.
            boxes: [N, 4], (left, top, right, bottom) in pixels of the S × S input.
            masks: [N, 1, m, m] logits of an earlier answer.
            multimask: several masks for an ambiguous prompt instead of one.
            skips: of `encode_with_skips`; empty for SAM itself.

        Returns:
            Logits [N, M, m, m] and predicted IoU [N, M].

        Raises:
            UsageError: no prompt, or prompts of different numbers.
        """
        numbers = {len(prompt) for prompt in (points, boxes, masks) if prompt is not None}
        if len(numbers) != 1:
            counts = " and ".join(str(number) for number in sorted(numbers)) or "none"
            raise UsageError(f"give N points, boxes or masks, the same N of each; got {counts}")
        number = numbers.pop()
        sparse, dense = self._embed_prompts(points, labels, boxes, masks)
        if sparse is None:
            sparse = embeddings.new_zeros(1, number, 0, self.channels)
        tokens = torch.cat([self._output_tokens().expand(1, number, -1, -1), sparse.to(embeddings.dtype)], dim=2)
        tokens, image = self._attend(tokens, embeddings + dense)
        return self._answer(tokens, image, skips, multimask=multimask)

    def _embed_prompts(
        self, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        """Prompts as tokens [1, N, P', C] (None without points and boxes) and as a map [N or 1, C, g, g]."""
        if points is not None and labels is None:
            labels = torch.ones(points.shape[:2], device=points.device)
        sparse, dense = self.model.prompt_encoder(
            input_points=None if points is None else points[None].float(),
            input_labels=None if labels is None else labels[None].long(),
            input_boxes=None if boxes is None else boxes[None].float(),
            input_masks=masks,
        )
        return sparse, dense

    def _attend(self, tokens: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """The two-way transformer: tokens [1, N, T, C] on an image [1 or N, C, g, g] -> [N, T, C] and [N, C, g, g].

        An image shared by all prompts enters once; attention broadcasts it, and it grows to N with the first answer.
        """
        tokens, cells = self.model.mask_decoder.transformer(
            point_embeddings=tokens,
            image_embeddings=image,
            image_positional_embeddings=self.model.get_image_wide_positional_embeddings(),
            attention_similarity=None,
        )
        return tokens[0], cells.transpose(2, 3).reshape(-1, self.channels, self.grid, self.grid)

    @property
    @abstractmethod
    def _keeps_aspect(self) -> bool:
        """Whether the image keeps its aspect ratio inside the square input."""


class _PaddedInput(SamFamily):
    """SAM's input: the longer side becomes S, the rest is padding."""

    @property
    def _keeps_aspect(self) -> bool:
        return True

    def geometry(self, size: Size) -> GridGeometry:
        scale = self.image_size / max(size)
        high, wide = (max(1, int(side * scale + 0.5)) for side in size)
        return GridGeometry((self.image_size, self.image_size), (high, wide), size)

    def preprocess(self, image: Tensor) -> Tensor:
        """An image [3, H, W], float RGB in 0..1 -> [1, 3, S, S].

        As the official predictor: resized in 8 bits by Pillow if of another size, normalised, then zeros to the right and
        below.
        """
        high, wide = self.geometry((image.shape[1], image.shape[2])).resized
        weight = next(self.model.parameters())
        values = image.to(weight.device).float() * 255
        if image.shape[1:] != (high, wide):
            pixels = values.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
            resized = np.array(Image.fromarray(pixels).resize((wide, high), Image.Resampling.BILINEAR))
            values = torch.from_numpy(resized).to(weight.device).permute(2, 0, 1).float()
        mean, std = (values.new_tensor(rgb)[:, None, None] for rgb in (SAM_MEAN, SAM_STD))
        padding = (0, self.image_size - wide, 0, self.image_size - high)
        return functional.pad((values - mean) / std, padding)[None].to(weight.dtype)


class SamBackbone(_PaddedInput):
    """Segment Anything."""

    def __init__(self, model: SamModel) -> None:
        vision = model.config.vision_config
        super().__init__(model, image_size=vision.image_size, stride=vision.patch_size, channels=vision.output_channels)

    def encode_with_skips(self, images: Tensor) -> tuple[Tensor, Skips]:
        return self.model.vision_encoder(images).last_hidden_state, ()

    def _output_tokens(self) -> Tensor:
        decoder = self.model.mask_decoder
        return torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])

    def _answer(
        self,
        tokens: Tensor,
        image: Tensor,
        skips: Skips,  # noqa: ARG002 - SAM has none
        *,
        multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        return _sam_masks(self.model.mask_decoder, tokens, _upscale(self.model.mask_decoder, image), multimask=multimask)


class SamHqBackbone(_PaddedInput):
    """HQ-SAM: a token and fused early features sharpen SAM's mask.

    As in the authors' code a prompt has one mask, also with ``multimask``: the best of SAM's three plus the sharpening.
    transformers' own decoder (5.23) upsamples the image as it was before the two-way transformer; the authors' upsamples
    the transformer's output, and so does this one.
    """

    def __init__(self, model: SamHQModel) -> None:
        vision = model.config.vision_config
        super().__init__(model, image_size=vision.image_size, stride=vision.patch_size, channels=vision.output_channels)

    def encode_with_skips(self, images: Tensor) -> tuple[Tensor, Skips]:
        """Image embeddings [B, C, g, g] and the HQ feature [B, C / 8, m, m]."""
        encoded, decoder = self.model.vision_encoder(images), self.model.mask_decoder
        late, early = encoded.last_hidden_state, encoded.intermediate_embeddings[0].permute(0, 3, 1, 2)
        late_fine = decoder.encoder_conv2(decoder.activation(decoder.encoder_norm(decoder.encoder_conv1(late))))
        early_fine = decoder.compress_vit_conv2(
            decoder.activation(decoder.compress_vit_norm(decoder.compress_vit_conv1(early)))
        )
        return late, (late_fine + early_fine,)

    def _output_tokens(self) -> Tensor:
        decoder = self.model.mask_decoder
        return torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, decoder.hq_token.weight])

    def _answer(self, tokens: Tensor, image: Tensor, skips: Skips, *, multimask: bool) -> tuple[Tensor, Tensor]:
        if len(skips) != 1:
            raise UsageError("HQ-SAM's decoder needs the skips of encode_with_skips")
        decoder = self.model.mask_decoder
        fine = _upscale(decoder, image)
        logits, quality = _sam_masks(decoder, tokens, fine, multimask=multimask)
        best = quality.argmax(dim=1, keepdim=True)
        logits, quality = logits.take_along_dim(best[..., None, None], dim=1), quality.take_along_dim(best, dim=1)
        sharp = decoder.mask_conv2(decoder.activation(decoder.mask_norm(decoder.mask_conv1(fine)))) + skips[0]
        token = decoder.hq_mask_mlp(tokens[:, 1 + len(decoder.output_hypernetworks_mlps)])
        return logits + _dot(token[:, None], sharp), quality


class Sam2Backbone(SamFamily):
    """SAM 2 on single images (no memory of earlier frames)."""

    def __init__(self, model: Sam2Model) -> None:
        prompt = model.config.prompt_encoder_config
        super().__init__(model, image_size=prompt.image_size, stride=prompt.patch_size, channels=prompt.hidden_size)

    @property
    def _keeps_aspect(self) -> bool:
        return False

    def geometry(self, size: Size) -> GridGeometry:
        """The grid covers exactly the image; masks are resized to it in one step."""
        grid = (self.mask_size, self.mask_size)
        return GridGeometry(grid, grid, size)

    def preprocess(self, image: Tensor) -> Tensor:
        """An image [3, H, W], float RGB in 0..1 -> [1, 3, S, S], stretched, with ImageNet's mean and deviation."""
        weight = next(self.model.parameters())
        square = functional.interpolate(
            image[None].to(weight.device).float(), (self.image_size, self.image_size), mode="bilinear", antialias=True
        )
        mean, std = (square.new_tensor(rgb)[:, None, None] / 255 for rgb in (SAM_MEAN, SAM_STD))
        return ((square - mean) / std).to(weight.dtype)

    def encode_with_skips(self, images: Tensor) -> tuple[Tensor, Skips]:
        """Image embeddings [B, C, g, g] and two finer maps, [B, C / 8, m, m] and [B, C / 4, m / 2, m / 2]."""
        fine, middle, coarse = self.model.vision_encoder(images).fpn_hidden_states
        decoder = self.model.mask_decoder
        no_memory = self.model.no_memory_embedding.reshape(1, -1, 1, 1)
        return coarse + no_memory, (decoder.conv_s0(fine), decoder.conv_s1(middle))

    def _output_tokens(self) -> Tensor:
        decoder = self.model.mask_decoder
        return torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])

    def _embed_prompts(
        self, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        if points is None and boxes is None and masks is not None:  # SAM 2 says "no point" with a token
            points, labels = masks.new_zeros(len(masks), 1, 2), masks.new_full((len(masks), 1), -1)
        return super()._embed_prompts(points, labels, boxes, masks)

    def _attend(self, tokens: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        return super()._attend(tokens, image.expand(tokens.shape[1], -1, -1, -1))  # its attention does not broadcast

    def _answer(self, tokens: Tensor, image: Tensor, skips: Skips, *, multimask: bool) -> tuple[Tensor, Tensor]:
        if len(skips) != 2:
            raise UsageError("SAM 2's decoder needs the skips of encode_with_skips")
        decoder = self.model.mask_decoder
        middle = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(image) + skips[1]))
        fine = decoder.activation(decoder.upscale_conv2(middle) + skips[0])
        logits, quality = _sam_masks(decoder, tokens[:, 1:], fine, multimask=multimask)
        if multimask or not decoder.dynamic_multimask_via_stability:
            return logits, quality
        # an unstable single mask gives way to the best of several
        others, other_quality = _sam_masks(decoder, tokens[:, 1:], fine, multimask=True)
        best = other_quality.argmax(dim=1, keepdim=True)
        stability = stability_score(logits, offset=decoder.dynamic_multimask_stability_delta).nan_to_num(1.0)
        stable = stability >= decoder.dynamic_multimask_stability_thresh
        return (
            torch.where(stable[..., None, None], logits, others.take_along_dim(best[..., None, None], dim=1)),
            torch.where(stable, quality, other_quality.take_along_dim(best, dim=1)),
        )


def _upscale(decoder: Any, image: Tensor) -> Tensor:
    """[N, C, g, g] -> [N, C / 8, m, m]."""
    middle = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(image)))
    fine: Tensor = decoder.activation(decoder.upscale_conv2(middle))
    return fine


def _sam_masks(decoder: Any, tokens: Tensor, fine: Tensor, *, multimask: bool) -> tuple[Tensor, Tensor]:
    """IoU token and mask tokens [N, 1 + M + …, C], features [N, C / 8, m, m] -> logits [N, M, m, m], quality [N, M].

    Token 0 is the single answer, the others are the several.
    """
    mlps = decoder.output_hypernetworks_mlps
    wanted = range(1, len(mlps)) if multimask else range(1)
    weights = torch.stack([mlps[number](tokens[:, 1 + number]) for number in wanted], dim=1)
    return _dot(weights, fine), decoder.iou_prediction_head(tokens[:, 0])[:, wanted.start : wanted.stop]


def _dot(weights: Tensor, features: Tensor) -> Tensor:
    """[N, M, D] · [N, D, m, m] -> [N, M, m, m]."""
    high, wide = features.shape[2:]
    return (weights @ features.flatten(2)).reshape(*weights.shape[:2], high, wide)


# --- building and loading ---------------------------------------------------------------------------------------------


def sam_config(architecture: Architecture) -> SamConfig:
    """transformers' configuration of SAM ViT-B, -L or -H, with the official LayerNorm in the decoder."""
    from transformers import SamConfig

    return SamConfig(vision_config=_vision_options(architecture), mask_decoder_config={"layer_norm_eps": DECODER_NORM_EPS})


def sam_hq_config(architecture: Architecture) -> SamHQConfig:
    """transformers' configuration of HQ-SAM ViT-B, -L or -H, with the official LayerNorm in the decoder."""
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
    """The adapter for a transformers configuration of SAM, HQ-SAM or SAM 2; random weights, evaluation mode.

    Works under ``torch.device("meta")``.

    Raises:
        WeightsError: the configuration is of another model.
    """
    import transformers

    match config.model_type:
        case "sam":
            return SamBackbone(transformers.SamModel(config)).eval()
        case "sam_hq":
            return SamHqBackbone(transformers.SamHQModel(config)).eval()
        case "sam2":
            return Sam2Backbone(transformers.Sam2Model(config)).eval()
        case other:
            raise WeightsError(f"the configuration is of a '{other}' model; only sam, sam_hq and sam2 can prompt masks")


def sam_vit(architecture: Architecture) -> SamBackbone:
    """SAM ViT-B, -L or -H with random weights; parameters can be counted under ``torch.device("meta")``.

    Raises:
        UsageError: there is no such size.
    """
    if architecture not in _VISION:
        raise UsageError(f"unknown SAM size '{architecture}'; there are {', '.join(_VISION)}")
    from transformers import SamModel

    return SamBackbone(SamModel(sam_config(architecture))).eval()


def load_sam(source: str | Path) -> SamFamily:
    """SAM, HQ-SAM or SAM 2 with its weights, float32, evaluation mode, on the CPU.

    Args:
        source: a file as published (``sam_vit_b_01ec64.pth``, ``sam_hq_vit_l.pth``, or safetensors with those names); a
            folder of transformers (``config.json`` and ``model.safetensors``); or a hub id (``facebook/sam-vit-base``),
            which is fetched unless it is in the cache already.

    Raises:
        WeightsError: nothing there, unreadable, or of another model; the message says what to put where.
    """
    path = Path(source)
    if path.is_dir():
        return _from_transformers(_file_in(path, "config.json"), _file_in(path, "model.safetensors"), str(path))
    if path.is_file():
        return from_official_state(_read_state(path), str(path))
    name = str(source)
    if path.suffix in {".pth", ".pt", ".safetensors"} or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise WeightsError(
            f"no SAM weights at {name}; give a file as published (sam_vit_b_01ec64.pth), a folder with config.json and "
            "model.safetensors, or a hub id such as facebook/sam-vit-base"
        )
    return _from_transformers(_from_hub(name, "config.json"), _from_hub(name, "model.safetensors"), name)


def from_official_state(state: Mapping[str, Tensor], source: str, config: Any | None = None) -> SamFamily:
    """SAM or HQ-SAM from an official state dictionary.

    Args:
        state: official key -> tensor.
        source: what to call it in messages.
        config: transformers configuration; found from the width of the encoder if left out.

    Raises:
        WeightsError: keys or shapes that are not SAM's.
    """
    ours = from_official(state)
    if config is None:
        position = ours.get("vision_encoder.pos_embed")
        width = 0 if position is None else position.shape[-1]
        sizes: dict[int, Architecture] = {768: "b", 1024: "l", 1280: "h"}
        if width not in sizes:
            raise WeightsError(f"{source} has an image encoder of width {width}; SAM ViT-B, -L and -H have 768, 1024, 1280")
        hq = "mask_decoder.hq_token.weight" in ours
        config = sam_hq_config(sizes[width]) if hq else sam_config(sizes[width])
    return _filled(config, ours, source)


def _from_transformers(config_file: Path, weights_file: Path, source: str) -> SamFamily:
    import transformers

    options = transformers.PretrainedConfig.get_config_dict(str(config_file))[0]
    match options.get("model_type"):
        case "sam":
            config: Any = transformers.SamConfig.from_dict(options)
            config.mask_decoder_config.layer_norm_eps = DECODER_NORM_EPS
        case "sam_hq":
            config = transformers.SamHQConfig.from_dict(options)
            config.mask_decoder_config.layer_norm_eps = DECODER_NORM_EPS
        case "sam2" | "sam2_video":  # published for video; the image model is a part of it
            parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
            config = transformers.Sam2Config(**{part: options[part] for part in parts if part in options})
        case other:
            raise WeightsError(f"{source} holds a '{other}' model; only sam, sam_hq and sam2 can prompt masks")
    return _filled(config, _read_state(weights_file), source)


def _filled(config: Any, state: Mapping[str, Tensor], source: str) -> SamFamily:
    """The model of ``config`` with exactly these weights; built empty, so nothing is initialised in vain."""
    with torch.device("meta"):
        backbone = build_sam(config)
    expected = backbone.model.state_dict()
    tensors = {key: tensor for key, tensor in state.items() if not _only_for_video(key)}
    for one, other in TIED.items():
        for copy, original in ((one, other), (other, one)):
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
    """Whether a key of a SAM 2 checkpoint belongs to the tracker and not to the image model."""
    return _VIDEO_KEYS.match(key) is not None


def _file_in(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise WeightsError(f"{folder} has no {name}; a folder with SAM weights needs config.json and model.safetensors")
    return folder / name


def _from_hub(name: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"cannot fetch {file} of {name}: {reason}. Offline, put config.json and model.safetensors of {name} in a folder "
            "and give that folder, give an official file (sam_vit_b_01ec64.pth), or use a tiny model, whose weights are here"
        ) from error


def _read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file or of a PyTorch file (tensors only, no code).

    Raises:
        WeightsError: damaged, or no dictionary of tensors.
    """
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"cannot read weights from {path}: damaged or no weights file; fetch it again") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"{path} is no dictionary of tensors; give the checkpoint as published")
    return state
