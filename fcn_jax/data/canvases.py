"""Canvas sizes for evaluation: few shapes with little padding.

Every canvas size is compiled separately, and padding is computed for nothing. A few sizes are
chosen from the images of a split, and each image is placed on the smallest canvas that holds it.
The canvas affects speed only, not the network's output (`models/feature_map.py`).
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from fcn_jax.config import Config

Number = TypeVar("Number", int, np.ndarray)

Size = tuple[int, ...]
"""Height and width; of volumes, the size on each of three axes."""

PATCHES_ON_CANVAS = 2
"""Patches, along each axis, on the canvas of a large volume, of which training draws one."""

MIN_SAVED_SHARE = 0.05
"""An additional canvas size must save at least this share of all pixels."""


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A canvas size with the images that use it.

    Attributes:
      canvas_px: height and width.
      images: indices of the images.
      label_canvas_px: height and width of the labels' canvas, if labels are scored at another size
        than their images.
    """

    canvas_px: Size
    images: tuple[int, ...]
    label_canvas_px: Size | None = None

    @property
    def area_px(self) -> int:
        return self.canvas_px[0] * self.canvas_px[1]


def round_up(value: Number, multiple: int) -> Number:
    """Rounds an integer, or an array of integers, up to the next multiple."""
    return -(-value // multiple) * multiple


def smallest_first(canvases: Iterable[Size]) -> list[Size]:
    """Sorts canvases by area, so that the first that holds an image is the smallest that does."""
    return sorted(canvases, key=lambda canvas: (canvas[0] * canvas[1], canvas))


def fill_buckets(
    sizes: np.ndarray,
    *,
    max_canvases: int,
    batch_size: int = 1,
    multiple: int = 32,
    label_sizes: np.ndarray | None = None,
) -> list[Bucket]:
    """Assigns images to at most `max_canvases` canvas sizes, the smallest first.

    The images of an incomplete batch move to a larger canvas if its last batch has room for them.

    Args:
        sizes: heights and widths, int (n, 2), n > 0.
        max_canvases: at least 1.
        batch_size: number of images of a batch; all are on canvases of one size.
        multiple: sides of canvases are multiples of this, in pixels.
        label_sizes: heights and widths of the labels if they differ from the images', int (n, 2).

    Returns:
        Buckets, each with at least one image.
    """
    sizes = np.asarray(sizes, np.int64)
    canvases = smallest_first(choose_canvases(sizes, max_canvases=max_canvases, multiple=multiple))
    holds = np.all(sizes[:, None] <= np.asarray(canvases), axis=-1)
    choice = holds.argmax(axis=1)
    assigned = [np.flatnonzero(choice == index).tolist() for index in range(len(canvases))]
    for index, (height, width) in enumerate(canvases):
        rest = len(assigned[index]) % batch_size
        if not rest:
            continue
        for larger in range(index + 1, len(canvases)):
            larger_height, larger_width = canvases[larger]
            free = -len(assigned[larger]) % batch_size
            if height <= larger_height and width <= larger_width and rest <= free:
                assigned[larger] = sorted(assigned[larger] + assigned[index][-rest:])
                del assigned[index][-rest:]
                break
    buckets = [
        Bucket(canvas, tuple(images))
        for canvas, images in zip(canvases, assigned, strict=True)
        if images
    ]
    if label_sizes is None:
        return buckets
    return [
        dataclasses.replace(
            bucket, label_canvas_px=one_canvas(label_sizes[list(bucket.images)], multiple)
        )
        for bucket in buckets
    ]


def choose_canvases(sizes: np.ndarray, *, max_canvases: int, multiple: int = 32) -> list[Size]:
    """Chooses heights and widths of at most `max_canvases` canvases that hold all images.

    Starts with one canvas for each image size, and repeatedly merges the two canvases whose merger
    adds the fewest pixels, until few enough are left and each saves `MIN_SAVED_SHARE`.

    Args:
        sizes, max_canvases, multiple: as in `fill_buckets`.
    """
    canvases, counts = _distinct(sizes, multiple)
    areas = canvases.prod(axis=1) * counts
    while len(canvases) > 1:
        merged = np.maximum(canvases[:, None], canvases)
        growth = merged.prod(axis=-1) * (counts[:, None] + counts) - areas[:, None] - areas
        growth[np.tril_indices(len(canvases))] = np.iinfo(np.int64).max
        one, other = np.unravel_index(growth.argmin(), growth.shape)
        if len(canvases) <= max_canvases and growth[one, other] > MIN_SAVED_SHARE * areas.sum():
            break
        canvases[one] = merged[one, other]
        counts[one] += counts[other]
        areas[one] = canvases[one].prod() * counts[one]
        canvases, counts, areas = (
            np.delete(values, other, axis=0) for values in (canvases, counts, areas)
        )
    return [(int(height), int(width)) for height, width in canvases]


def one_canvas(sizes: np.ndarray, multiple: int = 32) -> Size:
    """The smallest canvas that holds every image: sizes int (n, axes), n > 0."""
    return tuple(round_up(int(side), multiple) for side in sizes.max(axis=0))


def training_canvas(config: Config, sizes: np.ndarray) -> Size:
    """Returns the canvas of training: the setting, or the smallest that holds every image.

    Training reads patches of volumes that are larger than `PATCHES_ON_CANVAS` patches along an
    axis: a window of that size.
    """
    if config.data.ndim == 2:
        return config.data.canvas_px or one_canvas(sizes)
    assert config.volumes.patch is not None
    return tuple(
        min(side, PATCHES_ON_CANVAS * patch_side)
        for side, patch_side in zip(one_canvas(sizes, 1), config.volumes.patch, strict=True)
    )


def empty_share(sizes: np.ndarray, buckets: Sequence[Bucket]) -> float:
    """Returns the share of the canvases' pixels that are padding."""
    total = sum(bucket.area_px * len(bucket.images) for bucket in buckets)
    return 1 - float(np.prod(np.asarray(sizes, np.int64), axis=1).sum()) / total


def _distinct(sizes: np.ndarray, multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct sizes with their counts, rounded up until there are few enough to compare pairs."""
    while True:
        rounded = round_up(np.asarray(sizes, np.int64), multiple)
        canvases, counts = np.unique(rounded, axis=0, return_counts=True)
        if len(canvases) <= 256:
            return canvases, counts.astype(np.int64)
        multiple *= 2
