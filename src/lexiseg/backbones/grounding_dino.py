"""Grounding DINO (Liu et al., 2023) and MM-Grounding-DINO (Zhao et al., 2024) through transformers: boxes of phrases.

An image and a prompt, which is a row of phrases, give Q boxes with a logit for every token of the prompt. The image tower does
not depend on the prompt, so its maps are computed once for all prompts of an image; everything else is transformers' forward.

Letters: B images, Q queries, L tokens of a prompt.
"""

from __future__ import annotations

import copy
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.configs import agreed_options, check_bounds, own_options, read_config, read_pieces
from lexiseg.backbones.hub import ModelFiles
from lexiseg.backbones.mask2former_weights import with_current_swin
from lexiseg.backbones.sam_weights import check_keys
from lexiseg.backbones.state_dicts import read_state
from lexiseg.errors import UsageError, WeightsError
from lexiseg.ops.files import is_file, is_folder
from lexiseg.structures import Size, size_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILES = ModelFiles("a folder with a Grounding DINO", "config.json, model.safetensors and vocab.txt")

# Ids of BERT's vocabulary that transformers' code of Grounding DINO counts on.
CLS, SEP, STOP = "[CLS]", "[SEP]", "."
DELIMITERS = {CLS: 101, SEP: 102, STOP: 1012, "?": 1029}
UNKNOWN = "[UNK]"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in 0..1
STRIDE = 8  # of the finest map
GROUPS = 32  # of the norm of each map

Architecture = Literal["swin-t", "swin-b"]
Family = Literal["grounding-dino", "mm-grounding-dino"]
_SWIN: dict[Architecture, dict[str, Any]] = {
    "swin-t": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "swin-b": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12, "image_size": 384},
}
_CLASSES: dict[str, str] = {"grounding-dino": "GroundingDino", "mm-grounding-dino": "MMGroundingDino"}
_BACKBONE = "model.backbone.conv_encoder.model."
# Common to all published models; transformers' code needs the first two together.
_AGREED = {"two_stage": True, "embedding_init_target": True, "position_embedding_type": "sine", "query_dim": 4}
_STAGES = ([2, 3, 4], [1, 2, 3, 4])  # possible ``out_indices``
MOST_TOKENS = 512  # of a prompt
# Values that no weight determines: least and greatest.
_BOUNDS = {
    "max_text_len": (4, MOST_TOKENS),
    "num_queries": (1, 10_000),
    "encoder_layers": (1, 128),
    "decoder_layers": (1, 128),
    "encoder_attention_heads": (2, 1024),
    "decoder_attention_heads": (1, 1024),
    "encoder_n_points": (1, 64),
    "decoder_n_points": (1, 64),
    "num_feature_levels": (2, 8),
    "positional_embedding_temperature": (1, 100_000),
}
_DROPPED = re.compile(rf".*\.(relative_position_index|position_ids)|{re.escape(_BACKBONE)}(swin\.)?layernorm\.\w+")


@dataclass(frozen=True)
class DetectorFeatures:
    """What the image tower sees of B images of one size.

    Attributes:
        pixels: [B, 3, H', W'] network input, padded on the right and below.
        mask: [B, H', W'] 1 on the image, 0 on the padding.
        maps: (map [B, C, h, w], its part of ``mask``) of each stride.
        positions: position embedding of each map.
    """

    pixels: Tensor
    mask: Tensor
    maps: tuple[tuple[Tensor, Tensor], ...]
    positions: tuple[Tensor, ...]


