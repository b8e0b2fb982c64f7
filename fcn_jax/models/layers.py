"""Layers of the networks: convolution, pooling, padding, ReLU and dropout.

A layer takes and returns a `FeatureMap` (b, *n, c) and computes in the dtype of its values. The
parameters are float32.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from fcn_jax.models.convolution import Geometry, add_bias, convolve, matmul
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import Padding, Window, both_sides
from fcn_jax.models.normalisation import BatchNorm, num_positions
from fcn_jax.models.recorded import recorded


def relu(x: FeatureMap) -> FeatureMap:
    """Computes max(x, 0)."""
    return x.map(rectify)


@jax.custom_jvp
def rectify(values: jax.Array) -> jax.Array:
    """Computes `jax.nn.relu` with less memory: the backward pass reads the result alone.

    The next layer stores this result anyway. `jax.nn.relu` also stores a mask, which in bfloat16
    takes half as much memory again.
    """
    return jnp.maximum(values, 0)


@rectify.defjvp
def _rectify_jvp(primals, tangents):
    result = rectify(*primals)
    (tangent,) = tangents

    @functools.partial(jax.checkpoint, prevent_cse=False)  # recomputes the mask
    def masked(result: jax.Array, tangent: jax.Array) -> jax.Array:
        return jnp.where(result > 0, tangent, 0)

    return result, masked(result, tangent)


def dropout(x: FeatureMap, rate: float, keys: jax.Array | None) -> FeatureMap:
    """Zeroes elements at random and scales up the others; returns `x` if there are no keys.

    Args:
        x: features.
        rate: probability of zeroing an element, in 0…1, 1 excluded.
        keys: PRNG keys (b,), one for each image, so that the elements drawn for an image do not
            depend on how the batch is sharded; None for no dropout.
    """
    if keys is None or rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.values.shape[1:]))(keys)
    return x.map(lambda values: jnp.where(keep, values / (1.0 - rate), 0))


HE_NORMAL = nnx.initializers.he_normal()
"""Initialises the kernels of convolutions (He et al. 2015)."""


class Conv(nnx.Module):
    """Convolution with zero padding.

    Args:
        in_features, out_features: number of channels before and after.
        kernel_size: size of the kernel on each axis, in taps.
        stride: positions between two windows, on every axis.
        padding: zeros (before, after) on every axis, or one number for both; None for
            dilation·(kernel − 1)/2 on both sides, which needs odd kernels.
        dilation: positions between two taps.
        groups: number of groups of channels that are convolved separately.
        use_bias: whether a bias is added.
        kernel_init: initialiser of the kernel. The bias starts at zero.
        rngs: streams of random keys for the initial weights.

    Attributes:
        kernel: float32 (*kernel_size, in / groups, out).
        bias: float32 (out,), or None.

    Raises:
        ValueError: an even kernel without `padding`, or features that `groups` does not divide.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        *,
        stride: int = 1,
        padding: Padding | None = None,
        dilation: int = 1,
        groups: int = 1,
        use_bias: bool = True,
        kernel_init: nnx.Initializer = HE_NORMAL,
        rngs: nnx.Rngs,
    ):
        if padding is None and not all(size % 2 for size in kernel_size):
            raise ValueError(
                f"`kernel_size` (={tuple(kernel_size)}) must be odd on every axis if no `padding` "
                "is given; a size k takes padding=(before, after) with before + after = k − 1"
            )
        if in_features % groups or out_features % groups:
            raise ValueError(
                f"`in_features` (={in_features}) and `out_features` (={out_features}) must be "
                f"divisible by `groups` (={groups})"
            )
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups
        shape = (*kernel_size, in_features // groups, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_features,), jnp.float32)) if use_bias else None

    @recorded
    def __call__(self, x: FeatureMap) -> FeatureMap:
        """Convolves (b, *n, in) to (b, *window_count(n), out)."""
        kernel = self.kernel[...].astype(x.values.dtype)
        size = kernel.shape[:-2]
        pads = [self._padding(k) for k in size]
        pointwise = math.prod(size) == 1 and self.stride == 1 and self.groups == 1
        if pointwise and not any(map(any, pads)):
            values = matmul(x.values, kernel.reshape(kernel.shape[-2:]))
        else:
            geometry = Geometry(self.stride, tuple(pads), self.dilation, self.groups)
            values = convolve(x.filled(), kernel, geometry)
        if self.bias is not None:
            values = add_bias(values, self.bias[...])
        windows = [
            Window(self.dilation * (k - 1) + 1, self.stride, pad)
            for k, pad in zip(size, pads, strict=True)
        ]
        return x.windowed(values, windows)

    def _padding(self, kernel_size: int) -> tuple[int, int]:
        if self.padding is None:
            return (self.dilation * (kernel_size - 1) // 2,) * 2
        return both_sides(self.padding)


@recorded
def max_pool(
    x: FeatureMap, window: int, stride: int, padding: int = 0, *, ceil: bool = False
) -> FeatureMap:
    """Computes the maximum over each window; the padding is −∞.

    Args:
        x: features (b, *n, c).
        window: side of the windows, in positions.
        stride, padding, ceil: see `geometry.window_count`.

    Returns:
        Features (b, *window_count(n), c).
    """
    each = Window(window, stride, padding, ceil)

    @jax.checkpoint  # Recomputing the maxima is cheap; storing their masks takes much memory.
    def pool(values: jax.Array) -> jax.Array:
        for axis, size in enumerate(x.spatial, start=1):
            values = _max_along(values, axis, each.count(size), window, stride, padding)
        return values

    pooled = x.windowed(pool(x.filled(-jnp.inf)), [each] * len(x.spatial))
    # Windows outside the image have the maximum −∞, and 0·∞ in a kernel's gradient would be nan.
    return dataclasses.replace(pooled, values=pooled.filled())


def _max_along(
    values: jax.Array, axis: int, count: int, window: int, stride: int, padding: int
) -> jax.Array:
    # Strided slices, because the gradient of `reduce_window` was 2.7 times as slow on a CPU.
    last = (count - 1) * stride
    pads = [(0, 0)] * values.ndim
    pads[axis] = (padding, max(0, last + window - padding - values.shape[axis]))
    padded = jnp.pad(values, pads, constant_values=-jnp.inf)
    slices = [
        lax.slice_in_dim(padded, start, start + last + 1, stride, axis) for start in range(window)
    ]
    return functools.reduce(jnp.maximum, slices)


@recorded
def average_pool(x: FeatureMap, window: Sequence[int]) -> FeatureMap:
    """Computes the mean over each window, with stride 1 and without padding.

    Args:
        x: features (b, *n, c).
        window: size of the windows on each axis, in positions.

    Returns:
        Features (b, *(n − window + 1), c) in the dtype of `x`; the sums are float32.
    """
    total = lax.reduce_window(
        x.filled().astype(jnp.float32),
        0.0,
        lax.add,
        (1, *window, 1),
        (1,) * (len(window) + 2),
        "VALID",
    )
    windows = [Window(size) for size in window]
    return x.windowed((total / math.prod(window)).astype(x.values.dtype), windows)


@recorded
def spatial_mean(x: FeatureMap) -> FeatureMap:
    """Computes the mean over the positions of each image: float32 (b, 1, …, 1, c)."""
    axes = tuple(range(1, x.values.ndim - 1))
    total = x.filled().astype(jnp.float32).sum(axes, keepdims=True)
    count = num_positions(x).reshape(-1, *[1] * (x.values.ndim - 1))
    return FeatureMap(total / count, field=x.field.unbounded())


@recorded
@recorded
def mirror_pad(x: FeatureMap, before: int, after: int) -> FeatureMap:
    """Pads every image on each axis by its mirror image; the border position is not repeated.

    (b, *n, c) to (b, *(before + n + after), c), as NumPy's mode "reflect".
    """
    values = x.values
    for axis, size in enumerate(x.spatial):
        sizes = jnp.asarray([size]) if x.valid is None else x.valid[:, axis]
        period = jnp.maximum(2 * (sizes - 1), 1)[:, None]
        place = jnp.arange(-before, size + after) % period
        place = jnp.minimum(place, period - place)
        if x.valid is None:
            values = jnp.take(values, place[0], axis=axis + 1)
        else:
            values = jax.vmap(functools.partial(jnp.take, axis=axis))(values, place)
    padded = x.windowed(values, [Window(1, padding=(before, after))] * len(x.spatial))
    if x.valid is None or padded.valid is None:
        return padded
    # A place in a batch without an image stays empty.
    return dataclasses.replace(padded, valid=jnp.where(x.valid > 0, padded.valid, 0))


class NormalisedConv(nnx.Module):
    """A convolution, batch normalisation and an optional activation.

    The convolution has no bias, because the normalisation would subtract it.

    Args:
        in_features, features: number of channels before and after.
        size: side of the kernel.
        stride, groups: see `Conv`.
        activation: applied after the normalisation; None for none.
        norm: builds the normalisation for a number of features.
        rngs: streams of random keys for the initial weights.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        size: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: Callable[[jax.Array], jax.Array] | None = None,
        norm: Callable[[int], BatchNorm],
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(
            in_features,
            features,
            (size, size),
            stride=stride,
            groups=groups,
            use_bias=False,
            rngs=rngs,
        )
        self.bn = norm(features)
        self.activation = activation

    def __call__(self, x: FeatureMap, *, train: bool) -> FeatureMap:
        x = self.bn(self.conv(x), train=train)
        return x if self.activation is None else x.map(self.activation)
