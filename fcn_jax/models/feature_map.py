"""What goes from layer to layer: features, and what is known of where they lie.

Arrays are channels-last: (b, h, w, c), or (b, d, h, w, c) for volumes.

Images of different sizes share one array, the *canvas*, each at its top left. A `FeatureMap`
carries how much of each canvas is image (`valid`), and every layer that looks at neighbours first
replaces what lies outside by what it would see beyond the border of the image alone: zero, or −∞
for pooling. So the features of an image do not depend on the canvas that it lies on.

It also carries, from layer to layer, which pixels its positions depend on (`field`); of a canvas
cut out of a larger image, where it lies there (`tile`), for the few layers whose result depends on
that.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax

from fcn_jax.models.geometry import ReceptiveField, Window


class TilePosition(NamedTuple):
    """Where canvases lie in larger images. start, whole: int32 (b, len(spatial)), in positions.

    In pixels, start is a multiple of the receptive field's alignment.
    """

    start: jax.Array
    whole: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """Features, and how much of each canvas is image.

    values: (b, *spatial, c). valid: int32 (b, len(spatial)), or None where all of it is image.
    tile: of canvases cut out of larger images. field: of the positions, known without values.
    """

    values: jax.Array
    valid: jax.Array | None = None
    tile: TilePosition | None = None
    field: ReceptiveField = dataclasses.field(
        default=ReceptiveField(), metadata={"static": True}, kw_only=True
    )

    @property
    def spatial(self) -> tuple[int, ...]:
        return self.values.shape[1:-1]

    def map(self, function: Callable[[jax.Array], jax.Array]) -> Self:
        """Applies a function that treats every position alone, such as an activation."""
        return dataclasses.replace(self, values=function(self.values))

    def inside(self) -> jax.Array | None:
        """True where the canvas is image: bool (b, *spatial, 1); None where all of it is."""
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
        """The values with those outside the image replaced."""
        mask = self.inside()
        if mask is None:
            return self.values
        return jnp.where(mask, self.values, jnp.asarray(outside, self.values.dtype))

    def windowed(self, values: jax.Array, windows: Sequence[Window]) -> Self:
        """A feature map of new values, made by a layer with such a window on each axis."""
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


def scaled(x: FeatureMap, factor: float) -> FeatureMap:
    return x.map(lambda values: values * factor)


def add(x: FeatureMap, y: FeatureMap) -> FeatureMap:
    return _joined(x, y, x.values + y.values)


def multiply(x: FeatureMap, y: FeatureMap) -> FeatureMap:
    return _joined(x, y, x.values * y.values)


def concatenate(x: FeatureMap, y: FeatureMap) -> FeatureMap:
    return _joined(x, y, jnp.concatenate([x.values, y.values], axis=-1))


def _joined(x: FeatureMap, y: FeatureMap, values: jax.Array) -> FeatureMap:
    return dataclasses.replace(x, values=values, field=x.field.joined(y.field))