class GroundingDino(nn.Module):
    """Grounding DINO with its tokenizer.

    Args:
        model: transformers' model.
        vocabulary: BERT's WordPiece vocabulary, piece -> id.

    Attributes:
        max_tokens: maximum L, with the tokens at both ends.
        num_queries: Q.
    """

    model: Any  # transformers' submodules have no type hints

    def __init__(self, model: nn.Module, vocabulary: Mapping[str, int]) -> None:
        super().__init__()
        self.model = model
        self.max_tokens: int = self.model.config.max_text_len
        self.num_queries: int = self.model.config.num_queries
        self._pieces = _word_pieces(vocabulary)
        self.model.model.backbone.conv_encoder.model.swin.layernorm = nn.Identity()  # its output is unused

    def tokenize(self, phrase: str) -> list[int]:
        """Return the token ids of a phrase: lower case, without accents, no special tokens."""
        ids: list[int] = self._pieces.encode(phrase, add_special_tokens=False).ids
        return ids

    def preprocess(self, image: Tensor, shortest_edge: int, longest_edge: int) -> Tensor:
        """Resize and normalise an image [3, H, W], float RGB in 0..1, as the official processor does.

        Returns:
            Network input [1, 3, H', W'] of `input_size`, not padded.
        """
        weight = next(self.model.parameters())
        high, wide = input_size(size_of(image), shortest_edge, longest_edge)
        values = image[None].to(weight.device).float()
        if size_of(image) != (high, wide):
            values = functional.interpolate(values, (high, wide), mode="bilinear", antialias=True, align_corners=False)
        mean, std = (values.new_tensor(rgb)[:, None, None] for rgb in (MEAN, STD))
        return ((values - mean) / std).to(weight.dtype)

    def features(self, inputs: Tensor) -> DetectorFeatures:
        """Apply the image tower to network inputs [B, 3, H', W'] of one size.

        [decided] Inputs with fewer cells than queries, such as one of 4 × 1333 pixels, are padded, as transformers can only
        select as many queries as there are cells.
        """
        high, wide = size_of(inputs)
        short, long = min(high, wide), max(high, wide)
        missing = max(0, STRIDE * math.ceil(self.num_queries / math.ceil(long / STRIDE)) - short)
        below, right = (missing, 0) if high <= wide else (0, missing)
        pixels = functional.pad(inputs, (0, right, 0, below))
        mask = functional.pad(inputs.new_ones(len(inputs), high, wide, dtype=torch.long), (0, right, 0, below))
        maps, positions = self.model.model.backbone(pixels, mask)
        return DetectorFeatures(pixels, mask, tuple(maps), tuple(positions))

    def detect(self, features: DetectorFeatures, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Detect a prompt in B images.

        Args:
            features: output of `features`.
            tokens: L ids, with [CLS] and [SEP].

        Returns:
            Logits [B, Q, L] of the tokens, and boxes [B, Q, 4], (left, top, right, bottom) in 0..1 of the image.
        """
        count, length = len(features.pixels), len(tokens)
        ids = torch.tensor(tokens, device=features.pixels.device).expand(count, -1)
        output = self._with(features)(pixel_values=features.pixels, input_ids=ids, pixel_mask=features.mask, return_dict=True)
        centre, extent = output.pred_boxes.float().split(2, dim=-1)
        return output.logits[..., :length].float(), torch.cat([centre - extent / 2, centre + extent / 2], dim=-1)

    def _with(self, features: DetectorFeatures) -> Any:
        """Return a view of the model, with the same weights, whose image tower answers with given features."""
        inner = _with_module(self.model.model, "backbone", _GivenFeatures(features, self.model.model.backbone))
        return _with_module(self.model, "model", inner)


class _GivenFeatures(nn.Module):
    """Stands in for transformers' image tower and answers with features that are known."""

    def __init__(self, features: DetectorFeatures, tower: Any) -> None:
        super().__init__()
        self.features, self.position_embedding = features, tower.position_embedding

    def forward(self, _pixels: Tensor, _mask: Tensor) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
        return list(self.features.maps), list(self.features.positions)


def _with_module(module: Any, name: str, child: nn.Module) -> Any:
    """Return a shallow copy of a module with another submodule of that name; parameters are the same objects."""
    view = copy.copy(module)
    view._modules = {**module._modules, name: child}
    return view


def input_size(size: Size, shortest_edge: int, longest_edge: int) -> Size:
    """Compute (height, width) of the network input of an image, in the official rounding."""
    short, long = min(size), max(size)
    if long / short * shortest_edge > longest_edge:
        exact = longest_edge * short / long
        edge = max(1, round(exact))
    else:
        edge, exact = shortest_edge, float(shortest_edge)
    if edge == short:
        return size
    other = max(1, int(exact * long / short))
    return (edge, other) if size[0] <= size[1] else (other, edge)


# --- construction -----------------------------------------------------------------------------------------------------


def grounding_dino(architecture: Architecture, family: Family = "grounding-dino") -> GroundingDino:
    """Build a published size with random weights and `spelling_vocabulary`; works under ``torch.device("meta")``.

    Raises:
        UsageError: unknown architecture or family.
    """
    import transformers

    if architecture not in _SWIN or family not in _CLASSES:
        raise UsageError(
            f"unknown {reprlib.repr(family)} '{architecture}'; there are {', '.join(_SWIN)} of {' and '.join(_CLASSES)}"
        )
    swin = transformers.SwinConfig(**_SWIN[architecture], out_indices=_STAGES[0])
    config_class = getattr(transformers, f"{_CLASSES[family]}Config")
    return build_grounding_dino(config_class(backbone_config=swin, text_config=transformers.BertConfig()))


def build_grounding_dino(config: Any, vocabulary: Mapping[str, int] | None = None) -> GroundingDino:
    """Build a model from a transformers configuration, with random weights and in evaluation mode.

    Args:
        config: of Grounding DINO or MM-Grounding-DINO with a Swin.
        vocabulary: WordPiece vocabulary; defaults to `spelling_vocabulary`.
    """
    import transformers

    model = getattr(transformers, f"{_CLASSES[config.model_type]}ForObjectDetection")(config)
    return GroundingDino(model, vocabulary or spelling_vocabulary()).eval()


def spelling_vocabulary() -> dict[str, int]:
    """Build a vocabulary of BERT's special tokens and of letters, for models without weights: names are spelled."""
    ids = {"[PAD]": 0, UNKNOWN: 100, "[MASK]": 103, **DELIMITERS}
    letters = [f"{prefix}{chr(code)}" for code in range(ord("!"), ord("~") + 1) for prefix in ("", "##")]
    letters = [letter for letter in letters if letter not in ids]
    ids |= {letter: 104 + number for number, letter in enumerate(letters)}
    taken = set(ids.values())
    return ids | {f"[unused{number}]": number for number in range(max(taken)) if number not in taken}


def _word_pieces(vocabulary: Mapping[str, int]) -> Tokenizer:
    """Build BERT's tokenizer for lower case; words like "[SEP]" in a text are ordinary words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(dict(vocabulary), unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


# --- weights ----------------------------------------------------------------------------------------------------------


def load_grounding_dino(source: str | Path) -> GroundingDino:
    """Load Grounding DINO or MM-Grounding-DINO with its weights, float32, in evaluation mode, on the CPU.

    Args:
        source: a folder of transformers (``config.json``, ``model.safetensors`` or ``pytorch_model.bin``, ``vocab.txt`` or
            ``tokenizer.json``), or the file of weights in it; or a hub id (``IDEA-Research/grounding-dino-tiny``), which is
            downloaded unless it is in the cache.

    Raises:
        WeightsError: missing, unreadable, or weights of another model.
    """
    path, name = Path(source), str(source)
    if is_folder(path) or is_file(path):
        folder = path if is_folder(path) else path.parent
        weights = FILES.in_folder(folder, "model.safetensors", "pytorch_model.bin") if is_folder(path) else path
        return _from_files(
            FILES.in_folder(folder, "config.json"), weights, FILES.in_folder(folder, "vocab.txt", "tokenizer.json"), name
        )
    if path.suffix in {".pth", ".pt", ".bin", ".safetensors"} or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise WeightsError(
            f"no Grounding DINO at {name}; give a folder with config.json, model.safetensors and vocab.txt, or a hub id such "
            "as IDEA-Research/grounding-dino-tiny"
        )
    return _from_files(
        FILES.from_hub(name, "config.json"),
        FILES.from_hub(name, "model.safetensors"),
        FILES.from_hub(name, "vocab.txt", "tokenizer.json"),
        name,
    )


def _from_files(config_file: Path, weights_file: Path, vocabulary_file: Path, source: str) -> GroundingDino:
    """Build the model of a config with exactly these weights; memory is allocated only if they fit."""
    options = read_config(config_file)
    kind = options.get("model_type")
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise WeightsError(f"{source} holds a {reprlib.repr(kind)} model; supported are {' and '.join(_CLASSES)}")
    vocabulary = read_pieces(vocabulary_file)
    try:
        config = _config(_CLASSES[kind], options, config_file)
        _check_vocabulary(vocabulary, config.text_config.vocab_size, vocabulary_file)
        with torch.device("meta"):
            expected = build_grounding_dino(config, vocabulary).model.state_dict(keep_vars=True)
        state = _completed(_renamed(read_state(weights_file)), expected)
        check_keys(state, expected, source)
        detector = build_grounding_dino(config, vocabulary)
    except (UsageError, WeightsError):
        raise
    except Exception as error:  # sizes that fit no model can raise anything in transformers
        raise WeightsError(f"transformers cannot build the model that {config_file} describes: {error!r:.300}") from error
    floats = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    detector.model.load_state_dict(floats, assign=True)
    detector.model.tie_weights()
    return detector


def _config(name: str, options: Mapping[str, Any], config_file: Path) -> Any:
    """Build a transformers configuration with the sizes of a ``config.json``; everything else in that file is ignored."""
    import transformers

    config_class: type[Any] = getattr(transformers, f"{name}Config")
    backbone, text = options.get("backbone_config"), options.get("text_config", {})
    kinds = [part.get("model_type") if isinstance(part, Mapping) else None for part in (backbone, text)]
    if kinds[0] != "swin" or kinds[1] not in ("bert", None):
        raise WeightsError(
            f"{config_file}: only a swin and a bert are supported, not {reprlib.repr(kinds[0])} and {reprlib.repr(kinds[1])}"
        )
    swin = _swin(transformers.SwinConfig, backbone, f"{config_file}, backbone_config")
    where = f"{config_file}, text_config"
    fixed = agreed_options(text, {"is_decoder": False, "add_cross_attention": False}, where)
    unused = {"classifier_dropout": None}  # of a head that Grounding DINO does not have
    bert = transformers.BertConfig(**own_options(transformers.BertConfig, text, where, **fixed, **unused))
    check_bounds(bert, {"num_hidden_layers": (1, 128), "num_attention_heads": (1, 1024), "type_vocab_size": (1, 1024)}, where)
    _check_epsilon(bert, where)
    fixed = agreed_options(options, _AGREED, str(config_file))
    own = own_options(config_class, options, config_file, backbone_config=swin, text_config=bert, **fixed)
    config = config_class(**own)
    check_bounds(config, _BOUNDS, config_file)
    _check_epsilon(config, config_file)
    check_bounds(bert, {"max_position_embeddings": (config.max_text_len, 2**15)}, where)
    if config.encoder_attention_heads % 2:
        raise WeightsError(f"{config_file}: encoder_attention_heads must be even, not {config.encoder_attention_heads}")
    if config.d_model < 2 * GROUPS or config.d_model % GROUPS:  # a group of a map of one cell has two values or more
        raise WeightsError(f"{config_file}: d_model must be a multiple of {GROUPS} above it, not {config.d_model}")
    return config


def _swin(config_class: type[Any], options: object, where: str) -> Any:
    """Build the configuration of the image tower, whose maps have strides 8 to 32, or 4 to 32."""
    fixed = agreed_options(options, {"use_absolute_embeddings": False, "patch_size": 4, "num_channels": 3}, where)
    names = options.get("out_features") if isinstance(options, Mapping) else None
    numbers = options.get("out_indices") if isinstance(options, Mapping) else None
    stages = numbers if numbers is not None else _STAGES[0]
    if stages not in _STAGES or (names is not None and names != [f"stage{number}" for number in stages]):
        raise WeightsError(f"{where}: out_indices must be {_STAGES[0]} or {_STAGES[1]}, not {reprlib.repr(numbers or names)}")
    swin = config_class(**own_options(config_class, options, where, **fixed), out_indices=stages)
    heads, depths, window = swin.num_heads, swin.depths, swin.window_size
    counts = [*heads, *depths, window] if isinstance(heads, list) and isinstance(depths, list) else [0]
    if len(counts) != 9 or not all(isinstance(count, int) and count > 0 for count in counts):
        raise WeightsError(
            f"{where}: depths and num_heads must be four whole numbers each and window_size one, not {reprlib.repr(depths)}, "
            f"{reprlib.repr(heads)} and {reprlib.repr(window)}"
        )
    _check_epsilon(swin, where)
    return swin


def _check_epsilon(config: Any, where: str | Path) -> None:
    """Check the epsilon of LayerNorm, below 0 of which the square root is not a number."""
    if not 0 < config.layer_norm_eps <= 1:
        raise WeightsError(f"{where}: layer_norm_eps must be above 0 and at most 1, not {reprlib.repr(config.layer_norm_eps)}")


def _check_vocabulary(vocabulary: Mapping[str, int], size: int, path: Path) -> None:
    """Check that a vocabulary is BERT's: its ids have embeddings, and the delimiters those transformers' code counts on."""
    other = next((piece for piece, number in DELIMITERS.items() if vocabulary.get(piece) != number), None)
    if other is not None:
        raise WeightsError(
            f"{path}: {other} is token {vocabulary.get(other)}, not {DELIMITERS[other]} as in BERT's uncased vocabulary; "
            "fetch it again"
        )
    if UNKNOWN not in vocabulary or max(vocabulary.values()) >= size:
        raise WeightsError(f"{path} has no {UNKNOWN} or more pieces than the {size} embeddings of the model; fetch both again")


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename to the current keys of transformers, without keys that are no parameters."""
    return with_current_swin({key: value for key, value in state.items() if not _DROPPED.fullmatch(key)}, _BACKBONE)


def _completed(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the keys that files leave out because their parameter has another name, too, such as those of shared heads."""
    names: dict[int, list[str]] = {}
    for name, parameter in expected.items():
        names.setdefault(id(parameter), []).append(name)
    for same in names.values():
        stated = next((name for name in same if name in state), None)
        if stated is not None:
            state |= {name: state[stated] for name in same if name not in state}
    return state
