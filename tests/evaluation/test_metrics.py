import io
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from rich.console import Console

from fcn_jax.data.voc import VOC_CLASSES
from fcn_jax.evaluation.metrics import Scores, scores, scores_from_counts, scores_table, to_json

# Three classes; the third is absent from the truth, and four pixels of the second are predicted as
# the third.
CONFUSION = np.array([[6, 2, 0], [4, 4, 4], [0, 0, 0]])


def test_scores_by_hand():
    result = scores(CONFUSION)
    # t = (8, 12, 0); predicted = (10, 6, 4); hits = (6, 4, 0).
    assert result.pixel_accuracy == pytest.approx(10 / 20)
    np.testing.assert_allclose(result.per_class_recall, [6 / 8, 4 / 12, math.nan])
    assert result.mean_accuracy == pytest.approx((6 / 8 + 4 / 12) / 2)
    np.testing.assert_allclose(result.per_class_iou, [6 / (8 + 10 - 6), 4 / (12 + 6 - 4), math.nan])
    assert result.mean_iou == pytest.approx((1 / 2 + 2 / 7) / 2)
    assert result.frequency_weighted_iou == pytest.approx((8 * 1 / 2 + 12 * 2 / 7) / 20)
    # All pixels predicted as the third class are wrong.
    np.testing.assert_allclose(result.per_class_precision, [6 / 10, 4 / 6, 0])
    np.testing.assert_allclose(result.per_class_dice, [12 / 18, 8 / 18, math.nan])
    assert result.mean_dice == pytest.approx((12 / 18 + 8 / 18) / 2)
    np.testing.assert_allclose(result.pixel_shares, [0.4, 0.6, 0])
    assert result.per_class_boundary_iou is None
    assert result.mean_boundary_iou is None


def test_precision_of_a_class_never_predicted_is_nan_and_its_other_scores_zero():
    result = scores(np.array([[3, 0], [2, 0]]))
    np.testing.assert_allclose(result.per_class_precision, [3 / 5, math.nan])
    np.testing.assert_allclose(result.per_class_recall, [1, 0])
    np.testing.assert_allclose(result.per_class_dice, [6 / 8, 0])
    assert result.mean_iou == pytest.approx((3 / 5 + 0) / 2)


def test_dice_and_iou_and_precision_and_recall_agree():
    random = np.random.default_rng(3)
    result = scores(random.integers(0, 1000, (7, 7)))
    iou, precision, recall = (
        result.per_class_iou,
        result.per_class_precision,
        result.per_class_recall,
    )
    np.testing.assert_allclose(result.per_class_dice, 2 * iou / (1 + iou))
    harmonic_mean = 2 / (1 / precision + 1 / recall)
    np.testing.assert_allclose(result.per_class_dice, harmonic_mean)


def test_boundary_iou_is_over_the_classes_in_the_truth():
    # The first class has 3 of 4 pixels; the second has no zone; the third, absent, has 5 pixels.
    result = scores(CONFUSION, boundary=np.array([[3, 0, 0], [4, 0, 5]]))
    np.testing.assert_allclose(result.per_class_boundary_iou, [3 / 4, math.nan, math.nan])
    assert result.mean_boundary_iou == pytest.approx(3 / 4)


def test_scores_from_counts_need_no_more_than_three_sums():
    np.testing.assert_equal(
        vars(scores_from_counts(np.array([6, 4, 0]), np.array([8, 12, 0]), np.array([10, 6, 4]))),
        vars(scores(CONFUSION)),
    )


def test_perfect_prediction_scores_one():
    result = scores(np.diag([5, 0, 7]))
    four = (result.pixel_accuracy, result.mean_accuracy, result.mean_iou)
    assert (*four, result.frequency_weighted_iou) == (1, 1, 1, 1)


def test_scores_of_no_pixels_are_nan():
    result = scores(np.zeros((2, 2), np.int64))
    assert math.isnan(result.pixel_accuracy)
    assert math.isnan(result.mean_accuracy)
    assert math.isnan(result.mean_iou)
    assert math.isnan(result.frequency_weighted_iou)
    assert np.isnan(result.per_class_iou).all()


def test_scores_of_more_pixels_than_int32_holds():
    result = scores(np.array([[3 * 2**40, 2**40], [0, 2**42]]))
    assert result.pixel_accuracy == pytest.approx(7 / 8)


