"""Models that are shared come back to the last bit, from a folder and from the hub; and nothing else is taken for one."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file

import lexiseg
from lexiseg.backbones.digests import digest_of
from lexiseg.backbones.sources import Source
from lexiseg.cli import main
from lexiseg.cli.parser import build_parser
from lexiseg.cli.segment import parse_model
from lexiseg.errors import LexisegError, OutputError, UsageError, WeightsError
from lexiseg.inference.pipeline import Pipeline
from lexiseg.methods import MODELS, model_named, shared
from lexiseg.methods.shared import MAX_CARD, parse_shared
from lexiseg.methods.weights import CARD_FILE, MODEL_FILE, write_weights
from lexiseg.ops.options import with_value
from tests.backbones.stand_in_hub import StandInHub, asked_hub

FILES = {CARD_FILE, MODEL_FILE, "README.md"}
DOGS = "someone/dogs"

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own, without hf_xet


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    """A model with an option that is not its own."""
    return lexiseg.load("fcclip-tiny", alpha=0.7)


@pytest.fixture(scope="module")
def saved(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.save_pretrained(tmp_path_factory.mktemp("saved") / "dogs", licence="MIT")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandInHub]:
    with asked_hub(monkeypatch, tmp_path) as hub:
        yield hub


@pytest.fixture
def dogs(hub: StandInHub, saved: Path) -> StandInHub:
    """A hub with the saved model."""
    hub.files[DOGS] = {name: (saved / name).read_bytes() for name in FILES}
    return hub


def with_card(hub: StandInHub, **fields: Any) -> None:
    """Change fields of the card on the hub; those that are None are left out."""
    card = json.loads(hub.files[DOGS][CARD_FILE]) | fields
    hub.files[DOGS][CARD_FILE] = json.dumps({key: value for key, value in card.items() if value is not None}).encode()


def assert_same(pipeline: Pipeline, other: Pipeline) -> None:
    """Equal weights, options and training classes; so all their predictions are."""
    ours, theirs = pipeline.segmenter.state_dict(), other.segmenter.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert pipeline.segmenter.config == other.segmenter.config
    assert pipeline.segmenter.training_classes == other.segmenter.training_classes
    assert pipeline.segmenter.published == other.segmenter.published


def test_a_folder_gives_the_model_back(pipeline: Pipeline, saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == FILES
    loaded = [lexiseg.from_pretrained(saved), Pipeline.from_pretrained(str(saved / MODEL_FILE))]
    for other in loaded:
        assert_same(pipeline, other)
    picture = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    results = [each(picture, "dog; cat; grass", task="semantic", keep_scores=True) for each in (pipeline, loaded[0])]
    assert np.array_equal(results[0].scores, results[1].scores)
    assert lexiseg.from_pretrained(saved, alpha=0.1).segmenter.config.alpha == 0.1


def test_the_hub_gives_the_model_back(pipeline: Pipeline, hub: StandInHub) -> None:
    """As a private repository, made by the first of two uploads."""
    for _ in range(2):
        address = pipeline.push_to_hub(DOGS, token="hf_write", private=True)
        assert address.startswith(f"http://{hub.address}/{DOGS}/commit/")
    assert hub.created == [{"name": "dogs", "organization": "someone", "visibility": "private"}]
    assert hub.files[DOGS].keys() == FILES
    hub.files[DOGS] |= {"pytorch_model.bin": b"", "modeling.py": b"raise SystemExit"}
    assert_same(pipeline, lexiseg.load(f"hf:{DOGS}"))
    assert sorted(hub.fetched()) == [CARD_FILE, MODEL_FILE]
    hub.requests.clear()
    assert_same(pipeline, lexiseg.from_pretrained(DOGS))
    assert hub.requests == []


def test_a_revision_is_another_model(dogs: StandInHub, pipeline: Pipeline, saved: Path, tmp_path: Path) -> None:
    changed = pipeline.with_options({"alpha": 0.2})
    changed.save_pretrained(tmp_path / "v1")
    dogs.files[f"{DOGS}@v1"] = {name: (tmp_path / "v1" / name).read_bytes() for name in FILES}
    assert lexiseg.from_pretrained(DOGS, revision="v1").segmenter.config.alpha == 0.2
    models = [model_named(f"hf:{DOGS}{at}") for at in ("", "@main", "@v1")]
    assert [model.config.alpha for model in models] == [0.7, 0.7, 0.2]
    assert [model.source.digest for model in models if model.source] == [digest_of(saved / MODEL_FILE)] * 2 + [
        digest_of(tmp_path / "v1" / MODEL_FILE)
    ]
    with pytest.raises(WeightsError, match=r"there is no such revision of it"):
        lexiseg.load(f"hf:{DOGS}@v2")


def test_what_the_weights_leave_out_is_saved_where_it_was_trained(tmp_path: Path) -> None:
    """The package's own hold of CLIP what was tuned; a saved model has its whole CLIP."""
    pipeline = lexiseg.load("catseg-tiny")
    assert "clip.clip_model.visual.conv1.weight" not in load_file(_shipped("catseg-tiny"))
    pipeline.save_pretrained(tmp_path)
    assert "clip.clip_model.visual.conv1.weight" in load_file(tmp_path / MODEL_FILE)
    assert_same(pipeline, lexiseg.from_pretrained(tmp_path))


