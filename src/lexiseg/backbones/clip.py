"""CLIP backbones through open_clip: architectures, construction and weights.

    load_clip("ViT-B-16", "openai")                        weights by their tag, from the Hugging Face hub or its cache
    load_clip("convnext_large_d_320", "clip.safetensors")  a local file
    load_clip("src/lexiseg/assets/clip-tiny-vit")          a folder as open_clip saves it
    load_clip("ViT-B-16", "clip/")                         such a folder, which must hold this architecture
    build_clip("RN50x64")                                  random weights; no memory inside ``torch.device("meta")``

A folder holds ``open_clip_config.json`` and ``open_clip_model.safetensors`` (or ``open_clip_pytorch_model.bin``). The key
``lexiseg`` of the config, which open_clip does not know, may name a byte-pair vocabulary other than CLIP's, relative to the
folder: ``{"bpe": "x.txt.gz"}``. It must lie in the folder or in the assets of this package, which hold the vocabulary of the
embedded models. ``{"text": "x.safetensors"}`` names a file with the text tower, if that is not in the folder's weights. All
other allowed keys are listed in `lexiseg.backbones.configs`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from difflib import get_close_matches
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lexiseg.backbones.clip_base import ClipBackbone, ClipFeatures, Colour, Tokenizer, region_weights
from lexiseg.backbones.clip_eva import ClipEva
from lexiseg.backbones.clip_mean_pooled import ClipConvNeXt, ClipEfficientNet, ClipMeanPooled
from lexiseg.backbones.clip_resnet import ClipResNet
from lexiseg.backbones.clip_vit import ClipViT, pack_projections, split_projections
from lexiseg.backbones.configs import check_clip_config, check_preprocessing, file_named, read_config, read_vocabulary
from lexiseg.backbones.hub import failure, fetched
from lexiseg.backbones.state_dicts import read_state
from lexiseg.errors import UsageError, WeightsError
from lexiseg.ops.files import is_file, is_folder

__all__ = [
    "ClipBackbone",
    "ClipConvNeXt",
    "ClipEfficientNet",
    "ClipEva",
    "ClipFeatures",
    "ClipMeanPooled",
    "ClipResNet",
    "ClipViT",
    "assemble_clip",
    "build_clip",
    "load_clip",
    "pack_projections",
    "region_weights",
    "split_projections",
]

CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"
WEIGHTS_FILES = (WEIGHTS_FILE, "open_clip_pytorch_model.bin")  # open_clip looks for both
OFFLINE = "The embedded model 'sam_clip-tiny' needs no download."
SUPPORTED = (
    "lexiseg supports ConvNeXt, EfficientNet, ResNet with attention pool, and vision transformers pooled at the class token"
)


def load_clip(name: str | Path, weights: str | Path | None = None, device: torch.device | str = "cpu") -> ClipBackbone:
    """Load a CLIP with its weights, in evaluation mode.

    Args:
        name: open_clip architecture ("ViT-B-16", "RN50x64", "convnext_large_d_320"), or a folder (see the module's docstring).
            Weights given by a tag set the activation (GELU or QuickGELU) they were trained with, whatever the name
            says; for a file it is the name's ("ViT-B-16-quickgelu").
        weights: tag ("openai"), file (see `read_state`), or a folder as open_clip saves it, whose activation, normalisation
            and vocabulary are used with its weights. None if ``name`` is a folder, which has its own.
        device: device of the returned model.

    Raises:
        UsageError: unknown architecture or tag, unsupported image tower, or an architecture without weights.
        WeightsError: weights that cannot be found, downloaded or read, or that belong to another model.
    """
    source = _source(name)
    if weights is None:
        if source.folder is None:
            raise UsageError(f"the CLIP {name} needs weights: a file, or one of the tags {_tags(source.name)}")
        return _with_weights(source, _weights_in(source.folder)).to(device).eval()
    file, is_tag = Path(weights), bool(_known_tag(source, str(weights)))  # a tag takes precedence over a file of that name
    if is_folder(file) and not is_tag:
        own = _folder_source(file)
        source = replace(own, name=source.name, model=source.model | {"quick_gelu": own.model.get("quick_gelu", False)})
        return _with_weights(source, _weights_in(file)).to(device).eval()
    if (is_file(file) or file.suffix in {".safetensors", ".pt", ".pth", ".bin"}) and not is_tag:
        return _with_weights(source, file).to(device).eval()
    tag = _tag(source, str(weights))
    source = replace(source, model=source.model | {"quick_gelu": tag.get("quick_gelu", False)}, preprocessing=tag)
    _empty(source)  # refuse an unsupported tower before the download
    return _with_weights(source, _fetched(source, str(weights), tag)).to(device).eval()


def build_clip(name: str | Path) -> ClipBackbone:
    """Build a CLIP with random weights on PyTorch's current default device.

    Args:
        name: as for `load_clip`.

    Raises:
        UsageError: unknown architecture or unsupported image tower.
        WeightsError: a folder without config or vocabulary, or with a config that is not allowed.
    """
    return _build(_source(name)).eval()


def assemble_clip(
    model: Mapping[str, Any], tokenizer: Tokenizer, *, mean: Colour, std: Colour, vocabulary: str = ""
) -> ClipBackbone:
    """Build a CLIP with random weights from an open_clip ``model_cfg``; the kind of image tower selects the adapter.

    Args:
        model: the values of ``model_cfg``.
        tokenizer: maps texts to tokens [S, context_length].
        mean, std: colour normalisation for values in 0..1.
        vocabulary: digest of the tokenizer's vocabulary if it is not CLIP's own; part of `ClipBackbone.identity`.

    Raises:
        UsageError: unsupported image or text tower.
        WeightsError: a key or a value that is not allowed in a config.
    """
    check_clip_config(model, "the config of a CLIP")
    return _wrapped(_model(model), model, tokenizer, vocabulary, mean=mean, std=std)


@dataclass(frozen=True)
class _Source:
    """Description of a CLIP before it is built; ``folder`` is None for open_clip's named architectures."""

    name: str
    model: dict[str, Any]
    preprocessing: dict[str, Any]
    folder: Path | None = None
    vocabulary: bytes | None = None  # gzip
    text: Path | None = None  # file with the text tower, if it is not in the folder's weights


def _source(name: str | Path) -> _Source:
    import open_clip  # heavy

    folder = Path(name)
    if is_folder(folder):
        return _folder_source(folder)
    known = str(name).replace("/", "-")
    model = open_clip.get_model_config(known) if known in open_clip.list_models() else None
    if model is None:
        similar = get_close_matches(known, open_clip.list_models(), 3, 0.5)
        hint = f"did you mean {', '.join(similar)}?" if similar else "see open_clip.list_models()"
        raise UsageError(f"unknown CLIP '{name}': neither a folder nor an architecture of open_clip; {hint}")
    return _Source(known, model, {})


def _folder_source(folder: Path) -> _Source:
    path = folder / CONFIG_FILE
    document = read_config(path)
    model, own, preprocessing = (document.get(key, {}) for key in ("model_cfg", "lexiseg", "preprocess_cfg"))
    if not (isinstance(model, dict) and model and isinstance(own, dict)):
        raise WeightsError(f"{path} is not the config of a CLIP saved by open_clip: it needs an object 'model_cfg'")
    check_clip_config(model, path)
    check_preprocessing(preprocessing, path)
    if unknown := own.keys() - {"bpe", "text"}:
        raise WeightsError(f"{path}: unknown key lexiseg.{min(unknown)}; allowed are bpe and text")
    vocabulary = read_vocabulary(folder, own["bpe"], path) if "bpe" in own else None
    text = file_named(folder, own["text"], path, "text") if "text" in own else None
    return _Source(str(folder), model, preprocessing, folder, vocabulary, text)


def _weights_in(folder: Path) -> Path:
    """Return the weights file in a folder; the first of `WEIGHTS_FILES` if there is none."""
    return next((folder / name for name in WEIGHTS_FILES if is_file(folder / name)), folder / WEIGHTS_FILE)


@contextmanager
def _building(source: _Source) -> Iterator[None]:
    """Raise any other error while a CLIP is built as a `WeightsError`."""
    try:
        yield
    except (UsageError, WeightsError):
        raise
    except Exception as error:  # sizes that fit no model can raise anything
        text = source.model["text_cfg"]
        if isinstance(error, OSError) and (repository := text.get("hf_model_name") or text.get("hf_tokenizer_name")):
            raise failure(error, repository, "the tokenizer", f"take another CLIP than {source.name}") from error
        raise WeightsError(f"open_clip cannot build the CLIP {source.name}: {error!r:.300}. {OFFLINE}") from error


def _empty(source: _Source) -> nn.Module:
    """Build the open_clip model on the meta device."""
    with _building(source), torch.device("meta"):
        return _model(source.model)


def _build(source: _Source) -> ClipBackbone:
    import open_clip  # heavy

    with _building(source):
        clip_model = _model(source.model)
        tokenizer, vocabulary = _tokenizer(source)
    mean, std = source.preprocessing.get("mean"), source.preprocessing.get("std")
    return _wrapped(
        clip_model,
        source.model,
        tokenizer,
        vocabulary,
        mean=tuple(mean or open_clip.OPENAI_DATASET_MEAN),
        std=tuple(std or open_clip.OPENAI_DATASET_STD),
    )


def _wrapped(
    clip_model: nn.Module, model: Mapping[str, Any], tokenizer: Tokenizer, vocabulary: str, *, mean: Colour, std: Colour
) -> ClipBackbone:
    architecture = json.dumps([dict(model), vocabulary], sort_keys=True)
    return _adapter(clip_model)(clip_model, tokenizer, mean=mean, std=std, architecture=architecture)


def _model(model: Mapping[str, Any]) -> nn.Module:
    """Build an open_clip model from its ``model_cfg``; refuse image towers without adapter."""
    import open_clip  # heavy

    if "multimodal_cfg" in model:
        raise UsageError(f"no adapter for a CLIP with a captioning tower (CoCa); {SUPPORTED}")
    values = deepcopy(dict(model))
    custom_text = values.pop("custom_text", False) or "hf_model_name" in values["text_cfg"]
    if "timm_model_name" in values["vision_cfg"]:
        values["vision_cfg"]["timm_model_pretrained"] = False  # the weights come from elsewhere
    if "hf_model_name" in values["text_cfg"]:
        from transformers import AutoConfig

        # open_clip reads the same config, but would prompt at the terminal for remote code; here it is refused
        AutoConfig.from_pretrained(values["text_cfg"]["hf_model_name"], trust_remote_code=False)
        values["text_cfg"]["hf_model_pretrained"] = False
    clip_model: nn.Module = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**values)
    _adapter(clip_model)  # refuse an unsupported tower before anything is downloaded for it
    return clip_model


