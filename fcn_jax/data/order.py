"""The order of training images: every epoch has each image once, in a new random order.

The image at a position of the endless training sequence depends only on the position, the number of
images and the seed. It is computed in 32-bit integers, with equal results on host and device.
Therefore a data set in device memory is sampled without the host, streaming gives the same batches,
and a resumed run needs only its step number to continue in the same order.

The positions of an epoch form a grid of rows and columns, which a Feistel network shuffles: in
turn, a hash of the column shifts the row, and a hash of the row shifts the column. The grid has
slightly more cells than there are images; a result that is no image is shuffled again (Black and
Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002: the generalised Feistel network and
cycle walking).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Numbers = TypeVar("Numbers", bound=Any)
"""A uint32 array of NumPy or JAX, of any shape. Both libraries wrap around on overflow."""

PERIOD = 2**32
"""The sequence repeats after this many positions, even in the middle of an epoch."""

ROUNDS = 6
"""Rounds of the Feistel network; each shifts rows and columns once."""

BLOCK_LENGTH = 1024
"""Number of positions that the host computes at a time."""


def image_at(position: int, *, count: int, seed: int) -> int:
    """Returns the index of the image at a position of the sequence, computed on the host.

    Args:
        position: at least 0; position p is image p % batch_size of step p // batch_size.
        count: number of images; the result is below it.
        seed: determines the order.
    """
    block, inside = divmod(position % PERIOD, BLOCK_LENGTH)
    return int(_images_of_block(block, count, seed)[inside])


@functools.lru_cache(maxsize=2)
def _images_of_block(block: int, count: int, seed: int) -> np.ndarray:
    position = np.arange(BLOCK_LENGTH, dtype=np.uint32)
    image, shuffle = _shuffled(position + np.uint32(block * BLOCK_LENGTH), count, seed)
    while (outside := image >= count).any():
        image = np.where(outside, shuffle(image), image)
    return image


def images_at(position: jax.Array, *, count: int, seed: int) -> jax.Array:
    """Device-side version of `image_at`, vectorised over uint32 arrays of any shape."""
    image, shuffle = _shuffled(position, count, seed)
    return lax.while_loop(
        lambda image: jnp.any(image >= count),
        lambda image: jnp.where(image >= count, shuffle(image), image),
        image,
    )


def _shuffled(
    position: Numbers, count: int, seed: int
) -> tuple[Numbers, Callable[[Numbers], Numbers]]:
    """Shuffles positions once; returns their cells, and the function that shuffles cells again."""
    columns = math.isqrt(count - 1) + 1  # the square root, rounded up
    rows = -(-count // columns)
    key = _hash(position // count + _hash(np.array([seed % PERIOD], np.uint32)))

    def shuffle(position: Numbers) -> Numbers:
        row, column = position // columns, position % columns
        for number in range(ROUNDS):
            row = (row + _hash(column + _hash(key + 2 * number)) % rows) % rows
            column = (column + _hash(row + _hash(key + (2 * number + 1))) % columns) % columns
        return row * columns + column

    return shuffle(position % count), shuffle


def _hash(value: Numbers) -> Numbers:
    """Mixes all bits: the finaliser of MurmurHash3 (Austin Appleby, public domain)."""
    value = (value ^ value >> 16) * np.uint32(0x85EBCA6B)
    value = (value ^ value >> 13) * np.uint32(0xC2B2AE35)
    return value ^ value >> 16
