"""The counts of a split do not depend on batches, canvases and devices.

Run as a program, this file scores on fake devices.
"""

import json
import logging
from collections.abc import Generator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.config import EvalConfig
from fcn_jax.data import shapes
from fcn_jax.data.datasets import Statistics
from fcn_jax.errors import ArgumentError
from fcn_jax.evaluation import conventions, evaluator
from fcn_jax.evaluation.boundary import boundary_counts
from fcn_jax.evaluation.calibration import BINS
from fcn_jax.evaluation.evaluator import Evaluation, Evaluator, MapEvaluation
from fcn_jax.evaluation.image_counts import ImageCounts
from fcn_jax.evaluation.scorers import ScoredImages
from fcn_jax.inference.options import WHOLE, Inference
from fcn_jax.models.backbones.small import SmallNet
from fcn_jax.models.fcn import FCN
from fcn_jax.models.pure_model import PureModel
from tests.fake_devices import output_on_four_devices

CLASSES = len(shapes.CLASSES)
SIZES = [(40, 70)] * 3 + [(70, 40)] * 4 + [(64, 64)] * 3 + [(33, 50)] * 3


class Drawn:
    """A data set of one split: crops of drawn pictures with the sizes above."""

    def __init__(self) -> None:
        self.name = "drawn"
        self.label_maps = {"": shapes.CLASSES}
        self.num_classes = {"": CLASSES}
        self.colours = [(index, 0, 9) for index in range(CLASSES)]

    def split(self, name: str) -> list[dict[str, Any]]:
        records = []
        for index, (height, width) in enumerate(SIZES):
            image, label = shapes.draw(f"val_{index:03}")
            piece = np.ix_(range(height), range(width))
            records.append({"image": image[piece], "label": label[piece], "name": f"val_{index}"})
        return records

    def statistics(self, name: str) -> Statistics:
        return Statistics(np.array(SIZES), {})


def random_network() -> PureModel:
    rngs = nnx.Rngs(0)
    model = FCN(SmallNet(features=(8, 16, 24), rngs=rngs), CLASSES, skips=1, rngs=rngs)
    random = np.random.default_rng(0)
    for stage in model.stages:
        kernel = getattr(model.head, f"score{stage}").kernel
        kernel[...] = jnp.asarray(random.standard_normal(kernel.shape), jnp.float32)
    return PureModel(model)


def evaluate(network: PureModel, **settings: Any) -> Evaluation:
    convention = conventions.CONVENTIONS[settings.pop("convention", "native")]
    how = settings.pop("inference", WHOLE), settings.pop("boundary", False)
    temperatures = settings.pop("temperatures", None)
    score = Evaluator(
        network,
        Drawn(),  # type: ignore[arg-type]
        "val",
        EvalConfig(**settings),
        convention,
        how[0],
        boundary=how[1],
        temperatures=temperatures,
    )
    return score(network.variables)


def predict_one_by_one(network: PureModel) -> list[np.ndarray]:
    model = network.model(network.variables)
    predict = jax.jit(lambda image: jnp.argmax(model(image), -1).astype(jnp.uint8))
    return [np.asarray(predict(r["image"][None]))[0] for r in Drawn().split("val")]


@pytest.fixture(scope="module")
def network() -> PureModel:
    return random_network()


def assert_counts(evaluation: Evaluation, confusions: np.ndarray) -> None:
    """Checks the counts of each image and of all images."""
    scored = evaluation.by_map[""]
    np.testing.assert_array_equal(scored.confusion, confusions.sum(axis=0))
    names = tuple(f"val_{index}" for index in range(len(SIZES)))
    expected = ImageCounts.of(names, confusions)
    assert scored.counts.names == evaluation.names == names
    for name in ("hits", "truth", "predicted"):
        np.testing.assert_array_equal(getattr(scored.counts, name), getattr(expected, name))


@pytest.fixture(scope="module")
def one_by_one(network: PureModel) -> np.ndarray:
    """The confusion matrix of each image, predicted alone without a canvas, counted by NumPy."""
    confusions = np.zeros((len(SIZES), CLASSES, CLASSES), np.int64)
    guesses = predict_one_by_one(network)
    for confusion, record, guess in zip(confusions, Drawn().split("val"), guesses, strict=True):
        truth = record["label"]
        counted = truth != 255
        np.add.at(confusion, (truth[counted], guess[counted]), 1)
    return confusions


