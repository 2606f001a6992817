"""What the service refuses: malformed uploads, values beyond the limits, other origins, a missing token."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from lexiseg.cli import main
from lexiseg.errors import UsageError
from lexiseg.serve.guard import HEADERS
from lexiseg.serve.limits import Limits
from lexiseg.serve.models import Models, ModelSpec
from lexiseg.serve.server import is_loopback, serve
from tests.serve.running import NAME, WORDS, Running, picture, running

PIXELS, UPLOAD, NAMES = 40_000, 300_000, 50
PICTURE = picture()
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with running(pixels=PIXELS, upload=UPLOAD, names=NAMES) as service:
        yield service


@pytest.fixture(scope="module")
def client(served: Running) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


def refused(answer: httpx.Response, *statuses: int, reason: str = "") -> None:
    """An answer with one of the statuses, a reason in one line, and all headers."""
    assert answer.status_code in statuses, answer.text
    detail = answer.json()["detail"]
    assert isinstance(detail, str)
    assert detail
    assert "\n" not in detail
    assert reason in detail
    check_headers(answer)


def check_headers(answer: httpx.Response) -> None:
    assert {name: answer.headers.get(name) for name in HEADERS if name != "cache-control"} == {
        name: value for name, value in HEADERS.items() if name != "cache-control"
    }
    assert answer.headers["cache-control"] in ("no-store", "no-cache")
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert "server" not in answer.headers


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        target.writestr("a.png", PICTURE)
    return buffer.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/><script>alert(1)</script></svg>'
PICTURES: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "empty": (lambda: b"", 422, "0 bytes"),
    "truncated": (lambda: PICTURE[: len(PICTURE) // 2], 422, "damaged or cut off"),
    "truncated in the header": (lambda: PICTURE[:20], 422, ""),
    "a bomb": (lambda: png(60_000, 60_000, bytes(10**6)), 422, "pixels"),
    "more pixels than a PNG may have": (lambda: png(2**31 - 1, 2**31 - 1), 422, ""),
    "a few pixels too many": (lambda: picture(size=(201, 200)), 413, "pixels"),
    "a header that lies": (lambda: png(100, 100, bytes(30)), 422, "damaged or cut off"),
    "SVG": (lambda: SVG, 422, "not a picture"),
    "zip": (zipped, 422, "not a picture"),
    "PDF": (lambda: b"%PDF-1.7\n" + bytes(100), 422, "not a picture"),
    "PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", 422, "not a picture"),
    "noise": (lambda: bytes(range(256)) * 4, 422, "not a picture"),
    "more bytes": (lambda: PICTURE + bytes(UPLOAD), 413, "bytes"),
    "many more bytes": (lambda: bytes(2 * UPLOAD + 2_000_000), 413, "larger"),
    "a path": (lambda: b"/etc/passwd", 422, "not a picture"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_malformed_pictures_are_refused_with_a_reason(served: Running, client: httpx.Client, kind: str) -> None:
    make, status, reason = PICTURES[kind]
    content = make()
    refused(served.segment(content), status, reason=reason)
    if len(content) < UPLOAD:
        body = {"image": b64encode(content).decode(), "classes": WORDS}
        refused(client.post("/v1/segment", json=body), status, reason=reason)


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        ({"classes": "; ".join(f"name {number}" for number in range(10_000))}, 413, "10000 names"),
        ({"classes": ", ".join(f"name {number}" for number in range(10_000))}, 413, "10000 names"),
        ({"classes": "dog\x07"}, 422, "U+0007"),
        ({"classes": "dog\u202egod"}, 422, "U+202E"),
        ({"classes": json.dumps(["dog\ud800"])}, 422, "U+D800"),
        ({"classes": ""}, 422, "either classes"),
        ({"classes": " ; "}, 422, "empty"),
        ({"classes": "dog;;cat"}, 422, "empty name"),
        ({"classes": "dog; dog"}, 422, "names class"),
        ({"classes": "word " * 300}, 422, "sentence"),
        ({"classes": "[" * 10_000}, 422, "JSON"),
        ({"classes": "[1, 2]"}, 422, "classes"),
        ({"classes": '[{"name": 3}]'}, 422, "'name' must be a string"),
        ({"vocabulary": "coco", "classes": "dog"}, 422, "either classes"),
        ({"model": "gpt"}, 422, NAME),
        ({"model": "sam_clip-vit-b16"}, 422, NAME),
        ({"task": "dance"}, 422, "task"),
        ({"threshold": "2"}, 422, "threshold"),
        ({"threshold": "nan"}, 422, "threshold"),
        ({"options": '{"alpha": 1.5}'}, 422, "0..1"),
        ({"options": '{"shortest_edge": 0.5}'}, 422, "no option"),
        ({"options": '{"templates": "x"}'}, 422, "options"),
        ({"options": "alpha=1"}, 422, "options"),
        ({"background": "a; b"}, 422, "';'"),
        ({"format": "exe"}, 422, "format"),
        ({"format": "zip", "files": "doc"}, 422, "unknown format"),
        ({"format": "png", "task": "instance"}, 422, "overlap"),
        ({"format": "zip", "files": "coco-panoptic", "task": "instance"}, 422, "coco-panoptic"),
        ({"url": "http://localhost/a.png"}, 422, "url"),
    ],
)
def test_invalid_values_are_refused_with_a_reason(served: Running, fields: dict[str, str], status: int, reason: str) -> None:
    refused(served.segment(PICTURE, **fields), status, reason=reason)


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"", {}, 415),
        (PICTURE, {"content-type": "image/png"}, 415),
        (b"", {"content-type": "multipart/form-data"}, 422),
        (b"--x\r\nnonsense", {"content-type": "multipart/form-data; boundary=x"}, 422),
        (b"", JSON, 422),
        (b"{", JSON, 422),
        (b"[]", JSON, 422),
        (b"\xff\xfe", JSON, 422),
        (b'{"image": "***", "classes": "dog"}', JSON, 422),
        (b'{"classes": "dog"}', JSON, 422),
        (b'{"image": 7, "classes": "dog"}', JSON, 422),
        (b"[" * 200_000, JSON, 422),
        (b'{"image": "%s", "vocabulary": "/etc/passwd"}' % b64encode(PICTURE), JSON, 422),
    ],
)
def test_malformed_bodies_are_refused(client: httpx.Client, content: bytes, headers: dict[str, str], status: int) -> None:
    refused(client.post("/v1/segment", content=content, headers=headers), status)


def test_names_in_any_script_are_names(served: Running) -> None:
    content = served.segment(PICTURE, classes="كلب; 狗, 犬; собака").json()
    assert content["classes"] == ["كلب", "狗", "собака"]


@pytest.mark.parametrize("ending", [".txt", ".json"])
def test_no_path_of_a_caller_is_opened(served: Running, tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"secret{ending}"
    file.write_text("secret\n")
    content = served.segment(PICTURE, classes=str(file)).json()
    assert content["classes"] == [str(file)], "it is a name like others"
    refused(served.segment(PICTURE, classes="dog", vocabulary=str(file)), 422)


def test_the_name_of_a_file_is_no_path(served: Running) -> None:
    files = {"image": ("../../etc/../a\\b\x00c/../evil .png", PICTURE)}
    with served.client() as client:
        answer = client.post("/v1/segment", files=files, data={"classes": WORDS, "format": "zip", "files": "json"})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as opened:
        assert opened.namelist() == ["evil .png.json"]


def test_pages_of_other_sites_and_other_host_names_are_refused(client: httpx.Client) -> None:
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"host": "evil.example"},
        {"host": "evil.example:80"},
    ):
        refused(client.get("/v1/models", headers=headers), 403)
        refused(client.get("/", headers=headers), 403)
    asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    refused(client.options("/v1/segment", headers=asked), 403)
    own = str(client.base_url).rstrip("/")
    assert client.get("/v1/models", headers={"origin": own}).status_code == 200


def test_every_answer_has_the_headers(client: httpx.Client) -> None:
    paths = ("/", "/page/page.js", "/page/page.css", "/page/icon.svg", "/healthz", "/v1/models", "/nowhere", "/page/../x")
    for path in paths:
        check_headers(client.get(path))
    check_headers(client.put("/v1/segment"))
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_page_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    for path in ("/", *(f"/page/{name}.js" for name in ("page", "api", "chips", "masks", "viewer")), "/page/page.css"):
        text = client.get(path).text
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text
        assert "style=" not in text


def test_a_token_is_required_but_for_the_page_and_the_health_checks() -> None:
    with running(token="correct horse battery".replace(" ", "-")) as served, served.client() as client:
        assert client.get("/v1/models").status_code == 200
        for headers in ({"authorization": ""}, {"authorization": "Bearer wrong"}, {"authorization": "Basic correct"}):
            for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/examples/1.png"):
                answer = client.get(path, headers=headers)
                refused(answer, 401)
                assert answer.headers["www-authenticate"] == "Bearer"
            refused(client.post("/v1/segment", headers=headers), 401)
            assert [client.get(path, headers=headers).status_code for path in ("/", "/page/page.js", "/healthz")] == [200] * 3
        assert client.get("/v1/models", headers={"host": "other.example"}).status_code == 200, "the token says enough"


def test_other_machines_need_a_token() -> None:
    models = Models([ModelSpec(NAME)], device="cpu", dtype="float32", memory=1)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(UsageError, match="--insecure"):
            serve(models, Limits(), host=host, port=0, token=None, insecure=False, started=print)
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0", "--model", NAME], "give a token"),
        (["--model", "nothing"], "unknown model 'nothing'"),
        (["--model", f"{NAME},colour=red"], "has no option 'colour'"),
        (["--model", NAME, "--model", NAME], "twice"),
        (["--token-file", "nowhere", "--model", NAME], "nowhere"),
        (["--host", "203.0.113.7", "--insecure", "--model", NAME], "cannot listen"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) == 2
    assert message in capfd.readouterr().err


def test_a_short_token_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "token"
    file.write_text("short\n")
    assert main(["serve", "--model", NAME, "--token-file", str(file)]) == 2
    assert "at least 16" in capfd.readouterr().err


def test_without_the_extra_the_command_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lexiseg.cli.serve.LIBRARIES", ("uvicorn", "no_such_library"))
    assert main(["serve"]) == 2
    assert capfd.readouterr().err == "lexiseg: 'lexiseg serve' needs no_such_library: pip install 'lexiseg[serve]'\n"