def _shipped(name: str) -> Path:
    source = MODELS[name].source
    assert source is not None
    return source.fetch()


def test_with_all_parts_nothing_else_is_loaded(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.save_pretrained(tmp_path, all_parts=True)

    def unwanted(_: str | None) -> torch.nn.Module:
        raise AssertionError("a backbone was loaded")

    model = MODELS["fcclip-tiny"]
    parts = tuple(replace(part, load=unwanted) for part in model.parts)
    monkeypatch.setitem(MODELS, "fcclip-tiny", replace(model, parts=parts))
    assert_same(pipeline, lexiseg.from_pretrained(tmp_path))
    assert "Loading takes" not in (tmp_path / "README.md").read_text()


def test_a_backbone_of_ones_own_is_named_by_its_digest(tmp_path: Path) -> None:
    """Who loads the model has to give it, too."""
    clip = _shipped_clip()
    lexiseg.load("fcclip-tiny", weights={"clip": clip}).save_pretrained(tmp_path / "own")
    with pytest.raises(WeightsError, match=r"was trained on the clip open_clip_model\.safetensors .* --weights clip=FILE"):
        lexiseg.from_pretrained(_with_other_digest(tmp_path / "own"))
    lexiseg.from_pretrained(tmp_path / "own", weights={"clip": clip})


def _shipped_clip() -> Path:
    source = MODELS["fcclip-tiny"].sources["clip"]
    return source.fetch().parent


def _with_other_digest(folder: Path) -> Path:
    """A copy of weights whose card names another CLIP."""
    card = json.loads((folder / CARD_FILE).read_text())
    card["backbones"]["clip"]["sha256"] = "0" * 64
    write_weights(load_file(folder / MODEL_FILE), folder.with_name("other"), card)
    return folder.with_name("other")


def test_the_model_card_says_what_it_is(pipeline: Pipeline, hub: StandInHub, saved: Path) -> None:
    pipeline.push_to_hub(DOGS, token="hf_write")
    text = hub.files[DOGS]["README.md"].decode()
    data = ModelCard(text).data.to_dict()
    assert data == {
        "license": "apache-2.0",
        "library_name": "lexiseg",
        "pipeline_tag": "image-segmentation",
        "tags": [
            *("open-vocabulary-segmentation", "panoptic-segmentation", "semantic-segmentation", "instance-segmentation"),
            *("fcclip", "fcclip-tiny"),
        ],
        "datasets": ["world-train"],
    }
    assert ModelCard.load(saved / "README.md").data.license == "mit"
    (command,) = re.findall(r"^lexiseg (segment .*)$", text, re.MULTILINE)
    assert build_parser().parse_args(shlex.split(command)).model == f"hf:{DOGS}"
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert f'lexiseg.load("hf:{DOGS}")' in code
    compile(code, "README.md", "exec")
    card = json.loads(hub.files[DOGS][CARD_FILE])
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    assert blocks == [card["recipe"], card["config"]]
    assert f"| world:val/PQ | {card['curve'][-1]['world:val/PQ']:.4f} |" in text
    for said in ("312 classes: monkey, gorilla", card["backbones"]["clip"]["sha256"], pipeline.segmenter.reference):
        assert said in text


@pytest.mark.parametrize(
    ("licence", "data"),
    [
        (None, {}),
        ("none stated", {}),
        ("CC BY-NC 4.0", {"license": "cc-by-nc-4.0"}),
        ("your own", {"license": "other", "license_name": "your-own"}),
    ],
)
def test_licences_are_the_hubs(pipeline: Pipeline, tmp_path: Path, licence: str | None, data: dict[str, str]) -> None:
    segmenter = pipeline.with_options({}).segmenter
    segmenter.card = {**segmenter.card, "licence": licence}
    Pipeline(segmenter).save_pretrained(tmp_path)
    metadata = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert {key: value for key, value in metadata.items() if key.startswith("license")} == data


def test_a_training_of_ones_own_is_shared_without_its_folders(tmp_path: Path) -> None:
    """Neither the folder of its data nor that of a cache leaves the machine; nor is a cache taken from a stranger's card."""
    model = MODELS["cmpf-tiny"]
    segmenter = model.empty(with_value(model.config, "masks.cache", tmp_path / "private", owner="cmpf-tiny"))
    recipe = {"data": "/home/me/private/pets", "validation": ["C:\\private\\pets", "world:val"]}
    segmenter.card = {"model": "cmpf-tiny", "recipe": recipe}
    folder = Pipeline(segmenter).save_pretrained(tmp_path / "out")
    for name in (CARD_FILE, "README.md"):
        assert "private" not in (folder / name).read_text()
    assert "Data: pets." in (folder / "README.md").read_text()
    assert "None are recorded." in (folder / "README.md").read_text()
    card = json.loads((folder / CARD_FILE).read_text())
    assert card["recipe"]["validation"] == ["pets", "world:val"]
    card["config"]["masks"]["cache"] = str(tmp_path / "elsewhere")
    assert model.with_weights("strange", card, Source(MODEL_FILE, "MIT")).config.masks.cache is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: lexiseg.load("sam_clip-tiny"), r"nothing of sam_clip-tiny is trained.*lexiseg\.load\('sam_clip-tiny'\)"),
        (lambda: Pipeline(MODELS["fcclip-tiny"].empty()), r"does not know which model it is"),
    ],
)
def test_what_cannot_be_saved_is_refused(make: Callable[[], Pipeline], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        make().save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("repository", "token", "refusal", "error", "said"),
    [
        (DOGS, None, "", UsageError, r"needs a token of the hub: log in with 'hf auth login', set HF_TOKEN, or give token="),
        ("dogs", "hf_write", "", UsageError, r"'dogs' is not the name of a repository, which is OWNER/NAME"),
        ("a--b/dogs", "hf_write", "", UsageError, r"'a--b/dogs' is not the name of a repository"),
        (DOGS, "hf_old", "", OutputError, r"cannot upload to someone/dogs: the hub does not accept your token"),
        ("other/dogs", "hf_write", "", OutputError, r"your token may not write there; take one with write access to other"),
        (DOGS, "hf_write", "too many", OutputError, r"too many requests"),
    ],
)
def test_an_upload_that_fails_says_why(
    hub: StandInHub, pipeline: Pipeline, repository: str, token: str | None, refusal: str, error: type[LexisegError], said: str
) -> None:
    hub.refusal = refusal
    with pytest.raises(error, match=said) as caught:
        pipeline.push_to_hub(repository, token=token)
    assert "\n" not in str(caught.value)
    assert hub.files == {}


