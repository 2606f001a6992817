"""Where CLIP's weights come from, and what is said when they do not."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zipfile
from fractions import Fraction
from importlib.resources import files
from pathlib import Path

import open_clip
import pytest
import torch
import transformers
from open_clip import pretrained
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from lexiseg.backbones.clip import CONFIG_FILE, WEIGHTS_FILE, ClipViT, build_clip, load_clip
from lexiseg.backbones.state_dicts import read_state
from lexiseg.errors import UsageError, WeightsError

ASSETS = Path(str(files("lexiseg") / "assets"))
MODEL = {
    "embed_dim": 24,
    "vision_cfg": {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 64},
    "text_cfg": {"context_length": 16, "vocab_size": 2048, "width": 32, "heads": 2, "layers": 1},
}
NAME = "lexiseg-test-vit"


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return open_clip.CLIP(**MODEL).state_dict()


@pytest.fixture
def folder(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    """A folder like those of the embedded models: half-precision weights, a vocabulary in it."""
    folder = tmp_path / "clip"
    folder.mkdir()
    shutil.copy(ASSETS / "clip-tiny-bpe.txt.gz", folder / "bpe.txt.gz")
    document = {"model_cfg": MODEL, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    (folder / CONFIG_FILE).write_text(json.dumps(document | {"lexiseg": {"bpe": "bpe.txt.gz"}}), encoding="utf-8")
    save_file({name: tensor.half().contiguous() for name, tensor in state.items()}, folder / WEIGHTS_FILE)
    return folder


@pytest.fixture
def architecture(monkeypatch: pytest.MonkeyPatch) -> str:
    """A small architecture that open_clip knows by name, with two tags."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, NAME, MODEL)
    tags = {
        "quick": pretrained._pcfg(hf_hub="someone/quick/", quick_gelu=True),
        "plain": pretrained._pcfg(hf_hub="someone/plain/", mean=(0.5, 0.5, 0.5)),
        "page": pretrained._pcfg("https://example.org/page.pt"),
        "file": pretrained._pcfg(hf_hub="someone/file/weights.pkl"),
    }
    monkeypatch.setitem(pretrained._PRETRAINED, NAME, tags)
    return NAME


def test_a_folder_is_loaded_with_its_own_vocabulary(folder: Path, state: dict[str, torch.Tensor]) -> None:
    clip = load_clip(folder)
    assert isinstance(clip, ClipViT)
    assert not clip.training
    assert (clip.mean, clip.std, clip.context_length) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 16)
    for name, tensor in clip.clip_model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name].half().float())
    assert clip.tokenize(["a house"]).max() == 2047
    assert load_clip(str(folder)).identity == clip.identity


def test_identity_follows_the_vocabulary_and_the_config(folder: Path) -> None:
    before = load_clip(folder).identity
    words = gzip.decompress((folder / "bpe.txt.gz").read_bytes()).splitlines(keepends=True)
    (folder / "bpe.txt.gz").write_bytes(gzip.compress(b"".join(words[:-10])))
    assert load_clip(folder).identity != before
    shutil.copy(ASSETS / "clip-tiny-bpe.txt.gz", folder / "bpe.txt.gz")
    assert load_clip(folder).identity == before
    config = folder / CONFIG_FILE
    document = json.loads(config.read_text(encoding="utf-8"))
    document["model_cfg"]["quick_gelu"] = True
    config.write_text(json.dumps(document), encoding="utf-8")
    assert load_clip(folder).identity != before


def test_the_embedded_configs_can_be_built() -> None:
    for config in ASSETS.glob(f"clip-tiny-*/{CONFIG_FILE}"):
        with torch.device("meta"):
            clip = build_clip(config.parent)
        tokens = clip.tokenize(["a red car"])
        assert tokens.shape == (1, clip.context_length)
        assert tokens.max() < clip.clip_model.vocab_size


def _names(folder: Path, text: object) -> None:
    """Let the config in a folder name a file with the text tower."""
    config = folder / CONFIG_FILE
    document = json.loads(config.read_text(encoding="utf-8"))
    document["lexiseg"]["text"] = text
    config.write_text(json.dumps(document), encoding="utf-8")


def _apart(folder: Path, state: dict[str, torch.Tensor], text: Path) -> None:
    """Move the text tower out of a folder's weights into another file."""
    image = {name: value for name, value in state.items() if name.startswith("visual.") or name == "logit_scale"}
    save_file(image, folder / WEIGHTS_FILE)
    save_file({name: value for name, value in state.items() if name not in image}, text)


