"""The command line as a stranger uses it: results on stdout, one clear line on stderr, the right exit code, no traceback."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lexiseg.cli import main
from lexiseg.errors import UsageError
from lexiseg.exports.manifest import FILE as MANIFEST
from lexiseg.exports.panoptic_png import read_panoptic_png
from lexiseg.exports.records import read_records
from lexiseg.formats import FORMATS
from lexiseg.inference.choice import choose_model
from lexiseg.inference.pipeline import Pipeline, load
from lexiseg.methods import MODELS
from lexiseg.methods.variant import Variant
from lexiseg.ops.names import result_name
from lexiseg.ops.rle import decode_counts, decompress
from lexiseg.structures import ImageBatch, TextEmbeddings
from lexiseg.world import scenes, world_classes
from tests.processes import Command

WORDS = "dog, puppy; pizza; grass; sky"


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    Image.fromarray(next(scenes("val", 1, seed=4, size=128)).image).save(path)
    return path


@cache
def loaded(name: str, *options: tuple[str, object]) -> Pipeline:
    """A model, which all tests share."""
    return load(name, **dict(options))


@pytest.fixture(autouse=True)
def _models_are_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the package; what else the command gives to `load` goes there."""

    def load_once(name: str, *, weights: dict[str, str], seen: object, **options: object) -> Pipeline:
        if weights or seen:
            return load(name, weights=weights, seen=seen, **options)
        return loaded(name, *options.items())

    monkeypatch.setattr("lexiseg.cli.segment.load", load_once)


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """A command's exit code and output; `segment` takes the toy if no model is named."""
    model = ("--model", "sam_clip-tiny") if arguments[0] == "segment" and "--model" not in arguments else ()
    try:
        code = main([str(argument) for argument in (*arguments, *model)])
    except SystemExit as leaving:  # argparse
        code = int(leaving.code or 0)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def test_help_needs_nothing_slow():
    script = (
        "import sys, lexiseg.cli; lexiseg.cli.build_parser().format_help();"
        "print([name for name in ('torch', 'numpy', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_segment_writes_a_picture_the_masks_and_a_table(capsys, picture, tmp_path):
    code, out, _ = run(capsys, "segment", picture, "--classes", WORDS, "--output", tmp_path)
    assert code == 0
    name = result_name(picture)
    assert name.startswith("scene.png-")
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.overlay.png", f"{name}.json", f"{name}.panoptic.png"}
    document = json.loads((tmp_path / f"{name}.json").read_text())
    assert document["classes"] == ["dog", "pizza", "grass", "sky"]
    assert document["segments"], "nothing was found in a picture full of things"
    ids = read_panoptic_png(tmp_path / f"{name}.panoptic.png")
    for segment in document["segments"]:
        mask = decode_counts(decompress(segment["segmentation"]["counts"]), (128, 128)).numpy()
        assert (mask == (ids == segment["id"])).all()
        assert mask.sum() == segment["area"]
        assert segment["name"] in out


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_json_is_one_document_a_picture_and_nothing_else(capsys, picture, task):
    code, out, _ = run(capsys, "segment", picture, picture, "--classes", WORDS, "--task", task, "--json")
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 1, "the same file named twice is done once"
    document = json.loads(lines[0])
    assert (document["task"], document["height"], document["width"]) == (task, 128, 128)
    assert document["files"] == []


def test_a_bad_file_fails_alone(capsys, picture, tmp_path):
    bad = tmp_path / "text.png"
    bad.write_text("no picture")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    code, out, err = run(capsys, "segment", bad, empty, tmp_path / "gone.jpg", picture, "--classes", "dog", "--json")
    assert code == 1
    assert [json.loads(line)["source"] for line in out.splitlines()] == [str(picture)]
    assert [line for line in err.splitlines() if line.startswith("lexiseg:")] == [
        f"lexiseg: {bad}: is not a picture in a format known here; convert it to PNG or JPEG",
        f"lexiseg: {empty}: is empty (0 bytes); fetch or export it again",
        f"lexiseg: {tmp_path / 'gone.jpg'}: no such file",
        "lexiseg: 3 of 4 pictures failed",
    ]


def test_who_names_no_model_gets_one_for_photographs(capsys, picture, monkeypatch):
    """The best whose weights are here; else the fast one after a question, for which there has to be a terminal."""
    assert main(["segment", str(picture), "--classes", "dog", "--json"]) == 2
    err = capsys.readouterr().err
    assert "sam_clip-mobile needs about 640 MB of weights that are not on this machine (clip: 599 MB, licence MIT" in err
    assert "'lexiseg fetch sam_clip-mobile --yes'" in err
    assert "--model sam_clip-tiny, a toy" in err
    with pytest.raises(UsageError, match=r"no model for photographs is on this machine: 'lexiseg fetch sam_clip-mobile' gets"):
        load()
    here = {"sam_clip-vit-b16", "fcclip-rn50x64", "catseg-vit-b16"}
    monkeypatch.setattr(Variant, "present", property(lambda model: model.name in here))
    tasks = ("panoptic", "semantic", "instance")
    assert [choose_model(None, task).name for task in tasks] == ["fcclip-rn50x64", "catseg-vit-b16", "fcclip-rn50x64"]
    assert [choose_model("best", task).name for task in tasks] == ["cmpf-convnext-l", "catseg-vit-l14", "cmpf-convnext-l"]
    assert choose_model("fast", "panoptic").name == "sam_clip-mobile"
    assert choose_model(None, "instance", prompts=True).name == "sam_clip-vit-b16"
    code, _, err = run(capsys, "segment", picture, "--classes", "dog", "--weights", "clip=a.pt", "--json", "--model", "nothing")
    assert code == 2
    assert "unknown model 'nothing'" in err
    assert main(["segment", str(picture), "--classes", "dog", "--weights", "clip=a.pt"]) == 2
    assert "--weights are of a model: name it with --model" in capsys.readouterr().err


def test_a_picture_on_standard_input(capsys, picture, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(picture.read_bytes())))
    given = ("--classes", "dog", "--json", "--output", tmp_path)
    code, out, _ = run(capsys, "segment", "-", "-", *given)
    assert code == 0
    assert json.loads(out)["source"] == "-", "it is read once"
    assert {path.name for path in tmp_path.iterdir()} == {"stdin.overlay.png", "stdin.json", "stdin.panoptic.png"}


