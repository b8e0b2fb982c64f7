"""Normalisation over the valid positions of images: batch, group and instance normalisation.

Statistics and parameters are float32; the features keep their dtype.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.recorded import recorded


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
        total, count = self._over_devices((_sum(x, 0), count))
        mean = total / count
        # A second pass over the values, because E[x²] − E[x]² would lose precision. The deviations
        # add up to 0, so the variance has no gradient in the mean: that would be a further pass.
        var = self._over_devices(_sum_of_squares(x, lax.stop_gradient(mean), 0)) / count
        unbiased = var * count / jnp.maximum(count - 1, 1)
        keep = self.momentum
        # Assigning to [...] asks for the sharding of a traced array, which JAX refuses with a
        # message that takes as long as all equations traced so far are many.
        self.mean.set_value(keep * self.mean[...] + (1 - keep) * lax.stop_gradient(mean))
        self.var.set_value(keep * self.var[...] + (1 - keep) * lax.stop_gradient(unbiased))
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
        mean = self._group_mean(x, _sum(x, 1))
        # A second pass, and no gradient of the variance in the mean, as in `BatchNorm`.
        var = self._group_mean(x, _sum_of_squares(x, lax.stop_gradient(mean), 1))
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
# from being stored for the backward pass; without `prevent_cse`, whose barriers would keep XLA from
# fusing the gradients with their neighbours'.
_without_copies = functools.partial(jax.checkpoint, prevent_cse=False)


@_without_copies
def _scaled_and_shifted(values: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    return (values * scale + shift).astype(values.dtype)


@functools.partial(_without_copies, static_argnums=1)
def _sum(x: FeatureMap, first_axis: int) -> jax.Array:
    """Sums features over their axes from `first_axis` to the last spatial one, in float32.

    From 0 on that is over all images, (c,), and from 1 on over the positions of each, (b, c).
    """
    values = x.filled().astype(jnp.float32)
    return values.sum(tuple(range(first_axis, values.ndim - 1)))


@functools.partial(_without_copies, static_argnums=2)
def _sum_of_squares(x: FeatureMap, mean: jax.Array, first_axis: int) -> jax.Array:
    """Sums the squared deviations from the mean over the same axes as `_sum`."""
    squares = x.map(lambda values: jnp.square(values.astype(jnp.float32) - mean)).filled()
    return squares.sum(tuple(range(first_axis, squares.ndim - 1)))


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
