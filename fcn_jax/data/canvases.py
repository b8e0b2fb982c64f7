"""Which canvases the images of a split are scored on: few shapes, little of them empty.

Every shape is a compilation, and what a canvas holds beside its image is computed in vain. A split
gets a few canvases, chosen from the sizes of its images, and every image the smallest that holds
it. The network's answer does not depend on the canvas, only its speed (`models/feature_map.py`).
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

Number = TypeVar("Number", int, np.ndarray)

Size = tuple[int, int]
"""Height and width."""

WORTH_A_COMPILATION = 0.05
"""The share of all pixels that a further canvas must spare."""


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A canvas, height and width, and the images that are put on it, by index.

    label_canvas_px: of labels that are scored at another size than their image is seen at.
    """

    canvas_px: Size
    images: tuple[int, ...]
    label_canvas_px: Size | None = None

    @property
    def area_px(self) -> int:
        return self.canvas_px[0] * self.canvas_px[1]


def round_up(value: Number, multiple: int) -> Number:
    """To the next multiple; an integer, or integers in an array."""
    return -(-value // multiple) * multiple


def smallest_first(canvases: Iterable[Size]) -> list[Size]:
    """By their areas: the first that holds an image is then the smallest that does."""
    return sorted(canvases, key=lambda canvas: (canvas[0] * canvas[1], canvas))


def fill_buckets(
    sizes: np.ndarray,
    *,
    most: int,
    batch_size: int = 1,
    multiple: int = 32,
    label_sizes: np.ndarray | None = None,
) -> list[Bucket]:
    """Spreads images over at most `most` canvases; none is left empty, the smallest comes first.

    What does not fill a batch goes to places of a larger canvas's last batch that would stay empty.

    Args:
        sizes: heights and widths, int (n, 2), n > 0.
        most: canvases, at least 1.
        batch_size: images that are run at once, on canvases of one shape.
        multiple: of which the sides of canvases are made.
        label_sizes: of the images' labels where they differ, int (n, 2).
    """
    sizes = np.asarray(sizes, np.int64)
    canvases = smallest_first(choose_canvases(sizes, most=most, multiple=multiple))
    holds = np.all(sizes[:, None] <= np.asarray(canvases), axis=-1)
    choice = holds.argmax(axis=1)
    held = [np.flatnonzero(choice == place).tolist() for place in range(len(canvases))]
    for place, (height, width) in enumerate(canvases):
        left = len(held[place]) % batch_size
        if not left:
            continue
        for larger in range(place + 1, len(canvases)):
            above, beside = canvases[larger]
            free = -len(held[larger]) % batch_size
            if height <= above and width <= beside and left <= free:
                held[larger] = sorted(held[larger] + held[place][-left:])
                del held[place][-left:]
                break
    buckets = [
        Bucket(canvas, tuple(images))
        for canvas, images in zip(canvases, held, strict=True)
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


def choose_canvases(sizes: np.ndarray, *, most: int, multiple: int = 32) -> list[Size]:
    """Heights and widths of at most `most` canvases, one of which holds each image.

    Begins with a canvas for each size, and makes one of the two that this enlarges the least, until
    few enough are left and each of them spares `WORTH_A_COMPILATION`.

    Args:
        sizes, most, multiple: as of `fill_buckets`.
    """
    canvases, counts = _distinct(sizes, multiple)
    areas = canvases.prod(axis=1) * counts
    while len(canvases) > 1:
        together = np.maximum(canvases[:, None], canvases)
        growth = together.prod(axis=-1) * (counts[:, None] + counts) - areas[:, None] - areas
        growth[np.tril_indices(len(canvases))] = np.iinfo(np.int64).max
        one, other = np.unravel_index(growth.argmin(), growth.shape)
        if len(canvases) <= most and growth[one, other] > WORTH_A_COMPILATION * areas.sum():
            break
        canvases[one] = together[one, other]
        counts[one] += counts[other]
        areas[one] = canvases[one].prod() * counts[one]
        canvases, counts, areas = (
            np.delete(values, other, axis=0) for values in (canvases, counts, areas)
        )
    return [(int(height), int(width)) for height, width in canvases]


def one_canvas(sizes: np.ndarray, multiple: int = 32) -> Size:
    """The smallest canvas that holds every image: sizes int (n, 2), n > 0."""
    height, width = (round_up(int(side), multiple) for side in sizes.max(axis=0))
    return height, width


def empty_share(sizes: np.ndarray, buckets: Sequence[Bucket]) -> float:
    """The share of the canvases' pixels that are no image's."""
    total = sum(bucket.area_px * len(bucket.images) for bucket in buckets)
    return 1 - float(np.prod(np.asarray(sizes, np.int64), axis=1).sum()) / total


def _distinct(sizes: np.ndarray, multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """The different sizes, rounded up until they are few enough to compare in pairs."""
    while True:
        rounded = round_up(np.asarray(sizes, np.int64), multiple)
        canvases, counts = np.unique(rounded, axis=0, return_counts=True)
        if len(canvases) <= 256:
            return canvases, counts.astype(np.int64)
        multiple *= 2