ALIKE = ("photo.jpg", "photo.png", "photo-1.jpg", "a/photo.jpg", "b/photo.jpg", "Photo.JPG", "caf\u00e9.png", "cafe\u0301.png")


def test_no_two_pictures_share_a_result_and_names_do_not_depend_on_the_others(capsys, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in ALIKE:
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_bytes(picture.read_bytes())
    given = ("--classes", "dog", "--model", "fcclip-tiny", "--task", "instance")
    assert run(capsys, "segment", *ALIKE, *given, "--output", "all")[0] == 0
    written = {path.name for path in Path("all").iterdir()}
    assert len({name.casefold() for name in written - {MANIFEST}}) == 2 * len(ALIKE)
    assert sorted(json.loads(path.read_text())["source"] for path in Path("all").glob("*.json")) == sorted(ALIKE)
    assert run(capsys, "segment", *reversed(ALIKE), *given, "--output", "all", "--overwrite")[0] == 0
    assert run(capsys, "segment", tmp_path / "a/../photo.jpg", *given, "--output", "all")[0] == 0
    assert {path.name for path in Path("all").iterdir()} == written, "the same pictures have the same results again"


def test_a_picture_is_never_overwritten(capsys, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ("--classes", "dog", "--model", "fcclip-tiny", "--output", ".")
    Path("photo.png").write_bytes(picture.read_bytes())
    assert run(capsys, "segment", "photo.png", *given)[0] == 0
    assert Path("photo.png").read_bytes() == picture.read_bytes()
    drawn = Path(f"{result_name('photo.png')}.overlay.png")
    before = drawn.read_bytes()
    Path("link.png").symlink_to(drawn)
    for second in (drawn, "link.png"):
        code, _, err = run(capsys, "segment", "photo.png", second, *given)
        assert code == 2
        assert f"{second} is a result of photo.png and would be overwritten" in err
    assert drawn.read_bytes() == before
    code, _, err = run(capsys, "figure", "comparison", "photo.png", "--classes", "dog", "--output", "./photo.png")
    assert code == 2
    assert "photo.png and would overwrite it" in err
    assert Path("photo.png").read_bytes() == picture.read_bytes()


def test_a_folder_is_its_pictures_without_what_was_made_of_them(capsys, picture, tmp_path):
    for file in ("a.PNG", "b/c.png", "._a.png", ".thumbnails/a.png"):
        path = tmp_path / "photos" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.read_bytes() if file[0] != "." else b"\0\5\x16\7")
    given = ("--classes", "dog", "--model", "fcclip-tiny", "--json", "--output", tmp_path / "photos")
    for again in range(2):
        code, out, err = run(capsys, "segment", tmp_path / "photos", *given)
        assert code == 0
        assert ("finished by an earlier call" in err) == bool(again)
        assert [json.loads(line)["source"] for line in out.splitlines()] == [
            str(tmp_path / "photos/a.PNG"),
            str(tmp_path / "photos/b/c.png"),
        ]
    (tmp_path / "empty").mkdir()
    code, _, err = run(capsys, "segment", tmp_path / "empty", *given)
    assert code == 2
    assert f"no picture in the folder '{tmp_path / 'empty'}'" in err


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names are Unicode there")
def test_a_name_that_is_not_utf_8_is_segmented_and_printed(picture, tmp_path):
    odd = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(odd, "wb") as file:  # noqa: PTH123 - pathlib takes no bytes
        file.write(picture.read_bytes())
    done = Command("segment", os.fsdecode(odd), "--classes", "dog", "--model", "fcclip-tiny", "--output", tmp_path / "out")
    assert done.end() == (0, "")
    assert rb"caf\udce9.png" in done.printed
    (document,) = (tmp_path / "out").glob("*.json")
    assert os.fsencode(json.loads(document.read_text(encoding="utf-8"))["source"]) == odd


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--classes", ""], "class"),
        (["--classes", "dog;;cat"], "2"),
        (["--classes", "dog; Dog"], "'Dog' names class 1 and class 2"),
        (["--classes", " ".join(["very"] * 300)], "300"),
        (["--vocabulary", "emojis"], "emoji"),
        (["--vocabulary", "no/such/file.txt"], "no/such/file.txt"),
        (["--classes", "dog", "--model", "sam_clip-tinny"], "sam_clip-tiny"),
        (["--classes", "dog", "--task", "depth"], "depth"),
        (["--classes", "dog", "--threshold", "1.5"], "0..1"),
        (["--classes", "dog", "--device", "abacus"], "abacus"),
        (["--classes", "dog", "--weights", "clip"], "PART=FILE"),
        (["--classes", "dog", "--weights", "hat=a.pt"], "hat"),
        (["--classes", "dog", "--background", ""], "name"),
        (["--classes", "dog", "--point", "1,2,3"], "'1,2,3' is not a point X,Y in pixels"),
        (["--classes", "dog", "--box", "1,2,nan,4"], "'nan' is not a coordinate of a box LEFT,TOP,RIGHT,BOTTOM"),
        (["--classes", "dog", "--box", "9,2,9,4"], "box 9,2,9,4 has no area"),
        (["--classes", "dog", "--point", "128,3"], "point 128,3 is not in the image of 128 × 128 pixels"),
        (["--classes", "dog", "--point", "1,2", "--task", "semantic"], "leave out --task"),
        (["--classes", "dog", "--point", "1,2", "--tile", "512"], "leave out --tile"),
        (["--classes", "dog", "--point", "1,2", "--server", "http://127.0.0.1:9"], "leave out --server"),
        (
            ["--classes", "dog", "--point", "1,2", "--model", "fcclip-tiny"],
            "fcclip takes no points and boxes; models that do: sam_",
        ),
        ([], "--classes"),
    ],
)
def test_a_wrong_call_says_what_is_wrong_and_exits_2(capsys, picture, arguments, word):
    code, out, err = run(capsys, "segment", picture, "--json", *arguments)
    assert code == 2
    assert out == ""
    assert word in err


