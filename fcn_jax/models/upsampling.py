"""Upsampling by transposed convolutions that start, or stay, bilinear.

Arrays are channels-last: (b, *spatial, c). Everything computes in the dtype of what it is given.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.row_blocks import BlockLayout, RowBlocks, in_blocks, rows_in_block

EXACT = lax.Precision.HIGHEST
"""Of float32 products, which GPUs and TPUs round otherwise: scores are small, and these cheap."""


def bilinear_filter(size: int) -> np.ndarray:
    """The one-dimensional filter of linear interpolation: float32 (size,).

    weight(i) = 1 − |i − c|/f with f = (size + 1)//2, and the centre c = f − 1 for an odd size,
    f − 0.5 for an even one (Long et al. 2015, section 3.3, and the authors' code).
    """
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    return (1 - np.abs(np.arange(size) - centre) / factor).astype(np.float32)


def bilinear_kernel(size: int, channels: int, ndim: int = 2) -> np.ndarray:
    """A transposed convolution's kernel that interpolates each channel by itself.

    Returns float32 (size, …, size, channels, channels), zero off the channels' diagonal.
    """
    weights = np.ones((1,) * ndim, np.float32)
    for axis in range(ndim):
        shape = [1] * ndim
        shape[axis] = size
        weights = weights * bilinear_filter(size).reshape(shape)
    return weights[..., None, None] * np.eye(channels, dtype=np.float32)


def conv_transpose(
    values: jax.Array,
    kernel: jax.Array,
    *,
    stride: int,
    crop: int,
    output_size: Sequence[int],
) -> jax.Array:
    """Transposed convolution by phases: only products with the small input, no zeros between.

    Every input position scatters a kernel's worth of output:
    out[j] = Σ_i values[i] · kernel[j + crop − stride·i] on each axis. The kernel is therefore
    PyTorch's `ConvTranspose2d` weight moved from (in, out, kh, kw) to (kh, kw, in, out), unflipped,
    and `crop` its `padding`. flax's `ConvTranspose` holds the same kernel flipped in space.

    The outputs whose j + crop leave the same remainder by the stride, a *phase*, see the same few
    taps of the kernel. All phases together are one product of ceil(k/stride)^n shifted copies of
    the input with the kernel, rearranged to (taps·in, phases·out), and a depth-to-space.

    Args:
        values: (b, *n, in).
        kernel: (*k, in, out), any kernel size and stride.
        stride: outputs per input on each axis.
        crop: outputs left out at the start of each axis; where negative, zeros put before it.
        output_size: outputs on each axis; zero where no input reaches.

    Returns:
        (b, *output_size, out), in the dtype of `values`.
    """
    return conv_transpose_blocks(
        values, kernel, stride=stride, crop=crop, output_size=output_size, at_once=True
    ).whole()


def conv_transpose_blocks(
    values: jax.Array,
    kernel: jax.Array,
    *,
    stride: int,
    crop: int,
    output_size: Sequence[int],
    at_once: bool = False,
) -> RowBlocks:
    """`conv_transpose` in blocks of rows; at_once: in a single one."""
    ndim = values.ndim - 2
    in_features, out_features = kernel.shape[-2:]
    taps = [-(-k // stride) for k in kernel.shape[:ndim]]

    first = crop // stride
    counts = _counts(stride, crop, output_size)
    for axis in range(ndim):
        copies = _shifted(values, axis + 1, first, counts[axis], taps[axis])
        values = jnp.concatenate(copies, axis=-1)
    # The channels now run over (tap of the last axis, …, tap of the first axis, in).

    padding = [(0, t * stride - k) for t, k in zip(taps, kernel.shape[:ndim], strict=True)]
    kernel = jnp.pad(kernel, [*padding, (0, 0), (0, 0)]).astype(values.dtype)
    kernel = kernel.reshape(*[n for t in taps for n in (t, stride)], in_features, out_features)
    tap_axes = [2 * axis for axis in reversed(range(ndim))]
    phase_axes = [2 * axis + 1 for axis in range(ndim)]
    kernel = kernel.transpose(*tap_axes, 2 * ndim, *phase_axes, 2 * ndim + 1)
    kernel = kernel.reshape(values.shape[-1], stride**ndim * out_features)

    layout = _layout(values.shape[0], stride, crop, output_size, out_features, at_once)
    layout = dataclasses.replace(layout, stride=stride)

    def phases(kernel: jax.Array, values: jax.Array, _: None) -> jax.Array:
        result = jnp.dot(values.reshape(-1, values.shape[-1]), kernel, precision=EXACT)
        return result.reshape(*values.shape[:-1], *[stride] * ndim, out_features)

    return RowBlocks(phases, kernel, in_blocks(values, layout.rows // stride), None, layout)


def bilinear_upsample(
    values: jax.Array, filter_size: int, *, stride: int, crop: int, output_size: Sequence[int]
) -> jax.Array:
    """`conv_transpose` with `bilinear_kernel(filter_size, …)`, one axis after the other.

    Same arguments and result, at a cost of two multiplications an axis and output.
    """
    return bilinear_upsample_blocks(
        values, filter_size, stride=stride, crop=crop, output_size=output_size, at_once=True
    ).whole()


def bilinear_upsample_blocks(
    values: jax.Array,
    filter_size: int,
    *,
    stride: int,
    crop: int,
    output_size: Sequence[int],
    at_once: bool = False,
) -> RowBlocks:
    """`bilinear_upsample` in blocks of rows; at_once: in a single one."""
    weights = bilinear_filter(filter_size)
    taps = -(-filter_size // stride)
    weights = np.pad(weights, (0, taps * stride - filter_size)).reshape(taps, stride)
    first = crop // stride
    counts = _counts(stride, crop, output_size)
    # The last axis first: the largest result is then made of whole contiguous rows.
    for axis in reversed(range(2, values.ndim - 1)):
        copies = _shifted(values, axis, first, counts[axis - 1], taps)
        values = _interleaved(copies, axis, weights)

    layout = _layout(values.shape[0], stride, crop, output_size, values.shape[-1], at_once)
    copies = [
        in_blocks(copy, layout.rows // stride)
        for copy in _shifted(values, 1, first, counts[0], taps)
    ]

    def rows(_: None, copies: list[jax.Array], __: None) -> jax.Array:
        return _interleaved(copies, 0, weights)

    return RowBlocks(rows, None, copies, None, layout)


def _counts(stride: int, crop: int, output_size: Sequence[int]) -> list[int]:
    """How many positions of each phase the outputs take, from the first that is seen."""
    return [(crop + size - 1) // stride + 1 - crop // stride for size in output_size]


def _layout(
    batch: int,
    stride: int,
    crop: int,
    output_size: Sequence[int],
    features: int,
    at_once: bool,
) -> BlockLayout:
    counts = _counts(stride, crop, output_size)
    padded = tuple(count * stride for count in counts)
    coarse_rows = batch * counts[0]
    if not at_once:
        coarse_rows = rows_in_block(4 * stride * math.prod(padded[1:]) * features, coarse_rows)
    return BlockLayout(
        batch=batch,
        size=tuple(output_size),
        before=(crop - crop // stride * stride,) * len(padded),
        padded=padded,
        rows=coarse_rows * stride,
    )


def _interleaved(copies: list[jax.Array], axis: int, weights: np.ndarray) -> jax.Array:
    """Σ_tap copies[tap] · weights[tap, phase], the phases next to each other along the axis."""
    stride = weights.shape[1]
    shape = copies[0].shape
    if stride <= 8:
        # A sum per phase: as one product, 5 times as slow on a CPU.
        phases = [
            sum(copy * float(weights[tap, phase]) for tap, copy in enumerate(copies))
            for phase in range(stride)
        ]
        values = jnp.stack(phases, axis=axis + 1)
    else:
        # One product for all phases: as so many sums, 8 times as slow on a CPU.
        dims = list(range(len(shape)))
        tap, phase = len(shape), len(shape) + 1
        values = jnp.einsum(
            jnp.stack(copies),
            [tap, *dims],
            weights.astype(copies[0].dtype),
            [tap, phase],
            [*dims[: axis + 1], phase, *dims[axis + 1 :]],
            precision=EXACT,
        )
    return values.reshape(*shape[:axis], shape[axis] * stride, *shape[axis + 1 :])


def _shifted(values: jax.Array, axis: int, first: int, count: int, taps: int) -> list[jax.Array]:
    """For each tap t, the positions first − t … first − t + count − 1, zero beyond the borders."""
    size = values.shape[axis]
    before = max(0, taps - 1 - first)
    after = max(0, first + count - size)
    padding = [(0, 0)] * values.ndim
    padding[axis] = (before, after)
    padded = jnp.pad(values, padding)
    return [
        lax.slice_in_dim(padded, before + first - tap, before + first - tap + count, axis=axis)
        for tap in range(taps)
    ]


class ConvTranspose(nnx.Module):
    """Learned transposed convolution, without bias, that starts as bilinear interpolation.

    kernel: float32 (*kernel_size, features, features); see `conv_transpose` for its convention.
    """

    def __init__(self, features: int, kernel_size: int, *, stride: int, crop: int, ndim: int = 2):
        self.stride = stride
        self.crop = crop
        # Weight decay would pull the kernel from interpolation towards zero.
        kernel = jnp.asarray(bilinear_kernel(kernel_size, features, ndim))
        self.kernel = nnx.Param(kernel, decay=False)

    def __call__(self, x: FeatureMap, like: FeatureMap) -> FeatureMap:
        """(b, *spatial, c) to the spatial size, and the valid part, of `like`."""
        size = max(self.kernel.shape[:-2])
        field = x.field.scattered(like.field.stride, size, self.stride, self.crop)
        values = self.in_blocks(x, like, at_once=True).whole()
        return dataclasses.replace(like, values=values, field=field)

    def in_blocks(self, x: FeatureMap, like: FeatureMap, *, at_once: bool = False) -> RowBlocks:
        """The values of the result, in blocks of rows."""
        return conv_transpose_blocks(
            x.filled(),
            self.kernel[...],
            stride=self.stride,
            crop=self.crop,
            output_size=like.spatial,
            at_once=at_once,
        )


class BilinearUpsample(nnx.Module):
    """Fixed bilinear interpolation: `ConvTranspose` as it starts, computed axis by axis."""

    def __init__(self, filter_size: int, *, stride: int, crop: int):
        self.filter_size = filter_size
        self.stride = stride
        self.crop = crop

    def __call__(self, x: FeatureMap, like: FeatureMap) -> FeatureMap:
        """(b, *spatial, c) to the spatial size, and the valid part, of `like`."""
        field = x.field.scattered(like.field.stride, self.filter_size, self.stride, self.crop)
        values = self.in_blocks(x, like, at_once=True).whole()
        return dataclasses.replace(like, values=values, field=field)

    def in_blocks(self, x: FeatureMap, like: FeatureMap, *, at_once: bool = False) -> RowBlocks:
        """The values of the result, in blocks of rows."""
        return bilinear_upsample_blocks(
            x.filled(),
            self.filter_size,
            stride=self.stride,
            crop=self.crop,
            output_size=like.spatial,
            at_once=at_once,
        )