@pytest.mark.parametrize(("batch_size", "canvases"), [(1, 4), (3, 2), (8, 4), (16, 1)])
def test_batches_and_canvases_change_no_count(network, one_by_one, batch_size, canvases):
    evaluation = evaluate(network, batch_size=batch_size, canvases=canvases)
    assert len(np.unique(one_by_one.sum(axis=(0, 1)))) > 2  # several classes are predicted
    assert_counts(evaluation, one_by_one)
    assert 1 <= len(evaluation.canvases) <= canvases


@pytest.fixture(scope="module")
def confident(network: PureModel) -> np.ndarray:
    """The calibration at temperature 2, of images predicted alone, counted by NumPy."""
    model = jax.jit(network.model(network.variables))
    counts = np.zeros((BINS, 3), np.int64)
    for record in Drawn().split("val"):
        logits = np.asarray(model(record["image"][None]))[0].astype(np.float64) / 2
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        confidence = np.rint(2**21 / powers.sum(-1)).astype(np.int64)
        truth, correct = record["label"], logits.argmax(-1) == record["label"]
        for number in range(BINS):
            low, high = number / BINS * 2**21, (number + 1) / BINS * 2**21
            inside = (confidence > low) & (confidence <= high) & (truth != 255)
            counts[number] += inside.sum(), (inside & correct).sum(), confidence[inside].sum()
    return counts


def assert_calibrated(evaluation: Evaluation, expected: np.ndarray) -> None:
    """Rounding of float32 may move a pixel over the border of a bin, or by a unit of 2⁻²¹."""
    found = evaluation.by_map[""].calibration
    assert found is not None
    assert found.counts[:, 0].sum() == expected[:, 0].sum()
    assert found.counts[:, 1].sum() == expected[:, 1].sum()
    np.testing.assert_allclose(found.counts[:, :2], expected[:, :2], atol=3)
    assert abs(found.counts[:, 2].sum() - expected[:, 2].sum()) < 3 * expected[:, 0].sum()


@pytest.mark.parametrize(("batch_size", "canvases"), [(1, 4), (3, 2)])
def test_pixels_are_counted_by_confidence(network, confident, batch_size, canvases):
    settings = {"batch_size": batch_size, "canvases": canvases, "temperatures": {"": 2.0}}
    assert (confident[:, 0] > 0).sum() > 5
    assert_calibrated(evaluate(network, **settings), confident)


def test_a_printed_evaluation_is_its_table() -> None:
    # Of 4 pixels of ground 3 are right, and all 4 of cell: IoU 3/4 and 4/5.
    confusion = np.array([[3, 1], [0, 4]])
    scored = MapEvaluation(
        ("ground", "cell\x1b[2J"), confusion, ImageCounts.of(("a",), confusion[None]), (), "truth"
    )
    lines = str(
        Evaluation({"": scored}, ("a",), 1, (), 0.0, conventions.NATIVE, WHOLE)
    ).splitlines()
    assert lines[0] == f"1 images, {WHOLE.description}, convention native"
    rows = {words[0]: words for words in map(str.split, lines) if words}
    assert rows["ground"][1] == "75.0"
    assert rows[r"cell\x1b[2J"][1] == "80.0"
    assert "77.5" in str(lines)  # the mean
    assert "array" not in str(lines)


def test_a_split_of_more_than_2_to_the_32_pixels_is_counted(network, monkeypatch):
    """The step counts each batch in 32 bits."""
    most = np.full((CLASSES, CLASSES), 2**31 - 1, np.int32)
    counts = (most[:2],) * 3

    def batches(variables: Any) -> Generator[ScoredImages]:
        for index in range(0, 10, 2):
            yield ScoredImages((index, index + 1), {"": most}, {"": counts}, {}, {}, {})

    batches.canvases, batches.empty_share = (), 0.0  # type: ignore[attr-defined]
    batches.is_partial = False  # type: ignore[attr-defined]
    monkeypatch.setattr(evaluator, "BatchScorer", lambda *_: batches)
    scored = evaluate(network).by_map[""]
    assert scored.confusion.dtype == scored.counts.truth.dtype == np.int64
    assert (scored.confusion == 5 * (2**31 - 1)).all()
    assert scored.counts.truth[9].tolist() == [2**31 - 1] * CLASSES


