"""A conversation with Label Studio: its requests are answered with what the pipeline computes, read by its formats.

The requests are those of label_studio/ml/api_connector.py; `tools/check_label_studio.py` reads the answers with its SDK.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from lexiseg.cli import main
from lexiseg.data.images import decode_image
from lexiseg.errors import ImageError, UsageError
from lexiseg.segmentation import Segmentation
from lexiseg.serve.label_studio import Pictures, read_interface
from tests.architecture.test_docs import FENCE
from tests.exports.brush import brush_pixels
from tests.loopback import serving
from tests.serve.running import NAME, WORDS, Running, picture, running

KEY, TOKEN = "0123456789abcdef", "a-token-of-many-letters"
REFRESH = "head.payload.signature"  # the form of a personal access token
CONFIG = """
<View>
  <Header value="what is it?"/>
  <Image name="img" value="$photo"/>
  <{control} name="tag" toName="img" {options}>
    <View><Label value="Dogs" alias="d" predicted_values="dog, puppy"/><Label value="grass" background="#0f0"/></View>
    <Label value="sky | stuff"/>
    <Label value="red thing" hotkey="r"/>
  </{control}>
</View>
"""
SHOWN = ("d", "grass", "sky | stuff", "red thing")


def config(control: str = "BrushLabels", options: str = "") -> str:
    return CONFIG.format(control=control, options=options)


class Host(BaseHTTPRequestHandler):
    """A Label Studio with one file; remembers what it was asked for."""

    requests: ClassVar[list[tuple[str, str | None]]] = []

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, content: bytes, **headers: str) -> None:
        self.requests.append((self.path, self.headers["authorization"]))
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        known = self.path == "/api/token/refresh/" and body == {"refresh": REFRESH}
        self._answer(*((200, b'{"access": "a.b.c"}') if known else (401, b"{}")))

    def do_GET(self) -> None:
        if self.headers["authorization"] not in (f"Token {KEY}", "Bearer a.b.c"):
            self._answer(401, b"")
        elif self.path in ("/data/upload/1/my%20photo.png", "/data/local-files/?d=a/b.png"):
            self._answer(200, picture(3))
        elif self.path == "/data/moved":
            self._answer(302, b"", location="/data/local-files/?d=a/b.png")
        else:
            self._answer(404, b"")


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with serving(Host) as address:
        yield f"http://{address}"


@pytest.fixture(scope="module")
def served(host: str) -> Iterator[Running]:
    with running(label_studio=Pictures.of(host, KEY), batch=2) as service:
        yield service


@pytest.fixture(scope="module")
def client(served: Running) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


def task(number: int, value: object) -> dict[str, Any]:
    return {"id": number, "data": {"photo": value, "other": "file:///etc/passwd"}, "project": 7, "meta": {}, "annotations": []}


def uri(seed: int = 3) -> str:
    return "data:image/png;base64," + b64encode(picture(seed)).decode()


def request(*tasks: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """As Label Studio sends it: with a host and a token of its own, which must not be used."""
    params = {"login": "a", "password": "b", "hostname": "http://127.0.0.1:9", "context": None}
    return {"tasks": list(tasks), "project": "7.1732700000", "label_config": config(), "params": params, **changes}


def predicted(client: httpx.Client, *tasks: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    answer = client.post("/predict", json=request(*tasks, **changes))
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert len(content["results"]) == len(tasks)
    assert {result["model_version"] for result in content["results"] if "result" in result} == {content["model_version"]}
    return content["results"]


def masks_of(rows: list[dict[str, Any]], size: tuple[int, int]) -> list[NDArray[np.bool_]]:
    """Masks of a prediction's regions, those of a polygon's pieces one by one."""
    high, wide = size
    masks = []
    for row in rows:
        assert (row["original_height"], row["original_width"], row["image_rotation"]) == (high, wide, 0)
        value = row["value"]
        if row["type"] == "brushlabels":
            masks.append(brush_pixels(value["rle"]).reshape(high, wide, 4)[..., 3] > 0)
        else:
            corners = np.array(value["points"]) * (wide, high) / 100
            masks.append(coco.decode(coco.merge(coco.frPyObjects([corners.ravel().tolist()], high, wide))) > 0)
    return masks


def expected(served: Running, seed: int = 3, **options: Any) -> Segmentation:
    result = served.pipeline(decode_image(picture(seed)), WORDS, **options)
    assert len(result.segments) > 1
    return result


def test_the_conversation(served: Running, client: httpx.Client, host: str) -> None:
    """Connecting a project, predictions for its tasks, and an event."""
    assert client.get("/health").json() == {"status": "UP"}
    setup = {
        "project": "7.1732700000",
        "schema": config(),
        "hostname": "http://127.0.0.1:9",
        "access_token": "secret",
        "extra_params": None,
    }
    version = client.post("/setup", json=setup).json()["model_version"]
    assert version.startswith(f"{NAME}-")
    assert client.post("/validate", json={"config": config()}).status_code == 200
    results = predicted(
        client,
        task(1, uri()),
        task(2, "/data/upload/1/my photo.png"),
        task(3, f"{host}/data/local-files/?d=a/b.png"),
        task(4, uri(4)),
    )
    for result, seed in zip(results, (3, 3, 3, 4), strict=True):
        truth = expected(served, seed)
        assert result["model_version"] == version
        assert result["score"] == pytest.approx(np.mean([segment.score for segment in truth.segments]))
        rows = result["result"]
        assert len({row["id"] for row in rows}) == len(rows)
        for row, mask, segment, drawn in zip(rows, truth.masks, truth.segments, masks_of(rows, truth.size), strict=True):
            assert (row["from_name"], row["to_name"], row["type"]) == ("tag", "img", "brushlabels")
            assert (row["value"]["brushlabels"], row["score"]) == ([SHOWN[segment.label]], segment.score)
            assert np.array_equal(drawn, mask)
    assert client.post("/webhook", json={"action": "ANNOTATION_CREATED", "project": {"id": 7}}).status_code == 201


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pycocotools
def test_polygons_and_boxes(served: Running, client: httpx.Client) -> None:
    truth = expected(served)
    (result,) = predicted(client, task(1, uri()), label_config=config("PolygonLabels"))
    rows = result["result"]
    for number, (segment, mask) in enumerate(zip(truth.segments, truth.masks, strict=True)):
        own = [row for row in rows if row["value"]["polygonlabels"] == [SHOWN[segment.label]] and row["score"] == segment.score]
        assert np.array_equal(np.any(masks_of(own, truth.size), axis=0), mask), number
    (result,) = predicted(client, task(1, uri()), label_config=config("RectangleLabels"))
    for row, segment in zip(result["result"], truth.segments, strict=True):
        value = row["value"]
        box = [value["x"] * 0.64, value["y"] * 0.48, value["width"] * 0.64, value["height"] * 0.48]
        assert box == pytest.approx(segment.box)
        assert (value["rotation"], value["rectanglelabels"]) == (0, [SHOWN[segment.label]])


def test_the_interface_sets_task_threshold_and_background(served: Running, client: httpx.Client) -> None:
    scores = [segment.score for segment in expected(served, task="instance", background="wall").segments]
    threshold = sorted(scores)[len(scores) // 2]
    options = f'model_task="instance" model_score_threshold="{threshold}" model_background="wall"'
    truth = expected(served, task="instance", threshold=threshold, background="wall")
    assert len(truth.segments) < len(scores)
    (result,) = predicted(client, task(1, uri()), label_config=config(options=options))
    rows = result["result"]
    assert [row["value"]["brushlabels"] for row in rows] == [[SHOWN[segment.label]] for segment in truth.segments]
    assert all(np.array_equal(*pair) for pair in zip(masks_of(rows, truth.size), truth.masks, strict=True))
    versions = {
        client.post("/setup", json={"schema": text}).json()["model_version"] for text in (config(), config(options=options))
    }
    assert len(versions) == 2, "Label Studio asks anew"


def test_labels_of_several_controls() -> None:
    interface = read_interface(
        '<View><Image name="a" value="$x"/><Image name="b" value="$y"/>'
        '<Choices name="c" toName="a"><Choice value="z"/></Choices>'
        '<PolygonLabels name="p" toName="b"><Label value="dog"/><Label value="cat"/></PolygonLabels><Label value="none"/>'
        '<BrushLabels name="q" toName="b"><Label value="dog"/><Label value="sky"/></BrushLabels>'
        '<BrushLabels name="r" toName="a"><Label value="tree"/></BrushLabels></View>'
    )
    assert (interface.picture, interface.field) == ("b", "y")
    assert [(label.shown, label.control) for label in interface.labels] == [("dog", "p"), ("cat", "p"), ("sky", "q")]


def test_the_interface_of_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs/serve.md").read_text(encoding="utf-8")
    (text,) = [block for _, block in FENCE.findall(page) if "<BrushLabels" in block]
    interface = read_interface(text)
    assert [(label.names, label.shown) for label in interface.labels] == [("dog, puppy", "Dog"), ("grass | stuff", "grass")]
    assert interface.options == {"threshold": "0.2", "background": "background"}


BOMB = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b SYSTEM "file:///etc/passwd">]>'
INTERFACES = {
    "not XML": ("<View>", "no XML"),
    "entities": (BOMB + config().replace("grass", "&a;"), "document type"),
    "another encoding": ('<?xml version="1.0" encoding="UTF-16"?><View/>', "no BrushLabels"),
    "half a letter": ("\ud800", "unicode"),
    "no regions": (
        '<View><Image name="a" value="$a"/><Choices name="c" toName="a"><Choice value="z"/></Choices></View>',
        "no BrushLabels",
    ),
    "labels out of tasks": (config().replace("<Label", "<Hint"), "no BrushLabels"),
    "no picture": (config().replace("Image", "Video"), "no Image called 'img'"),
    "no class": (config().replace('"grass"', '";"'), "empty name"),
    "a class twice": (config().replace('"grass"', '"puppy" alias="p"'), "puppy"),
    "a threshold": (config(options='model_score_threshold="high"'), "threshold"),
    "a model": (config(options='model_name="other"'), "not offered"),
}


@pytest.mark.parametrize("kind", INTERFACES)
def test_interfaces_that_are_refused(client: httpx.Client, kind: str) -> None:
    text, reason = INTERFACES[kind]
    for path, body in (
        ("/setup", {"schema": text}),
        ("/validate", {"config": text}),
        ("/predict", request(task(1, uri()), label_config=text)),
    ):
        answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
        assert (answer.status_code, reason in answer.json()["detail"]) == (422, True), answer.text
    assert client.post("/predict", json=request()).status_code == 422
    assert client.post("/predict", content=b"tasks=1").status_code == 415


PLACES = (
    "http://127.0.0.1:9/data/upload/1/a.png",
    "//127.0.0.1:9/data/upload/1/a.png",
    "https://127.0.0.1/data/upload/1/a.png",
    "/api/projects/1/export",
    "/data/../api/token",
    "/data/%2e%2e/api/token",
    "file:///etc/passwd",
    "s3://bucket/a.png",
    "/etc/passwd",
    "http://[::1",
    "",
    None,
    "data:image/png;base64,###",
    "data:text/plain,abc",
)


def test_no_other_address_is_opened(client: httpx.Client) -> None:
    before = len(Host.requests)
    for place in PLACES:
        answer = client.post("/predict", json=request(task(1, place)))
        assert (answer.status_code, answer.json()["detail"].startswith("image: ")) == (422, True), answer.text
    assert len(Host.requests) == before
    for place, status in (("/data/none.png", "404"), ("/data/moved", "302")):
        assert f"answers {status}" in client.post("/predict", json=request(task(1, place))).json()["detail"]
    assert [path for path, _ in Host.requests[before:]] == ["/data/none.png", "/data/moved"], "a redirect is not followed"


def test_a_task_that_fails_leaves_the_others(client: httpx.Client) -> None:
    results = predicted(
        client, task(1, uri()), task(2, "/data/none.png"), task(3, "data:image/png;base64,AAAA"), task(4, uri())
    )
    assert ["result" in result for result in results] == [True, False, False, True]
    assert "answers 404" in results[1]["error"]
    assert results[2]["error"].startswith("image: ")


def test_a_personal_access_token_is_exchanged(host: str) -> None:
    pictures = Pictures.of(f"{host}/", REFRESH)
    assert pictures.read("/data/upload/1/my%20photo.png", pictures.authorise(), 10**6) == picture(3)
    with pytest.raises(ImageError, match="LABEL_STUDIO_API_KEY"):
        Pictures.of(host, "another.personal.token").authorise()
    with pytest.raises(ImageError, match="has more than"):
        pictures.read("/data/upload/1/my%20photo.png", pictures.authorise(), 10)
    assert Pictures.of("http://host:8080/studio", KEY).address("/data/a b") == "http://host:8080/studio/data/a%20b"
    assert Pictures.of("http://host:8080/studio", KEY).address("http://HOST:8080/studio/data/a?b=c%20d") == (
        "http://host:8080/studio/data/a?b=c%20d"
    )


def test_the_token_may_be_a_password_there_and_nowhere_else() -> None:
    with running(token=TOKEN, label_studio=Pictures()) as served, served.client() as client:
        basic = {"authorization": "Basic " + b64encode(f"anybody:{TOKEN}".encode()).decode()}
        wrong = {"authorization": "Basic " + b64encode(f"{TOKEN}:wrong".encode()).decode()}
        body = {"schema": config()}
        assert client.post("/setup", json=body, headers=basic).status_code == 200
        assert client.post("/setup", json=body).status_code == 200, "the bearer token, too"
        for headers in (
            wrong,
            {"authorization": "Basic ###"},
            {"authorization": "Basic é".encode("latin-1")},
            {"authorization": ""},
        ):
            assert client.post("/setup", json=body, headers=headers).status_code == 401
        assert client.get("/v1/models", headers=basic).status_code == 401
        assert [client.get("/health", headers=headers).status_code for headers in (basic, wrong)] == [200, 401]
        answer = client.post("/predict", json=request(task(1, "/data/upload/1/a.png")), headers=basic)
        assert "started without --label-studio-url" in answer.json()["detail"]


def test_without_the_option_there_are_no_routes() -> None:
    with running() as served, served.client() as client:
        assert client.get("/health").status_code == 404
        assert client.post("/predict", json=request(task(1, uri()))).status_code == 404


@pytest.mark.parametrize(
    "url", ["label.example.org", "ftp://host", "http://a:b@host", "http://host?x=1", "http://[", "http://"]
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UsageError, match="is no address"):
        Pictures.of(url, KEY)


def test_the_command_needs_the_token(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    assert main(["serve", "--model", NAME, "--label-studio-url", "http://127.0.0.1:8080"]) == 2
    assert "set LABEL_STUDIO_API_KEY" in capfd.readouterr().err