def _tokenizer(source: _Source) -> tuple[Tokenizer, str]:
    """Return the tokenizer, and a digest of its vocabulary if that is the folder's own."""
    import open_clip  # heavy

    text = source.model["text_cfg"]
    if source.folder is None:
        return open_clip.get_tokenizer(source.name, **({"trust_remote_code": False} if "hf_tokenizer_name" in text else {})), ""
    options = {"context_length": text.get("context_length", 77), **text.get("tokenizer_kwargs", {})}
    own = () if source.vocabulary is None else (BytesIO(source.vocabulary),)
    tokenizer = open_clip.SimpleTokenizer(*own, **options)
    size = max(tokenizer.encoder.values()) + 1  # not tokenizer.vocab_size, which counts repeated rules once
    if size > (known := text.get("vocab_size", 49408)):
        raise WeightsError(f"{source.folder}: the text tower has {known} tokens, its vocabulary {size}")
    return tokenizer, "" if source.vocabulary is None else sha256(source.vocabulary).hexdigest()


def _adapter(clip_model: nn.Module) -> type[ClipBackbone]:
    """Return the adapter class for the image tower of an open_clip model."""
    from open_clip.modified_resnet import ModifiedResNet  # heavy, like the next two
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
    from timm.models.convnext import ConvNeXt
    from timm.models.efficientnet import EfficientNet
    from timm.models.eva import Eva

    tower: Any = clip_model.visual
    if isinstance(tower, TimmModel):
        if isinstance(tower.trunk, ConvNeXt):
            return ClipConvNeXt
        if isinstance(tower.trunk, EfficientNet):
            return ClipEfficientNet
        if isinstance(tower.trunk, Eva) and tower.trunk.rope is None and tower.trunk.num_prefix_tokens == 1:
            return ClipEva
        raise UsageError(f"no adapter for the image tower {type(tower.trunk).__name__} of timm; {SUPPORTED}")
    if isinstance(tower, ModifiedResNet):
        return ClipResNet
    assert isinstance(tower, VisionTransformer)
    read_at_class_token = tower.attn_pool is None and tower.pool_type == "tok" and not tower.final_ln_after_pool
    plain_blocks = all(isinstance(block, ResidualAttentionBlock) for block in tower.transformer.resblocks)
    if read_at_class_token and plain_blocks:
        return ClipViT
    raise UsageError(f"no adapter for a vision transformer with its own pooling or attention; {SUPPORTED}")


