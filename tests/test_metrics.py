import io
import json
import math

import jax
import numpy as np
import pytest
from rich.console import Console

from fcn_jax.metrics import Scores, confusion_matrix, scores, scores_table, to_json

# Three classes, of which the truth lacks the third; four pixels of the second are taken for it.
CONFUSION = np.array([[6, 2, 0], [4, 4, 4], [0, 0, 0]])


def test_confusion_matrix_counts_true_classes_in_rows():
    label = np.array([[0, 0, 1, 2]])
    prediction = np.array([[0, 2, 1, 1]])
    counts = confusion_matrix(label, prediction, 3)
    assert counts.dtype == np.int32
    assert counts.tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize("outside", [255, -1, 3])
def test_confusion_matrix_leaves_out_labels_outside_the_classes(outside):
    label = np.array([[0, outside], [outside, 2]])
    counts = confusion_matrix(label, np.array([[0, 1], [2, 2]]), 3)
    assert counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_void_stays_void_where_there_are_more_than_255_classes():
    counts = confusion_matrix(np.array([255, 256]), np.array([255, 256]), 300)
    assert counts.sum() == 1
    assert counts[256, 256] == 1


def test_a_prediction_outside_the_classes_is_not_counted_as_another_class():
    counts = confusion_matrix(np.array([0, 0, 1]), np.array([3, -1, 1]), 3)
    assert counts.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("shape", [(1200,), (40, 30), (2, 20, 30), (2, 3, 20, 10)])
def test_confusion_matrix_agrees_with_numpy_for_any_shape_and_integer_type(shape, dtype):
    rng = np.random.default_rng(0)
    label = rng.choice([0, 1, 2, 3, 20, 255], shape).astype(dtype)
    prediction = rng.integers(0, 21, shape).astype(dtype)
    scored = label != 255
    cells = label[scored].astype(int) * 21 + prediction[scored]
    expected = np.bincount(cells, minlength=21 * 21).reshape(21, 21)
    np.testing.assert_array_equal(confusion_matrix(label, prediction, 21), expected)


def test_counts_beyond_the_integers_of_float32_are_exact():
    pixels = 2**24 + 1  # float32 cannot tell this from 2**24
    label = np.zeros(pixels, np.uint8)
    assert confusion_matrix(label, label, 2)[0, 0] == pixels


def test_batch_split_over_devices_is_counted_as_whole():
    devices = np.array(jax.devices())
    mesh = jax.sharding.Mesh(devices, ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    rng = np.random.default_rng(1)
    label, prediction = rng.integers(0, 4, (2, 2 * len(devices), 9, 7))
    counts = confusion_matrix(
        jax.device_put(label, sharding), jax.device_put(prediction, sharding), 4
    )
    np.testing.assert_array_equal(counts, confusion_matrix(label, prediction, 4))


def test_confusion_matrix_refuses_different_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        confusion_matrix(np.zeros((2, 3), int), np.zeros((3, 2), int), 2)


def test_scores_by_hand():
    result = scores(CONFUSION)
    # t = (8, 12, 0); predicted = (10, 6, 4); hits = (6, 4, 0).
    assert result.pixel_accuracy == pytest.approx(10 / 20)
    np.testing.assert_allclose(result.per_class_accuracy, [6 / 8, 4 / 12, math.nan])
    assert result.mean_accuracy == pytest.approx((6 / 8 + 4 / 12) / 2)
    np.testing.assert_allclose(result.per_class_iu, [6 / (8 + 10 - 6), 4 / (12 + 6 - 4), math.nan])
    assert result.mean_iu == pytest.approx((1 / 2 + 2 / 7) / 2)
    assert result.frequency_weighted_iu == pytest.approx((8 * 1 / 2 + 12 * 2 / 7) / 20)


def test_perfect_prediction_scores_one():
    result = scores(np.diag([5, 0, 7]))
    four = (result.pixel_accuracy, result.mean_accuracy, result.mean_iu)
    assert (*four, result.frequency_weighted_iu) == (1, 1, 1, 1)


def test_scores_of_no_pixels_are_nan():
    result = scores(np.zeros((2, 2), np.int64))
    assert math.isnan(result.pixel_accuracy)
    assert math.isnan(result.mean_accuracy)
    assert math.isnan(result.mean_iu)
    assert math.isnan(result.frequency_weighted_iu)
    assert np.isnan(result.per_class_iu).all()


def test_scores_of_more_pixels_than_int32_holds():
    result = scores(np.array([[3 * 2**40, 2**40], [0, 2**42]]))
    assert result.pixel_accuracy == pytest.approx(7 / 8)


def test_to_json_has_null_for_an_absent_class():
    document = to_json(scores(CONFUSION), ["sky", "road", "boat"], images=3)
    assert json.loads(json.dumps(document, allow_nan=False)) == {
        "pixel_accuracy": 0.5,
        "mean_accuracy": pytest.approx(13 / 24),
        "mean_iu": pytest.approx(11 / 28),
        "frequency_weighted_iu": pytest.approx(13 / 35),
        "per_class_iu": {"sky": 0.5, "road": pytest.approx(2 / 7), "boat": None},
        "images": 3,
    }


def test_to_json_of_no_pixels_is_valid_json():
    document = to_json(scores(np.zeros((1, 1), np.int64)), ["sky"], images=0)
    assert json.loads(json.dumps(document, allow_nan=False))["mean_iu"] is None


def _printed(result: Scores, names: list[str], shares: np.ndarray) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=80).print(scores_table(result, names, shares))
    return stream.getvalue().splitlines()


def test_scores_table_lists_classes_then_the_four_scores():
    lines = _printed(scores(CONFUSION), ["sky", "road", "[boat]"], np.array([0.4, 0.6, 0]))
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if line.strip()]
    assert ["sky", "50.0", "75.0", "40.0"] in rows
    assert ["road", "28.6", "33.3", "60.0"] in rows
    assert ["[boat]", "–", "–", "–"] in rows
    assert ["mean", "IU", "39.3"] in rows
    assert ["frequency-weighted", "IU", "37.1"] in rows
    assert ["mean", "accuracy", "54.2"] in rows
    assert ["pixel", "accuracy", "50.0"] in rows


def test_scores_table_keeps_its_numbers_beside_a_very_long_name():
    lines = _printed(scores(np.array([[4]])), ["word" * 40], np.array([1.0]))
    assert max(map(len, lines)) <= 80
    assert any(line.split()[1:] == ["100.0", "100.0", "100.0"] for line in lines)


def test_names_must_match_the_classes():
    with pytest.raises(ValueError, match=r"of length 2.*3 classes"):
        to_json(scores(CONFUSION), ["sky", "road"], images=1)
    with pytest.raises(ValueError, match="pixel_shares"):
        scores_table(scores(CONFUSION), ["sky", "road", "boat"], np.ones(2))
