"""A client's results are those of the pipeline, bit for bit; what goes wrong at the service is a line with the next step."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexiseg.cli import main
from lexiseg.client import Client
from lexiseg.data.images import decode_image
from lexiseg.errors import ImageError, LexisegError, RunError, ServiceError, UsageError
from lexiseg.exports.manifest import FILE as MANIFEST
from lexiseg.formats import FORMATS
from lexiseg.ops.locks import LOCK
from lexiseg.ops.progress import Progress
from lexiseg.segmentation import Segmentation
from tests.architecture.test_docs import FENCE
from tests.data.clips import write_clip
from tests.serve.running import NAME, WORDS, Running, picture, running, until

TOKEN = "a-token-of-many-letters"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with running(token=TOKEN) as service:
        yield service


@pytest.fixture(scope="module")
def client(served: Running) -> Client:
    return Client(served.url, token=TOKEN)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], served: Running, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls `lexiseg segment`, with the model of the service as that on this machine."""
    monkeypatch.setattr("lexiseg.cli.segment.load", lambda *_, **__: served.pipeline)

    def called(*arguments: str | Path) -> tuple[int, str, str]:
        code = main(["segment", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return called


def same(result: Segmentation, expected: Segmentation) -> None:
    assert (result.task, result.names, result.things) == (expected.task, expected.names, expected.things)
    assert result.segments == expected.segments, "scores have all their digits"
    assert len(result.segments) > 0
    for name in ("image", "masks"):
        assert np.array_equal(getattr(result, name), getattr(expected, name))
    assert (result.scores is None) == (expected.scores is None)
    if expected.scores is not None:
        assert result.scores.dtype == np.float16
        assert result.scores.tobytes() == expected.scores.tobytes()


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_a_result_is_that_of_the_pipeline_to_the_last_bit(served: Running, client: Client, task: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture(3))
    options = {"task": task, "threshold": 0.01, "background": "wall", "keep_scores": True}
    expected = served.pipeline(str(path), WORDS, **options)
    result = client.segment(str(path), WORDS, **options)
    same(result, expected)
    assert result.source == expected.source == str(path)
    changed = served.pipeline.with_options({"alpha": 1.0})(path, ["dog, puppy", "grass"])
    same(client.segment(path, ["dog, puppy", "grass"], options={"alpha": 1}), changed)


def test_pictures_of_all_kinds_are_sent_without_loss(served: Running, client: Client) -> None:
    pixels = decode_image(picture(5))
    for given in (picture(5), picture(5, kind="JPEG"), pixels, Image.fromarray(pixels)):
        same(client.segment(given, WORDS), served.pipeline(given, WORDS))
    stages: list[Progress] = []
    several = client.segment([picture(5), picture(6, (30, 20))], WORDS, progress=stages.append)
    assert [result.size for result in several] == [(48, 64), (30, 20)]
    assert [each.stage for each in stages if not each.total][-3:] == ["masks", "result", "encode"]


def test_the_documentation_shows_what_works(served: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEXISEG_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(picture(3, kind="JPEG"))
    page = (Path(__file__).parents[2] / "docs/serve.md").read_text(encoding="utf-8")
    (code,) = [block for _, block in FENCE.findall(page) if "lexiseg.Client(" in block]
    names: dict[str, object] = {}
    exec(code.replace("http://127.0.0.1:8765", served.url), names)
    same(names["result"], served.pipeline("photo.jpg", ["dog, puppy", "grass | stuff", "sky"]))


def test_the_command_writes_the_same_files_and_lines(served: Running, run: Run, tmp_path: Path) -> None:
    pictures = [tmp_path / name for name in ("a.png", "b.png")]
    for number, path in enumerate(pictures):
        path.write_bytes(picture(number))
    token, words = (
        tmp_path / "token",
        ("--model", NAME, "--classes", WORDS, "--format", ",".join(name for name in FORMATS if name != "geotiff")),
    )
    token.write_text(f"{TOKEN}\n")
    remote = ("--server", served.url, "--token-file", token, "--batch", 2)
    outputs = {}
    for name, server in (("here", ()), ("there", remote)):
        code, out, err = run(*pictures, *words, *server, "--output", tmp_path / name)
        assert (code, err) == (0, "")
        outputs[name] = out.replace(str(tmp_path / name), "OUT")
    assert outputs["here"] == outputs["there"]
    files = {path.relative_to(tmp_path / "here") for path in (tmp_path / "here").rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "there") for path in (tmp_path / "there").rglob("*") if path.is_file()}
    assert len(files) > 20
    for file in files - {Path(MANIFEST), Path(LOCK)}:
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes(), file
    before = len(served.segmenter.batches)
    code, out, err = run(*pictures, *words, *remote, "--output", tmp_path / "there", "--json")
    assert [json.loads(line)["skipped"] for line in out.splitlines()] == [True, True]
    assert len(served.segmenter.batches) == before, "nothing was segmented again"
    code, out, err = run(*pictures, *words, "--output", tmp_path / "there", "--json")
    assert "skipped" not in out, "a model here is not known to be that of the service"


def test_the_command_writes_the_same_video(served: Running, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_clip(tmp_path / "clip.mkv", [decode_image(picture(3))] * 2)
    monkeypatch.setenv("LEXISEG_TOKEN", TOKEN)
    files = []
    for name, server in (("here", ()), ("there", ("--server", served.url))):
        code, _, err = run(clip, "--model", NAME, "--classes", WORDS, *server, "--output", tmp_path / name)
        assert (code, err) == (0, "")
        files.append({path.name: path.read_bytes() for path in (tmp_path / name).glob("clip.mkv-*")})
    assert files[0] == files[1]
    assert len(files[0]) == 2


def test_the_token_is_taken_from_the_environment(
    served: Running, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture(3))
    call = (path, "--classes", WORDS, "--server", served.url, "--json")
    code, out, err = run(*call)
    assert (code, out) == (1, "")
    assert err == f"lexiseg: {served.url} needs a token: set LEXISEG_TOKEN, or give --token-file FILE\n"
    monkeypatch.setenv("LEXISEG_TOKEN", TOKEN[::-1])
    assert "needs another token" in run(*call)[2]
    monkeypatch.setenv("LEXISEG_TOKEN", TOKEN)
    code, out, err = run(*call)
    assert (code, json.loads(out)["model"], err) == (0, NAME, "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "cmpf-tiny"), "does not offer the model 'cmpf-tiny'; it has fcclip-tiny"),
        (("--set", "alpha=high"), "--set alpha=high: a service takes numbers in 0..1; leave it out, or --server"),
        (("--set", "alpha=2"), "option alpha must be a number in 0..1, not 2"),
        (("--set", "no_such=1"), "fcclip-tiny has no option 'no_such' for requests; there are object_threshold"),
        (("--device", "cpu"), "--device is of a model on this machine; leave it out, or leave out --server"),
        (("--weights", "clip=x", "--model", NAME), "--weights is of a model on this machine"),
        (("--server", "ftp://x"), "'ftp://x' is not the address of a service; write it as http://127.0.0.1:8765"),
        (("--server", "http://me:secret@x"), "has no password in it; set LEXISEG_TOKEN, or give --token-file FILE"),
    ],
)
def test_wrong_options_are_usage_errors(
    served: Running, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], said: str
) -> None:
    monkeypatch.setenv("LEXISEG_TOKEN", TOKEN)
    (tmp_path / "a.png").write_bytes(picture(3))
    code, out, err = run(tmp_path / "a.png", "--classes", WORDS, "--json", "--server", served.url, *options)
    assert (code, out) == (2, "")
    assert said in err
    assert "secret" not in err
    assert len(err.splitlines()) == 1


def test_a_picture_that_the_service_cannot_take_is_reported_and_the_others_are_done(run: Run, tmp_path: Path) -> None:
    for name, content in (("a", picture(1)), ("bad", b"no picture"), ("large", picture(2, (200, 200))), ("z", picture(3))):
        (tmp_path / f"{name}.png").write_bytes(content)
    with running(pixels=10_000) as service:
        code, out, err = run(tmp_path, "--classes", WORDS, "--json", "--server", service.url)
        assert (code, len(out.splitlines())) == (1, 2)
        assert "bad.png: " in err
        assert "large.png: 40,000 pixels are more than the 10,000 that http://127.0.0.1" in err
        assert err.splitlines()[-1] == "lexiseg: 2 of 4 pictures failed"


def test_a_service_without_a_free_slot_is_waited_for() -> None:
    with running(queue=1) as service:
        service.segmenter.held = True
        first = threading.Thread(target=service.segment, args=(picture(1),))
        first.start()
        until(lambda: service.service.open == 1)
        with pytest.raises(RunError, match=r"^the picture: http://\S+ is busy since 0 seconds; try again later, or"):
            Client(service.url, patience=0.01).segment(picture(2), WORDS)
        stages: list[str] = []

        def report(progress: Progress) -> None:
            stages.append(progress.stage)
            service.segmenter.held = False

        result = Client(service.url).segment(picture(2), WORDS, progress=report)
        first.join()
        assert stages[0] == "waiting"
        same(result, service.pipeline(picture(2), WORDS))


def test_one_failed_picture_ends_the_requests_beside_it() -> None:
    with running() as service:
        client = Client(service.url)
        service.segmenter.held = True
        began = time.monotonic()
        with pytest.raises(ImageError):
            client.segment([b"no picture", picture(1)], WORDS)
        assert service.segmenter.held
        assert time.monotonic() - began < 60
        until(lambda: service.service.open == 0)


def test_an_answer_out_of_time_says_what_helps() -> None:
    with running(seconds=0.3) as service:
        service.segmenter.held = True
        with pytest.raises(
            RunError, match=r"not finished within 0\.3 seconds; scale the picture down, or start the service wi"
        ):
            Client(service.url).segment(picture(1), WORDS)


@pytest.mark.parametrize(
    ("status", "headers", "body", "error", "said"),
    [
        (200, {}, b"<html>", ServiceError, "answers no JSON: it is no 'lexiseg serve'"),
        (200, {}, b"{}", ServiceError, "is no 'lexiseg serve' of this version"),
        (301, {"Location": "https://other.example/"}, b"", ServiceError, "leads to https://other.example/; give that address"),
        (502, {}, b"<html>", ServiceError, "answers 502: it is no 'lexiseg serve', or behind a proxy"),
        (503, {"Retry-After": "2"}, b'{"detail": "the service is about to end"}', ServiceError, "the service is about to end"),
        (500, {}, b'{"detail": "a fault of the service"}', RunError, "a fault of the service"),
        (200, {"Content-Length": "100"}, b"{", ServiceError, "has ended before its answer; start it again"),
    ],
)
def test_what_is_no_service_is_told_apart(
    status: int, headers: dict[str, str], body: bytes, error: type[LexisegError], said: str
) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(error, match=said) as raised:
            Client(f"http://127.0.0.1:{server.server_port}").segment(picture(1), WORDS)
        thread.join()
    assert type(raised.value) is error


def test_a_service_that_is_not_there_ends_the_command(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(picture(1))
    code, out, err = run(tmp_path, "--classes", WORDS, "--json", "--server", f"http://127.0.0.1:{port}")
    assert (code, out) == (1, "")
    assert err.startswith(f"lexiseg: http://127.0.0.1:{port} cannot be reached (")
    assert err.endswith("); start it with 'lexiseg serve', or check the address\n")
    with pytest.raises(UsageError, match="the token must be a word of at least 16"):
        Client("http://127.0.0.1:8765", token="short")