def test_the_text_tower_may_be_a_file_of_its_own(folder: Path, state: dict[str, torch.Tensor]) -> None:
    _apart(folder, state, folder / "words.safetensors")
    with pytest.raises(WeightsError, match=r"Missing key.*token_embedding|Missing key.*positional_embedding"):
        load_clip(folder)
    _names(folder, "words.safetensors")
    clip = load_clip(folder)
    loaded = clip.clip_model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert clip.encode_text(clip.tokenize(["a house"])).isfinite().all()


def test_the_text_tower_may_be_that_of_the_embedded_models(tmp_path: Path) -> None:
    """Named from anywhere, as they name it, and it is the same in all of them."""
    kept = read_state(ASSETS / "clip-tiny-text.safetensors")
    shutil.copytree(ASSETS / "clip-tiny-vit", tmp_path / "clip")
    document = json.loads((tmp_path / "clip" / CONFIG_FILE).read_text(encoding="utf-8"))
    for key, name in (("bpe", "clip-tiny-bpe.txt.gz"), ("text", "clip-tiny-text.safetensors")):
        document["lexiseg"][key] = os.path.relpath(ASSETS / name, tmp_path / "clip")
    (tmp_path / "clip" / CONFIG_FILE).write_text(json.dumps(document), encoding="utf-8")
    found = [load_clip(place) for place in (tmp_path / "clip", ASSETS / "clip-tiny-vit", ASSETS / "clip-tiny-efficientnet")]
    for clip in found:
        loaded = clip.clip_model.state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in kept.items())
        assert {name for name in loaded if not name.startswith("visual.")} == kept.keys() | {"logit_scale"}
    assert found[0].identity == found[1].identity != found[2].identity


