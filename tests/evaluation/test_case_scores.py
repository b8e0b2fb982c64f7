"""Scores of volumes by case: distances by hand and against MONAI, and nnU-Net's means."""

import math

import numpy as np
import pytest

from fcn_jax.evaluation.case_scores import CaseScores, hausdorff95_mm, hausdorff95_of_classes
from fcn_jax.evaluation.image_counts import ImageCounts


def box(start: int, stop: int) -> np.ndarray:
    mask = np.zeros((12, 6, 6), bool)
    mask[start:stop, 1:5, 1:5] = True
    return mask


def test_the_distance_of_shifted_boxes_is_the_shift_in_mm():
    # The surfaces across the first axis are 2 voxels of 1.5 mm apart; they hold more than 5 %.
    assert hausdorff95_mm(box(2, 6), box(4, 8), (1.5, 1, 1)) == pytest.approx(3.0)
    assert hausdorff95_mm(box(2, 6), box(2, 6), (1.5, 1, 1)) == 0


def test_single_voxels_are_as_far_apart_as_their_centres():
    one, other = np.zeros((2, 9, 9, 9), bool)
    one[1, 1, 1] = other[4, 5, 1] = True
    assert hausdorff95_mm(one, other, (1, 1, 1)) == pytest.approx(5.0)
    assert hausdorff95_mm(one, other, (2, 1, 1)) == pytest.approx(math.hypot(6, 4))


def test_a_missing_class_has_no_distance_and_ignored_voxels_do_not_count():
    assert math.isnan(hausdorff95_mm(box(2, 6), np.zeros((12, 6, 6), bool), (1, 1, 1)))
    truth, predicted = box(2, 6).astype(np.uint8), box(2, 9).astype(np.uint8)
    truth[6:] = 255
    distances = hausdorff95_of_classes(truth, predicted, 3, (1, 1, 1))
    assert distances[1] == 0
    assert np.isnan(distances[[0, 2]]).all()


def test_distances_are_those_of_a_search_over_all_pairs():
    random = np.random.default_rng(0)
    one, other = random.random((2, 7, 8, 6)) < 0.4
    spacing = np.array((0.7, 1.1, 2.0))

    def surface(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        inside = padded.copy()
        for axis in range(3):
            for shift in (-1, 1):
                inside &= np.roll(padded, shift, axis)
        return (np.argwhere(padded & ~inside) - 1) * spacing

    a, b = surface(one), surface(other)
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    expected = max(np.percentile(distances.min(axis=1), 95), np.percentile(distances.min(0), 95))
    assert hausdorff95_mm(one, other, spacing) == pytest.approx(expected)


def test_nnunets_mean_is_over_cases_and_then_over_the_foreground():
    counts = ImageCounts(
        ("a", "b"),
        hits=np.array([[10, 2, 0], [10, 3, 0]]),
        truth=np.array([[12, 4, 0], [11, 3, 2]]),
        predicted=np.array([[12, 4, 0], [12, 3, 1]]),
    )
    scores = CaseScores.of(counts, np.full((2, 3), np.nan))
    # Class 1: 2·2/8 and 2·3/6. Class 2: absent from case a, missed in case b.
    np.testing.assert_allclose(scores.dice[:, 1:], [[0.5, np.nan], [1, 0]])
    np.testing.assert_allclose(scores.iou[:, 1], [2 / 6, 1])
    np.testing.assert_allclose(scores.means("dice")[1:], [0.75, 0])
    assert scores.foreground_mean("dice") == 0.375
    document = scores.to_json(("background", "x", "y"))
    assert document["cases"]["a"]["dice"] == {"background": 20 / 24, "x": 0.5, "y": None}
    assert document["foreground_mean"]["hd95_mm"] is None
