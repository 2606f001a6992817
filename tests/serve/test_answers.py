"""The service answers what the pipeline computes, in each of its forms."""

from __future__ import annotations

import io
import json
import zipfile
from base64 import b64encode
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import ExifTags, Image
from pycocotools import mask as coco

from lexiseg.data.images import decode_image
from lexiseg.formats import FORMATS, needs_scores
from lexiseg.ops.colours import ids_of_picture
from lexiseg.ops.rle import decode_counts, decompress
from lexiseg.segmentation import Segmentation
from lexiseg.text.vocabulary import Vocabulary
from tests.serve.running import WORDS, Running, picture, running

PICTURE = picture(3)


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with running() as service:
        yield service


@pytest.fixture(scope="module")
def client(served: Running) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


def post(client: httpx.Client, **fields: str) -> httpx.Response:
    fields = {"classes": WORDS, **fields} if "vocabulary" not in fields else fields
    answer = client.post("/v1/segment", files={"image": ("my photo.png", PICTURE)}, data=fields)
    assert answer.status_code == 200, answer.text
    return answer


def expected(served: Running, words: str | Vocabulary = WORDS, **options: object) -> Segmentation:
    return served.pipeline(decode_image(PICTURE), words, **options)  # type: ignore[call-overload]


def check(content: dict, result: Segmentation) -> None:
    """The JSON of an answer is that of a result."""
    assert [content[key] for key in ("task", "height", "width", "void")] == [result.task, *result.size, result.void]
    assert content["classes"] == list(result.names)
    assert content["things"] == list(result.things)
    assert len(content["segments"]) == len(result.segments) > 0
    for row, segment, mask in zip(content["segments"], result.segments, result.masks, strict=True):
        assert [row[key] for key in ("id", "label", "name", "thing", "area")] == [
            segment.id, segment.label, segment.name, segment.thing, segment.area
        ]  # fmt: skip
        assert row["score"] == segment.score
        assert np.array_equal(decode_counts(decompress(row["segmentation"]["counts"]), result.size).numpy(), mask)


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_a_form_and_json_give_the_result_of_the_pipeline(served: Running, client: httpx.Client, task: str) -> None:
    result = expected(served, task=task)
    check(post(client, task=task).json(), result)
    body = {"image": b64encode(PICTURE).decode(), "classes": WORDS.split(";"), "task": task}
    check(client.post("/v1/segment", json=body).json(), result)


def test_threshold_background_options_and_lists_are_those_of_the_pipeline(served: Running, client: httpx.Client) -> None:
    given = {"threshold": "0.19", "background": "wall", "options": json.dumps({"alpha": 1, "object_threshold": 0.1})}
    changed = served.pipeline.with_options({"alpha": 1.0, "object_threshold": 0.1})
    result = changed(decode_image(PICTURE), WORDS, threshold=0.19, background="wall")
    content = post(client, **given).json()
    check(content, result)
    assert content["segments"] != post(client).json()["segments"], "the options changed nothing"
    check(post(client, vocabulary="cityscapes").json(), expected(served, Vocabulary.builtin("cityscapes")))


@pytest.mark.parametrize(
    "classes",
    [
        "dog, puppy; grass | stuff",
        "dog, puppy\ngrass | stuff\n# a remark\n",
        '["dog, puppy", {"name": "grass", "isthing": 0}]',
        '[{"name": "dog", "synonyms": ["puppy"], "thing": true}, {"name": "grass", "thing": false}]',
    ],
)
def test_classes_are_written_as_in_class_lists(client: httpx.Client, classes: str) -> None:
    content = post(client, classes=classes).json()
    assert (content["classes"], content["things"]) == (["dog", "grass"], [True, False])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pycocotools
def test_polygons_cover_the_masks(served: Running, client: httpx.Client) -> None:
    result = expected(served)
    rows = post(client, format="polygons").json()["segments"]
    for row, mask in zip(rows, result.masks, strict=True):
        drawn = coco.decode(coco.merge(coco.frPyObjects(row["segmentation"], *result.size)))
        assert np.array_equal(drawn, mask)


def test_label_maps_are_those_of_the_result(served: Running, client: httpx.Client) -> None:
    labels = np.asarray(Image.open(io.BytesIO(post(client, format="png", task="semantic").content)))
    semantic = expected(served, task="semantic").semantic
    assert np.array_equal(labels, np.where(semantic < 0, 255, semantic))
    refused = client.post("/v1/segment", files={"image": PICTURE}, data={"classes": WORDS, "format": "png", "scores": "1"})
    assert (refused.status_code, "scores are in the format rle, not in png" in refused.text) == (422, True)
    answer = post(client, format="multipart")
    boundary = answer.headers["content-type"].split("boundary=")[1].encode()
    _, document, drawn, end = answer.content.split(b"--" + boundary)
    result = expected(served)
    check(json.loads(document.split(b"\r\n\r\n", 1)[1]), result)
    with Image.open(io.BytesIO(drawn.split(b"\r\n\r\n", 1)[1])) as opened:
        assert np.array_equal(ids_of_picture(opened), result.panoptic)
    assert end == b"--\r\n"


