"""Positions and weights of windows, by hand and as in MONAI."""

from types import ModuleType

import numpy as np
import pytest

from fcn_jax.inference.windows import window_starts, window_weights


@pytest.mark.parametrize(
    ("size", "window", "overlap", "starts"),
    [
        (10, 4, 0.25, [0, 3, 6]),  # steps of 3 reach the border
        (10, 4, 0.0, [0, 4, 6]),  # the last is moved back
        (10, 4, 0.5, [0, 2, 4, 6]),
        (10, 4, 0.3, [0, 2, 4, 6]),  # 0.7 · 4 = 2.8, whole steps of 2
        (10, 4, 0.99, [0, 1, 2, 3, 4, 5, 6]),  # steps of at least 1
        (5, 4, 0.0, [0, 1]),
        (4, 4, 0.25, [0]),
        (3, 4, 0.25, [0]),
        (1, 4, 0.0, [0]),
    ],
)
def test_windows_reach_the_border(size, window, overlap, starts):
    assert window_starts(size, window, overlap) == starts


def test_number_of_windows_that_cover_each_pixel():
    covered = np.zeros(10, int)
    for start in window_starts(10, 4, 0.0):
        covered[start : start + 4] += 1
    assert covered.tolist() == [1, 1, 1, 1, 1, 1, 2, 2, 1, 1]


def test_a_gaussian_window_by_hand():
    # σ is 0.5 along the rows and 1 along the columns; centres are at ±0.5, ±1.5 and ±0.5 … ±3.5.
    weights = window_weights("gaussian", (4, 8))
    assert weights[1, 3] == pytest.approx(np.exp(-0.5) * np.exp(-0.125), rel=1e-6)
    assert weights[1, 0] == pytest.approx(np.exp(-0.5) * np.exp(-6.125), rel=1e-6)
    assert weights[0, 3] == pytest.approx(np.exp(-4.5) * np.exp(-0.125), rel=1e-6)
    assert weights[0, 0] == np.float32(1e-3)  # e^−4.5 · e^−6.125 is 2.4e-5
    np.testing.assert_array_equal(weights, weights[::-1, ::-1])


def test_averaged_windows_have_equal_weights():
    np.testing.assert_array_equal(window_weights("average", (2, 3)), [[1, 1, 1], [1, 1, 1]])


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.3, 0.5, 0.9])
def test_windows_have_the_positions_of_monai(torch: ModuleType, monai: ModuleType, overlap: float):
    places = []

    def note(windows, place):
        places.append((place[0][2].start, place[0][3].start))
        return windows

    for height, width, window in [(37, 50, (16, 20)), (16, 41, (16, 20)), (30, 61, (10, 7))]:
        places.clear()
        monai.sliding_window_inference(
            torch.zeros(1, 1, height, width), window, 1, note, overlap=overlap, with_coord=True
        )
        assert places == [
            (top, left)
            for top in window_starts(height, window[0], overlap)
            for left in window_starts(width, window[1], overlap)
        ]


@pytest.mark.parametrize("window_px", [(4, 8), (5, 7), (2, 3), (1, 6), (96, 64)])
def test_windows_have_the_weights_of_monai(torch: ModuleType, monai: ModuleType, window_px):
    from monai.data.utils import compute_importance_map

    expected = compute_importance_map(window_px, mode="gaussian", sigma_scale=0.125).numpy()
    np.testing.assert_allclose(window_weights("gaussian", window_px), expected, rtol=2e-6)
