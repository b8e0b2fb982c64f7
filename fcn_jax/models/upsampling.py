"""Upsampling by transposed convolutions: learned from a bilinear start, or fixed and bilinear.

Arrays are channels-last: (b, *spatial, c). All functions compute in the dtype of their input.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from fcn_jax.models.convolution import add_bias, matmul
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.recorded import recorded
from fcn_jax.models.row_blocks import (
    BlockLayout,
    RowBlocks,
    depth_to_space,
    in_blocks,
    rows_in_block,
)

EXACT = lax.Precision.HIGHEST
"""Precision of the products of scores, which GPUs and TPUs would otherwise round.

It costs little, because the scores are few.
"""


def bilinear_filter(size: int) -> np.ndarray:
    """Returns the one-dimensional filter of linear interpolation: float32 (size,).

    weight(i) = 1 − |i − c|/f with f = (size + 1)//2, and the centre c = f − 1 for an odd size,
    f − 0.5 for an even one (Long et al. 2015, section 3.3, and the authors' code).
    """
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    return (1 - np.abs(np.arange(size) - centre) / factor).astype(np.float32)


def bilinear_kernel(size: int, channels: int, ndim: int = 2) -> np.ndarray:
    """Returns the kernel of a transposed convolution that interpolates each channel separately.

    Args:
        size: side of the kernel.
        channels: channels of the input and the output.
        ndim: number of spatial axes.

    Returns:
        float32 (size, …, size, channels, channels), zero off the diagonal of the channels.
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
    """Computes a transposed convolution by phases, as a product with the small input.

    Every input position adds a multiple of the kernel to the output:
    out[j] = Σ_i values[i] · kernel[j + crop − stride·i] on each axis. The kernel is therefore the
    weight of PyTorch's `ConvTranspose2d`, transposed from (in, out, kh, kw) to (kh, kw, in, out)
    and not flipped, and `crop` is its `padding`. The kernel of flax's `ConvTranspose` is flipped
    in space.

    The outputs with the same (j + crop) mod stride are a *phase*. They depend on the same few taps
    of the kernel. All phases are computed by one matrix product of ceil(k/stride)^n shifted copies
    of the input with the kernel, which is rearranged to (taps·in, phases·out), and by a
    depth-to-space.

    Args:
        values: (b, *n, in).
        kernel: (*k, in, out), any kernel size and stride.
        stride: outputs per input on each axis.
        crop: outputs removed at the start of each axis; if negative, zeros added there.
        output_size: outputs on each axis; those out of reach of every input are zero.

    Returns:
        (b, *output_size, out), in the dtype of `values`.
    """
    return conv_transpose_blocks(
        values, kernel, stride=stride, crop=crop, output_size=output_size, single_block=True
    ).whole()


def conv_transpose_blocks(
    values: jax.Array,
    kernel: jax.Array,
    *,
    stride: int,
    crop: int,
    output_size: Sequence[int],
    single_block: bool = False,
) -> RowBlocks:
    """Prepares `conv_transpose` in blocks of rows, or in a single block."""
    ndim = values.ndim - 2
    in_features, out_features = kernel.shape[-2:]
    taps = [-(-k // stride) for k in kernel.shape[:ndim]]

    first = crop // stride
    counts = _counts(stride, crop, output_size)
    for axis in range(ndim):
        copies = _shifted(values, axis + 1, first, counts[axis], taps[axis])
        values = jnp.concatenate(copies, axis=-1)
    # The channels are now ordered (tap of the last axis, …, tap of the first axis, in).

    padding = [(0, t * stride - k) for t, k in zip(taps, kernel.shape[:ndim], strict=True)]
    kernel = jnp.pad(kernel, [*padding, (0, 0), (0, 0)]).astype(values.dtype)
    kernel = kernel.reshape(*[n for t in taps for n in (t, stride)], in_features, out_features)
    tap_axes = [2 * axis for axis in reversed(range(ndim))]
    phase_axes = [2 * axis + 1 for axis in range(ndim)]
    kernel = kernel.transpose(*tap_axes, 2 * ndim, *phase_axes, 2 * ndim + 1)
    kernel = kernel.reshape(values.shape[-1], stride**ndim * out_features)

    layout = _layout(values.shape[0], stride, crop, output_size, out_features, single_block)
    layout = dataclasses.replace(layout, stride=stride)

    def phases(kernel: jax.Array, values: jax.Array, _: None) -> jax.Array:
        result = jnp.dot(values.reshape(-1, values.shape[-1]), kernel, precision=EXACT)
        return result.reshape(*values.shape[:-1], *[stride] * ndim, out_features)

    return RowBlocks(phases, kernel, in_blocks(values, layout.rows // stride), None, layout)


def bilinear_upsample(
    values: jax.Array, filter_size: int, *, stride: int, crop: int, output_size: Sequence[int]
) -> jax.Array:
    """Computes `conv_transpose` with `bilinear_kernel(filter_size, …)`, one axis at a time.

    The other arguments and the result are those of `conv_transpose`. The cost is two
    multiplications per axis and output.
    """
    return bilinear_upsample_blocks(
        values, filter_size, stride=stride, crop=crop, output_size=output_size, single_block=True
    ).whole()


def bilinear_upsample_blocks(
    values: jax.Array,
    filter_size: int,
    *,
    stride: int,
    crop: int,
    output_size: Sequence[int],
    single_block: bool = False,
) -> RowBlocks:
    """Prepares `bilinear_upsample` in blocks of rows, or in a single block."""
    weights = bilinear_filter(filter_size)
    taps = -(-filter_size // stride)
    weights = np.pad(weights, (0, taps * stride - filter_size)).reshape(taps, stride)
    first = crop // stride
    counts = _counts(stride, crop, output_size)
    # The last axis first: the largest result then consists of contiguous rows.
    for axis in reversed(range(2, values.ndim - 1)):
        copies = _shifted(values, axis, first, counts[axis - 1], taps)
        values = _interleaved(copies, axis, weights)

    layout = _layout(values.shape[0], stride, crop, output_size, values.shape[-1], single_block)
    copies = [
        in_blocks(copy, layout.rows // stride)
        for copy in _shifted(values, 1, first, counts[0], taps)
    ]

    def rows(_: None, copies: list[jax.Array], __: None) -> jax.Array:
        return _interleaved(copies, 0, weights)

    return RowBlocks(rows, None, copies, None, layout)


def _counts(stride: int, crop: int, output_size: Sequence[int]) -> list[int]:
    """Returns the number of coarse positions that cover the outputs, on each axis."""
    return [(crop + size - 1) // stride + 1 - crop // stride for size in output_size]


def _layout(
    batch: int,
    stride: int,
    crop: int,
    output_size: Sequence[int],
    features: int,
    single_block: bool,
) -> BlockLayout:
    counts = _counts(stride, crop, output_size)
    padded = tuple(count * stride for count in counts)
    coarse_rows = batch * counts[0]
    if not single_block:
        coarse_rows = rows_in_block(4 * stride * math.prod(padded[1:]) * features, coarse_rows)
    return BlockLayout(
        batch=batch,
        size=tuple(output_size),
        before=(crop - crop // stride * stride,) * len(padded),
        padded=padded,
        rows=coarse_rows * stride,
    )


def _interleaved(copies: list[jax.Array], axis: int, weights: np.ndarray) -> jax.Array:
    """Computes Σ_tap copies[tap] · weights[tap, phase], with the phases interleaved on the axis."""
    stride = weights.shape[1]
    shape = copies[0].shape
    if stride <= 8:
        # One sum per phase; one product for all phases was 5 times as slow on a CPU.
        phases = [
            sum(copy * float(weights[tap, phase]) for tap, copy in enumerate(copies))
            for phase in range(stride)
        ]
        values = jnp.stack(phases, axis=axis + 1)
    else:
        # One product for all phases; one sum per phase was 8 times as slow on a CPU.
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
    """Returns the positions first − t … first − t + count − 1 for each tap t, zero outside."""
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


class Upsample(nnx.Module):
    """A transposed convolution to the size of a finer feature map.

    Args:
        filter_size: side of the kernel.
        stride, crop: see `conv_transpose`.
    """

    def __init__(self, filter_size: int, *, stride: int, crop: int):
        self.filter_size = filter_size
        self.stride = stride
        self.crop = crop

    @recorded
    def __call__(self, x: FeatureMap, like: FeatureMap) -> FeatureMap:
        """Upsamples (b, *spatial, c) to the canvas size and the image sizes of `like`."""
        field = x.field.scattered(like.field.stride, self.filter_size, self.stride, self.crop)
        values = self.in_blocks(x, like, single_block=True).whole()
        return dataclasses.replace(like, values=values, field=field)

    def in_blocks(
        self, x: FeatureMap, like: FeatureMap, *, single_block: bool = False
    ) -> RowBlocks:
        """Prepares the values of the result in blocks of rows."""
        raise NotImplementedError


class ConvTranspose(Upsample):
    """A learned transposed convolution, without bias, that starts as bilinear interpolation.

    Attributes:
        kernel: float32 (*filter_size, features, features); see `conv_transpose`.
    """

    def __init__(self, features: int, filter_size: int, *, stride: int, crop: int, ndim: int = 2):
        super().__init__(filter_size, stride=stride, crop=crop)
        # Weight decay would pull the kernel from interpolation towards zero.
        kernel = jnp.asarray(bilinear_kernel(filter_size, features, ndim))
        self.kernel = nnx.Param(kernel, decay=False)

    def in_blocks(
        self, x: FeatureMap, like: FeatureMap, *, single_block: bool = False
    ) -> RowBlocks:
        """Prepares the values of the result in blocks of rows."""
        return conv_transpose_blocks(
            x.filled(),
            self.kernel[...],
            stride=self.stride,
            crop=self.crop,
            output_size=like.spatial,
            single_block=single_block,
        )


class BlockUpsample(nnx.Module):
    """A learned transposed convolution, with bias, whose kernel is as large as its stride.

    The up-convolution of U-Net (Ronneberger et al. 2015): each position becomes a block of
    stride^n positions, so it is one product and a depth-to-space.

    Attributes:
        kernel: float32 (*stride, in, out), as of `conv_transpose`.
        bias: float32 (out,).
    """

    def __init__(
        self, in_features: int, features: int, *, stride: int, ndim: int = 2, rngs: nnx.Rngs
    ):
        self.stride = stride
        # Each output is made of one position, so of in_features values.
        init = nnx.initializers.he_normal(batch_axis=range(ndim))
        shape = (*[stride] * ndim, in_features, features)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    @recorded
    def __call__(self, x: FeatureMap, like: FeatureMap) -> FeatureMap:
        """Upsamples (b, *n, in) to the spatial size, and the valid part, of `like`."""
        kernel = self.kernel[...].astype(x.values.dtype)
        values = add_bias(block_upsample(x.values, kernel), self.bias[...])
        window = tuple(slice(size) for size in like.spatial)
        field = x.field.scattered(like.field.stride, self.stride, self.stride, 0)
        return dataclasses.replace(like, values=values[(slice(None), *window)], field=field)


def block_upsample(values: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `conv_transpose` for a kernel as large as the stride, without a crop.

    Args:
        values: (b, *n, in).
        kernel: (stride, …, stride, in, out).

    Returns:
        (b, *(stride·n), out).
    """
    ndim, stride = values.ndim - 2, kernel.shape[0]
    batch, *size, in_features = values.shape
    features = kernel.shape[-1]
    kernel = jnp.moveaxis(kernel, ndim, 0).reshape(in_features, -1)
    # The rows of all images follow each other, as those of one image.
    phases = matmul(values, kernel).reshape(-1, *size[1:], *[stride] * ndim, features)
    return depth_to_space(phases, ndim).reshape(batch, *[stride * n for n in size], features)


class BilinearUpsample(Upsample):
    """Fixed bilinear interpolation: the initial `ConvTranspose`, computed one axis at a time."""

    def in_blocks(
        self, x: FeatureMap, like: FeatureMap, *, single_block: bool = False
    ) -> RowBlocks:
        """Prepares the values of the result in blocks of rows."""
        return bilinear_upsample_blocks(
            x.filled(),
            self.filter_size,
            stride=self.stride,
            crop=self.crop,
            output_size=like.spatial,
            single_block=single_block,
        )
