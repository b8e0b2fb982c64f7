"""Boundary IoU: intersection over union of the pixels near contours.

Cheng, Girshick, Dollár, Kirillov & Berg, 'Boundary IoU', CVPR 2021. A better outline hardly changes
the IoU of a large object, but it changes its boundary IoU.
"""

import math
from collections.abc import Callable

import numpy as np

DISTANCE_PER_DIAGONAL = 0.02
"""The default of the authors' code, which they chose for COCO."""


def boundary_counts(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts the intersection and the union of each class's boundary zones in one image.

    The boundary zone of a class consists of its pixels within d pixels of another class or of the
    image's border, along rows, columns and diagonals alike: the pixels that d erosions with a 3×3
    square remove, as in the authors' code. d is `boundary_distance_px`.

    Void pixels are ignored: a pixel next to them is not near a contour for that, and predictions
    there draw no contour. A prediction that is correct wherever the truth is known therefore scores
    1, and one that misses an object gets no contour from the void band that VOC draws around it.
    The authors' data have no void pixels; without them, the counts are the authors'.

    Args:
        label: the truth, uint8 (h, w). `IGNORE_INDEX` and all other values from k on are void.
        prediction: uint8 (h, w). Pixels with values outside 0…k−1 are void too, as in
            `confusion_matrices`.
        num_classes: k, at most 255.

    Returns:
        int64 (2, k): the pixels of the intersection, then those of the union, for each class. Sum
        them over the split before they are divided, as `metrics.scores(confusion, boundary=…)`
        does.

    Raises:
        ValueError: the arrays have other shapes or dtypes, or k is above 255.
    """
    for name, values in (("label", label), ("prediction", prediction)):
        if values.dtype != np.uint8 or values.ndim != 2 or values.shape != label.shape:
            raise ValueError(
                f"`{name}` ({values.dtype}, shape {values.shape}) must be uint8 (h, w), of the "
                f"label's shape {label.shape}"
            )
    if not 0 < num_classes <= 255:
        raise ValueError(f"`num_classes` (={num_classes}) must be 1 to 255")
    void = (label >= num_classes) | (prediction >= num_classes)
    distance_px = boundary_distance_px(*label.shape)
    true_zone = _boundary_zone(label, void, distance_px)
    predicted_zone = _boundary_zone(prediction, void, distance_px)

    def count(labels: np.ndarray) -> np.ndarray:
        return np.bincount(labels, minlength=num_classes)

    intersection = count(label[true_zone & predicted_zone & (label == prediction)])
    union = count(label[true_zone]) + count(prediction[predicted_zone]) - intersection
    return np.stack([intersection, union]).astype(np.int64)


def boundary_distance_px(height: int, width: int) -> int:
    """Returns the width of a boundary zone: 2 % of the image's diagonal, at least 1.

    Halves are rounded to the even neighbour, as in the authors' code: 12.5, for 375 × 500, is 12.
    """
    return max(1, round(DISTANCE_PER_DIAGONAL * math.hypot(height, width)))


def _boundary_zone(labels: np.ndarray, void: np.ndarray, distance_px: int) -> np.ndarray:
    """The valid pixels within a distance of another class or of the border: bool (h, w)."""
    window_px = 2 * distance_px + 1
    zone = ~void
    if min(labels.shape) < window_px:
        return zone
    # A window contains a single class if its smallest and its largest label are equal. Void pixels
    # are above all labels for the smallest, and below them for the largest.
    smallest = _window_extreme(np.where(void, 255, labels), window_px, np.minimum)
    largest = _window_extreme(np.where(void, 0, labels + 1), window_px, np.maximum)
    # In a window of void pixels only, the centre is void as well.
    inner = smallest + 1 == largest
    zone[distance_px:-distance_px, distance_px:-distance_px] &= ~inner
    return zone


def _window_extreme(
    values: np.ndarray, size: int, extreme: Callable[..., np.ndarray]
) -> np.ndarray:
    """The minimum or maximum of each size × size window: (h − size + 1, w − size + 1).

    Windows of 1, 2, 4, … pixels are joined in pairs, of which the last overlaps; this takes a tenth
    of the time of `scipy.ndimage.minimum_filter1d`.
    """
    for _ in range(2):
        places = len(values) - size + 1
        reach = 1
        while 2 * reach <= size:
            values = extreme(values[:-reach], values[reach:])
            reach *= 2
        values = extreme(values[:places], values[size - reach :]).T
    return values
