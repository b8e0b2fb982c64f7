"""The HTTP API in process: its answers, and what it refuses."""

import asyncio
import base64
import io
import zlib

import numpy as np
import pytest
from PIL import Image

from benchmarks.load_serve import chunks_without_text
from fcn_jax.data.palettes import voc_palette
from tests.in_process import run_command
from tests.serve.images import (
    drawn,
    encoded,
    png_header,
    png_with_text_bomb,
    tiff_header,
)

pytest.importorskip("starlette", reason="Starlette is not installed")
pytest.importorskip("httpx2", reason="httpx2, which Starlette's test client uses, is not installed")

from starlette.testclient import TestClient

from fcn_jax.serve.app import make_app
from fcn_jax.serve.segmenter import Segmenter
from fcn_jax.serve.uploads import Limits

LIMITS = Limits(
    max_bytes=200_000,
    max_pixels=1_000_000,
    canvases=((64, 64), (128, 128)),
    waiting=4,
    time_limit_s=30,
)
JSON = {"Accept": "application/json"}


@pytest.fixture(scope="module")
def client(predictor):
    return TestClient(make_app(Segmenter(predictor, LIMITS)))


def without_text(png: bytes) -> list[bytes]:
    """The chunks of a whole PNG but the text."""
    chunks = chunks_without_text(png)
    assert chunks[-1][4:8] == b"IEND"
    return chunks


@pytest.mark.parametrize("size", [(50, 61), (64, 64), (128, 90), (1, 1)])
def test_a_label_map_is_the_file_that_predict_writes(client, model_file, tmp_path, size):
    sent = encoded(drawn(*size))
    (tmp_path / "x.png").write_bytes(sent)
    output = tmp_path / "out"
    run_command("predict", f"--workdir={model_file}", f"--output={output}", tmp_path / "x.png")
    answer = client.post("/v1/segment", content=sent)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert without_text(answer.content) == without_text((output / "x.png").read_bytes())


def test_shares_are_counted_from_the_label_map(client, predictor):
    image = drawn(100, 80)
    answer = client.post("/v1/segment", content=encoded(image), headers=JSON).json()
    assert (answer["width"], answer["height"]) == (100, 80)
    assert len(answer["classes"]) > 2
    expected = np.bincount(predictor(image).ravel(), minlength=len(predictor.class_names))
    assert {entry["index"]: entry["pixels"] for entry in answer["classes"]} == {
        index: count for index, count in enumerate(expected.tolist()) if count
    }
    for entry in answer["classes"]:
        assert entry["name"] == predictor.class_names[entry["index"]]
        assert entry["share"] == pytest.approx(entry["pixels"] / 8000)
        assert entry["colour"] == "#{:02x}{:02x}{:02x}".format(*voc_palette()[entry["index"]])


def test_layers_hold_the_most_probable_classes_and_the_entropy(client, predictor):
    image = drawn(90, 70)
    answer = client.post("/v1/segment?layers=1", content=encoded(image), headers=JSON).json()
    layers = answer["layers"]
    shape = layers["shown"], layers["height"], layers["width"]
    assert shape == (3, 70, 90)

    def planes(name: str, count: int) -> np.ndarray:
        data = zlib.decompress(base64.b64decode(layers[name]))
        return np.frombuffer(data, np.uint8).reshape(count, *shape[1:])

    classes = planes("classes", 3)
    np.testing.assert_array_equal(classes[0], predictor(image))
    expected = predictor.probabilities(image)
    order = np.argsort(-expected, axis=-1, kind="stable")[..., :3]
    shown = np.take_along_axis(expected, order, axis=-1)
    # Classes of nearly equal probability may change places; their probabilities may not.
    found = np.take_along_axis(expected, classes.transpose(1, 2, 0).astype(int), axis=-1)
    np.testing.assert_allclose(found, shown, atol=1e-5)
    probabilities = planes("probabilities", 3).transpose(1, 2, 0)
    np.testing.assert_allclose(probabilities / 255, shown, atol=0.51 / 255)
    entropy = -(expected * np.log(expected)).sum(-1) / np.log(expected.shape[-1])
    np.testing.assert_allclose(planes("entropy", 1)[0] / 255, entropy, atol=0.51 / 255)
    with Image.open(io.BytesIO(base64.b64decode(answer["png"]))) as label:
        np.testing.assert_array_equal(np.asarray(label), classes[0])
    with Image.open(io.BytesIO(base64.b64decode(layers["picture"]))) as picture:
        difference = np.asarray(picture, int) - image
    assert np.abs(difference).mean() < 8  # JPEG