def test_four_devices_count_the_same(network, one_by_one):
    devices, confusion, hits, calibration = output_on_four_devices(__file__)
    assert devices == 4
    np.testing.assert_array_equal(confusion, one_by_one.sum(axis=0))
    np.testing.assert_array_equal(hits, np.diagonal(one_by_one, axis1=1, axis2=2))
    alone = evaluate(network, batch_size=2, temperatures={"": 2.0}).by_map[""].calibration
    assert alone is not None
    # The four devices compute without XLA's optimisations, and round otherwise.
    np.testing.assert_allclose(np.array(calibration)[:, :2], alone.counts[:, :2], atol=3)


def test_each_canvas_is_compiled_once(network, caplog):
    score = Evaluator(network, Drawn(), "val", EvalConfig(batch_size=2, canvases=3))  # type: ignore[arg-type]

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


def test_the_sheet_shows_the_scored_predictions(network, one_by_one):
    samples = evaluate(network, batch_size=4).by_map[""].sheet_rows
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


def test_mmseg_resizes_the_logits_as_pytorch_does(network, torch: ModuleType, monkeypatch):
    monkeypatch.setattr(conventions, "MMSEG_SHORTER_SIDE_PX", 48)
    scored = evaluate(network, batch_size=4, convention="mmseg").by_map[""].counts
    model = jax.jit(network.model(network.variables))
    for index, record in enumerate(Drawn().split("val")):
        resized = conventions.MMSEG.prepare(record, index)["image"]
        assert min(resized.shape[:2]) == 48
        logits = torch.from_numpy(np.array(model(resized[None]))).permute(0, 3, 1, 2)
        at_native = torch.nn.functional.interpolate(
            logits, size=record["label"].shape, mode="bilinear", align_corners=False
        )
        guess, truth = at_native.argmax(1)[0].numpy(), record["label"]
        predicted = np.bincount(guess[truth != 255], minlength=CLASSES)
        hits = np.bincount(truth[truth == guess], minlength=CLASSES)
        # Rounding decides on pixels whose two largest logits are nearly equal.
        assert np.abs(scored.predicted[index] - predicted).sum() <= 2
        assert np.abs(scored.hits[index] - hits).sum() <= 1


def test_images_predicted_one_by_one_have_the_same_counts(network, one_by_one, confident):
    """A window that contains the whole image gives the same prediction."""
    window = Inference(windows="average", window_px=(96, 96))
    evaluation = evaluate(network, inference=window, boundary=True, temperatures={"": 2.0})
    assert_counts(evaluation, one_by_one)
    assert_calibrated(evaluation, confident)
    in_batches = evaluate(network, batch_size=4, boundary=True)
    boundary = in_batches.by_map[""].boundary
    assert boundary is not None
    assert (boundary[1] > 0).any()
    np.testing.assert_array_equal(evaluation.by_map[""].boundary, boundary)
    expected = sum(
        boundary_counts(record["label"], guess, CLASSES)
        for record, guess in zip(Drawn().split("val"), predict_one_by_one(network), strict=True)
    )
    np.testing.assert_array_equal(boundary, expected)


def test_mmseg_cannot_be_combined_with_views(network):
    with pytest.raises(
        ArgumentError, match=r"convention \(=mmseg\) resizes images and their logits: .* windows"
    ):
        evaluate(network, convention="mmseg", inference=Inference(flip=True))


def test_a_convention_that_includes_no_image_is_refused(network):
    with pytest.raises(
        ArgumentError, match=r"convention \(=d2l\) includes none of the 13 images of val"
    ):
        evaluate(network, convention="d2l")


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    scored = evaluate(random_network(), batch_size=8, temperatures={"": 2.0})
    of_map = scored.by_map[""]
    assert of_map.calibration is not None
    arrays = of_map.confusion, of_map.counts.hits, of_map.calibration.counts
    numbers = [jax.device_count(), *(values.tolist() for values in arrays)]
    print(json.dumps(numbers))