def test_weights_of_the_folder_go_before_the_text_towers(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Such as those of a fine-tuned CLIP with both towers in one file."""
    save_file({name: torch.zeros_like(tensor) for name, tensor in state.items()}, folder / "words.safetensors")
    _names(folder, "words.safetensors")
    loaded = load_clip(folder).clip_model.state_dict()
    assert all(torch.equal(loaded[name], tensor.half().float()) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("../words.safetensors", "is outside the folder"),
        ("sub/../../words.safetensors", "is outside the folder"),
        ("link.safetensors", "is outside the folder"),
        ("/words.safetensors", "must be the path of a file relative to the folder"),
        (3, "must be the path of a file relative to the folder"),
        (None, "must be the path of a file relative to the folder"),
        ("a\0b", "which is not a valid path"),
        (".", "is missing, the text tower that"),
        ("absent.safetensors", "is missing, the text tower that"),
    ],
)
def test_the_text_tower_lies_in_the_folder_or_the_assets(
    folder: Path, state: dict[str, torch.Tensor], text: object, said: str
) -> None:
    _apart(folder, state, folder.parent / "words.safetensors")
    (folder / "link.safetensors").symlink_to(folder.parent / "words.safetensors")
    _names(folder, text)
    for build in (load_clip, build_clip):
        with pytest.raises(WeightsError, match=said):
            build(folder)


def test_what_is_no_text_tower_is_refused(folder: Path, state: dict[str, torch.Tensor]) -> None:
    _apart(folder, state, folder / "words.safetensors")
    _names(folder, "words.safetensors")
    words = dict(load_file(folder / "words.safetensors"))
    save_file(words | {"more": torch.zeros(1)}, folder / "words.safetensors")
    with pytest.raises(WeightsError, match=r"Unexpected key.*more"):
        load_clip(folder)
    (folder / "words.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsError, match=r"cannot read weights from .*words\.safetensors"):
        load_clip(folder)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_files_are_loaded(tmp_path: Path, architecture: str, state: dict[str, torch.Tensor], suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, file)
    else:
        save_file(state, file)
    loaded = load_clip(architecture, file).clip_model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_a_tag_brings_its_activation_and_colours(
    tmp_path: Path, architecture: str, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(state, tmp_path / "weights.safetensors")
    monkeypatch.setattr("lexiseg.backbones.clip.fetched", lambda *_, **__: tmp_path / "weights.safetensors")
    quick, plain = load_clip(architecture, "quick"), load_clip(architecture, "plain")
    assert any(isinstance(module, QuickGELU) for module in quick.modules())
    assert not any(isinstance(module, QuickGELU) for module in plain.modules())
    assert quick.mean == open_clip.OPENAI_DATASET_MEAN
    assert plain.mean == (0.5, 0.5, 0.5)
    assert quick.identity != plain.identity
    name = open_clip.factory._MODEL_CONFIGS[architecture]
    assert "quick_gelu" not in name, "open_clip's own table must stay as it is"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_tag_is_a_tag_whatever_lies_in_the_current_folder(
    tmp_path: Path, architecture: str, state: dict[str, torch.Tensor], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(state, tmp_path / "weights.safetensors")
    monkeypatch.setattr("lexiseg.backbones.clip.fetched", lambda *_, **__: tmp_path / "weights.safetensors")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick").mkdir() if kind == "folder" else (tmp_path / "quick").touch()
    assert load_clip(architecture, "quick").mean == open_clip.OPENAI_DATASET_MEAN


@pytest.mark.parametrize(("tag", "place"), [("page", "https://example.org/page.pt"), ("file", "someone/file/weights.pkl")])
def test_only_the_hub_is_asked_and_only_for_known_files(architecture: str, tag: str, place: str) -> None:
    with pytest.raises(
        WeightsError, match=rf"'{tag}' of the CLIP {architecture} are not downloaded from {place}; download them your"
    ):
        load_clip(architecture, tag)


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_folder_is_the_weights_of_a_named_architecture(
    folder: Path, architecture: str, state: dict[str, torch.Tensor], name: str
) -> None:
    """Of that architecture, with the activation, colours and vocabulary of the folder."""
    (folder / WEIGHTS_FILE).unlink()
    save_file(state, folder / name) if name == WEIGHTS_FILE else torch.save(state, folder / name)
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["model_cfg"] = MODEL | {"quick_gelu": True}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    clip = load_clip(architecture, folder)
    loaded = clip.clip_model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert any(isinstance(module, QuickGELU) for module in clip.modules())
    assert (clip.mean, clip.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert clip.tokenize(["a house"]).max() == 2047
    assert clip.identity == load_clip(folder).identity
    with pytest.raises(WeightsError, match=rf"{name} does not hold weights of ViT-B-32"):
        load_clip("ViT-B-32", folder)
    (folder / CONFIG_FILE).unlink()
    with pytest.raises(WeightsError, match=CONFIG_FILE):
        load_clip(architecture, folder)


def test_unknown_names_are_usage_errors(architecture: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown CLIP 'ViT-B-61'.*did you mean .*ViT-B-16"):
        load_clip("ViT-B-61", "openai")
    with pytest.raises(UsageError, match=r"no weights 'opnai'.*quick, plain, page"):
        load_clip(architecture, "opnai")
    with pytest.raises(UsageError, match=r"needs weights: .*quick, plain, page"):
        load_clip(architecture)
    with pytest.raises(UsageError, match="not the tag 'openai'"):
        load_clip(folder, "openai")
    with pytest.raises(UsageError, match="CoCa"):
        build_clip("coca_ViT-B-32")
    with pytest.raises(UsageError, match="VisionTransformer of timm"), torch.device("meta"):
        build_clip("ViT-B-16-SigLIP")


def test_missing_and_foreign_files_are_weights_errors(folder: Path, architecture: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.pt do not exist.*sam_clip-tiny"):
        load_clip(architecture, tmp_path / "absent.pt")
    for name, content in {
        "empty.pt": b"",
        "text.pt": b"hello",
        "cut.safetensors": (folder / WEIGHTS_FILE).read_bytes()[:5000],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=f"cannot read weights from .*{name}: damaged or no weights file"):
            load_clip(architecture, tmp_path / name)
    torch.save({"other.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"does not hold weights.*Missing key"):
        load_clip(architecture, tmp_path / "other.pt")
    torch.save({"code": Fraction(1, 2)}, tmp_path / "code.pt")  # a pickled class: its constructor must not run
    with pytest.raises(WeightsError, match=r"it holds Python objects \(fractions\.Fraction\)"):
        load_clip(architecture, tmp_path / "code.pt")


def test_incomplete_folders_are_weights_errors(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(WeightsError, match=WEIGHTS_FILE):
        load_clip(folder)
    assert isinstance(build_clip(folder), ClipViT)
    (folder / "bpe.txt.gz").unlink()
    with pytest.raises(WeightsError, match=r"bpe\.txt\.gz is missing"):
        load_clip(folder)
    (folder / CONFIG_FILE).write_text('{"model_cfg": {"embed_dim": 24, "unheard_of": 1, "vision_cfg": {}, "text_cfg": {}}}')
    with pytest.raises(WeightsError, match=r"the key model_cfg\.unheard_of is not allowed"):
        load_clip(folder)
    for content in ("{", "[]", "{}"):
        (folder / CONFIG_FILE).write_text(content)
        with pytest.raises(WeightsError, match=CONFIG_FILE):
            load_clip(folder)


def test_full_size_models_are_counted_without_memory() -> None:
    with torch.device("meta"):
        clip = build_clip("ViT-B/16")
    assert all(parameter.is_meta for parameter in clip.parameters())
    assert sum(parameter.numel() for parameter in clip.parameters()) == 149_620_737
    assert (clip.width, clip.strides, clip.image_size) == (512, (16, 16, 16), 224)
    assert_close(torch.tensor(clip.mean), torch.tensor(open_clip.OPENAI_DATASET_MEAN))


def test_a_folder_runs_no_code(folder: Path, tmp_path: Path) -> None:
    """A tokenizer's program beside the weights was run when the config asked to trust it."""
    marker = tmp_path / "was-run"
    (folder / "tokenizer.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
        "from transformers import BertTokenizer\nclass Own(BertTokenizer):\n    pass\n"
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["tokenizer.Own", None]}})
    )
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    config = folder / CONFIG_FILE
    for text in (
        {"hf_tokenizer_name": "someone/tokenizer", "tokenizer_kwargs": {"trust_remote_code": True}},
        {"hf_tokenizer_name": "someone/tokenizer"},
        {"tokenizer_kwargs": {"trust_remote_code": True}},
    ):
        config.write_text(json.dumps({"model_cfg": MODEL | {"text_cfg": MODEL["text_cfg"] | text}}))
        with pytest.raises(WeightsError, match=rf"{CONFIG_FILE}.*model_cfg\.text_cfg\.(hf_tokenizer_name|tokenizer_kwargs)"):
            load_clip(folder)
    config.write_text(json.dumps({"model_cfg": MODEL}))
    with pytest.raises(WeightsError, match="the text tower has 2048 tokens, its vocabulary 49408"):
        load_clip(folder)
    config.write_text(json.dumps({"model_cfg": MODEL | {"text_cfg": MODEL["text_cfg"] | {"vocab_size": 49408}}}))
    assert build_clip(folder).tokenize(["a house"]).max() == 49407, "without a choice it is CLIP's own vocabulary"
    assert not marker.exists()


