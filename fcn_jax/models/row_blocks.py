"""Full-size results that are made, and used up, a block of rows at a time.

The scores of every pixel are by far the largest array of a dense network: 21 classes at 500×500 are
21 MB an image, and a loss on top of them wants several such arrays. They are made of a few coarse
scores, so nobody needs to hold them: a block of rows is made, its loss and the loss's gradient
taken, and the next one made. The caches of a CPU hold a block, which is faster, and the memory of a
GPU is left to the features.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

BLOCK_BYTES = {"cpu": 2**22, "gpu": 2**26, "tpu": 2**26}
"""Of a block's results, by platform. On a CPU a loss and its gradient took 208 to 233 ms in blocks
of 0.6 to 9 MB, 344 ms in one of 72 MB; accelerators want blocks that fill them (not measured)."""


@dataclasses.dataclass(frozen=True)
class BlockLayout:
    """How the rows of a batch (b, *size) are dealt to blocks.

    A row is everything at one position of the first axis. All rows of all images follow each other;
    each image has `before` further ones, and some after it, on every axis.

    rows: in each block. padded: what an image has with those further ones.
    stride: where it is not 0, what lies at the same place within each stride is kept together, by
    *phase*, as transposed convolutions make it: a block is then not (rows, *padded[1:], …) but
    (rows/stride, *padded[1:]/stride, stride on every axis, …).
    """

    batch: int
    size: tuple[int, ...]
    before: tuple[int, ...]
    padded: tuple[int, ...]
    rows: int
    stride: int = 0

    @property
    def blocks(self) -> int:
        """Their number; the last may have fewer rows of images."""
        return -(-self.batch * self.padded[0] // self.rows)

    def dealt(self, values: jax.Array, fill: float) -> jax.Array:
        """(b, *size, …) to the blocks, `fill` where there is no image."""
        pads = [
            (before, padded - before - size)
            for before, padded, size in zip(self.before, self.padded, self.size, strict=True)
        ]
        further = [(0, 0)] * (values.ndim - 1 - len(pads))
        values = jnp.pad(values, [(0, 0), *pads, *further], constant_values=fill)
        values = in_blocks(values, self.rows, fill)
        if not self.stride:
            return values
        ndim = len(self.size)
        sizes = values.shape[1 : 1 + ndim]
        split = [n for size in sizes for n in (size // self.stride, self.stride)]
        values = values.reshape(self.blocks, *split, *values.shape[1 + ndim :])
        places, phases = range(1, 2 * ndim, 2), range(2, 1 + 2 * ndim, 2)
        return values.transpose(0, *places, *phases, *range(1 + 2 * ndim, values.ndim))

    def in_rows(self, block: jax.Array) -> jax.Array:
        """A block as (rows, *padded[1:], …)."""
        if not self.stride:
            return block
        ndim = len(self.size)
        interleaved = [n for axis in range(ndim) for n in (axis, ndim + axis)]
        block = block.transpose(*interleaved, *range(2 * ndim, block.ndim))
        return block.reshape(self.rows, *self.padded[1:], *block.shape[2 * ndim :])

    def collected(self, values: jax.Array) -> jax.Array:
        """(blocks, rows, *padded[1:], …) to (b, *size, …)."""
        values = values.reshape(-1, *values.shape[2:])[: self.batch * self.padded[0]]
        values = values.reshape(self.batch, self.padded[0], *values.shape[1:])
        window = [
            slice(before, before + size)
            for before, size in zip(self.before, self.size, strict=True)
        ]
        return values[(slice(None), *window)]


@dataclasses.dataclass(frozen=True)
class RowBlocks:
    """A batch of full-size results (b, *size, c), in blocks of rows that are not yet made.

    make: (shared, block, fixed) -> one block (…, c), laid out as the layout says. shared: arrays
    that all blocks are made of. blocks, fixed: trees of arrays (layout.blocks, …), of which `make`
    gets one block's; the second are not differentiated.
    """

    make: Callable[[Any, Any, Any], jax.Array]
    shared: Any
    blocks: Any
    fixed: Any
    layout: BlockLayout

    def whole(self) -> jax.Array:
        """All of it, all blocks at once: (b, *size, c)."""
        return self._collected(lambda values: values, jax.vmap)

    def each(self, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """`function` of every block, (…, c) to (…) or (…, n): (b, *size) or (b, *size, n)."""
        return self._collected(function, lambda of_block: partial(lax.map, of_block))

    def _collected(
        self, function: Callable[[jax.Array], jax.Array], mapped: Callable[..., Any]
    ) -> jax.Array:
        def of_block(block: tuple[Any, Any]) -> jax.Array:
            return self.layout.in_rows(function(self.make(self.shared, *block)))

        blocks = self.blocks, self.fixed
        if self.layout.blocks == 1:
            made = of_block(jax.tree.map(lambda x: x[0], blocks))[None]
        else:
            made = mapped(of_block)(blocks)
        return self.layout.collected(made)

    def total(
        self, function: Callable[..., tuple[jax.Array, Any]], *others: jax.Array
    ) -> tuple[jax.Array, Any]:
        """What `function(block, *others)` gives of every block, added up.

        Its gradient is taken block by block together with the value, so that neither the results
        nor their gradient ever exist as a whole.

        function: gives the sum to be differentiated, and a tree of further sums.
        others: arrays that `Layout.dealt` made.
        """

        def of_block(shared: Any, block: Any, fixed: Any) -> tuple[jax.Array, Any]:
            of_make, of_function = fixed
            return function(self.make(shared, block, of_make), *of_function)

        return _total(of_block, self.shared, self.blocks, (self.fixed, others))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _total(of_block, shared, blocks, fixed):
    def add(sums, block):
        return _added(sums, of_block(shared, *block)), None

    return lax.scan(add, _zeros_of(of_block, shared, blocks, fixed), (blocks, fixed))[0]


@_total.defjvp
def _total_jvp(of_block, primals, tangents):
    shared, blocks, fixed = primals
    differentiated = jax.value_and_grad(of_block, argnums=(0, 1), has_aux=True)

    def add(carry, block):
        value, (of_shared, of_its_own) = differentiated(shared, *block)
        return _added(carry, (value, of_shared)), of_its_own

    start = _zeros_of(of_block, shared, blocks, fixed), jax.tree.map(jnp.zeros_like, shared)
    (sums, of_shared), of_blocks = lax.scan(add, start, (blocks, fixed))
    products = jax.tree.map(
        lambda gradient, tangent: jnp.sum(gradient * tangent.astype(jnp.float32)),
        (of_shared, of_blocks),
        tuple(tangents[:2]),
    )
    value, others = sums
    tangent = sum(jax.tree.leaves(products), jnp.zeros((), value.dtype))
    return sums, (tangent, jax.tree.map(jnp.zeros_like, others))


def _zeros_of(of_block, shared, blocks, fixed):
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (blocks, fixed))
    sums = jax.eval_shape(of_block, shared, *first)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)


def _added(a, b):
    return jax.tree.map(jnp.add, a, b)


def rows_in_block(row_bytes: int, rows: int) -> int:
    """How many of so many rows make up a block: blocks of about `BLOCK_BYTES`, all alike."""
    most = max(1, BLOCK_BYTES.get(jax.default_backend(), 2**26) // max(row_bytes, 1))
    return math.ceil(rows / math.ceil(rows / most))


def in_blocks(values: jax.Array, rows: int, fill: float = 0) -> jax.Array:
    """(b, n, …) to (blocks, rows, …), the last block filled up."""
    values = values.reshape(-1, *values.shape[2:])
    missing = -len(values) % rows
    pads = [(0, missing)] + [(0, 0)] * (values.ndim - 1)
    values = jnp.pad(values, pads, constant_values=fill)
    return values.reshape(-1, rows, *values.shape[1:])