def archived(answer: httpx.Response) -> dict[str, bytes]:
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_all_formats_of_the_command_line_are_in_a_zip_and_exported_alike(client: httpx.Client) -> None:
    known = [name for name in FORMATS if name != "geotiff"]
    content = archived(post(client, format="zip", files=",".join(known)))
    assert {name for name in content if name.startswith("my photo.png.")} >= {"my photo.png.overlay.png", "my photo.png.json"}
    assert "cvat.xml" in content
    plain = [name for name in known if not needs_scores([name])]
    files, data = {"image": ("my photo.png", PICTURE)}, {"result": post(client).text, "files": ",".join(plain)}
    exported = archived(client.post("/v1/export", files=files, data=data))
    assert exported.keys() == content.keys() - {"my photo.png.scores.npz", "my photo.png.confidence.png"}
    for name in ("my photo.png.overlay.png", "my photo.png.panoptic.png", "my photo.png.palette.png", "yolo/data.yaml"):
        assert exported[name] == content[name]


def test_a_picture_that_is_sent_has_no_georeference(client: httpx.Client) -> None:
    files = {"image": ("a.png", PICTURE)}
    answer = client.post("/v1/segment", files=files, data={"classes": WORDS, "format": "zip", "files": "geotiff"})
    assert answer.status_code == 422
    assert "geotiff needs the file" in answer.json()["detail"]


def test_pictures_are_upright_by_their_exif(served: Running, client: httpx.Client) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(io.BytesIO(PICTURE)).save(buffer, "JPEG", exif=exif)
    files, data = {"image": ("turned.jpg", buffer.getvalue())}, {"classes": WORDS}
    content = client.post("/v1/segment", files=files, data=data).json()
    assert (content["height"], content["width"]) == (64, 48)
    check(content, served.pipeline(decode_image(buffer.getvalue()), WORDS))
    exported = archived(client.post("/v1/export", files=files, data={"result": json.dumps(content), "files": "json"}))
    rounded = [{**row, "score": round(row["score"], 4)} for row in content["segments"]]
    assert json.loads(exported["turned.jpg.json"])["segments"] == rounded
    answer = client.post("/v1/export", files={"image": ("b.png", picture(size=(48, 64)))}, data={"result": json.dumps(content)})
    assert answer.status_code == 422, "another picture, of the size as stored"


def test_a_result_that_was_tampered_with_is_not_exported(client: httpx.Client) -> None:
    result = post(client).json()
    rows = result["segments"]
    changes = [
        {"height": 10**6}, {"segments": "none"}, {"segments": [0] * 10**6}, {"task": "dance"}, {"classes": []}, {"width": 65},
        {"segments": [{**rows[0], "segmentation": {"counts": "zzzz"}}]}, {"segments": [{**rows[0], "label": -1}]},
    ]  # fmt: skip
    for change in changes:
        content = json.dumps({**result, **change})
        answer = client.post("/v1/export", files={"image": ("a.png", PICTURE)}, data={"result": content})
        assert answer.status_code in (413, 422), answer.text
        assert answer.json()["detail"]


def test_an_answer_in_events_has_the_stages_and_the_result(served: Running, client: httpx.Client) -> None:
    headers = {"accept": "application/x-ndjson"}
    answer = client.post("/v1/segment", files={"image": ("a.png", PICTURE)}, data={"classes": WORDS}, headers=headers)
    events = [json.loads(line) for line in answer.text.splitlines()]
    stages = [event["stage"] for event in events if "stage" in event]
    assert all(0 <= event["done"] <= event["total"] for event in events if "step" in event)
    assert stages == ["queued", "model", "decode", "names", "masks", "result", "encode", "done"]
    check(events[-1]["result"], expected(served))


def test_lists_of_models_and_vocabularies(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["models"]
    assert {option["name"] for option in model["options"]} == {"object_threshold", "overlap_threshold", "alpha", "beta"}
    names = {row["name"]: row["classes"] for row in client.get("/v1/vocabularies").json()}
    assert names["emoji"] == 447
    assert len(client.get("/v1/vocabularies/coco").json()) == names["coco"]
    assert client.get("/v1/vocabularies/nothing").status_code == 404


def test_an_example_is_a_scene_of_its_seed_with_its_classes(client: httpx.Client) -> None:
    content = client.get("/v1/examples/7.png").content
    assert decode_image(content).shape == (384, 384, 3)
    names = [row["name"] for row in client.get("/v1/examples/7").json()["classes"]]
    assert set(names) <= set(Vocabulary.builtin("emoji").names)
    assert client.get("/v1/examples/10000").status_code == client.get("/v1/examples/x.png").status_code == 422


def test_operators_read_health_readiness_metrics_and_the_openapi_document(client: httpx.Client) -> None:
    post(client)
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    text = client.get("/metrics").text
    assert 'lexiseg_requests_total{route="/v1/segment",status="200"}' in text
    assert 'lexiseg_stage_seconds_count{model="fcclip-tiny",stage="masks"}' in text
    document = client.get("/openapi.json").json()
    content = document["paths"]["/v1/segment"]["post"]["requestBody"]["content"]
    assert content.keys() == {"application/json", "multipart/form-data"}
    assert document["paths"].keys() >= {"/v1/segment", "/v1/models", "/v1/vocabularies", "/healthz", "/readyz", "/metrics"}