def test_a_repeated_rule_of_the_vocabulary_counts_for_the_number_of_tokens(folder: Path) -> None:
    """open_clip numbers repeated rules apart and counts them once, so its own count lies below the largest token."""
    config = folder / CONFIG_FILE
    (folder / "bpe.txt.gz").write_bytes(gzip.compress(b"#version\nh o\nx x\nx x\nx x"))

    def write(vocab_size: int) -> None:
        text = MODEL["text_cfg"] | {"vocab_size": vocab_size}
        document = {"model_cfg": MODEL | {"text_cfg": text}, "lexiseg": {"bpe": "bpe.txt.gz"}}
        config.write_text(json.dumps(document))

    tokens = 2 * 256 + 4 + 2  # bytes, bytes that end a word, rules, start and end
    write(tokens - 1)
    with pytest.raises(WeightsError, match=f"the text tower has {tokens - 1} tokens, its vocabulary {tokens}"):
        build_clip(folder)
    write(tokens)
    assert build_clip(folder).tokenize(["a house"]).max() == tokens - 1


def test_tokenizers_of_the_hub_run_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named architectures take theirs from repositories: transformers is told not to trust them, or would ask the user."""
    asked = []

    def from_pretrained(name: str, **options: object) -> None:
        asked.append((name, options["trust_remote_code"]))
        raise OSError("not here")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    for name in ("ViT-H-14-worldwide", "roberta-ViT-B-32"):
        with torch.device("meta"), pytest.raises(WeightsError, match="not here"):
            build_clip(name)
    assert asked == [("facebook/xlm-v-base", False), ("roberta-base", False)]


def test_a_torchscript_archive_is_refused_unread(tmp_path: Path, architecture: str) -> None:
    with zipfile.ZipFile(tmp_path / "jit.pt", "w") as archive:
        archive.writestr("jit/constants.pkl", b"")
        archive.writestr("jit/data.pkl", b"")
    with pytest.raises(WeightsError, match=r"jit\.pt: it is a TorchScript archive, which is a program"):
        load_clip(architecture, tmp_path / "jit.pt")


def test_weights_with_numbers_that_are_none_are_refused(folder: Path, state: dict[str, torch.Tensor]) -> None:
    for bad in ("nan", "inf"):
        state["ln_final.weight"][3] = float(bad)
        save_file(state, folder / WEIGHTS_FILE)
        with pytest.raises(WeightsError, match=rf"{WEIGHTS_FILE}: ln_final\.weight has numbers that are infinite or not"):
            load_clip(folder)


def test_a_config_of_more_than_the_weights_takes_no_memory(folder: Path) -> None:
    """Its words alone would need 34 GB; the weights, which do not have them, are asked first."""
    text = MODEL["text_cfg"] | {"vocab_size": 2**20, "width": 8192, "context_length": 4096, "layers": 8}
    (folder / CONFIG_FILE).write_text(json.dumps({"model_cfg": MODEL | {"text_cfg": text}}))
    with pytest.raises(WeightsError, match=r"does not hold weights .*(size mismatch|Missing key|width changed)"):
        load_clip(folder)
