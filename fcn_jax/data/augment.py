"""Augmentation on the device, of two-dimensional canvases: geometry, then colour.

Extra channels and all label maps move with the image; only RGB changes its colours.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fcn_jax.config import AugmentConfig
from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.models.backbones.preprocess import COLOURS

ELASTIC_GRID = 3
"""Vectors on each axis of the grid that a deformation interpolates (Ronneberger et al. 2015,
section 3.1)."""

ROTATION_STREAM, ELASTIC_STREAM = 5, 6
"""Folded into a crop's key, which is split into five for the other changes."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G, B in brightness (ITU-R BT.601)."""


class Crop(NamedTuple):
    """A training crop.

    Attributes:
      image: float32 (h, w, c) in 0…255.
      label: int32 (h, w) or (h, w, m), 255 outside the image.
      valid: int32 (2,), height and width of the image at the top left of a whole canvas; None for a
        crop, in which the image may be anywhere.
    """

    image: jax.Array
    label: jax.Array
    valid: jax.Array | None


class CropAxis(NamedTuple):
    """The canvas pixels that each position of the crop shows, along one axis.

    Attributes:
      low, high: int32 (n,), the pixels on either side of the position.
      share: float32 (n,), the weight of `high` in the interpolation.
      nearest: int32 (n,), the nearest pixel.
      inside: bool (n,), False where the crop extends beyond the image.
    """

    low: jax.Array
    high: jax.Array
    share: jax.Array
    nearest: jax.Array
    inside: jax.Array


def augment(
    key: jax.Array,
    image: jax.Array,
    label: jax.Array,
    size: jax.Array,
    *,
    config: AugmentConfig,
    fill: tuple[float, ...],
) -> Crop:
    """Draws a random crop of a canvas.

    The image is scaled by a factor drawn uniformly from `config.scale` (bilinear; labels nearest).
    Then a window of `config.crop_px` is drawn inside the image; along an axis where the image is
    smaller, the window contains all of it. Half of the crops are mirrored. If `crop_px` is None,
    the canvas stays whole and unscaled, as in the paper's training.

    With `elastic_px` the pixels of the window are then displaced by a smooth field: normally
    distributed vectors of that standard deviation, in pixels of the crop, on a grid of 3×3 that
    spans the crop, interpolated by cubic curves (Ronneberger et al. 2015, section 3.1). With
    `rotate` the crop is turned by a multiple of 90°.

    Args:
        key: PRNG key; equal keys and canvases give equal crops.
        image: uint8 (H, W, c), RGB first.
        label: uint8 (H, W), or (H, W, m) for several label maps.
        size: int32 (2,), height and width of the image on the canvas.
        config: what to draw.
        fill: c values in 0…255 for pixels outside the image: the mean that the network subtracts.
    """
    scale_key, top_key, left_key, flip_key, colour_key = jax.random.split(key, 5)
    scale = jax.random.uniform(scale_key, minval=config.scale[0], maxval=config.scale[1])
    crop_px = config.crop_px
    if crop_px is None:
        rows, columns = (_whole(size[axis], label.shape[axis]) for axis in (0, 1))
    else:
        rows = _window(top_key, size[0], scale, crop_px[0])
        columns = _window(left_key, size[1], scale, crop_px[1])
    if config.flip:
        flipped = _reversed(columns, size[1] if crop_px is None else crop_px[1])
        mirrored = jax.random.bernoulli(flip_key)
        columns = jax.tree.map(lambda a, b: jnp.where(mirrored, b, a), columns, flipped)

    if config.elastic_px:
        elastic_key = jax.random.fold_in(key, ELASTIC_STREAM)
        shift = _displacements(elastic_key, (len(rows.low), len(columns.low)), config.elastic_px)
        pixels, classes, inside = _displaced(image, label, size, rows, columns, shift / scale)
    else:
        # Rows first, then columns: two gathers of contiguous memory instead of one of single
        # pixels.
        pixels = _interpolate(image, rows, axis=0)
        pixels = _interpolate(pixels, columns, axis=1)
        inside = rows.inside[:, None] & columns.inside[None, :]
        classes = label[rows.nearest][:, columns.nearest]
    if config.rotate:
        turns = jax.random.randint(jax.random.fold_in(key, ROTATION_STREAM), (), 0, 4)
        pixels, classes, inside = (_turned(x, turns) for x in (pixels, classes, inside))
    coloured = _colour(colour_key, pixels[..., :COLOURS], inside, config)
    pixels = jnp.concatenate([coloured, pixels[..., COLOURS:]], axis=-1)
    pixels = jnp.where(inside[..., None], pixels, jnp.asarray(fill, jnp.float32))
    shown = inside.reshape(*inside.shape, *[1] * (label.ndim - 2))
    labels = jnp.where(shown, classes.astype(jnp.int32), IGNORE_INDEX)
    return Crop(pixels, labels, size if crop_px is None else None)


def _whole(size: jax.Array, length: int) -> CropAxis:
    position = jnp.arange(length)
    inside = position < size
    return CropAxis(position, position, jnp.zeros((length,)), position, inside)


