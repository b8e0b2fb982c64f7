"""Three orthogonal slices of a volume side by side, as an image that sheets and overlays take."""

from collections.abc import Sequence

import numpy as np

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.data.resample import resample_image

GREY_PERCENTILES = (0.5, 99.5)
"""Intensities that are shown black and white."""


def orthogonal_views(
    image: np.ndarray, *labels: np.ndarray, place: Sequence[int] | None = None
) -> tuple[np.ndarray, ...]:
    """Returns three orthogonal slices of an image and of label maps, each as one picture.

    The slices are those across the third, second and first axis, from left to right, through the
    middle of the foreground of the first label map. Below shorter slices the labels are ignored.

    Args:
        image: float (x, y, z, c); the first channel is shown. It may have another size than the
            labels, to which it is then resampled linearly.
        labels: label maps, uint8 (x, y, z).
        place: the voxel that the slices meet at; None for the middle of the foreground.

    Returns:
        The image in grey, uint8 (h, w, 3), then the label maps, uint8 (h, w).
    """
    truth = labels[0]
    grey = np.asarray(image[..., :1], np.float32)
    if grey.shape[:3] != truth.shape:
        grey = resample_image(grey, truth.shape, order=1)
    if place is None:
        foreground = np.argwhere((truth > 0) & (truth != IGNORE_INDEX))
        middle = foreground.mean(axis=0) if len(foreground) else np.divide(truth.shape, 2)
        place = np.minimum(middle.astype(int), np.subtract(truth.shape, 1)).tolist()
    low, high = np.percentile(grey, GREY_PERCENTILES)
    shades = np.clip((grey[..., 0] - low) / max(high - low, 1e-6), 0, 1) * 255
    picture = _side_by_side(shades.astype(np.uint8), place, 0)
    views = [_side_by_side(np.asarray(label), place, IGNORE_INDEX) for label in labels]
    return np.repeat(picture[..., None], 3, axis=-1), *views


def _side_by_side(volume: np.ndarray, place: Sequence[int], fill: int) -> np.ndarray:
    """Turns each slice so that its first axis points to the right and its second one upwards."""
    slices = [np.rot90(volume.take(place[axis], axis)) for axis in (2, 1, 0)]
    height = max(len(one) for one in slices)
    padded = [np.pad(one, ((0, height - len(one)), (0, 0)), constant_values=fill) for one in slices]
    return np.concatenate(padded, axis=1)