def _with_weights(source: _Source, file: Path) -> ClipBackbone:
    if not is_file(file):
        raise WeightsError(f"the CLIP weights {file} do not exist; give the path of a weights file of {source.name}. {OFFLINE}")
    state = read_state(file)
    if source.text is not None:
        state = read_state(source.text) | state
    try:  # first on the meta device: a config larger than the weights must not allocate memory
        _fill(_empty(source), {name: tensor.to("meta") for name, tensor in state.items()})
        clip = _build(source)
        _fill(clip.clip_model, state)
    except (UsageError, WeightsError):
        raise
    except Exception as error:  # open_clip resizes positions, which can raise anything with weights of another model
        reason = str(error).strip().split("\n")
        detail = " ".join(line.strip() for line in reason[:2])[:300]
        raise WeightsError(f"{file} does not hold weights of {source.name}: {detail or type(error).__name__}") from error
    return clip


def _fill(clip_model: Any, state: dict[str, Tensor]) -> None:
    """Load weights into an open_clip model, like its ``load_checkpoint`` without reading a file."""
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed  # heavy

    if "positional_embedding" in state and not hasattr(clip_model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):  # a scalar or a vector of length 1
        own = getattr(clip_model, name)
        if own is not None and name in state:
            state[name] = state[name].reshape(own.shape)
    state.pop("text.transformer.embeddings.position_ids", None)  # a buffer that transformers before 4.31 saved
    resize_pos_embed(state, clip_model)
    resize_text_pos_embed(state, clip_model)
    clip_model.load_state_dict(state)


