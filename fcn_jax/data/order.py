"""In which order training sees the images: each once an epoch, in a new order every epoch.

Which image stands at a place of the endless sequence is worked out from the place alone, by
integers of 32 bits that host and device compute alike. So a set on the device needs nothing from
the host, one that is streamed gives the same batches, and a run goes on from its step's number.

The places of an epoch are laid out in rows and columns and shuffled by a Feistel network: rows are
turned by what a hash makes of the column, columns by what it makes of the row, in turn. Where that
leads to one of the few places that are no image's, it is done again (Black and Rogaway, Ciphers
with Arbitrary Finite Domains, CT-RSA 2002: the generalised Feistel network and cycle walking).
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
"""uint32 of any shape, NumPy's or JAX's: they wrap around alike."""

PLACES = 2**32
"""After these the sequence begins anew, within an epoch."""

TURNS = 6
"""Of the rows and of the columns each."""

WORKED_OUT_AT_ONCE = 1024
"""Places, by the host."""


def image_at(place: int, *, count: int, seed: int) -> int:
    """The index of the image, below `count`, at a place of the sequence; on the host."""
    block, inside = divmod(place % PLACES, WORKED_OUT_AT_ONCE)
    return int(_images_of_block(block, count, seed)[inside])


@functools.lru_cache(maxsize=2)
def _images_of_block(block: int, count: int, seed: int) -> np.ndarray:
    place = np.arange(WORKED_OUT_AT_ONCE, dtype=np.uint32)
    image, shuffle = _shuffled(place + np.uint32(block * WORKED_OUT_AT_ONCE), count, seed)
    while (outside := image >= count).any():
        image = np.where(outside, shuffle(image), image)
    return image


def images_at(place: jax.Array, *, count: int, seed: int) -> jax.Array:
    """The same on the device, of uint32 of any shape."""
    image, shuffle = _shuffled(place, count, seed)
    return lax.while_loop(
        lambda image: jnp.any(image >= count),
        lambda image: jnp.where(image >= count, shuffle(image), image),
        image,
    )


def _shuffled(
    place: Numbers, count: int, seed: int
) -> tuple[Numbers, Callable[[Numbers], Numbers]]:
    """Where places are led to at first, and what leads them on."""
    columns = math.isqrt(count - 1) + 1  # the square root, rounded up
    rows = -(-count // columns)
    key = _mixed(place // count + _mixed(np.array([seed % PLACES], np.uint32)))

    def shuffle(place: Numbers) -> Numbers:
        row, column = place // columns, place % columns
        for turn in range(TURNS):
            row = (row + _mixed(column + _mixed(key + 2 * turn)) % rows) % rows
            column = (column + _mixed(row + _mixed(key + (2 * turn + 1))) % columns) % columns
        return row * columns + column

    return shuffle(place % count), shuffle


def _mixed(value: Numbers) -> Numbers:
    """Every bit depends on all: the finaliser of MurmurHash3 (Austin Appleby, public domain)."""
    value = (value ^ value >> 16) * np.uint32(0x85EBCA6B)
    value = (value ^ value >> 13) * np.uint32(0xC2B2AE35)
    return value ^ value >> 16
