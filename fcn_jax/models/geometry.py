"""Where features lie: how many windows fit, where each is centred, what it sees, how to come back.

A layer that looks at neighbours does so through a *window*: a kernel or a pooling, `window`
positions wide, moved by `stride`, over an image padded by `padding` positions before and after.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Self, TypeVar

import jax
import jax.numpy as jnp

AxisSize = TypeVar("AxisSize", int, jax.Array)
Padding = int | tuple[int, int]
"""Positions added (before, after), or as many on both sides."""


def both_sides(padding: Padding) -> tuple[int, int]:
    return (padding, padding) if isinstance(padding, int) else padding


def window_count(
    size: AxisSize, window: int, stride: int = 1, padding: Padding = 0, *, ceil: bool = False
) -> AxisSize:
    """How many windows fit on `size` positions: the size of what a layer makes of them.

    With `ceil` a last window may hang over the far border, if it begins within the image or the
    padding before it: 'ceil mode' in Caffe and PyTorch.
    """
    before, after = both_sides(padding)
    span = size + before + after - window
    if not ceil:
        return span // stride + 1
    count = -(-span // stride) + 1
    overhangs = (count - 1) * stride >= size + before
    if isinstance(count, int):
        return count - bool(overhangs)
    return count - jnp.asarray(overhangs, count.dtype)


@dataclasses.dataclass(frozen=True)
class Window:
    """What a layer looks through on one axis. size: from end to end, a dilated kernel's holes too.

    stride, padding, ceil: see `window_count`.
    """

    size: int
    stride: int = 1
    padding: Padding = 0
    ceil: bool = False

    def count(self, size: AxisSize) -> AxisSize:
        """How many fit on so many positions."""
        return window_count(size, self.size, self.stride, self.padding, ceil=self.ceil)


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """Which pixels a feature map is made of: position i of stride·i + first … stride·i + last.

    Of the same pixels on every axis: where windows are wider on one, those of the widest.

    first, last: infinite where a position depends on the whole image, or on no one knows what.
    alignment: an image moved by a multiple of so many pixels moves every map that led here by
        whole positions.
    """

    stride: int = 1
    first: float = 0
    last: float = 0
    alignment: int = 1

    @property
    def is_bounded(self) -> bool:
        return math.isfinite(self.first) and math.isfinite(self.last)

    def unbounded(self) -> Self:
        return dataclasses.replace(self, first=-math.inf, last=math.inf)

    def through(self, windows: Sequence[Window]) -> Self:
        """Behind a layer with such a window on each axis, of one stride on all.

        Position i sees positions stride·i − before … stride·i − before + size − 1 of this map.
        """
        before = [both_sides(window.padding)[0] for window in windows]
        beyond = [window.size - 1 - pad for window, pad in zip(windows, before, strict=True)]
        stride = self.stride * windows[0].stride
        return dataclasses.replace(
            self,
            stride=stride,
            first=self.first - self.stride * max(before),
            last=self.last + self.stride * max(beyond),
            alignment=math.lcm(self.alignment, stride),
        )

    def joined(self, other: Self) -> Self:
        """Of a map made of this one and another, position by position."""
        joined = dataclasses.replace(
            self,
            first=min(self.first, other.first),
            last=max(self.last, other.last),
            alignment=math.lcm(self.alignment, other.alignment),
        )
        return joined if self.stride == other.stride else joined.unbounded()

    def scattered(self, fine_stride: int, filter_size: int, factor: int, crop: int) -> Self:
        """Behind a transposed convolution, to a map of `fine_stride`.

        Output j is made of the positions i with 0 ≤ j + crop − factor·i < filter_size, of which
        the first lies at (j + crop − filter_size + 1) / factor and the last at (j + crop) / factor.
        """
        scattered = dataclasses.replace(
            self,
            stride=fine_stride,
            first=self.first + fine_stride * (crop - filter_size + 1),
            last=self.last + fine_stride * crop,
        )
        return scattered if self.stride == factor * fine_stride else scattered.unbounded()

    def interpolated(self, fine_stride: int, sizes: Sequence[tuple[int, int]]) -> Self:
        """Behind an interpolation by the ratio of sizes, to a map of `fine_stride`.

        Output j lies at position (j + ½)·n/N − ½ between two of the n. With the factor f of the
        strides that is (j + ½)/f − ½ and a drift from 0 at the first output to n − N/f at the last.
        As n grows by one where N grows by f, that excess differs by less than 1 between any two
        images.

        sizes: (n, N) on each axis, of any image.
        """
        factor = self.stride / fine_stride
        excess = [size - output_size / factor for size, output_size in sizes]
        backwards, forwards = min(0, min(excess) - 1), max(0, max(excess) + 1)
        # From the position below that place to the one above.
        first = self.first + fine_stride / 2 + self.stride * (backwards - 1.5)
        last = self.last + fine_stride / 2 + self.stride * (forwards + 0.5)
        if self.is_bounded:
            first, last = math.floor(first), math.ceil(last)
        return dataclasses.replace(self, stride=fine_stride, first=first, last=last)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where the positions of a feature map lie: position i is centred on pixel stride·i + offset.

    Pixels are counted from the centre of the first one.
    """

    stride: int = 1
    offset: float = 0.0

    def after(self, window: int, stride: int = 1, padding: Padding | None = None) -> Self:
        """The grid behind a layer; without `padding` it pads (window − 1)/2 on both sides."""
        before = (window - 1) / 2 if padding is None else both_sides(padding)[0]
        shift = (window - 1) / 2 - before
        return dataclasses.replace(
            self, stride=self.stride * stride, offset=self.offset + self.stride * shift
        )


PIXELS = Grid()
"""The image itself."""


def upsampling_geometry(factor: int, offset: float) -> tuple[int, int]:
    """Bilinear filter size, and crop, that put coarse position i at factor·i + offset.

    A filter of even size 2·factor is centred between two outputs, one of odd size 2·factor − 1 on
    an output; the offset, to the nearest half, decides. The paper's nets follow the same rule:
    kernel 64 at stride 32 for VGG16, whose poolings of 2 put positions between pixels, and 63 for
    AlexNet, whose odd windows put them on pixels; and with their padding of 100 its crops, 19 and
    18, come out. A negative crop leaves room before the first position's reach.
    """
    doubled = round(2 * offset)
    filter_size = 2 * factor if doubled % 2 else 2 * factor - 1
    centre = (filter_size - 1) / 2
    return filter_size, int(centre - doubled / 2)
