"""Videos on the command line: the same rules as of pictures, and what does not apply refused before work starts."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from lexiseg.cli import main
from lexiseg.exports.manifest import FILE as MANIFEST
from lexiseg.inference.pipeline import Pipeline
from lexiseg.ops import videos
from lexiseg.ops.names import result_name
from lexiseg.world import scenes
from tests.architecture.test_docs import FENCE, ROOT, commands
from tests.data.clips import moving, write_clip
from tests.inference.test_evaluation import Colours
from tests.laws.builders import tiny_fcclip

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mkv", moving(4))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls ``lexiseg segment`` with a method that knows three colours."""
    monkeypatch.setattr("lexiseg.cli.segment.load", lambda *_, **__: Pipeline(Colours()))

    def called(*arguments: object) -> tuple[int, str, str]:
        words = ("--classes", "red; green; blue | stuff", "--model", "fcclip-tiny")
        try:
            code = main(["segment", *map(str, arguments), *words])
        except SystemExit as leaving:  # argparse
            code = int(leaving.code or 0)
        return (code, *capsys.readouterr())

    return called


def test_a_video_has_a_table_and_two_files(run, clip, tmp_path):
    code, out, err = run(clip, "--output", tmp_path / "out")
    name = result_name(clip)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{clip}  64 × 48  panoptic  4 frames",
        "  name   things  frames",
        "  red         1       4",
        "  green       1       4",
        "  blue        -       4",
        f"  → {tmp_path}/out/{name}.jsonl",
        f"  → {tmp_path}/out/{name}.overlay.mp4",
    ]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{name}.jsonl", f"{name}.overlay.mp4", MANIFEST}


def test_a_finished_video_is_skipped(run, clip, tmp_path):
    other = write_clip(tmp_path / "other.mkv", moving(3))
    given = (clip, other, "--output", tmp_path / "out")
    assert run(*given)[0] == 0
    note = "note: 2 of 2 videos are finished by an earlier call with these options; --overwrite segments them again\n"
    assert run(*given)[1:] == ("", note)
    code, out, _ = run(*given, "--json")
    assert [json.loads(line)["skipped"] for line in out.splitlines()] == [True, True]
    for changed in (("--every", "2"), ("--end", "0.1"), ("--track-gap", "9"), ("--format", "json"), ("--overwrite",)):
        code, out, err = run(*given, *changed)
        assert (code, err) == (0, "")
        assert "clip.mkv  64" in out


def test_json_is_a_line_for_each_frame_and_one_for_the_video(run, clip, tmp_path):
    code, out, err = run(clip, "--json", "--every", "2")
    *frames, last = map(json.loads, out.splitlines())
    assert (code, err) == (0, "")
    assert [(frame["frame"], frame["time"]) for frame in frames] == [(0, 0.0), (2, 0.08)]
    assert {segment["id"] for frame in frames for segment in frame["segments"]} == {1, 2, 3}
    assert frames[0]["model"] == "fcclip-tiny"
    assert last == {"model": "fcclip-tiny", "source": str(clip), "frames": 2, "files": []}
    code, out, err = run(clip, "--json", "--output", tmp_path / "out")
    assert [Path(path).exists() for path in json.loads(out.splitlines()[-1])["files"]] == [True, True]


