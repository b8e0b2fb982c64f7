"""Scoring a split: the same counts however the images are batched, on however many devices, and no
more compilations than canvases. This file, run as a program, scores on fake devices."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import conventions
from fcn_jax.config import EvalConfig, ModelConfig
from fcn_jax.data import shapes
from fcn_jax.data.datasets import Statistics
from fcn_jax.errors import UserError
from fcn_jax.evaluate import Evaluation, evaluator
from fcn_jax.models.build import build
from fcn_jax.step import Network

CLASSES = len(shapes.CLASSES)
SIZES = [(40, 70)] * 3 + [(70, 40)] * 4 + [(64, 64)] * 3 + [(33, 50)] * 3


class Drawn:
    """Pieces of drawn pictures, of the sizes above, as a data set of one split."""

    def __init__(self) -> None:
        self.name = "drawn"
        self.num_classes = {"": CLASSES}

    def split(self, name: str) -> list[dict[str, Any]]:
        records = []
        for index, (height, width) in enumerate(SIZES):
            image, label = shapes.draw(f"val_{index:03}")
            piece = np.ix_(range(height), range(width))
            records.append({"image": image[piece], "label": label[piece], "name": f"val_{index}"})
        return records

    def statistics(self, name: str) -> Statistics:
        return Statistics(np.array(SIZES), {})


def random_network() -> Network:
    model = build(ModelConfig(), CLASSES, rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    for stage in model.stages:
        kernel = getattr(model.head, f"score{stage}").kernel
        kernel[...] = jnp.asarray(random.standard_normal(kernel.shape), jnp.float32)
    return Network(model)


def evaluate(network: Network, **settings: Any) -> Evaluation:
    convention = conventions.BY_NAME[settings.pop("convention", "native")]
    score = evaluator(network, Drawn(), "val", EvalConfig(**settings), convention)  # type: ignore[arg-type]
    return score(network.variables)


@pytest.fixture(scope="module")
def network() -> Network:
    return random_network()


@pytest.fixture(scope="module")
def one_by_one(network: Network) -> np.ndarray:
    """The confusion matrix of each image, labelled alone on no canvas, counted by NumPy."""
    model = network.model(network.variables)
    label_one = jax.jit(lambda image: jnp.argmax(model(image), -1))
    confusions = np.zeros((len(SIZES), CLASSES, CLASSES), np.int64)
    for confusion, record in zip(confusions, Drawn().split("val"), strict=True):
        truth, guess = record["label"], np.asarray(label_one(record["image"][None]))[0]
        counted = truth != 255
        np.add.at(confusion, (truth[counted], guess[counted]), 1)
    return confusions


@pytest.mark.parametrize(("batch_size", "canvases"), [(1, 4), (3, 2), (8, 4), (16, 1)])
def test_batches_and_canvases_change_no_count(network, one_by_one, batch_size, canvases):
    evaluation = evaluate(network, batch_size=batch_size, canvases=canvases)
    assert len(np.unique(one_by_one.sum(axis=(0, 1)))) > 2  # it predicts more than one class
    np.testing.assert_array_equal(evaluation.by_map[""].confusions, one_by_one)
    assert evaluation.names == tuple(f"val_{index}" for index in range(len(SIZES)))
    assert 1 <= len(evaluation.canvases) <= canvases


def test_four_devices_count_the_same(one_by_one):
    root = Path(__file__).parent.parent
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(root),
    }
    run = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    devices, confusions = json.loads(run.stdout.splitlines()[-1])
    assert devices == 4
    np.testing.assert_array_equal(np.array(confusions), one_by_one)


def test_as_many_compilations_as_canvases_and_none_the_second_time(network, caplog):
    score = evaluator(network, Drawn(), "val", EvalConfig(batch_size=2, canvases=3))  # type: ignore[arg-type]

    def compilations() -> tuple[int, Evaluation]:
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            evaluation = score(network.variables)
        logged = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return sum(text.startswith("Finished XLA compilation") for text in logged), evaluation

    count, evaluation = compilations()
    assert count == len(evaluation.canvases) == 3
    assert compilations()[0] == 0


def test_the_sheet_shows_what_was_scored(network, one_by_one):
    samples = evaluate(network, batch_size=4).by_map[""].samples
    assert [name for *_, name in samples] == [
        "val_0",
        "val_2",
        "val_5",
        "val_7",
        "val_10",
        "val_12",
    ]
    for image, truth, guess, name in samples:
        record = Drawn().split("val")[int(name.removeprefix("val_"))]
        np.testing.assert_array_equal(image, record["image"])
        np.testing.assert_array_equal(truth, record["label"])
        confusion = np.zeros((CLASSES, CLASSES), np.int64)
        np.add.at(confusion, (truth[truth != 255], guess[truth != 255]), 1)
        np.testing.assert_array_equal(confusion, one_by_one[int(name.removeprefix("val_"))])


def test_mmseg_brings_the_logits_back_as_pytorch_would(network, torch: ModuleType, monkeypatch):
    monkeypatch.setattr(conventions, "MMSEG_SHORTER_SIDE_PX", 48)
    evaluation = evaluate(network, batch_size=4, convention="mmseg")
    model = jax.jit(network.model(network.variables))
    for index, record in enumerate(Drawn().split("val")):
        resized = conventions.MMSEG.prepare(record, index)["image"]
        assert min(resized.shape[:2]) == 48
        logits = torch.from_numpy(np.array(model(resized[None]))).permute(0, 3, 1, 2)
        at_native = torch.nn.functional.interpolate(
            logits, size=record["label"].shape, mode="bilinear", align_corners=False
        )
        guess, truth = at_native.argmax(1)[0].numpy(), record["label"]
        expected = np.zeros((CLASSES, CLASSES), np.int64)
        np.add.at(expected, (truth[truth != 255], guess[truth != 255]), 1)
        # Equal but for pixels whose two best classes are within rounding of each other.
        assert np.abs(evaluation.by_map[""].confusions[index] - expected).sum() <= 2


def test_a_convention_that_takes_no_image_says_so(network):
    with pytest.raises(UserError, match=r"--convention=d2l takes none of the 13 images of val"):
        evaluate(network, convention="d2l")


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    scored = evaluate(random_network(), batch_size=8)
    print(json.dumps([jax.device_count(), scored.by_map[""].confusions.tolist()]))
