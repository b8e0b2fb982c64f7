"""The demo: LeNet's maps and scores of what is drawn."""

import base64

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import digits
from tests.serve.images import write_untrained

pytest.importorskip("starlette", reason="Starlette is not installed")
pytest.importorskip("httpx2", reason="httpx2, which Starlette's test client uses, is not installed")

from starlette.testclient import TestClient

from fcn_jax.serve.digits import DigitReader, load_reader, make_digits_app
from fcn_jax.serve.uploads import Limits

LIMITS = Limits(100_000, 100_000, ((32, 32),), waiting=4, time_limit_s=30)


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> DigitReader:
    path = tmp_path_factory.mktemp("demo") / "lenet.safetensors"
    write_untrained(path)
    return load_reader(path)


@pytest.fixture(scope="module")
def client(reader):
    return TestClient(make_digits_app(reader, LIMITS))


def test_the_maps_are_those_of_lenet(client):
    image = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    answer = client.post("/v1/digits", content=image.tobytes()).json()
    sizes = [(x["channels"], x["height"], x["width"]) for x in answer["layers"]]
    assert sizes == [
        (6, 28, 28),
        (6, 28, 28),
        (6, 14, 14),
        (16, 10, 10),
        (16, 10, 10),
        (16, 5, 5),
        (120, 1, 1),
        (84, 1, 1),
    ]
    # A pooling takes the largest of each 2×2; both maps have the same scale.
    activation, pooled = (
        np.frombuffer(base64.b64decode(x["planes"]), np.uint8).reshape(*size)
        for x, size in zip(answer["layers"][1:3], sizes[1:3], strict=True)
    )
    np.testing.assert_array_equal(activation.reshape(6, 14, 2, 14, 2).max((2, 4)), pooled)
    assert answer["columns"] == [15.5]


def test_the_probabilities_are_those_of_every_window_of_the_strip(client):
    image = np.random.default_rng(1).integers(0, 256, (32, 160), np.uint8)
    answer = client.post("/v1/digits", content=image.tobytes()).json()
    assert answer["columns"] == [15.5 + 4 * index for index in range(33)]
    classifier = digits.DigitClassifier(rngs=digits.nnx.Rngs(0))
    windows = np.stack([image[:, 4 * index : 4 * index + 32] for index in range(33)])
    expected = jax.nn.softmax(digits.classify(classifier, jnp.asarray(windows)[..., None]))
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-4)
    evidence = np.log((1 - expected[:, 10]) / expected[:, 10])
    np.testing.assert_allclose(answer["evidence"], evidence, atol=1e-3)


def test_other_sizes_are_refused(client):
    for size in (0, 1, 32 * 33, 32 * 160 + 1):
        answer = client.post("/v1/digits", content=bytes(size))
        assert answer.status_code == 400
        assert "the body" in answer.json()["error"]
    assert client.get("/").status_code == 200
    assert client.get("/healthz").json()["in_progress"] == 0


def test_the_network_is_trained_once_and_then_loaded(tmp_path, monkeypatch):
    path = tmp_path / "lenet.safetensors"
    path.write_bytes(b"damaged")
    trainings = []

    def train(images, labels, *, steps, seed):
        trainings.append(steps)
        return digits.DigitClassifier(rngs=digits.nnx.Rngs(5))

    monkeypatch.setattr(digits, "train", train)
    monkeypatch.setattr("fcn_jax.serve.digits.STRINGS", 2)
    image = np.full((32, 32), 200, np.uint8)
    first = load_reader(path)(image)
    second = load_reader(path)(image)
    assert len(trainings) == 1
    assert first == second
