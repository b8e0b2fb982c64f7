"""The spatial layers that every network here is made of.

Arrays are channels-last: (b, h, w, c), or (b, d, h, w, c) for volumes. A layer computes in the
dtype of what it is given; parameters stay float32.

Images of different sizes share one array, the *canvas*, each at its top left. A `FeatureMap`
carries how much of each canvas is image (`valid`), and every layer that looks at neighbours first
replaces what lies outside by what it would see beyond the border of the image alone: zero, or −∞
for pooling. So the features of an image do not depend on the canvas that it lies on. This needs one
rule of all layers with a stride: n positions become ceil(n / stride).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """Features, and how much of each canvas is image.

    values: (b, *spatial, c). valid: int32 (b, len(spatial)), or None where all of it is image.
    """

    values: jax.Array
    valid: jax.Array | None = None

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

    def strided(self, values: jax.Array, stride: Sequence[int]) -> Self:
        """A feature map of new values after a layer of this stride."""
        valid = self.valid
        if valid is not None:
            valid = -(-valid // jnp.asarray(stride, valid.dtype))
        return dataclasses.replace(self, values=values, valid=valid)


def relu(x: FeatureMap) -> FeatureMap:
    return x.map(jax.nn.relu)


def add(x: FeatureMap, y: FeatureMap) -> FeatureMap:
    return dataclasses.replace(x, values=x.values + y.values)


def concatenate(x: FeatureMap, y: FeatureMap) -> FeatureMap:
    return dataclasses.replace(x, values=jnp.concatenate([x.values, y.values], axis=-1))


def dropout(x: FeatureMap, rate: float, keys: jax.Array | None) -> FeatureMap:
    """Zeroes elements at random and scales the others up; without keys, does nothing.

    keys: PRNG keys (b,), one for each image, so that what is drawn for an image does not depend on
    how the batch is spread over devices.
    """
    if keys is None or rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.values.shape[1:]))(keys)
    return x.map(lambda values: jnp.where(keep, values / (1.0 - rate), 0))


HE_NORMAL = nnx.initializers.he_normal()


class Conv(nnx.Module):
    """Convolution with symmetric zero padding, dilation·(kernel − 1)/2 a side, and odd kernels.

    kernel: float32 (*kernel_size, in, out). bias: float32 (out,), or None.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        *,
        stride: int = 1,
        dilation: int = 1,
        use_bias: bool = True,
        kernel_init: nnx.Initializer = HE_NORMAL,
        rngs: nnx.Rngs,
    ):
        if not all(size % 2 for size in kernel_size):
            raise ValueError(f"`kernel_size` (={tuple(kernel_size)}) must be odd on every axis")
        self.stride = stride
        self.dilation = dilation
        self.kernel = nnx.Param(
            kernel_init(rngs.params(), (*kernel_size, in_features, out_features), jnp.float32)
        )
        self.bias = nnx.Param(jnp.zeros((out_features,), jnp.float32)) if use_bias else None

    def __call__(self, x: FeatureMap) -> FeatureMap:
        """(b, *spatial, in) to (b, *ceil(spatial / stride), out)."""
        kernel = self.kernel[...].astype(x.values.dtype)
        size = kernel.shape[:-2]
        if math.prod(size) == 1 and self.stride == 1:
            values = jnp.dot(x.values, kernel.reshape(kernel.shape[-2:]))
        else:
            spatial = "DHW"[-len(size) :]
            values = lax.conv_general_dilated(
                x.filled(),
                kernel,
                window_strides=[self.stride] * len(size),
                padding=[(self.dilation * (k - 1) // 2,) * 2 for k in size],
                rhs_dilation=[self.dilation] * len(size),
                dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
            )
        if self.bias is not None:
            values = values + self.bias[...].astype(values.dtype)
        return x.strided(values, [self.stride] * len(size))


def max_pool(x: FeatureMap, window: int, stride: int, padding: int = 0) -> FeatureMap:
    """Largest value in each window, `padding` positions before the first pixel and no more.

    Windows that hang over the far border see only what is there ('ceil mode'): n positions become
    ceil(n / stride).
    """
    values = x.filled(-jnp.inf)
    for axis in range(1, values.ndim - 1):
        values = _max_along(values, axis, window, stride, padding)
    pooled = x.strided(values, [stride] * len(x.spatial))
    # Windows outside the image saw only −∞, of which a kernel's gradient would make nan: 0·∞.
    return dataclasses.replace(pooled, values=pooled.filled())


def _max_along(values: jax.Array, axis: int, window: int, stride: int, padding: int) -> jax.Array:
    # A maximum of strided slices: the gradient of `reduce_window` was 2.7 times slower on a CPU.
    size = values.shape[axis]
    count = -(-size // stride)
    last = (count - 1) * stride
    pads = [(0, 0)] * values.ndim
    pads[axis] = (padding, max(0, last + window - padding - size))
    padded = jnp.pad(values, pads, constant_values=-jnp.inf)
    slices = [
        lax.slice_in_dim(padded, start, start + last + 1, stride, axis) for start in range(window)
    ]
    return functools.reduce(jnp.maximum, slices)


class BatchNorm(nnx.Module):
    """Batch normalisation over the valid positions of the batch on all devices.

    Statistics are float32. In training they are those of the batch, over the devices of `axis_name`
    where given; the running ones move by 1 − momentum towards them (the variance unbiased, as in
    PyTorch), and serve otherwise.
    """

    def __init__(
        self,
        features: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        axis_name: str | None = None,
    ):
        self.momentum = momentum
        self.epsilon = epsilon
        self.axis_name = axis_name
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((features,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((features,), jnp.float32))

    def __call__(self, x: FeatureMap, *, train: bool = False) -> FeatureMap:
        if train:
            mean, var = self._batch_statistics(x)
        else:
            mean, var = self.mean[...], self.var[...]
        scale = self.scale[...] * lax.rsqrt(var + self.epsilon)
        shift = self.bias[...] - mean * scale
        return x.map(lambda values: (values * scale + shift).astype(values.dtype))

    def _batch_statistics(self, x: FeatureMap) -> tuple[jax.Array, jax.Array]:
        values = x.filled().astype(jnp.float32)
        axes = tuple(range(values.ndim - 1))
        if x.valid is None:
            count = jnp.asarray(math.prod(values.shape[:-1]), jnp.float32)
        else:
            count = jnp.prod(x.valid.astype(jnp.float32), axis=1).sum()
        total, count = self._over_devices((values.sum(axes), count))
        mean = total / count
        # The second pass keeps the precision that E[x²] − E[x]² would lose.
        squares = dataclasses.replace(x, values=jnp.square(values - mean)).filled().sum(axes)
        var = self._over_devices(squares) / count
        unbiased = var * count / jnp.maximum(count - 1, 1)
        keep = self.momentum
        self.mean[...] = keep * self.mean[...] + (1 - keep) * lax.stop_gradient(mean)
        self.var[...] = keep * self.var[...] + (1 - keep) * lax.stop_gradient(unbiased)
        return mean, var

    def _over_devices(self, sums):
        return sums if self.axis_name is None else lax.psum(sums, self.axis_name)


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
        crop: outputs left out at the start of each axis.
        output_size: outputs on each axis; zero where no input reaches.

    Returns:
        (b, *output_size, out), in the dtype of `values`.
    """
    ndim = values.ndim - 2
    in_features, out_features = kernel.shape[-2:]
    taps = [-(-k // stride) for k in kernel.shape[:ndim]]

    first = crop // stride
    counts = [(crop + size - 1) // stride + 1 - first for size in output_size]
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

    result = jnp.dot(values, kernel)
    result = result.reshape(values.shape[0], *counts, *[stride] * ndim, out_features)
    interleaved = [n for axis in range(ndim) for n in (1 + axis, 1 + ndim + axis)]
    result = result.transpose(0, *interleaved, 2 * ndim + 1)
    result = result.reshape(values.shape[0], *[n * stride for n in counts], out_features)
    start = crop - first * stride
    window = tuple(slice(start, start + size) for size in output_size)
    return result[(slice(None), *window)]


def bilinear_upsample(
    values: jax.Array, filter_size: int, *, stride: int, crop: int, output_size: Sequence[int]
) -> jax.Array:
    """`conv_transpose` with `bilinear_kernel(filter_size, …)`, one axis after the other.

    Same arguments and result, at a cost of two multiplications an axis and output.
    """
    weights = bilinear_filter(filter_size)
    taps = -(-filter_size // stride)
    weights = np.pad(weights, (0, taps * stride - filter_size)).reshape(taps, stride)
    first = crop // stride
    start = crop - first * stride
    # The last axis first: the largest result is then made of whole contiguous rows.
    for axis in reversed(range(1, values.ndim - 1)):
        size = output_size[axis - 1]
        count = (crop + size - 1) // stride + 1 - first
        copies = _shifted(values, axis, first, count, taps)
        if stride <= 8:
            # A sum per phase: as one product, 5 times as slow on a CPU.
            phases = [
                sum(copy * float(weights[tap, phase]) for tap, copy in enumerate(copies))
                for phase in range(stride)
            ]
            values = jnp.stack(phases, axis=axis + 1)
        else:
            # One product for all phases: as so many sums, 8 times as slow on a CPU.
            dims = list(range(values.ndim))
            tap, phase = values.ndim, values.ndim + 1
            values = jnp.einsum(
                jnp.stack(copies),
                [tap, *dims],
                weights.astype(values.dtype),
                [tap, phase],
                [*dims[: axis + 1], phase, *dims[axis + 1 :]],
            )
        merged = (*values.shape[:axis], count * stride, *values.shape[axis + 2 :])
        values = lax.slice_in_dim(values.reshape(merged), start, start + size, axis=axis)
    return values


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
        self.kernel = nnx.Param(jnp.asarray(bilinear_kernel(kernel_size, features, ndim)))

    def __call__(self, x: FeatureMap, like: FeatureMap) -> FeatureMap:
        """(b, *spatial, c) to the spatial size, and the valid part, of `like`."""
        values = conv_transpose(
            x.filled(),
            self.kernel[...],
            stride=self.stride,
            crop=self.crop,
            output_size=like.spatial,
        )
        return FeatureMap(values, like.valid)


class BilinearUpsample(nnx.Module):
    """Fixed bilinear interpolation: `ConvTranspose` as it starts, computed axis by axis."""

    def __init__(self, filter_size: int, *, stride: int, crop: int):
        self.filter_size = filter_size
        self.stride = stride
        self.crop = crop

    def __call__(self, x: FeatureMap, like: FeatureMap) -> FeatureMap:
        """(b, *spatial, c) to the spatial size, and the valid part, of `like`."""
        values = bilinear_upsample(
            x.filled(),
            self.filter_size,
            stride=self.stride,
            crop=self.crop,
            output_size=like.spatial,
        )
        return FeatureMap(values, like.valid)
