"""Volumes at another spacing, on the host: images by cubic splines, labels by the nearest voxel."""

from collections.abc import Sequence

import numpy as np


def resample_image(image: np.ndarray, shape: Sequence[int], order: int = 3) -> np.ndarray:
    """Resamples float32 (x, y, z, c) to (*shape, c) by splines; the order 1 is linear."""
    import scipy.ndimage

    channels = [
        scipy.ndimage.zoom(
            channel,
            np.divide(shape, channel.shape),
            order=order,
            mode="nearest",
            grid_mode=True,  # voxels have a size: borders meet borders, not centres centres
        )
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.stack(channels, axis=-1)


def resample_label(label: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resamples (x, y, z) of any dtype to `shape` by the nearest voxel."""
    for axis, size in enumerate(shape):
        before = label.shape[axis]
        if size == before:
            continue
        place = np.floor((np.arange(size) + 0.5) * before / size).astype(int)
        label = label.take(np.minimum(place, before - 1), axis)
    return label