def test_points_and_boxes_have_a_segment_each_in_every_format(capsys, picture, tmp_path):
    given = ("--point", "30,40", "--point", "100,20", "--box", "10,20,90,120")
    call = ("segment", picture, "--classes", WORDS, "--output", tmp_path, *given)
    code, out, err = run(
        capsys, *call, "--json", "--format", ",".join(name for name, each in FORMATS.items() if "instance" in each.parts)
    )
    assert (code, err.count("note:")) == (0, 0)
    assert len(json.loads((tmp_path / "coco.json").read_text())["annotations"]) == 3
    segments = json.loads(out)["segments"]
    assert [segment["id"] for segment in segments] == [1, 2, 3]
    expected = load("sam_clip-tiny")(picture, WORDS, points=[(30, 40), (100, 20)], boxes=[(10, 20, 90, 120)])
    assert segments == expected.document()["segments"]
    (record,) = read_records(tmp_path)
    assert [segment.id for segment in record.segments] == [1, 2, 3]
    assert all(np.array_equal(*pair) for pair in zip(record.masks(), expected.masks, strict=True))
    code, out, err = run(capsys, *call, "--threshold", "1")
    assert (code, err.count("\nnote: prompt ") + err.startswith("note: prompt ")) == (0, 3)
    assert "note: prompt 3, box 10,20,90,120, has no class and no segment" in err
    assert "nothing found: lower --threshold, or name more" in out
    best = max(segments, key=lambda segment: segment["score"])
    code, out, _ = run(capsys, *call, "--threshold", str(best["score"] - 1e-3))
    assert f"\n  {best['id']} {best['name']}" in out
    (tmp_path / "second.png").write_bytes(picture.read_bytes())
    code, _, err = run(capsys, "segment", picture, tmp_path / "second.png", *call[2:])
    assert code == 2
    assert "--point and --box are of one picture, and there are 2" in err


