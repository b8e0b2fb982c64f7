"""Where features lie: how many windows fit, which pixel each is centred on, how to come back.

A layer that looks at neighbours does so through a *window*: a kernel or a pooling, `window`
positions wide, moved by `stride`, over an image padded by `padding` positions before and after.
"""

import dataclasses
from typing import Self, TypeVar

import jax
import jax.numpy as jnp

Size = TypeVar("Size", int, jax.Array)
Padding = int | tuple[int, int]
"""Positions added (before, after), or as many on both sides."""


def both_sides(padding: Padding) -> tuple[int, int]:
    return (padding, padding) if isinstance(padding, int) else padding


def window_count(
    size: Size, window: int, stride: int = 1, padding: Padding = 0, *, ceil: bool = False
) -> Size:
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
