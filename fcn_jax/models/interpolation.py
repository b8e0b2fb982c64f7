"""Linear interpolation to any size: of scores inside a head, and of scores that are looked at.

Arrays are channels-last: (b, *spatial, c).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.row_blocks import BlockLayout, RowBlocks, in_blocks, rows_in_block
from fcn_jax.models.upsampling import EXACT


class Interpolate(nnx.Module):
    """Linear interpolation to exactly the size of the image, the border positions repeated.

    Blocks of pixels need not be whole numbers wide: PyTorch's `interpolate(size=…,
    align_corners=False)`, as in torchvision's and mmsegmentation's heads.
    """

    def __call__(self, x: FeatureMap, like: FeatureMap) -> FeatureMap:
        """(b, *spatial, c) to the spatial size, and the valid part, of `like`."""
        sizes_by_axis = list(zip(x.spatial, like.spatial, strict=True))
        field = x.field.interpolated(like.field.stride, sizes_by_axis)
        return dataclasses.replace(like, values=self.in_blocks(x, like).whole(), field=field)

    def in_blocks(self, x: FeatureMap, like: FeatureMap) -> RowBlocks:
        """The values of the result, in blocks of rows of one image each."""
        values = x.filled()
        batch, *_, features = values.shape
        letters = "xyz"[: len(x.spatial)]
        for axis, letter in enumerate(letters[:-1]):
            weights = _weights(x, like, axis).astype(values.dtype)
            result = letters.replace(letter, "o")
            values = jnp.einsum(
                f"bo{letter},b{letters}c->b{result}c", weights, values, precision=EXACT
            )
        # The last axis, on which the result becomes large, in blocks.
        height, *others = like.spatial
        rows = rows_in_block(4 * math.prod(others) * features, height)
        blocks_of_image = -(-height // rows)
        padded = (blocks_of_image * rows, *others)
        layout = BlockLayout(batch, like.spatial, (0,) * len(padded), padded, rows)
        missing = [(0, 0), (0, padded[0] - height)] + [(0, 0)] * (values.ndim - 2)
        values = in_blocks(jnp.pad(values, missing), rows)
        weights = _weights(x, like, len(letters) - 1).astype(values.dtype)

        def make(_: None, rows: jax.Array, weights: jax.Array) -> jax.Array:
            return jnp.einsum("oz,...zc->...oc", weights, rows, precision=EXACT)

        return RowBlocks(make, None, values, jnp.repeat(weights, blocks_of_image, axis=0), layout)


def _weights(x: FeatureMap, like: FeatureMap, axis: int) -> jax.Array:
    """Of each image, from the positions of `x` to those of `like`: float32 (b, m, n)."""
    size, output_size = x.spatial[axis], like.spatial[axis]
    sizes, output_sizes = jnp.asarray([size]), jnp.asarray([output_size])
    start, output_start = jnp.asarray([0]), jnp.asarray([0])
    if x.tile is not None and like.tile is not None:
        sizes, output_sizes = x.tile.whole[:, axis], like.tile.whole[:, axis]
        start, output_start = x.tile.start[:, axis], like.tile.start[:, axis]
    elif x.valid is not None and like.valid is not None:
        sizes, output_sizes = x.valid[:, axis], like.valid[:, axis]
    position = start[:, None] + jnp.arange(size)
    output = output_start[:, None] + jnp.arange(output_size)
    weights = interpolation_weights(sizes, output_sizes, position, output)
    return jnp.broadcast_to(weights, (len(x.values), *weights.shape[1:]))


def interpolation_weights(
    sizes: jax.Array, output_sizes: jax.Array, position: jax.Array, output: jax.Array
) -> jax.Array:
    """How much of each position goes to each output, on one axis of canvases.

    Args:
        sizes, output_sizes: int (b,), of the whole image before and after.
        position, output: int (b, n) and (b, m), those on the canvases, counted in the whole image.

    Returns:
        float32 (b, m, n), each row with the sum 1 if what it is made of lies on the canvas.
    """
    lower, upper, share = (
        part[..., None] for part in interpolation_places(sizes, output_sizes, output)
    )
    at = position[:, None, :]
    return jnp.where(at == lower, 1 - share, 0) + jnp.where(at == upper, share, 0)


def resized(
    values: jax.Array, size: jax.Array, new_size: jax.Array, canvas_px: tuple[int, int]
) -> jax.Array:
    """Images brought to other sizes, to be looked at: float32 (b, *canvas_px, c).

    As `Interpolate`, but looked up instead of a product with `interpolation_weights`: on a CPU 40
    times as fast where there are no gradients.

    Args:
        values: (b, h, w, c).
        size, new_size: how much of the canvases is image before and after, int (b, 2), or (1, 2) of
            all.
        canvas_px: height and width of the new ones.
    """
    values = values.astype(jnp.float32)
    for axis, side in enumerate(canvas_px):
        places = interpolation_places(size[:, axis], new_size[:, axis], jnp.arange(side)[None])
        lower, upper, share = (jnp.broadcast_to(x, (len(values), side)) for x in places)
        before, after = (_looked_up(values, place, axis) for place in (lower, upper))
        share = share.reshape(-1, *[1] * axis, side, *[1] * (2 - axis))
        values = before * (1 - share) + after * share
    return values


def _looked_up(values: jax.Array, places: jax.Array, axis: int) -> jax.Array:
    """Of each image (b, …) its own positions (b, m) along an axis of the image."""
    places = places.astype(jnp.int32)
    return jax.vmap(lambda image, at: jnp.take(image, at, axis=axis, mode="clip"))(values, places)


def interpolation_places(
    sizes: jax.Array, output_sizes: jax.Array, output: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which two positions each output lies between, on one axis, and the share of the second.

    Arguments as above. All float32 (b, m), the positions whole numbers.
    """
    ratio = (sizes / output_sizes).astype(jnp.float32)[:, None]
    place = jnp.maximum((output + 0.5) * ratio - 0.5, 0)
    last = sizes[:, None] - 1
    lower = jnp.minimum(jnp.floor(place), last)
    return lower, jnp.minimum(lower + 1, last), place - lower