def test_an_image_is_turned_upright_as_its_camera_noted(client, predictor):
    image = drawn(60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # the row at the top of the scene is the right column of the file
    answer = client.post("/v1/segment", content=encoded(image, exif=exif))
    with Image.open(io.BytesIO(answer.content)) as label:
        assert label.size == (40, 60)
        np.testing.assert_array_equal(np.asarray(label), predictor(np.rot90(image, -1).copy()))


def test_fit_shrinks_for_the_network_and_answers_at_the_size_that_was_sent(client):
    image = drawn(300, 150)
    sent = encoded(image, "JPEG")
    answer = client.post("/v1/segment?fit=1", content=sent)
    with Image.open(io.BytesIO(answer.content)) as label:
        assert label.size == (300, 150)
    described = client.post("/v1/segment?fit=1", content=sent, headers=JSON).json()
    assert (described["computed_width"], described["computed_height"]) == (128, 64)
    assert sum(entry["share"] for entry in described["classes"]) == pytest.approx(1)


def test_the_model_is_described(client, predictor):
    model = client.get("/v1/model").json()
    assert [entry["name"] for entry in model["label_maps"][""]] == list(predictor.class_names)
    assert model["step"] == 6
    assert model["limits"]["canvases"] == [[64, 64], [128, 128]]
    assert client.get("/healthz").json() == {"status": "ok", "in_progress": 0}


def test_the_page_uses_only_files_of_the_package(client):
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in ("page.js", "page.css", "icon.svg"):
        assert f"/static/{name}" in page.text
        assert client.get(f"/static/{name}").status_code == 200
    assert "://" not in page.text.replace("http://…", "")


GOOD = encoded(drawn(40, 40))
JPEG = encoded(drawn(40, 40), "JPEG")
NOISE = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
BIG = encoded(NOISE)


def one_bit_off(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def in_chunks(data: bytes):
    return (data[start : start + 10_000] for start in range(0, len(data), 10_000))


FLOATS = encoded(np.full((8, 8), 0.5, np.float32), "TIFF")
WHOLE_NUMBERS = encoded(np.full((8, 8), -5, np.int32), "TIFF")
BAD = {
    "no body": ({"content": b""}, 400, "empty"),
    "words": ({"content": b"no image at all"}, 415, "not an image"),
    "a page": ({"content": b"<!doctype html><html></html>"}, 415, "not an image"),
    "zeros": ({"content": bytes(5000)}, 415, "not an image"),
    "PDF": ({"content": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"}, 415, "not an image"),
    "EPS": ({"content": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, 415, "not an"),
    "SVG": ({"content": b'<svg xmlns="http://www.w3.org/2000/svg"/>'}, 415, "not an image"),
    "ZIP": ({"content": b"PK\3\4" + bytes(60)}, 415, "not an image"),
    "signature of a PNG": ({"content": GOOD[:8]}, 415, "not an image"),
    "half a PNG": ({"content": GOOD[: len(GOOD) // 2]}, 400, "damaged"),
    "PNG with a flipped bit": ({"content": one_bit_off(GOOD)}, 400, "damaged"),
    "PNG without pixels": ({"content": png_header(40, 40)}, 400, "damaged"),
    "PNG of no size": ({"content": png_header(0, 0)}, (400, 415), "upload"),
    "half a JPEG": ({"content": JPEG[: len(JPEG) // 2]}, 400, "damaged"),
    "start of a JPEG": ({"content": JPEG[:4]}, (400, 415), "upload"),
    "half a GIF": ({"content": encoded(drawn(40, 40), "GIF")[:900]}, 400, "damaged"),
    "half a WebP": ({"content": encoded(drawn(40, 40), "WEBP")[:200]}, (400, 415), "upload"),
    "half a BMP": ({"content": encoded(drawn(40, 40), "BMP")[:500]}, 400, "damaged"),
    "half a TIFF": ({"content": encoded(drawn(40, 40), "TIFF")[:500]}, (400, 415), "upload"),
    "half a JPEG 2000": ({"content": encoded(drawn(40, 40), "JPEG2000")[:150]}, 400, "damaged"),
    "TIFF of fractions": ({"content": FLOATS}, 400, "fractions"),
    "TIFF of negative numbers": ({"content": WHOLE_NUMBERS}, 400, "16 bits"),
    "bomb of pixels": ({"content": png_header(20_000, 20_000)}, 413, "megapixels"),
    "huge header": ({"content": png_header(2**31 - 1, 2**31 - 1)}, 413, "megapixels"),
    "huge TIFF": ({"content": tiff_header(2**31, 2**31)}, (400, 413), "the"),
    "a few pixels too many": ({"content": png_header(1001, 1000)}, 413, "1001 × 1000"),
    "bomb of text": ({"content": png_with_text_bomb()}, 400, "damaged"),
    "larger than the canvas": ({"content": encoded(drawn(129, 20))}, 413, "fit=1"),
    "too many bytes": ({"content": BIG}, 413, "0.2 MB"),
    "too many bytes in chunks": ({"content": in_chunks(BIG)}, 413, "0.2 MB"),
    "form": ({"files": {"image": GOOD}}, 415, "not a form"),
    "compressed": (
        {"content": zlib.compress(GOOD), "headers": {"Content-Encoding": "deflate"}},
        415,
        "without Content-Encoding",
    ),
    "length in words": ({"content": GOOD, "headers": {"Content-Length": "many"}}, 400, "number"),
    "unknown parameter": ({"content": GOOD, "params": {"fitt": 1}}, 400, "did you mean fit"),
    "parameter of another type": ({"content": GOOD, "params": {"fit": "yes"}}, 400, "0 or 1"),
    "unknown label map": ({"content": GOOD, "params": {"label_map": "x"}}, 400, "no label map"),
    "wrong Accept": ({"content": GOOD, "headers": {"Accept": "text/html"}}, 406, "image/png"),
    "layers as PNG": ({"content": GOOD, "params": {"layers": "1"}}, 406, "application/json"),
    "wrong method": ({"method": "PUT", "content": GOOD}, 405, "POST"),
    "wrong address": ({"url": "/v2/segment", "content": GOOD}, 404, "/v1/segment"),
    "posted to the model": ({"url": "/v1/model", "content": GOOD}, 405, "GET"),
    "out of the folder": ({"url": "/static/%2e%2e/app.py", "method": "GET"}, 404, "/v1/segment"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_in_a_sentence(client, case):
    request, status, words = BAD[case]
    answer = client.request(**{"method": "POST", "url": "/v1/segment"} | request)
    assert answer.status_code in np.atleast_1d(status)
    sentence = answer.json()["error"]
    assert words in sentence
    assert sentence.isprintable()
    assert len(sentence) < 400
    assert client.get("/healthz").json() == {"status": "ok", "in_progress": 0}


def test_the_server_still_answers(client):
    assert client.post("/v1/segment", content=GOOD).status_code == 200


def exchange(app, messages, limits_s: float = 10) -> list[dict]:
    """Sends messages of a client to the application, the last of which may never come (None)."""
    sent: list[dict] = []
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/segment",
        "raw_path": b"/v1/segment",
        "query_string": b"",
        "headers": [],
        "http_version": "1.1",
        "asgi": {"version": "3.0"},
    }
    left = iter(messages)

    async def receive():
        message = next(left)
        if message is None:
            await asyncio.sleep(3600)
        return message

    async def send(message):
        sent.append(message)

    asyncio.run(asyncio.wait_for(app(scope, receive, send), limits_s))
    return sent


def test_a_slow_client_is_given_up(predictor):
    limits = Limits(200_000, 1_000_000, ((64, 64),), waiting=1, time_limit_s=0.2)
    app = make_app(Segmenter(predictor, limits))
    part = {"type": "http.request", "body": GOOD[:10], "more_body": True}
    sent = exchange(app, [part, None])
    assert sent[0]["status"] == 408
    assert app.state.worker.in_progress == 0


def test_a_client_that_leaves_is_given_up(client):
    part = {"type": "http.request", "body": GOOD[:10], "more_body": True}
    sent = exchange(client.app, [part, {"type": "http.disconnect"}])
    assert sent[0]["status"] == 400
    assert client.app.state.worker.in_progress == 0
