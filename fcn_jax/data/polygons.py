"""Shapes of annotation tools drawn into label maps: polygons, circles, run lengths.

A pixel belongs to a shape if its centre, at column + 0.5 and row + 0.5, is inside. A centre exactly
on an edge belongs to the shape on its right or below, so shapes that share an edge neither overlap
nor leave a gap, and a rectangle of whole numbers w × h covers w·h pixels. (Pillow's polygons drop
the fractions of coordinates and include both edges, which enlarges every shape.)
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fcn_jax.config.sections import MAX_SIDE_PX

Point = tuple[float, float]

MIN_POINTS = 3
"""Points of a polygon."""

MAX_RUN_DIGITS = 7
"""Digits of 5 bits of a number in COCO's compressed run lengths; more would exceed 32 bits."""


@dataclasses.dataclass(frozen=True)
class Polygon:
    """The inside of a closed line of straight edges, by the even-odd rule.

    points: (x, y) in pixels from the upper left corner of the image, float64 (n, 2).
    """

    points: np.ndarray

    def draw(self, label: np.ndarray, value: int) -> None:
        """Sets the pixels of the polygon in a label map, uint8 (h, w), to `value`."""
        left, right = _first_centre(self.points[:, 0], label.shape[1])
        top, bottom = _first_centre(self.points[:, 1], label.shape[0])
        # Number of edges that cross each row to the left of each pixel's centre.
        crossed = np.zeros((bottom - top, right - left + 1), np.int32)
        ends = np.stack([self.points, np.roll(self.points, -1, axis=0)], axis=1).tolist()
        for (x0, y0), (x1, y1) in (sorted(edge, key=lambda point: point[1]) for edge in ends):
            rows = np.arange(max(math.ceil(y0 - 0.5), top), min(math.ceil(y1 - 0.5), bottom))
            if not rows.size:
                continue
            x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            columns = np.clip(np.ceil(x - 0.5), left, right).astype(int) - left
            crossed[rows - top, columns] += 1
        inside = np.cumsum(crossed, axis=1)[:, :-1] % 2 == 1
        label[top:bottom, left:right][inside] = value


@dataclasses.dataclass(frozen=True)
class Circle:
    """A disc. centre: (x, y); radius: in pixels."""

    centre: Point
    radius: float

    def draw(self, label: np.ndarray, value: int) -> None:
        """Sets the pixels of the disc in a label map, uint8 (h, w), to `value`."""
        (x, y), (height, width) = self.centre, label.shape
        left, right = _first_centre(np.array([x - self.radius, x + self.radius + 1]), width)
        top, bottom = _first_centre(np.array([y - self.radius, y + self.radius + 1]), height)
        rows, columns = np.ogrid[top:bottom, left:right]
        inside = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= self.radius**2
        label[top:bottom, left:right][inside] = value


@dataclasses.dataclass(frozen=True)
class RunLengths:
    """A mask in COCO's run lengths.

    counts: lengths of the runs of pixels outside, inside, outside, …, down the columns.
    size: height and width of the mask, in pixels.
    """

    counts: tuple[int, ...]
    size: tuple[int, int]

    def draw(self, label: np.ndarray, value: int) -> None:
        """Sets the pixels of the mask in a label map, uint8 (h, w), to `value`.

        Raises:
          ValueError: the label map has another size.
        """
        if self.size != label.shape:
            raise ValueError(f"run lengths of {self.size} in a label map of {label.shape}")
        inside = np.repeat(np.arange(len(self.counts)) % 2 == 1, self.counts)
        label[inside.reshape(self.size[::-1]).T] = value


Shape = Polygon | Circle | RunLengths


def draw_shapes(shapes: Iterable[tuple[Shape, int]], size: tuple[int, int]) -> np.ndarray:
    """Draws shapes in their order, each over those before it.

    Args:
      shapes: each with its label.
      size: height and width of the label map.

    Returns:
      The label map, uint8 (h, w), 0 outside of all shapes.
    """
    label = np.zeros(size, np.uint8)
    for shape, value in shapes:
        shape.draw(label, value)
    return label


def read_points(values: Any) -> list[Point]:
    """Checks points [[x, y], …] from a file.

    Raises:
      ValueError: they are no such list, or a coordinate is not finite or beyond ±`MAX_SIDE_PX`.
    """
    if not isinstance(values, list):
        raise ValueError("there are no points")
    points = []
    for point in values:
        if not isinstance(point, list) or len(point) != 2:
            raise ValueError(f"{str(point)[:40]} is not a point [x, y]")
        points.append((_coordinate(point[0]), _coordinate(point[1])))
    return points


def polygon(points: Sequence[Point]) -> Polygon:
    """Returns a polygon.

    Raises:
      ValueError: there are fewer than 3 points.
    """
    if len(points) < MIN_POINTS:
        raise ValueError(f"a polygon of {len(points)} points, which has no area")
    return Polygon(np.array(points, np.float64))


def rectangle(corner: Point, opposite: Point) -> Polygon:
    """Returns the rectangle between two opposite corners, in any order."""
    (x0, y0), (x1, y1) = corner, opposite
    return Polygon(np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64))


def run_lengths(counts: Any, size: Any) -> RunLengths:
    """Returns the mask of COCO's run lengths, plain or compressed.

    Args:
      counts: a list of lengths, or a string (`rleToString` of pycocotools): differences from the
        length two runs before, in digits of 5 bits, the lowest first, plus 32 if another follows.
      size: [height, width].

    Raises:
      ValueError: the lengths do not fill a mask of this size.
    """
    if (
        not isinstance(size, list)
        or len(size) != 2
        or not all(type(side) is int and 0 < side <= MAX_SIDE_PX for side in size)
    ):
        raise ValueError(f"the size of its run lengths is {str(size)[:40]}, not [height, width]")
    lengths = _decompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(type(n) is int and n >= 0 for n in lengths):
        raise ValueError("its run lengths are not whole numbers from 0")
    if sum(lengths) != size[0] * size[1]:
        raise ValueError(
            f"its run lengths have {sum(lengths)} pixels in all, not {size[0]} × {size[1]}"
        )
    return RunLengths(tuple(lengths), (size[0], size[1]))


def _decompressed(text: str) -> list[int]:
    lengths: list[int] = []
    value = digits = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or digits == MAX_RUN_DIGITS:
            raise ValueError("its compressed run lengths are damaged")
        value |= (code & 31) << (5 * digits)
        digits += 1
        if code & 32:
            continue
        if code & 16:  # the sign
            value -= 1 << (5 * digits)
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = digits = 0
    if digits:
        raise ValueError("its compressed run lengths are damaged")
    return lengths


def _coordinate(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{str(value)[:40]!r} is not a coordinate")
    if not -MAX_SIDE_PX <= value <= MAX_SIDE_PX:  # not a number is not
        raise ValueError(
            f"a coordinate of {str(value)[:40]}, which is not between ±{MAX_SIDE_PX} pixels"
        )
    return float(value)


def _first_centre(coordinates: np.ndarray, side: int) -> tuple[int, int]:
    """Returns the pixels whose centres are in the range of coordinates, as (first, last + 1)."""
    first, end = np.clip(np.ceil([coordinates.min() - 0.5, coordinates.max() - 0.5]), 0, side)
    return int(first), int(end)
