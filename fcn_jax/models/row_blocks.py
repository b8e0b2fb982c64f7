"""Full-size results that are computed, and consumed, one block of rows at a time.

The scores of every pixel are by far the largest array of a dense network: 21 classes at 500×500 are
21 MB per image, and a loss needs several such arrays. They are computed from few coarse scores, so
a large batch's are never stored as a whole: one block of rows is computed, then its loss and the
gradient of the loss, then the next block. A block fits into the caches of a CPU, which is faster,
and leaves the memory of a GPU to the features.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fcn_jax.parallel.target import target_platform

BLOCK_BYTES = {"cpu": 2**22, "gpu": 2**29, "tpu": 2**26}
"""Bytes of one block of results, by platform.

On a CPU a loss and its gradient took 208 to 233 ms in blocks of 0.6 to 9 MB, and 344 ms in one
block of 72 MB. On an H100 a loop over blocks takes 1.4 to 2 times as long as a single block (21
classes, 8 to 16 images of 320×320 to 512×512: 0.7 to 1.8 ms instead of 0.9 to 3.0), so there the
limit is what memory can spare. For TPUs it is not measured.
"""


@dataclasses.dataclass(frozen=True)
class BlockLayout:
    """The division of the rows of a batch (b, *size) into blocks.

    A row is everything at one position of the first spatial axis. The rows of all images follow
    each other. Every image is padded on each axis, by `before` and then up to the size `padded`.

    Attributes:
        batch: number of images.
        size: size of an image on each spatial axis, in positions.
        before: padding before an image, on each axis.
        padded: size of a padded image, on each axis.
        rows: rows of each block.
        stride: None for blocks of shape (rows, *padded[1:], …). With a stride s, blocks have the
            shape (rows/s, *padded[1:]/s, s, …, s, …), with one s for each axis: the order in which
            a transposed convolution computes its phases.
    """

    batch: int
    size: tuple[int, ...]
    before: tuple[int, ...]
    padded: tuple[int, ...]
    rows: int
    stride: int | None = None

    @property
    def num_blocks(self) -> int:
        """Number of blocks; the last may have fewer rows of images."""
        return -(-self.batch * self.padded[0] // self.rows)

    def to_blocks(self, values: jax.Array, fill: float) -> jax.Array:
        """Divides (b, *size, …) into blocks, with `fill` outside the images."""
        pads = [
            (before, padded - before - size)
            for before, padded, size in zip(self.before, self.padded, self.size, strict=True)
        ]
        others = [(0, 0)] * (values.ndim - 1 - len(pads))
        values = jnp.pad(values, [(0, 0), *pads, *others], constant_values=fill)
        values = in_blocks(values, self.rows, fill)
        if self.stride is None:
            return values
        return jax.vmap(partial(split_phases, stride=self.stride, ndim=len(self.size)))(values)

    def to_rows(self, block: jax.Array) -> jax.Array:
        """Brings one block to (rows, *padded[1:], …)."""
        if self.stride is None:
            return block
        return depth_to_space(block, len(self.size))

    def to_images(self, rows: jax.Array) -> jax.Array:
        """Brings (num_blocks, rows, *padded[1:], …) to (b, *size, …)."""
        values = rows.reshape(-1, *rows.shape[2:])[: self.batch * self.padded[0]]
        values = values.reshape(self.batch, self.padded[0], *values.shape[1:])
        window = [
            slice(before, before + size)
            for before, size in zip(self.before, self.size, strict=True)
        ]
        return values[(slice(None), *window)]


@dataclasses.dataclass(frozen=True)
class RowBlocks:
    """A batch of full-size results (b, *size, c), in blocks of rows that are not computed yet.

    Attributes:
        make: computes one block in the layout: (shared, block, fixed) -> (…, c).
        shared: a tree of arrays that every block is computed from.
        blocks: a tree of arrays (num_blocks, …); `make` takes the entries of one block.
        fixed: a tree like `blocks`, through which no gradient flows.
        layout: the division into blocks.
    """

    make: Callable[[Any, Any, Any], jax.Array]
    shared: Any
    blocks: Any
    fixed: Any
    layout: BlockLayout

    def whole(self) -> jax.Array:
        """Computes all blocks at the same time.

        Returns:
            (b, *size, c).
        """
        return self._images(lambda values: values, jax.vmap)

    def map(self, function: Callable[..., jax.Array], *others: jax.Array) -> jax.Array:
        """Applies a function to every block in turn.

        Args:
            function: (block (…, c), *others of the block) -> (…) or (…, n).
            others: arrays from `BlockLayout.to_blocks`.

        Returns:
            (b, *size) or (b, *size, n).
        """
        return self._images(function, lambda one_block: partial(lax.map, one_block), others)

    def _images(
        self,
        function: Callable[..., jax.Array],
        mapped: Callable[..., Any],
        others: tuple[jax.Array, ...] = (),
    ) -> jax.Array:
        def rows(block: tuple[Any, Any, Any]) -> jax.Array:
            of_make, fixed, of_function = block
            made = self.make(self.shared, of_make, fixed)
            return self.layout.to_rows(function(made, *of_function))

        blocks = self.blocks, self.fixed, others
        if self.layout.num_blocks == 1:
            result = rows(jax.tree.map(lambda x: x[0], blocks))[None]
        else:
            result = mapped(rows)(blocks)
        return self.layout.to_images(result)

    def total(
        self, function: Callable[..., tuple[jax.Array, Any]], *others: Any
    ) -> tuple[jax.Array, Any]:
        """Sums a function over all blocks.

        The gradient is computed block by block along with the value, so that neither the results
        nor their gradient ever exist as a whole.

        Args:
            function: (block, *others of the block) -> (a sum, a tree of further sums). Only the
                first is differentiated.
            others: trees of arrays from `BlockLayout.to_blocks`.

        Returns:
            The first sum and the tree of further sums, over all blocks.
        """

        def one_block(shared: Any, block: Any, fixed: Any) -> tuple[jax.Array, Any]:
            make_fixed, function_others = fixed
            return function(self.make(shared, block, make_fixed), *function_others)

        return _total(one_block, self.shared, self.blocks, (self.fixed, others))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _total(one_block, shared, blocks, fixed):
    def add(sums, block):
        return _added(sums, one_block(shared, *block)), None

    return lax.scan(add, _zeros(one_block, shared, blocks, fixed), (blocks, fixed))[0]


@_total.defjvp
def _total_jvp(one_block, primals, tangents):
    """Computes the gradient in the forward pass, so that the result is linear in the tangents."""
    shared, blocks, fixed = primals
    differentiated = jax.value_and_grad(one_block, argnums=(0, 1), has_aux=True)

    def add(carry, block):
        value, (shared_gradient, block_gradient) = differentiated(shared, *block)
        return _added(carry, (value, shared_gradient)), block_gradient

    start = _zeros(one_block, shared, blocks, fixed), jax.tree.map(jnp.zeros_like, shared)
    (sums, shared_gradient), block_gradients = lax.scan(add, start, (blocks, fixed))
    products = jax.tree.map(
        lambda gradient, tangent: jnp.sum(gradient * tangent.astype(jnp.float32)),
        (shared_gradient, block_gradients),
        tuple(tangents[:2]),
    )
    value, others = sums
    tangent = sum(jax.tree.leaves(products), jnp.zeros((), value.dtype))
    return sums, (tangent, jax.tree.map(jnp.zeros_like, others))


def _zeros(one_block, shared, blocks, fixed):
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (blocks, fixed))
    sums = jax.eval_shape(one_block, shared, *first)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)


def _added(a, b):
    return jax.tree.map(jnp.add, a, b)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def depth_to_space(phases: jax.Array, ndim: int) -> jax.Array:
    """Brings the phases of a transposed convolution of stride s to their places.

    Its gradient copies runs of the last axis: 2.6 to 3.5 ms for 21 features of 2 images of 320×480
    and strides 2 to 32, where a transposition took 4.5 to 7.1 ms (two cores of an AMD EPYC).

    Args:
        phases: (*n, s, …, s, …), with one s for each of the first ndim axes. The phase p of the
            place i on an axis belongs to the position s·i + p.
        ndim: number of spatial axes.

    Returns:
        (*s·n, …).
    """
    return join_phases(phases, ndim)


def join_phases(phases: jax.Array, ndim: int) -> jax.Array:
    """Computes `depth_to_space`, with the transposition that JAX takes for its gradient."""
    interleaved = [n for axis in range(ndim) for n in (axis, ndim + axis)]
    values = phases.transpose(*interleaved, *range(2 * ndim, phases.ndim))
    return _without_phases(values, ndim)


def split_phases(values: jax.Array, stride: int, ndim: int) -> jax.Array:
    """Divides (*s·n, …) into its phases (*n, s, …, s, …); the inverse of `join_phases`."""
    split = [n for size in values.shape[:ndim] for n in (size // stride, stride)]
    values = values.reshape(*split, *values.shape[ndim:])
    places, phases = range(0, 2 * ndim, 2), range(1, 2 * ndim, 2)
    return values.transpose(*places, *phases, *range(2 * ndim, values.ndim))


@depth_to_space.defjvp
def _depth_to_space_jvp(ndim, primals, tangents):
    (tangent,) = tangents
    for axis in range(ndim - 1):
        # JAX transposes the stack to slices and the split to a concatenation.
        parts = jnp.split(tangent, tangent.shape[ndim + axis], axis=ndim + axis)
        tangent = jnp.stack([jnp.squeeze(part, ndim + axis) for part in parts], 2 * axis + 1)
    return depth_to_space(*primals, ndim), _without_phases(tangent, ndim)


def _without_phases(values: jax.Array, ndim: int) -> jax.Array:
    """Merges (n, s, n, s, …) to (s·n, s·n, …)."""
    size = [values.shape[2 * axis] * values.shape[2 * axis + 1] for axis in range(ndim)]
    return values.reshape(*size, *values.shape[2 * ndim :])


def rows_in_block(row_bytes: int, rows: int) -> int:
    """Returns the rows per block that make equal blocks of at most about `BLOCK_BYTES`.

    Args:
        row_bytes: bytes of one row of results.
        rows: the number of rows to divide.
    """
    return math.ceil(rows / math.ceil(rows / _most_in_block(row_bytes)))


def parts_in_blocks(part_bytes: int, parts: int) -> int:
    """Returns the least number of equal blocks of whole parts, of at most about `BLOCK_BYTES`.

    Args:
        part_bytes: bytes of the results of one part.
        parts: the number of parts, which the number of blocks divides.
    """
    most = _most_in_block(part_bytes)
    return next(n for n in range(1, parts + 1) if parts % n == 0 and parts // n <= most)


def _most_in_block(part_bytes: int) -> int:
    return max(1, BLOCK_BYTES.get(target_platform(), 2**26) // max(part_bytes, 1))


def in_blocks(values: jax.Array, rows: int, fill: float = 0) -> jax.Array:
    """Divides (b, n, …) into (blocks, rows, …); the last block is padded with `fill`."""
    values = values.reshape(-1, *values.shape[2:])
    missing = -len(values) % rows
    pads = [(0, missing)] + [(0, 0)] * (values.ndim - 1)
    values = jnp.pad(values, pads, constant_values=fill)
    return values.reshape(-1, rows, *values.shape[1:])
