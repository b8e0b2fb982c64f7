"""Geometry of feature maps: output sizes, centres of positions, receptive fields, upsampling.

A layer that reads neighbouring positions does so through a *window*: the kernel of a convolution or
of a pooling, `window` positions wide. It moves by `stride` over an input that is padded by
`padding` positions before and after.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Self, TypeVar

import jax
import jax.numpy as jnp

AxisSize = TypeVar("AxisSize", int, jax.Array)
Padding = int | tuple[int, int]
"""The positions that are added (before, after), or one number for both sides."""


def both_sides(padding: Padding) -> tuple[int, int]:
    """Returns a padding as (before, after)."""
    return (padding, padding) if isinstance(padding, int) else padding


def window_count(
    size: AxisSize, window: int, stride: int = 1, padding: Padding = 0, *, ceil: bool = False
) -> AxisSize:
    """Computes the output size of a layer: the number of windows on one axis.

    Args:
        size: the number of input positions, an int or an int array.
        window: the extent of the window in positions, the gaps of a dilated kernel included.
        stride: positions between the starts of two windows.
        padding: positions added before and after the input.
        ceil: whether the last window may reach beyond the padded input, if it begins within the
            input or the padding before it (the ceil mode of Caffe and PyTorch).

    Returns:
        The number of windows, in the type of `size`.
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
    """The window of a layer on one axis.

    Attributes:
        size: the extent in positions, the gaps of a dilated kernel included.
        stride, padding, ceil: see `window_count`.
    """

    size: int
    stride: int = 1
    padding: Padding = 0
    ceil: bool = False

    def count(self, size: AxisSize) -> AxisSize:
        """Computes the number of windows on `size` positions."""
        return window_count(size, self.size, self.stride, self.padding, ceil=self.ceil)


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """The pixels that the positions of a feature map depend on.

    Position i depends on the pixels stride·i + first … stride·i + last. The bounds hold on every
    axis; they are those of the axis with the widest windows.

    Attributes:
        stride: pixels from one position to the next.
        first, last: bounds in pixels, relative to stride·i; infinite if a position depends on the
            whole image or the dependence is unknown.
        alignment: in pixels. If the image moves by a multiple of it, this map and every map before
            it move by whole positions.
    """

    stride: int = 1
    first: float = 0
    last: float = 0
    alignment: int = 1

    @property
    def is_bounded(self) -> bool:
        return math.isfinite(self.first) and math.isfinite(self.last)

    def unbounded(self) -> Self:
        """Returns the receptive field of a map whose positions depend on the whole image."""
        return dataclasses.replace(self, first=-math.inf, last=math.inf)

    def through(self, windows: Sequence[Window]) -> Self:
        """Returns the receptive field after a layer with these windows, one for each axis.

        Position i of the result depends on the positions stride·i − before … stride·i − before +
        size − 1 of this map. The stride is the same on all axes.
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
        """Returns the receptive field of a map that combines two maps position by position."""
        joined = dataclasses.replace(
            self,
            first=min(self.first, other.first),
            last=max(self.last, other.last),
            alignment=math.lcm(self.alignment, other.alignment),
        )
        return joined if self.stride == other.stride else joined.unbounded()

    def scattered(self, fine_stride: int, filter_size: int, factor: int, crop: int) -> Self:
        """Returns the receptive field after a transposed convolution to a map of `fine_stride`.

        Output j depends on the positions i with 0 ≤ j + crop − factor·i < filter_size. The first
        of them is not below (j + crop − filter_size + 1) / factor, and the last is not above
        (j + crop) / factor.

        Args:
            fine_stride: stride of the result, in pixels.
            filter_size, factor, crop: `filter_size`, `stride` and `crop` of `Upsample`.
        """
        scattered = dataclasses.replace(
            self,
            stride=fine_stride,
            first=self.first + fine_stride * (crop - filter_size + 1),
            last=self.last + fine_stride * crop,
        )
        return scattered if self.stride == factor * fine_stride else scattered.unbounded()

    def interpolated(self, fine_stride: int, sizes: Sequence[tuple[int, int]]) -> Self:
        """Returns the receptive field after an interpolation (`Interpolate`) to `fine_stride`.

        Output j of N is interpolated at position (j + ½)·n/N − ½ of n. With f, the ratio of the
        strides, this is (j + ½)/f − ½ plus a drift, which grows from 0 at the first output to the
        excess n − N/f at the last. Since n grows by one each time that N grows by f, the excess
        differs by less than 1 between any two images.

        Args:
            fine_stride: stride of the result, in pixels.
            sizes: (n, N) on each axis, for an image of any size.
        """
        factor = self.stride / fine_stride
        excess = [size - output_size / factor for size, output_size in sizes]
        backwards, forwards = min(0, min(excess) - 1), max(0, max(excess) + 1)
        # The two positions that are interpolated are less than 1 below and above this point.
        first = self.first + fine_stride / 2 + self.stride * (backwards - 1.5)
        last = self.last + fine_stride / 2 + self.stride * (forwards + 0.5)
        if self.is_bounded:
            first, last = math.floor(first), math.ceil(last)
        return dataclasses.replace(self, stride=fine_stride, first=first, last=last)


@dataclasses.dataclass(frozen=True)
class Grid:
    """The centres of a feature map's positions: position i is centred on pixel stride·i + offset.

    Pixel 0 is the centre of the first pixel, so that an offset of 0.5 is between two pixels.
    """

    stride: int = 1
    offset: float = 0.0

    def after(self, window: int, stride: int = 1, padding: Padding | None = None) -> Self:
        """Returns the grid after a layer.

        Args:
            window, stride: see `window_count`.
            padding: see `window_count`; None for (window − 1)/2 on both sides.
        """
        before = (window - 1) / 2 if padding is None else both_sides(padding)[0]
        shift = (window - 1) / 2 - before
        return dataclasses.replace(
            self, stride=self.stride * stride, offset=self.offset + self.stride * shift
        )


PIXELS = Grid()
"""The grid of the image itself."""


def upsampling_geometry(factor: int, offset: float) -> tuple[int, int]:
    """Computes the bilinear upsampling that centres coarse position i on output factor·i + offset.

    A filter of even size 2·factor is centred between two outputs, and a filter of odd size
    2·factor − 1 is centred on an output. The offset, rounded to the nearest half, decides which
    is used. The paper's networks follow the same rule: their kernel at stride 32 is 64 for VGG16,
    whose 2×2 poolings centre positions between pixels, and 63 for AlexNet, whose odd windows
    centre them on pixels. With their padding of 100 the rule also gives the paper's crops, 19
    and 18.

    Args:
        factor: outputs per coarse position.
        offset: the output on which coarse position 0 is centred.

    Returns:
        The filter size and the crop (see `upsampling.conv_transpose`). The crop is negative if the
        first outputs are out of reach of the first position.
    """
    doubled = round(2 * offset)
    filter_size = 2 * factor if doubled % 2 else 2 * factor - 1
    centre = (filter_size - 1) / 2
    return filter_size, int(centre - doubled / 2)