def _known_tag(source: _Source, tag: str) -> dict[str, Any]:
    """Return open_clip's entry of a tag: source of the weights and training options; empty if there is no such tag."""
    from open_clip.pretrained import get_pretrained_cfg  # heavy

    known: dict[str, Any] = get_pretrained_cfg(source.name, tag)
    return known


def _tag(source: _Source, tag: str) -> dict[str, Any]:
    """Return open_clip's entry of a tag, which must be one of the architecture's."""
    if source.folder is not None:
        raise UsageError(f"{source.name} is a folder: give a weights file, not the tag '{tag}'")
    known = _known_tag(source, tag)
    if not known:
        raise UsageError(
            f"no weights '{tag}' for the CLIP {source.name}: not a file, a folder or one of the tags {_tags(source.name)}"
        )
    return known


def _tags(architecture: str) -> str:
    from open_clip.pretrained import list_pretrained_tags_by_model  # heavy

    return ", ".join(list_pretrained_tags_by_model(architecture)) or "(open_clip lists none)"


def _fetched(source: _Source, name: str, tag: Mapping[str, Any]) -> Path:
    repository, _, file = str(tag.get("hf_hub", "")).rpartition("/")
    if file or not repository:  # a custom file name or a URL: in open_clip's table no supported model has one
        raise WeightsError(
            f"the weights '{name}' of the CLIP {source.name} are not downloaded from {tag.get('hf_hub') or tag.get('url')}; "
            f"download them yourself and give the path of the file as the weights. {OFFLINE}"
        )
    advice = f"give the path of that file, the weights '{name}' of the CLIP {source.name}, as the weights"
    return fetched(repository, *WEIGHTS_FILES, advice=advice)
