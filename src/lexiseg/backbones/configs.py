"""Validation of configs that come with weights: they are untrusted, and may only set sizes.

open_clip, timm and transformers take names of repositories, classes and files from such configs, download them, and may run
their code. The keys and values allowed here are listed; others are refused (CLIP) or ignored (transformers).
"""

from __future__ import annotations

import gzip
import io
import json
import re
import reprlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from lexiseg.errors import WeightsError
from lexiseg.ops.files import is_file

CONFIG_BYTES, VOCABULARY_BYTES = 2**20, 2**24  # maximum sizes; of vocabularies packed and unpacked
ASSETS = Path(str(files("lexiseg") / "assets"))

Rule = Callable[[object], bool]


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON object of at most `CONFIG_BYTES`.

    Raises:
        WeightsError: missing, too large, or not a JSON object.
    """
    content = _read(path, CONFIG_BYTES, "a config of a model")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON: {error!s:.200}; fetch it again") from error
    if not isinstance(document, dict):
        raise WeightsError(f"{path} is not a JSON object but a {type(document).__name__}; fetch it again")
    return document


def read_vocabulary(folder: Path, name: object, config: Path) -> bytes:
    """Read the byte-pair vocabulary named in the config of a CLIP, as gzip.

    Args:
        folder: folder of the CLIP.
        name: path of the file, relative to the folder.
        config: path of the config, for messages.

    Raises:
        WeightsError: outside of the folder and this package's assets, missing, too large, or not a gzip file of UTF-8.
    """
    path = file_named(folder, name, config, "bpe")
    packed = _read(path, VOCABULARY_BYTES, "a byte-pair vocabulary")
    try:
        with gzip.open(io.BytesIO(packed)) as unpacking:
            text = unpacking.read(VOCABULARY_BYTES + 1)
        text.decode()
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise WeightsError(f"{path} is not a byte-pair vocabulary packed with gzip ({error}); fetch it again") from error
    if len(text) > VOCABULARY_BYTES:
        raise WeightsError(f"{path} unpacks to more than {VOCABULARY_BYTES >> 20} MiB, too much for a byte-pair vocabulary")
    return packed


def read_pieces(path: Path) -> dict[str, int]:
    """Read a WordPiece vocabulary: piece -> id.

    Args:
        path: ``vocab.txt``, a piece a line, or ``tokenizer.json`` of the tokenizers library, of which only this is used.

    Raises:
        WeightsError: missing, too large, or not such a vocabulary.
    """
    content = _read(path, VOCABULARY_BYTES, "a WordPiece vocabulary")
    try:
        if path.suffix != ".json":
            lines = content.decode().removesuffix("\n").split("\n")
            return {piece.removesuffix("\r"): number for number, piece in enumerate(lines)}
        vocabulary = json.loads(content)["model"]["vocab"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is not a WordPiece vocabulary ({error!r:.100}); fetch it again") from error
    if not isinstance(vocabulary, dict) or not all(_whole(_WORDS, 0)(number) for number in vocabulary.values()):
        raise WeightsError(f"{path} is not a WordPiece vocabulary: model.vocab must map pieces to ids; fetch it again")
    return vocabulary


def file_named(folder: Path, name: object, config: Path, key: str) -> Path:
    """Resolve the path of a file that the config of a CLIP names under ``lexiseg``.

    Args:
        folder: folder of the CLIP.
        name: path of the file, relative to the folder.
        config: path of the config, for messages.
        key: key of the name in the config.

    Raises:
        WeightsError: outside of the folder and this package's assets, or missing.
    """
    if not isinstance(name, str) or Path(name).is_absolute():
        raise WeightsError(f"{config}: lexiseg.{key} is {name!r}; it must be the path of a file relative to the folder")
    try:
        path = (folder / name).resolve()
        inside = any(path.is_relative_to(parent.resolve()) for parent in (folder, ASSETS))
    except (OSError, ValueError, RuntimeError) as error:  # a null character, a loop of links
        raise WeightsError(f"{config}: lexiseg.{key} is {name!r}, which is not a valid path ({error})") from error
    if not inside:
        raise WeightsError(f"{config}: lexiseg.{key} is {name!r}, which is outside the folder; copy that file into it")
    if not is_file(path):
        content = {"bpe": "the byte-pair vocabulary", "text": "the text tower"}[key]
        raise WeightsError(f"{folder / name} is missing, {content} that {config} names")
    return path


def _read(path: Path, most: int, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}; {what} is needed") from error
    if len(content) > most:
        raise WeightsError(f"{path} has more than {most >> 20} MiB, too much for {what}; fetch it again")
    return content


# Maximum values. Published models have less than half of them. They bound the memory and time of building a model before its
# weights are checked: Python objects of each layer, and tables of positions.
_WIDTH, _LAYERS, _PIXELS, _PATCHES, _WORDS = 8192, 128, 4096, 128, 2**20


def _whole(most: int, least: int = 1) -> Rule:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(most: float, least: float = 0.0) -> Rule:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _some(rule: Rule) -> Rule:
    """A value that passes ``rule``, or a list of up to 8 such values."""
    return lambda value: rule(value) or (isinstance(value, list | tuple) and 1 <= len(value) <= 8 and all(map(rule, value)))


def _ascending(value: object) -> bool:
    """Whether a value is an ascending list of layer indices."""
    rule = _whole(_LAYERS, 0)
    return isinstance(value, list | tuple) and all(map(rule, value)) and list(value) == sorted(set(value))


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _or_none(rule: Rule) -> Rule:
    return lambda value: value is None or rule(value)


def _one_of(*choices: str) -> Rule:
    return lambda value: isinstance(value, str) and value in choices


def _only(**rules: Rule) -> Rule:
    return lambda value: isinstance(value, Mapping) and all(key in rules and rules[key](entry) for key, entry in value.items())


def _colour(least: float) -> Rule:
    rule = _number(1e3, least)
    return lambda value: isinstance(value, list | tuple) and len(value) == 3 and all(map(rule, value))


def timm_name(value: object) -> bool:
    """Whether a value names a model in timm's own table, not ``hf-hub:…`` or ``local-dir:…``, whose configs timm reads."""
    import timm  # heavy

    return isinstance(value, str) and re.fullmatch(r"\w+(\.\w+)?", value) is not None and timm.is_model(value.split(".")[0])


