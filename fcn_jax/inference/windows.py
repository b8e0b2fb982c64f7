"""Windows of one size that cover an image: their positions, and the weight of each pixel.

The positions are those of MONAI's `sliding_window_inference`, the weights those of its modes
"constant" and "gaussian" (with its `sigma_scale` of 1/8).
"""

import numpy as np

SIGMA_SCALE = 0.125
"""Standard deviation of the Gaussian as a share of the window's side."""

MIN_WEIGHT = 1e-3
"""Lower bound of the weights, so that pixels that only corners of windows cover have a weight."""


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """Returns the first pixel of each window along one axis.

    The windows follow each other in steps of max(1, ⌊(1 − overlap)·window⌋); the last one is moved
    back to end at the image's border. A window that is at least as large as the image starts at 0.

    Args:
        size: length of the image, in pixels.
        window: length of a window, in pixels.
        overlap: share of a window that the next one covers again, in [0, 1).
    """
    step = max(int(window * (1 - overlap)), 1)
    last = max(size - window, 0)
    return [min(start, last) for start in range(0, last + step, step)]


def window_weights(kind: str, window_px: tuple[int, int]) -> np.ndarray:
    """Returns the weight of each pixel of a window.

    Args:
        kind: "average" for 1 everywhere; "gaussian" for exp(−x²/2σ²)·exp(−y²/2σ²), with x and y
            from the window's centre, σ an eighth of its side, and a lower bound of the corners'
            value or 0.001, whichever is larger.
        window_px: height and width.

    Returns:
        float32 (h, w), above 0.
    """
    if kind == "average":
        return np.ones(window_px, np.float32)
    rows, columns = (
        np.exp(-((np.arange(side) - (side - 1) / 2) ** 2) / (2 * (SIGMA_SCALE * side) ** 2))
        for side in window_px
    )
    weights = np.outer(rows, columns)
    return np.maximum(weights, max(weights.min(), MIN_WEIGHT)).astype(np.float32)