def _reversed(window: CropAxis, count: int | jax.Array) -> CropAxis:
    """Reverses the first `count` positions."""
    position = jnp.arange(window.low.shape[0])
    mirror = jnp.where(position < count, count - 1 - position, position)
    return CropAxis(*(values[mirror] for values in window))


def _window(key: jax.Array, size: jax.Array, scale: jax.Array, length: int) -> CropAxis:
    scaled = jnp.round(size * scale)
    slack = scaled - length
    start = jnp.floor(
        jax.random.uniform(key, minval=jnp.minimum(slack, 0), maxval=jnp.maximum(slack, 0) + 1)
    )
    start = jnp.minimum(start, jnp.maximum(slack, 0))
    position = jnp.arange(length) + start
    # Pixel centres are at halves: position p of the scaled image shows (p + ½)/scale − ½.
    source = (position + 0.5) * (size / scaled) - 0.5
    last = size - 1
    low = jnp.clip(jnp.floor(source), 0, last)
    share = jnp.clip(source - low, 0, 1)
    return CropAxis(
        low=low.astype(jnp.int32),
        high=jnp.minimum(low + 1, last).astype(jnp.int32),
        share=share,
        nearest=jnp.clip(jnp.floor(source + 0.5), 0, last).astype(jnp.int32),
        inside=(position >= 0) & (position < scaled),
    )


def _interpolate(values: jax.Array, window: CropAxis, axis: int) -> jax.Array:
    low = jnp.take(values, window.low, axis, mode="clip").astype(jnp.float32)
    high = jnp.take(values, window.high, axis, mode="clip").astype(jnp.float32)
    share = jnp.expand_dims(window.share, tuple(a for a in range(values.ndim) if a != axis))
    return low + (high - low) * share


def _displacements(key: jax.Array, shape: tuple[int, int], deviation: float) -> jax.Array:
    """Draws a smooth field of vectors (row, column): float32 (*shape, 2)."""
    grid = deviation * jax.random.normal(key, (ELASTIC_GRID, ELASTIC_GRID, 2))
    # The outermost vectors are at the crop's border: sizes of positions, not of pixels.
    ratio = [(length - 1) / (ELASTIC_GRID - 1) if length > 1 else 1.0 for length in shape]
    return jax.image.scale_and_translate(
        grid,
        (*shape, 2),
        spatial_dims=(0, 1),
        scale=jnp.asarray(ratio, jnp.float32),
        translation=jnp.asarray([(1 - r) / 2 for r in ratio], jnp.float32),
        method="cubic",
    )


def _displaced(
    image: jax.Array,
    label: jax.Array,
    size: jax.Array,
    rows: CropAxis,
    columns: CropAxis,
    shift: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Shows the canvas at displaced places: the image bilinear, labels nearest, and what is inside.

    shift: in pixels of the canvas, float32 (h, w, 2).
    """
    row = (rows.low + rows.share)[:, None] + shift[..., 0]
    column = (columns.low + columns.share)[None, :] + shift[..., 1]
    height, width = size[0] - 1, size[1] - 1
    inside = rows.inside[:, None] & columns.inside[None, :]
    inside &= (row >= -0.5) & (row < height + 0.5) & (column >= -0.5) & (column < width + 0.5)
    row, column = jnp.clip(row, 0, height), jnp.clip(column, 0, width)
    top, left = jnp.floor(row).astype(jnp.int32), jnp.floor(column).astype(jnp.int32)
    bottom, right = jnp.minimum(top + 1, height), jnp.minimum(left + 1, width)

    def between(first: jax.Array, second: jax.Array, share: jax.Array) -> jax.Array:
        first, second = first.astype(jnp.float32), second.astype(jnp.float32)
        return first + (second - first) * share[..., None]

    upper = between(image[top, left], image[top, right], column - left)
    lower = between(image[bottom, left], image[bottom, right], column - left)
    pixels = between(upper, lower, row - top)
    nearest = (jnp.floor(x + 0.5).astype(jnp.int32) for x in (row, column))
    return pixels, label[tuple(nearest)], inside


def _turned(values: jax.Array, turns: jax.Array) -> jax.Array:
    """Turns (n, n, …) anticlockwise by `turns` times 90°, as NumPy's `rot90`."""
    flipped = jnp.where(turns >= 2, values[::-1, ::-1], values)
    return jnp.where(turns % 2 == 1, jnp.rot90(flipped), flipped)


def _colour(
    key: jax.Array, image: jax.Array, inside: jax.Array, config: AugmentConfig
) -> jax.Array:
    if not (config.brightness or config.contrast or config.saturation):
        return image
    keys = jax.random.split(key, 3)

    def factor(key, change):
        return jax.random.uniform(key, minval=1 - change, maxval=1 + change)

    luma = jnp.asarray(LUMA if image.shape[-1] == COLOURS else (1.0,))  # a grey image
    image = image * factor(keys[0], config.brightness)
    mean = jnp.mean(image @ luma, where=inside)
    image = mean + (image - mean) * factor(keys[1], config.contrast)
    grey = (image @ luma)[..., None]
    image = grey + (image - grey) * factor(keys[2], config.saturation)
    return jnp.clip(image, 0, 255)