def test_to_json_has_null_for_an_absent_class():
    document = to_json(scores(CONFUSION), ["sky", "road", "boat"], images=3)
    approx = pytest.approx
    assert json.loads(json.dumps(document, allow_nan=False)) == {
        "pixel_accuracy": 0.5,
        "mean_accuracy": approx(13 / 24),
        "mean_iou": approx(11 / 28),
        "frequency_weighted_iou": approx(13 / 35),
        "mean_dice": approx(5 / 9),
        "per_class_iou": {"sky": 0.5, "road": approx(2 / 7), "boat": None},
        "per_class_dice": {"sky": approx(2 / 3), "road": approx(4 / 9), "boat": None},
        "per_class_precision": {"sky": 0.6, "road": approx(2 / 3), "boat": 0},
        "per_class_recall": {"sky": 0.75, "road": approx(1 / 3), "boat": None},
        "pixel_shares": {"sky": 0.4, "road": 0.6, "boat": 0},
        "images": 3,
    }


def test_to_json_includes_boundary_iou_if_it_was_computed():
    result = scores(CONFUSION, boundary=np.array([[3, 1, 0], [4, 2, 5]]))
    document = json.loads(json.dumps(to_json(result, ["sky", "road", "boat"], images=3)))
    assert document["per_class_boundary_iou"] == {"sky": 0.75, "road": 0.5, "boat": None}
    assert document["mean_boundary_iou"] == 0.625


def test_to_json_of_no_pixels_is_valid_json():
    document = to_json(scores(np.zeros((1, 1), np.int64)), ["sky"], images=0)
    assert json.loads(json.dumps(document, allow_nan=False))["mean_iou"] is None


def _printed(result: Scores, names: Sequence[str]) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=80).print(scores_table(result, names))
    return stream.getvalue().splitlines()


def test_scores_table_lists_classes_then_the_overall_scores():
    lines = _printed(scores(CONFUSION), ["sky", "road", "[boat]"])
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if line.strip()]
    assert ["class", "IoU", "Dice", "precision", "(accuracy)", "pixels"] in rows
    assert ["recall", "%", "of"] in rows
    assert ["sky", "50.0", "66.7", "60.0", "75.0", "40.0"] in rows
    assert ["road", "28.6", "44.4", "66.7", "33.3", "60.0"] in rows
    assert ["[boat]", "–", "–", "0.0", "–", "–"] in rows
    assert ["mIoU", "39.3"] in rows
    assert ["frequency-weighted", "IoU", "37.1"] in rows
    assert ["mean", "Dice", "55.6"] in rows
    assert ["mean", "accuracy", "54.2"] in rows
    assert ["pixel", "accuracy", "50.0"] in rows


def test_scores_table_of_voc_fits_a_terminal_with_boundary_iou_too():
    k = len(VOC_CLASSES)
    result = scores(np.diag(np.arange(1, k + 1)), boundary=np.ones((2, k), np.int64))
    lines = _printed(result, VOC_CLASSES)
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if line.strip()]
    assert ["background", *["100.0"] * 5, "0.4"] in rows  # 1 / 231
    assert ["tvmonitor", *["100.0"] * 5, "9.1"] in rows  # 21 / 231
    assert ["mean", "boundary", "IoU", "100.0"] in rows
    assert ["frequency-weighted", "IoU", "100.0"] in rows


def test_scores_table_keeps_its_numbers_next_to_a_very_long_name():
    lines = _printed(scores(np.array([[4]])), ["word" * 40])
    assert max(map(len, lines)) <= 80
    assert any(line.split()[1:] == ["100.0"] * 5 for line in lines)


def test_names_must_match_the_classes():
    with pytest.raises(ValueError, match=r"of length 2.*3 classes"):
        to_json(scores(CONFUSION), ["sky", "road"], images=1)
    with pytest.raises(ValueError, match="class_names"):
        scores_table(scores(CONFUSION), ["sky", "road"])


def test_the_classes_that_means_are_taken_over():
    # The third class is predicted and absent from the truth, the fourth is in neither.
    confusion = np.zeros((4, 4), np.int64)
    confusion[:3, :3] = CONFUSION
    iou = [6 / 12, 4 / 14]  # of t + p − hits: 8 + 10 − 6, 12 + 6 − 4
    by_truth, by_union, of_all = (scores(confusion, over) for over in ("truth", "union", "all"))
    assert by_truth.mean_iou == pytest.approx(np.mean(iou))
    assert by_union.mean_iou == pytest.approx(np.mean([*iou, 0]))
    assert math.isnan(of_all.mean_iou)
    assert math.isnan(of_all.mean_accuracy)
    np.testing.assert_array_equal(np.isnan(by_truth.per_class_iou), [0, 0, 1, 1])
    np.testing.assert_array_equal(np.isnan(by_union.per_class_iou), [0, 0, 0, 1])
    three = scores(confusion[:3, :3], "all")
    assert three.mean_iou == by_union.mean_iou
    for other in (by_union, of_all):
        assert other.pixel_accuracy == by_truth.pixel_accuracy
        assert other.frequency_weighted_iou == by_truth.frequency_weighted_iou