@pytest.mark.usefixtures("hub")
def test_an_upload_without_a_connection_says_so(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(OutputError, match=r"http://127\.0\.0\.1:1 cannot be reached"):
        pipeline.push_to_hub(DOGS, token="hf_write")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            {"library_name": "transformers", "config": {"model_type": "sam"}},
            r"a model of 'transformers' \('sam'\).*--weights sam=",
        ),
        (
            {"library_name": "transformers", "config": {"model_type": "bert\n"}},
            r"a model of 'transformers' \('bert\\n'\), not of lexiseg; 'lexiseg models' lists",
        ),
        ({"library_name": "open_clip"}, r"a model of 'open_clip', not of lexiseg; its CLIP can be .* --weights clip=FILE"),
        ({}, r"someone/dogs is no model of lexiseg: it has no card\.json with the name of one; 'lexiseg models' lists"),
    ],
)
def test_a_foreign_repository_is_named(hub: StandInHub, model: dict[str, Any], said: str) -> None:
    hub.files[DOGS], hub.models[DOGS] = {"config.json": b"{}", MODEL_FILE: b""}, model
    with pytest.raises(WeightsError, match=said) as caught:
        lexiseg.load(f"hf:{DOGS}")
    assert "\n" not in str(caught.value)
    assert hub.fetched() == []


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ("mistyped", r"there is no http://\S+/someone/dogs, or it is private; .*'hf auth login'"),
        ("gated", r"it is gated; accept its licence at http://\S+/someone/dogs"),
        ("down", r"temporarily out of order .*lexiseg\.from_pretrained"),
    ],
)
def test_a_hub_that_refuses_is_quoted(dogs: StandInHub, refusal: str, said: str) -> None:
    dogs.refusal = refusal
    with pytest.raises(WeightsError, match=said):
        lexiseg.load(f"hf:{DOGS}")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "fcclip-huge"}, r"hf:someone/dogs holds weights of the model 'fcclip-huge', which this version"),
        ({"model": "hf:someone/cats"}, r"holds weights of the model 'hf:someone/cats', which"),
        ({"model": None}, r"no card\.json with the name of one"),
        ({"model": "cmpf-tiny"}, r"holds weights of fcclip-tiny, not of cmpf-tiny"),
        ({"model": 7}, r"is damaged: model"),
        ({"config": None}, r"has no config"),
        ({"config": {"num_queries": 10**9}}, r"does not match fcclip-tiny: num_queries must"),
        ({"config": {"run": "rm"}}, r"there is no option 'run'"),
    ],
)
def test_a_card_that_is_wrong_is_refused(dogs: StandInHub, fields: dict[str, Any], said: str) -> None:
    with_card(dogs, **fields)
    with pytest.raises(WeightsError, match=said):
        lexiseg.load(f"hf:{DOGS}")


