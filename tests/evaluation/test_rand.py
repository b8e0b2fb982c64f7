"""The Rand F-score, by hand, by counting every pair of pixels, and against scikit-image."""

import itertools

import numpy as np
import pytest

from fcn_jax.evaluation.rand import label_cells, rand_f_score


def test_cells_are_the_regions_between_boundaries() -> None:
    boundary = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    assert label_cells(boundary).tolist() == [[1, 0, 2], [0, 2, 2], [2, 2, 2]]
    assert label_cells(boundary, diagonal=True).tolist() == [[1, 0, 1], [0, 1, 1], [1, 1, 1]]


def test_a_merger_by_hand() -> None:
    # Two cells of 3 and 2 pixels become one of 5: 10 pairs are together, of which 3 + 1 should be.
    truth = np.array([[1, 1, 1, 0, 2, 2]])
    merged = np.array([[1, 1, 1, 1, 1, 1]])
    precision, recall = 4 / 10, 1.0
    assert rand_f_score(truth, merged) == pytest.approx(
        2 * precision * recall / (precision + recall)
    )
    assert rand_f_score(truth, truth) == 1
    # A shifted boundary: one pixel of the first cell is on it, a segment of its own.
    assert rand_f_score(truth, np.array([[1, 1, 0, 0, 2, 2]])) == pytest.approx(2 * 2 / (4 + 2))


def test_it_counts_pairs_of_pixels() -> None:
    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 4, (2, 6, 7))
    together = {"both": 0, "truth": 0, "predicted": 0}
    pixels = [(t, p) for t, p in zip(truth.flat, predicted.flat, strict=True) if t]
    for (t, p), (u, q) in itertools.combinations(pixels, 2):
        together["both"] += t == u and p == q
        together["truth"] += t == u
        together["predicted"] += p == q
    expected = 2 * together["both"] / (together["truth"] + together["predicted"])
    assert rand_f_score(truth, predicted) == pytest.approx(expected)


def test_it_is_scikit_images() -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 9, (2, 40, 50))
    error, *_ = metrics.adapted_rand_error(truth, predicted)
    assert rand_f_score(truth, predicted) == pytest.approx(1 - error)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="shape"):
        rand_f_score(np.zeros((2, 3), int), np.zeros((3, 2), int))
