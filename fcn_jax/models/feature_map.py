"""The input and output of layers: feature values, with the size and position of each image.

Arrays are channels-last: (b, h, w, c), or (b, d, h, w, c) for volumes.

Images of different sizes are batched on *canvases* of one size, each image at the top left of its
canvas. A `FeatureMap` carries the size of each image (`valid`). Every layer that reads neighbouring
positions first replaces the values outside the image by the padding that the image alone would
have: zero, or −∞ for max pooling. The features of an image therefore do not depend on the canvas.

A feature map also carries the receptive field of its positions (`field`). If the canvases were cut
out of larger images, it carries their place there (`tile`), for the few layers whose result depends
on it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax

from fcn_jax.models.geometry import ReceptiveField, Window
from fcn_jax.models.recorded import recorded


class TilePosition(NamedTuple):
    """The place of each canvas in the larger image that it was cut out of, in positions.

    Attributes:
        start: first position of the canvas in the larger image, int32 (b, len(spatial)). In pixels
            it is a multiple of the receptive field's alignment.
        whole: size of the larger image, int32 (b, len(spatial)).
    """

    start: jax.Array
    whole: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """Features on canvases, with the size of the image on each canvas.

    Attributes:
        values: features, (b, *spatial, c).
        valid: size of each image in positions, int32 (b, len(spatial)); None if the images fill
            their canvases.
        tile: the place of the canvases in larger images; None if they are whole images.
        field: receptive field of the positions; static, so known while tracing.
    """

    values: jax.Array
    valid: jax.Array | None = None
    tile: TilePosition | None = None
    field: ReceptiveField = dataclasses.field(
        default=ReceptiveField(), metadata={"static": True}, kw_only=True
    )

    @property
    def spatial(self) -> tuple[int, ...]:
        """The size of the canvases in positions."""
        return self.values.shape[1:-1]

    @recorded
    def map(self, function: Callable[[jax.Array], jax.Array]) -> Self:
        """Applies a function of single positions, such as an activation, to the values."""
        return dataclasses.replace(self, values=function(self.values))

    def inside(self) -> jax.Array | None:
        """Returns the mask of the images, bool (b, *spatial, 1); None if they fill the canvases."""
        if self.valid is None:
            return None
        mask = jnp.ones((1,) * self.values.ndim, bool)
        for axis, size in enumerate(self.spatial):
            position = lax.broadcasted_iota(jnp.int32, (1, size), 1)
            along_axis = position < self.valid[:, axis, None]
            shape = [self.values.shape[0]] + [1] * (self.values.ndim - 1)
            shape[axis + 1] = size
            mask = mask & along_axis.reshape(shape)
        return mask

    def filled(self, outside: float = 0.0) -> jax.Array:
        """Returns the values, (b, *spatial, c), with `outside` wherever there is no image."""
        mask = self.inside()
        if mask is None:
            return self.values
        return jnp.where(mask, self.values, jnp.asarray(outside, self.values.dtype))

    def windowed(self, values: jax.Array, windows: Sequence[Window]) -> Self:
        """Returns the output of a layer, with the sizes, places and receptive field updated.

        Args:
            values: the layer's output, (b, *new spatial, c).
            windows: the layer's window on each axis.
        """
        valid, tile = self.valid, self.tile
        if valid is not None:
            valid = jnp.maximum(_counts(valid, windows), 0)
        if tile is not None:
            strides = jnp.asarray([window.stride for window in windows], jnp.int32)
            tile = TilePosition(tile.start // strides, _counts(tile.whole, windows))
        field = self.field.through(windows)
        return dataclasses.replace(self, values=values, valid=valid, tile=tile, field=field)


def _counts(sizes: jax.Array, windows: Sequence[Window]) -> jax.Array:
    return jnp.stack([window.count(sizes[:, axis]) for axis, window in enumerate(windows)], axis=1)


@recorded
def scaled(x: FeatureMap, factor: float) -> FeatureMap:
    """Multiplies the values by a factor."""
    return x.map(lambda values: values * factor)


@recorded
def add(x: FeatureMap, y: FeatureMap) -> FeatureMap:
    """Adds two feature maps of the same images and size."""
    return _joined(x, y, x.values + y.values)


@recorded
def multiply(x: FeatureMap, y: FeatureMap) -> FeatureMap:
    """Multiplies two feature maps of the same images; the second may have one position."""
    return _joined(x, y, _product(x.values, y.values))


@functools.partial(jax.checkpoint, prevent_cse=False)  # stores no float32 copies
def _product(values: jax.Array, factors: jax.Array) -> jax.Array:
    # In float32, since the gradient of a factor of all positions is their sum.
    return (values.astype(jnp.float32) * factors).astype(values.dtype)


@recorded
def concatenate(x: FeatureMap, y: FeatureMap) -> FeatureMap:
    """Concatenates the channels of two feature maps of the same images and size."""
    return _joined(x, y, jnp.concatenate([x.values, y.values], axis=-1))


def _joined(x: FeatureMap, y: FeatureMap, values: jax.Array) -> FeatureMap:
    return dataclasses.replace(x, values=values, field=x.field.joined(y.field))
