"""Augmentation of volumes on the device: a random patch, rotated, scaled, mirrored, and its values.

Three-dimensional by nature; `augment.py` is its counterpart for images.
"""

import itertools

import jax
import jax.numpy as jnp

from fcn_jax.config import VolumesConfig
from fcn_jax.data.augment import Crop
from fcn_jax.data.labels import IGNORE_INDEX

LOW_RESOLUTION_RATE = 0.25
"""Share of the patches whose resolution is lowered (nnU-Net's)."""

LOW_RESOLUTION_STREAM = 4
"""Folded into the key of the values, which is split into four for the other changes."""


def augment_volume(
    key: jax.Array, image: jax.Array, label: jax.Array, size: jax.Array, *, config: VolumesConfig
) -> Crop:
    """Draws a random patch of a volume.

    The patch is inside the volume; along an axis where the volume is smaller, the patch contains
    all of it. A share of the patches, `foreground_share`, is placed so that a random foreground
    voxel is as near to the middle as this allows. Each patch is rotated about the three axes and
    scaled about its middle (linear interpolation; labels nearest), and mirrored along each of
    `flip_axes` with probability 1/2. Then come brightness, contrast, gamma, noise, and in a quarter
    of the patches a lower resolution.

    Args:
        key: PRNG key; equal keys and volumes give equal patches.
        image: normalised intensities, float (X, Y, Z, c).
        label: uint8 (X, Y, Z).
        size: int32 (3,), the size of the volume at the first corner of the canvas.
        config: what to draw; `config.patch` is set.

    Returns:
        A patch: image float32 (*patch, c), 0 outside the volume; label int32 patch, 255 outside.
    """
    place_key, turn_key, value_key = jax.random.split(key, 3)
    assert config.patch is not None
    patch = config.patch
    middle = _middle(place_key, label, size, config)
    axes = [jnp.arange(side) - (side - 1) / 2 for side in patch]
    offsets = jnp.stack(jnp.meshgrid(*axes, indexing="ij"))
    matrix = _random_matrix(turn_key, config)
    place = jnp.tensordot(matrix, offsets, 1) + middle.reshape(3, 1, 1, 1)
    last = (size - 1).astype(jnp.float32).reshape(3, 1, 1, 1)
    inside = jnp.all((place >= -0.5) & (place <= last + 0.5), axis=0)
    place = jnp.clip(place, 0, last)
    values = _values(value_key, _linear(image, place, size), inside, config)
    nearest = jnp.floor(place + 0.5).astype(jnp.int32)
    classes = label[tuple(nearest)].astype(jnp.int32)
    return Crop(
        jnp.where(inside[..., None], values, 0), jnp.where(inside, classes, IGNORE_INDEX), None
    )


def _middle(key: jax.Array, label: jax.Array, size: jax.Array, config: VolumesConfig) -> jax.Array:
    """Draws the place of the middle of a patch, in voxels: float32 (3,)."""
    choice_key, uniform_key, voxel_key = jax.random.split(key, 3)
    half = (jnp.asarray(config.patch) - 1) / 2
    ends = jnp.stack([half, size - 1 - half])
    first, last = ends.min(axis=0), ends.max(axis=0)
    anywhere = first + (last - first) * jax.random.uniform(uniform_key, (3,))
    if not config.foreground_share:
        return anywhere
    is_foreground = (label > 0) & (label != IGNORE_INDEX)
    scores = jax.random.bits(voxel_key, label.shape, jnp.uint16).astype(jnp.int32) + 1
    index = jnp.argmax(jnp.where(is_foreground, scores, 0))
    voxel = jnp.stack(jnp.unravel_index(index, label.shape)).astype(jnp.float32)
    wanted = jax.random.uniform(choice_key) < config.foreground_share
    return jnp.where(wanted & is_foreground.any(), jnp.clip(voxel, first, last), anywhere)


