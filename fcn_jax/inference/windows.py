"""Windows of one size that cover an image: where they lie, and how much each pixel of one counts.

The places are those of MONAI's `sliding_window_inference`, the weights those of its modes
"constant" and "gaussian" (with its `sigma_scale` of 1/8).
"""

import numpy as np

SIGMA_SCALE = 0.125
"""The Gaussian's standard deviation as a share of the window's side."""

MIN_WEIGHT = 1e-3
"""So that the corners of windows, where there is nothing else, still count."""


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """Where windows begin, on one axis.

    They follow each other at whole steps of at most (1 − overlap)·window, and at least 1; the last
    is moved back to end where the image does. A window that is no smaller than the image lies
    alone, at 0.
    """
    step = max(int(window * (1 - overlap)), 1)
    last = max(size - window, 0)
    return [min(start, last) for start in range(0, last + step, step)]


def window_weights(kind: str, window_px: tuple[int, int]) -> np.ndarray:
    """The weight of each pixel of a window: float32 (h, w), above 0.

    kind: average, 1 everywhere; or gaussian, exp(−x²/2σ²)·exp(−y²/2σ²) with x and y from the
    window's centre and σ an eighth of its side, nowhere below the corners' or 0.001, whichever is
    more.
    """
    if kind == "average":
        return np.ones(window_px, np.float32)
    rows, columns = (
        np.exp(-((np.arange(side) - (side - 1) / 2) ** 2) / (2 * (SIGMA_SCALE * side) ** 2))
        for side in window_px
    )
    weights = np.outer(rows, columns)
    return np.maximum(weights, max(weights.min(), MIN_WEIGHT)).astype(np.float32)