def test_a_reader_that_leaves_ends_the_call_without_a_message(run, clip, tmp_path, monkeypatch):
    class Left(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("sys.stdout", Left())
    code, _, err = run(clip, clip.with_name("gone.mkv"), "--json", "--output", tmp_path / "out")
    assert (code, err) == (0, "")
    assert not list((tmp_path / "out").iterdir())


def test_a_bad_video_fails_alone_and_a_damaged_one_is_written_as_far_as_it_goes(run, clip, tmp_path):
    bad, cut = tmp_path / "bad.mp4", write_clip(tmp_path / "cut.mkv", moving(12))
    bad.write_text("no video")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
    for _ in range(2):  # not finished, hence tried again
        code, out, err = run(bad, cut, tmp_path / "gone.mp4", clip, "--output", tmp_path / "out", "--overwrite")
        lines = err.splitlines()
        assert code == 1
        assert len(lines) == 4
        assert lines[0].startswith(f"lexiseg: {bad}: is damaged, or not a video in a format known here")
        assert lines[1].startswith(f"lexiseg: {cut}: is damaged or cut off; ")
        assert lines[2:] == [f"lexiseg: {tmp_path / 'gone.mp4'}: no such file", "lexiseg: 3 of 4 videos failed"]
        assert f"{cut}  64 × 48" in out
        assert f"{clip}  64 × 48" in out
    assert len(list((tmp_path / "out").glob("cut.mkv-*.overlay.mp4"))) == 1
    code, _, err = run(cut, clip, "--output", tmp_path / "out")
    assert (code, len(err.splitlines())) == (1, 3), "the note on clip, the damage, the sum"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--point", "1,2"], "--point and --box are of one picture, not of a video"),
        (["--batch", "2"], "--batch is of pictures"),
        (["--format", "overlay,coco"], "format coco is of pictures; results of videos have json and overlay"),
        (["--end", "2", "--start", "3"], "end 2.0: a part of a video ends after its start, 3.0 seconds"),
        (["--every", "0"], "'0' is not a whole number of at least 1"),
        (["--track-iou", "0"], "track IoU 0.0: is above 0"),
        (["photo.png"], "clip.mkv is a video and photo.png a picture: segment them in two calls"),
        (["https://example.org/a.mp4", "--allow-url"], "https://example.org/a.mp4: videos are not fetched"),
    ],
)
def test_what_does_not_apply_is_refused_before_work_starts(run, clip, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr("lexiseg.cli.segment.load", lambda *_, **__: pytest.fail("the model was loaded"))
    code, out, err = run(clip, *arguments, "--output", tmp_path / "out")
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "out").exists()


def test_options_of_videos_are_not_of_pictures(run):
    for option in ("every", "start", "end", "track-iou", "track-gap"):
        code, _, err = run("photo.png", f"--{option}", "1")
        assert (code, err) == (2, f"lexiseg: --{option} is of videos, and photo.png is not the name of one\n")


def test_without_pyav_a_line_says_what_to_install(run, clip, monkeypatch):
    monkeypatch.setattr(videos, "find_spec", lambda _: None)
    message = f"lexiseg: {clip}: reading a video needs PyAV: pip install 'lexiseg[video]'\n"
    assert run(clip) == (2, "", message)


def test_a_video_is_never_overwritten(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(Path("a.mkv"), moving(2))
    result = f"{result_name('a.mkv')}.overlay.mp4"
    Path(result).write_bytes(b"mine")
    code, _, err = run("a.mkv", result, "--output", ".")
    assert code == 2
    assert f"{result} is a result of a.mkv and would be overwritten" in err
    assert Path(result).read_bytes() == b"mine"


def test_the_pages_do_what_they_say(capsys, tmp_path, monkeypatch):
    """All commands of docs/video.md and the recipe, in their order, and the page's Python."""
    monkeypatch.chdir(tmp_path)
    write_clip(Path("clip.mp4"), [scene.image for scene in scenes("val", 3, size=64)], codec="libx264", rate=Fraction(1, 5))
    pipeline = Pipeline(tiny_fcclip("convnext"))
    for module in ("lexiseg", "lexiseg.cli.segment"):
        monkeypatch.setattr(f"{module}.load", lambda *_, **__: pipeline, raising=False)  # of the weights in the package: slower
    page = (ROOT / "docs/video.md").read_text(encoding="utf-8")
    recipe = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    given = [arguments for arguments in commands(page + recipe) if "clip.mp4" in arguments]
    assert len(given) == 5
    for arguments in given:
        assert main([*arguments, "--model", "fcclip-tiny"]) == 0, arguments
    *_, last = capsys.readouterr().out.splitlines()
    assert last.endswith(f"{result_name('clip.mp4')}.overlay.mp4")
    (snippet,) = (block for _, block in FENCE.findall(page) if block.startswith("import lexiseg"))
    exec(compile(snippet, "docs/video.md", "exec"), {})


def test_the_progress_counts_frames(run, clip, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("lexiseg.cli.progress_line.ProgressLine.__call__", lambda _, progress: seen.append(progress))
    assert run(clip, "--output", tmp_path / "out")[0] == 0
    assert {progress.stage for progress in seen} == {"frames"}
    assert sorted({(progress.done, progress.total) for progress in seen}) == [(0, 4), (1, 4), (2, 4), (3, 4)]