def test_files_that_are_too_large_are_not_fetched(dogs: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "MAX_WEIGHTS", 1000)
    with pytest.raises(WeightsError, match=r"model\.safetensors of someone/dogs has [\d,]+ bytes, more than 1,000"):
        lexiseg.load(f"hf:{DOGS}")
    dogs.files["someone/cats"] = {CARD_FILE: b" " * (MAX_CARD + 1)}
    with pytest.raises(WeightsError, match=r"card\.json of someone/cats has [\d,]+ bytes"):
        lexiseg.load("hf:someone/cats")
    assert dogs.fetched() == [CARD_FILE]


@pytest.mark.parametrize("name", ["hf:", "hf:dogs", "hf:a/b/c", "hf:../x", "hf:a/..", "hf:a/b@", "hf:a/b@../../x", "hf:a/b@-x"])
def test_a_name_that_is_no_repository_is_refused(hub: StandInHub, name: str) -> None:
    with pytest.raises(UsageError, match=r"is not the name of a model on the hub: write hf:OWNER/NAME"):
        lexiseg.load(name)
    assert hub.requests == []


def test_a_source_that_is_nowhere_is_refused(hub: StandInHub, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"runs/a/model is not on this machine; give a folder, or a repository"):
        lexiseg.from_pretrained("runs/a/model")
    with pytest.raises(UsageError, match=r"unknown model 'fclip-tiny': did you mean fcclip-tiny"):
        lexiseg.from_pretrained("fclip-tiny")
    with pytest.raises(UsageError, match=r"has no revisions"):
        lexiseg.from_pretrained(saved, revision="v1")
    with pytest.raises(WeightsError, match=r"has no model\.safetensors"):
        lexiseg.from_pretrained(tmp_path)
    assert hub.requests == []


def test_names_and_revisions_are_read() -> None:
    assert parse_shared("hf:a/b.c-d") == ("a/b.c-d", None)
    assert parse_shared("hf:a/b@refs/pr/1") == ("a/b", "refs/pr/1")


@pytest.mark.usefixtures("dogs")
@pytest.mark.parametrize(
    ("spec", "title", "weights", "options"),
    [
        (f"hf:{DOGS}", f"hf:{DOGS}", {}, {}),
        (f"mine:hf:{DOGS},alpha=0.2", "mine", {}, {"alpha": "0.2"}),
        (f"a: b:hf:{DOGS}@main,clip=x:y", "a: b", {"clip": "x:y"}, {}),
    ],
)
def test_specs_of_figures_and_of_the_service_take_them(
    spec: str, title: str, weights: dict[str, str], options: dict[str, str]
) -> None:
    name = f"hf:{DOGS}@main" if "@main" in spec else f"hf:{DOGS}"
    assert parse_model(spec) == (title, name, weights, options)


def test_the_command_line_takes_them(dogs: StandInHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what is fetched; a licence that may restrict the use needs consent."""
    from PIL import Image

    Image.new("RGB", (48, 40), "green").save(tmp_path / "a.png")
    segment = ["segment", str(tmp_path / "a.png"), "--classes", "dog; grass", "--model", f"hf:{DOGS}", "--json"]
    assert main([*segment, "--set", "alpha=0.1"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["model"] == f"hf:{DOGS}"
    assert f"hf:{DOGS} needs about" in err
    assert f"licence MIT, from Hugging Face hub, {DOGS}, {MODEL_FILE}" in err
    assert main(["fetch", f"hf:{DOGS}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"]["fcclip"].endswith(MODEL_FILE)
    assert main(["models", "--describe", f"hf:{DOGS}"]) == 0
    assert "* alpha = 0.7" in capsys.readouterr().out
    dogs.files["someone/cats"] = {**dogs.files[DOGS], CARD_FILE: dogs.files[DOGS][CARD_FILE].replace(b'"MIT"', b'"ask me"')}
    assert main([*segment[:-2], "hf:someone/cats"]) == 2
    assert "licence ask me" in capsys.readouterr().err
