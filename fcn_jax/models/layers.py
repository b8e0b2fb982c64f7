"""Layers of the networks: convolution, pooling, batch normalisation, ReLU and dropout.

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

from fcn_jax.models.convolution import Geometry, convolve
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import Padding, Window, both_sides
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
            values = jnp.dot(x.values, kernel.reshape(kernel.shape[-2:]))
        else:
            geometry = Geometry(self.stride, tuple(pads), self.dilation, self.groups)
            values = convolve(x.filled(), kernel, geometry)
        if self.bias is not None:
            values = values + self.bias[...].astype(values.dtype)
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


def num_positions(x: FeatureMap) -> jax.Array:
    """Valid positions of each image, at least 1: float32 (b, 1, 1), or (1, 1, 1) for all images."""
    if x.valid is None:
        return jnp.full((1, 1, 1), math.prod(x.spatial), jnp.float32)
    count = jnp.prod(x.valid.astype(jnp.float32), axis=1)
    return jnp.maximum(count, 1).reshape(-1, 1, 1)  # a place in a batch may be empty


class BatchNorm(nnx.Module):
    """Batch normalisation over the valid positions of the batch on all devices.

    Training normalises by the statistics of the batch, and moves the running statistics towards
    them by 1 − momentum (towards the unbiased variance, as in PyTorch). Otherwise the running
    statistics normalise. All statistics are float32.

    Args:
        features: number of channels.
        momentum: share of the running statistics that a training step keeps (PyTorch's momentum is
            1 minus this one).
        epsilon: added to the variance.
        axis_name: the mapped axis of devices over which training takes the statistics; None for
            those of each device.
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

    @recorded
    def __call__(self, x: FeatureMap, *, train: bool = False) -> FeatureMap:
        """Normalises features (b, *n, c); `train` selects and updates the statistics."""
        if train:
            mean, var = self._batch_statistics(x)
        else:
            mean, var = self.mean[...], self.var[...]
        scale = self.scale[...] * lax.rsqrt(var + self.epsilon)
        shift = self.bias[...] - mean * scale
        return x.map(lambda values: _scaled_and_shifted(values, scale, shift))

    def _batch_statistics(self, x: FeatureMap) -> tuple[jax.Array, jax.Array]:
        if x.valid is None:
            count = jnp.asarray(math.prod(x.values.shape[:-1]), jnp.float32)
        else:
            count = jnp.prod(x.valid.astype(jnp.float32), axis=1).sum()
        total, count = self._over_devices((_sum(x), count))
        mean = total / count
        # A second pass over the values, because E[x²] − E[x]² would lose precision.
        var = self._over_devices(_sum_of_squares(x, mean)) / count
        unbiased = var * count / jnp.maximum(count - 1, 1)
        keep = self.momentum
        self.mean[...] = keep * self.mean[...] + (1 - keep) * lax.stop_gradient(mean)
        self.var[...] = keep * self.var[...] + (1 - keep) * lax.stop_gradient(unbiased)
        return mean, var

    def _over_devices(self, sums):
        return sums if self.axis_name is None else lax.psum(sums, self.axis_name)


class GroupNorm(nnx.Module):
    """Group normalisation over the valid positions of each image (Wu & He 2018, equation 7).

    The features of each image are divided into groups, and each group gets mean 0 and variance 1,
    then a learned scale and bias for each feature. With as many groups as features it is instance
    normalisation (Ulyanov et al. 2016). Statistics are float32.

    A position depends on the whole image, so parts of an image have other features than the whole.
    """

    def __init__(self, features: int, *, groups: int, epsilon: float = 1e-5):
        if features % groups:
            raise ValueError(f"`features` (={features}) must be divisible by `groups` (={groups})")
        self.groups = groups
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    @recorded
    def __call__(self, x: FeatureMap, *, train: bool = False) -> FeatureMap:
        """Normalises (b, *n, features). train: has no effect; `BatchNorm` takes it."""
        mean = self._group_mean(x, _image_sum(x))
        # The second pass keeps the precision that E[x²] − E[x]² would lose.
        centred = x.map(lambda values: jnp.square(values.astype(jnp.float32) - mean))
        var = self._group_mean(x, _image_sum(centred))
        scale = self.scale[...] * lax.rsqrt(var + self.epsilon)
        shift = self.bias[...] - mean * scale
        y = x.map(lambda values: _scaled_and_shifted(values, scale, shift))
        return dataclasses.replace(y, field=x.field.unbounded())

    def _group_mean(self, x: FeatureMap, sums: jax.Array) -> jax.Array:
        """Means of groups from sums of features (b, c), at every feature: (b, 1, …, 1, c)."""
        batch, features = sums.shape
        by_group = sums.reshape(batch, self.groups, -1)
        mean = by_group.sum(-1, keepdims=True) / (num_positions(x) * by_group.shape[-1])
        mean = jnp.broadcast_to(mean, by_group.shape)
        return mean.reshape(batch, *[1] * len(x.spatial), features)


# The next functions turn bfloat16 features into float32. `jax.checkpoint` keeps the float32 copies
# from being stored for the backward pass.


@jax.checkpoint
def _scaled_and_shifted(values: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    return (values * scale + shift).astype(values.dtype)


@jax.checkpoint
def _image_sum(x: FeatureMap) -> jax.Array:
    """Sums over the positions of each image: float32 (b, c)."""
    values = x.filled().astype(jnp.float32)
    return values.sum(tuple(range(1, values.ndim - 1)))


@jax.checkpoint
def _sum(x: FeatureMap) -> jax.Array:
    """Sums the features over all positions of all images: float32 (c,)."""
    values = x.filled().astype(jnp.float32)
    return values.sum(tuple(range(values.ndim - 1)))


@jax.checkpoint
def _sum_of_squares(x: FeatureMap, mean: jax.Array) -> jax.Array:
    """Sums the squared deviations from the mean over all positions of all images."""
    squares = x.map(lambda values: jnp.square(values.astype(jnp.float32) - mean)).filled()
    return squares.sum(tuple(range(squares.ndim - 1)))


NORM_GROUPS = 8
"""Groups of `GroupNorm` in U-Nets, as in Wolny's pytorch-3dunet; fewer if 8 does not divide."""


def norm_layer(
    kind: str, features: int, *, axis_name: str | None = None
) -> BatchNorm | GroupNorm | None:
    """Builds a normalisation by name: batch, group, instance or none."""
    if kind == "batch":
        return BatchNorm(features, axis_name=axis_name)
    if kind == "none":
        return None
    groups = features if kind == "instance" else math.gcd(NORM_GROUPS, features)
    return GroupNorm(features, groups=groups)


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