def test_missing_weights_say_what_where_and_what_works_offline(capsys, picture):
    code, _, err = run(capsys, "segment", picture, "--classes", "dog", "--model", "sam_clip-vit-b16", "--json")
    assert code == 1
    for word in ("open_clip_model.safetensors", "timm/vit_base_patch16_clip_224.openai", "sam_clip-tiny"):
        assert word in err


@pytest.mark.parametrize(
    ("model", "part"), [("sam_clip-tiny", "sam"), ("sam_clip-tiny", "clip"), ("maskclip-tiny", "proposer")]
)
def test_weights_whose_name_no_disk_takes_are_missing_weights(capsys, picture, model, part):
    name = "x" * 300
    code, _, err = run(capsys, "segment", picture, "--classes", "dog", "--model", model, "--weights", f"{part}={name}")
    assert code in (1, 2)
    assert name in err
    assert "unexpected" not in err


def test_an_unwritable_output_is_found_before_the_work(capsys, picture, tmp_path):
    (tmp_path / "file").touch()
    code, out, err = run(capsys, "segment", picture, "--classes", "dog", "--output", tmp_path / "file" / "below")
    assert code == 1
    assert out == ""
    assert f"{tmp_path / 'file' / 'below'}" in err


def test_a_full_disk_is_reported_and_leaves_nothing(capsys, picture, tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = run(capsys, "segment", picture, "--classes", "dog", "--output", tmp_path)
    assert code == 1
    assert "No space left on device" in err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_what_is_finished(capsys, picture, tmp_path, monkeypatch):
    second = tmp_path / "second.png"
    second.write_bytes(picture.read_bytes())
    from lexiseg.cli import segment

    plain = segment.table

    def interrupted(result: object, *more: object, **named: object) -> str:
        if "second" in str(result.source):
            raise KeyboardInterrupt
        return plain(result, *more, **named)

    monkeypatch.setattr(segment, "table", interrupted)
    code, out, err = run(capsys, "segment", picture, second, "--classes", "dog", "--output", tmp_path / "out")
    assert code == 130
    assert "interrupted" in err
    assert (tmp_path / "out" / f"{result_name(picture)}.json").is_file()
    assert "scene" in out


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_odd_sizes_work(capsys, tmp_path, size):
    Image.new("RGB", size, "green").save(tmp_path / "odd.png")
    code, out, _ = run(capsys, "segment", tmp_path / "odd.png", "--classes", "grass", "--json")
    assert code == 0
    assert (json.loads(out)["width"], json.loads(out)["height"]) == size


def test_five_thousand_classes_work(capsys, picture, tmp_path):
    words = tmp_path / "many.txt"
    words.write_text("\n".join(f"thing number {number}" for number in range(5000)))
    code, out, _ = run(capsys, "segment", picture, "--vocabulary", words, "--json")
    assert code == 0
    assert json.loads(out)["task"] == "panoptic"


def test_models_lists_what_each_needs(capsys):
    code, out, _ = run(capsys, "models", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert all(weight["present"] for weight in rows["sam_clip-tiny"]["weights"])
    assert not any(weight["present"] for weight in rows["sam_clip-vit-b16"]["weights"])
    assert all(weight["licence"] and weight["where"] for row in rows.values() for weight in row["weights"])
    assert rows["catseg-vit-l14"]["published"] == {"mIoU": 37.9, "PQ": None}
    assert [name for name, row in rows.items() if row["toy"]] == [name for name in rows if "-tiny" in name]


def test_models_is_a_table(capsys):
    code, out, err = run(capsys, "models")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert re.search(r"25\.9 +34\.4 +16\.5 +1\.9 GB +no +none stated$", lines["cmpf-convnext-l"])
    assert re.search(r"semantic, panoptic +37\.9 +1\.7 GB +no +MIT$", lines["catseg-vit-l14"])
    assert re.search(r" train  MIT, Apache-2\.0, your own$", lines["escnet-vit-b16"])
    assert "sam_clip-tiny" not in lines
    assert max(map(len, out.splitlines())) < 200


def test_describe_counts_the_parameters_of_full_size_models_without_weights(capsys):
    code, out, _ = run(capsys, "models", "--describe", "sam_clip-vit-b16", "--json")
    assert code == 0
    document = json.loads(out)
    assert set(document) == {"name", "tasks", "parameters", "options"}
    by_name = {option["name"]: option for option in document["options"]}
    assert by_name["generator.pred_iou_threshold"]["value"] == 0.88
    assert all(option["about"] and option["type"] for option in document["options"])
    counts = document["parameters"]
    assert counts["by_part"] == {"clip": 149_620_737, "sam": 93_735_728}  # OpenAI's ViT-B/16; SAM ViT-B's 93.74 M
    assert all(sum(towers.values()) == counts["by_part"][part] for part, towers in counts["by_tower"].items())
    assert counts["by_tower"]["clip"]["image tower"] == 86_192_640  # with the projection to the joint space
    assert counts["total"] == counts["trainable"] + counts["frozen"] == sum(counts["by_part"].values())
    assert counts["trainable"] == 0
    assert run(capsys, "models", "--describe", "clip")[0] == 2


def test_describe_counts_operations(capsys, monkeypatch):
    """Those of a picture on the CPU, with attention as products of matrices; of methods that propose masks none are counted."""
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
    code, out, _ = run(capsys, "models", "--describe", "escnet-tiny", "--flops", "--classes", "5", "--json")
    flops = json.loads(out)["flops"]
    assert code == 0
    assert (flops["image"], flops["classes"]) == ([640, 640], 5)
    segmenter = MODELS["escnet-tiny"].empty().eval()
    vectors = torch.nn.functional.normalize(torch.randn(5, segmenter.clip.width), dim=-1)
    text = TextEmbeddings(vectors, torch.arange(5), tuple("abcde"), torch.ones(5, dtype=torch.bool))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        segmenter(ImageBatch(torch.rand(1, 3, 640, 640), ((640, 640),)), text)
    assert flops["total"] == pytest.approx(counter.get_total_flops(), rel=0.01)
    more = run(capsys, "models", "--describe", "escnet-tiny", "--flops", "--classes", "40")[1]
    assert "GFLOPs" in more
    assert "one image of 640 × 640, 40 classes" in more
    assert run(capsys, "models", "--flops")[0] == 2
    code, _, errors = run(capsys, "models", "--describe", "fcclip-tiny", "--flops")
    assert code == 2
    assert "depend on the image" in errors


def test_vocabulary_lists_and_shows(capsys):
    code, out, _ = run(capsys, "vocabulary", "--json")
    lists = {row["name"]: row["classes"] for row in json.loads(out)}
    assert code == 0
    assert (lists["coco"], lists["ade150"], lists["emoji"]) == (133, 150, len(world_classes()))
    assert "dog" in run(capsys, "vocabulary", "emoji")[1]


def test_rendered_world_is_what_the_scenes_are(capsys, tmp_path):
    code, out, _ = run(
        capsys,
        "world",
        "render",
        "--split",
        "style",
        "--count",
        "3",
        "--size",
        "96",
        "--seed",
        "8",
        "--output",
        tmp_path,
        "--json",
    )
    assert code == 0
    assert json.loads(out)["scenes"] == 3
    document = json.loads((tmp_path / "panoptic.json").read_text())
    for scene, annotation in zip(scenes("style", 3, seed=8, size=96), document["annotations"], strict=True):
        assert (np.asarray(Image.open(tmp_path / "images" / annotation["file_name"])) == scene.image).all()
        assert (read_panoptic_png(tmp_path / "panoptic" / annotation["file_name"]) == scene.panoptic).all()
        assert (np.asarray(Image.open(tmp_path / "labels" / annotation["file_name"])) == scene.semantic()).all()
        assert sum(row["area"] for row in annotation["segments_info"]) == 96 * 96
    assert run(capsys, "world", "render", "--split", "test", "--output", tmp_path)[0] == 2