_TOWER: dict[str, Rule] = {
    "width": _whole(_WIDTH),
    "mlp_ratio": _number(64, 1e-3),
    "ls_init_value": _or_none(_number(1e3, -1e3)),
    "output_tokens": _flag,
    "final_ln_after_pool": _flag,
    "act_kwargs": _or_none(_only(approximate=_one_of("none", "tanh"))),
    "norm_kwargs": _or_none(_only(eps=_number(1, 1e-20))),
    "block_type": _or_none(_one_of("default", "custom")),
    **dict.fromkeys(("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), _flag),
}
_VISION: dict[str, Rule] = _TOWER | {
    "layers": _some(_whole(_LAYERS)),
    "head_width": _whole(_WIDTH),
    "patch_size": _or_none(_whole(_PIXELS)),
    "image_size": _some(_whole(_PIXELS)),
    "patch_dropout": _number(1),
    "attentional_pool": _flag,
    "attn_pooler_queries": _whole(_PIXELS),
    "attn_pooler_heads": _whole(_WIDTH),
    "no_ln_pre": _flag,
    "pos_embed_type": _one_of("learnable", "sin_cos_2d"),
    "pool_type": _one_of("tok", "avg", "none"),
    "timm_model_name": _or_none(timm_name),
    "timm_model_pretrained": _flag,  # ignored: weights come from the folder
    "timm_pool": _one_of("", "avg", "abs_attn", "rot_attn", "map", "token"),
    "timm_proj": _or_none(_one_of("", "linear", "mlp", "none")),
    "timm_proj_bias": _flag,
    "timm_drop": _number(1),
    "timm_drop_path": _or_none(_number(1)),
}
_TEXT: dict[str, Rule] = _TOWER | {
    "layers": _whole(_LAYERS),
    "heads": _whole(_WIDTH),
    "context_length": _whole(_PIXELS),
    "vocab_size": _whole(_WORDS),
    "embed_cls": _flag,
    "pad_id": _whole(_WORDS, 0),
    "eos_id": _whole(_WORDS, 0),
    "no_causal_mask": _flag,
    "pool_type": _one_of("first", "last", "argmax", "eos", "none"),
    "proj_type": _one_of("linear", "none"),
    "proj_bias": _flag,
    "tokenizer_kwargs": _only(clean=_one_of("lower", "whitespace", "canonicalize")),
}
_TIMM: dict[str, Rule] = {  # arguments of timm's ResNets, as EdgeTAM's config passes them on
    "in_chans": _whole(_WIDTH),
    "features_only": _flag,
    "out_indices": _ascending,
    "layers": _some(_whole(_LAYERS)),
    "channels": _some(_whole(_WIDTH)),
    "stem_width": _whole(_WIDTH),
    "stem_type": _one_of("", "deep", "deep_tiered"),
}
_MODEL: dict[str, Rule] = {
    "embed_dim": _whole(_WIDTH),
    "vision_cfg": lambda value: isinstance(value, Mapping),
    "text_cfg": lambda value: isinstance(value, Mapping),
    "quick_gelu": _flag,
    "custom_text": _flag,
    "init_logit_scale": _number(1e3, -1e3),
    "init_logit_bias": _or_none(_number(1e3, -1e3)),
    "nonscalar_logit_scale": _flag,
}
_PREPROCESSING: dict[str, Rule] = {"mean": _or_none(_colour(-1e3)), "std": _or_none(_colour(1e-6))}
# Options of transformers with numbers of submodules.
_PARTS = re.compile(r"\w*(layers|depths?|levels|stages|blocks_per_stage|outputs|num_point_embeddings)")
_COUNT = re.compile(r"num_|heads|size|dim|channels|stride")
_PROBABILITY = re.compile(r"\w*(dropout|_prob|drop_path_rate)")
_WINDOW = 64  # maximum side of an attention window: maps are padded to multiples of it
_OPTION = 2**15  # maximum of the other numbers
_OF_THE_HUB = (
    "text towers and tokenizers of the Hugging Face hub cannot be chosen by a folder; give the name of the architecture "
    "in open_clip and the folder's weights file"
)


def check_clip_config(model: Mapping[str, Any], source: str | Path) -> None:
    """Validate the ``model_cfg`` of a CLIP, so that open_clip neither downloads nor runs anything for it.

    Args:
        model: the values of ``model_cfg``.
        source: name of the config in messages.

    Raises:
        WeightsError: a key that is not allowed or missing, or a value that is not allowed.
    """
    _check(model, _MODEL, source, "model_cfg")
    for part, rules in (("vision_cfg", _VISION), ("text_cfg", _TEXT)):
        if part not in model:
            raise WeightsError(f"{source}: model_cfg has no {part}; give the config of a CLIP saved by open_clip")
        _check(model[part], rules, source, f"model_cfg.{part}")
    size, patch = model["vision_cfg"].get("image_size", 224), model["vision_cfg"].get("patch_size") or 16
    side = max(size) if isinstance(size, list | tuple) else size
    if side > _PATCHES * patch:
        raise WeightsError(f"{source}: {side} pixels per side are more than {_PATCHES} patches of {patch}; fetch it again")


def check_timm_arguments(values: object, source: str | Path, where: str) -> dict[str, Any]:
    """Validate and return the arguments of a timm model in a config.

    Raises:
        WeightsError: not a mapping, or a key or a value that is not allowed.
    """
    if not isinstance(values, Mapping):
        raise WeightsError(f"{source}: {where} must be an object, not {reprlib.repr(values)}")
    _check(values, _TIMM, source, where)
    return dict(values)


def check_preprocessing(values: object, source: str | Path) -> None:
    """Validate the ``preprocess_cfg`` of a CLIP, of which only mean and std are used.

    Raises:
        WeightsError: not a mapping, or mean and std that are not three numbers.
    """
    if not isinstance(values, Mapping):
        raise WeightsError(f"{source}: preprocess_cfg must be an object, not {reprlib.repr(values)}")
    _check({key: value for key, value in values.items() if key in _PREPROCESSING}, _PREPROCESSING, source, "preprocess_cfg")


def _check(values: Mapping[str, Any], rules: Mapping[str, Rule], source: str | Path, where: str) -> None:
    for key, value in values.items():
        if key not in rules:
            hub = key.startswith("hf_") or key == "tokenizer_mode"
            why = _OF_THE_HUB if hub else f"remove it if the model does not need it; allowed are {', '.join(sorted(rules))}"
            name = key if key.isidentifier() else reprlib.repr(key)
            raise WeightsError(f"{source}: the key {where}.{name[:80]} is not allowed: {why}")
        if not rules[key](value):
            raise WeightsError(f"{source}: {where}.{key} must not be {reprlib.repr(value)}; configs may only set sizes")


def own_options(config_class: type[Any], options: object, source: str | Path, **parts: object) -> dict[str, Any]:
    """Select the options of ``config_class`` itself from a ``config.json``, as arguments of its constructor.

    Options that all transformers models have are ignored: some name repositories whose code would be downloaded and run
    (``auto_map``, ``attn_implementation``).

    Args:
        config_class: configuration class of transformers.
        options: content of the file.
        source: name of the file, or of a part of it, in messages.
        parts: options that are not taken from the file.

    Raises:
        WeightsError: not a mapping, or a value that is not a bounded number, a short string or a list of these.
    """
    from transformers import PreTrainedConfig  # heavy

    if not isinstance(options, Mapping):
        raise WeightsError(f"{source} must be an object, not {reprlib.repr(options)}")
    shared = {field.name for field in fields(PreTrainedConfig)} | parts.keys()
    own = [field.name for field in fields(config_class) if field.name not in shared and not field.name.startswith("_")]
    values = {key: options[key] for key in own if key in options}
    for key, value in values.items():
        most = _LAYERS if _PARTS.fullmatch(key) else 1 if _PROBABILITY.fullmatch(key) else _OPTION
        most = _WINDOW if "window_size" in key else most
        if not _plain(value, most) or (most == 1 and not _number(1)(value)) or (_COUNT.search(key) and _negative(value)):
            raise WeightsError(f"{source}: {key} must not be {reprlib.repr(value)}; configs may only set sizes")
    return values | parts


def agreed_options(options: object, values: Mapping[str, object], where: str) -> Mapping[str, object]:
    """Return ``values``, which the options may leave out or repeat, but not change.

    Raises:
        WeightsError: another value in the options.
    """
    for key, value in values.items():
        if isinstance(options, Mapping) and options.get(key, value) not in (value, None):
            raise WeightsError(
                f"{where}: {key} must be {reprlib.repr(value)}, not {reprlib.repr(options[key])}; fetch it again"
            )
    return values


def check_bounds(config: Any, bounds: Mapping[str, tuple[int, int]], where: str | Path) -> None:
    """Check attributes of a configuration that no weight determines.

    Args:
        config: configuration of transformers.
        bounds: name -> least and greatest whole number.
        where: name of the file, or of a part of it, in messages.

    Raises:
        WeightsError: not a whole number, or out of bounds.
    """
    for name, (least, most) in bounds.items():
        value = getattr(config, name)
        if not _whole(most, least)(value):
            raise WeightsError(f"{where}: {name} must be a whole number in {least}..{most}, not {reprlib.repr(value)}")


def _negative(value: object) -> bool:
    """Whether a number, or a number in a list, is negative."""
    if isinstance(value, list):
        return any(map(_negative, value))
    return isinstance(value, int | float) and value < 0


def _plain(value: object, most: int, depth: int = 2) -> bool:
    if isinstance(value, list):
        return depth > 0 and len(value) <= _LAYERS and all(_plain(entry, most, depth - 1) for entry in value)
    if isinstance(value, int | float):
        return -most <= value <= most
    return value is None or (isinstance(value, str) and len(value) <= _LAYERS)