def _random_matrix(key: jax.Array, config: VolumesConfig) -> jax.Array:
    """Draws the matrix from offsets in the patch to offsets in the volume: float32 (3, 3)."""
    angle_key, scale_key, flip_key = jax.random.split(key, 3)
    limit = jnp.deg2rad(config.rotate_degrees)
    angles = jax.random.uniform(angle_key, (3,), minval=-limit, maxval=limit)
    matrix = jnp.eye(3)
    for axis, (first, second) in enumerate(((1, 2), (0, 2), (0, 1))):
        cos, sin = jnp.cos(angles[axis]), jnp.sin(angles[axis])
        turn = jnp.eye(3).at[first, first].set(cos).at[second, second].set(cos)
        matrix = turn.at[first, second].set(-sin).at[second, first].set(sin) @ matrix
    smallest, largest = config.scale
    matrix = matrix / jax.random.uniform(scale_key, minval=smallest, maxval=largest)
    flipped = jax.random.bernoulli(flip_key, shape=(3,))
    signs = [jnp.where(flipped[n], -1.0, 1.0) if n in config.flip_axes else 1.0 for n in range(3)]
    return matrix * jnp.stack([jnp.asarray(sign) for sign in signs])


def _linear(image: jax.Array, place: jax.Array, size: jax.Array) -> jax.Array:
    """Interpolates (X, Y, Z, c) at places (3, x, y, z) inside the volume: float32 (x, y, z, c)."""
    low = jnp.floor(place).astype(jnp.int32)
    share = place - low
    high = jnp.minimum(low + 1, (size - 1).reshape(3, 1, 1, 1))
    total = jnp.zeros((*place.shape[1:], image.shape[-1]), jnp.float32)
    for corner in itertools.product((0, 1), repeat=3):
        index = tuple((low, high)[side][axis] for axis, side in enumerate(corner))
        weights = [(1 - share, share)[side][axis] for axis, side in enumerate(corner)]
        weight = weights[0] * weights[1] * weights[2]
        total = total + weight[..., None] * image[index].astype(jnp.float32)
    return total


def _values(
    key: jax.Array, values: jax.Array, inside: jax.Array, config: VolumesConfig
) -> jax.Array:
    keys = jax.random.split(key, 4)

    def factor(key: jax.Array, change: float) -> jax.Array:
        return jax.random.uniform(key, minval=1 - change, maxval=1 + change)

    where = inside[..., None]
    if config.brightness:
        values = values * factor(keys[0], config.brightness)
    if config.contrast:
        mean = jnp.mean(values, axis=(0, 1, 2), where=where)
        values = mean + (values - mean) * factor(keys[1], config.contrast)
    if config.gamma:
        low = jnp.min(values, axis=(0, 1, 2), where=where, initial=jnp.inf)
        high = jnp.max(values, axis=(0, 1, 2), where=where, initial=-jnp.inf)
        width = jnp.maximum(high - low, 1e-6)
        share = jnp.clip((values - low) / width, 1e-6, 1)
        values = low + width * share ** factor(keys[2], config.gamma)
    if config.noise:
        noise_key, size_key = jax.random.split(keys[3])
        deviation = jax.random.uniform(size_key, maxval=config.noise)
        values = values + deviation * jax.random.normal(noise_key, values.shape)
    if config.low_resolution < 1:
        # This key is not one of the four: without this change the others draw the same numbers.
        chosen_key, share_key = jax.random.split(jax.random.fold_in(key, LOW_RESOLUTION_STREAM))
        share = jax.random.uniform(share_key, minval=config.low_resolution)
        is_chosen = jax.random.bernoulli(chosen_key, LOW_RESOLUTION_RATE)
        values = jnp.where(is_chosen, _at_low_resolution(values, share), values)
    return values


def _at_low_resolution(values: jax.Array, share: jax.Array) -> jax.Array:
    """Keeps a share of the voxels on each axis (nearest), and interpolates linearly between them.

    nnU-Net's simulation (Isensee et al. 2021, supplementary note 4), which interpolates by cubics.
    """
    for axis in range(values.ndim - 1):
        side = values.shape[axis]
        coarse_last = jnp.maximum(jnp.floor(side * share), 1) - 1
        place = jnp.clip((jnp.arange(side) + 0.5) * share - 0.5, 0, coarse_last)
        low = jnp.floor(place)
        shape = tuple(side if n == axis else 1 for n in range(values.ndim))
        weight = (place - low).reshape(shape)

        low_voxel, high_voxel = (
            jnp.clip(jnp.round((coarse + 0.5) / share - 0.5), 0, side - 1).astype(jnp.int32)
            for coarse in (low, jnp.minimum(low + 1, coarse_last))
        )
        low_values, high_values = (jnp.take(values, n, axis) for n in (low_voxel, high_voxel))
        values = low_values * (1 - weight) + high_values * weight
    return values
