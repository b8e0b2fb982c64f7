"""The interfaces of a loss."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.errors import ArgumentError

SMALLEST_WEIGHT = 1e-9
"""Lower bound of a sum of weights that is divided by, for a batch without valid pixels."""


class Loss:
    """A loss of dense prediction; subclasses implement `sums` and `value`.

    The training step runs the output of the network twice through `sums`: for the totals, from
    which it takes the derivative of `value`, then for the gradient. With accumulation, the first
    time is a further forward pass of the network. A `PixelLoss` needs neither.

    Args:
        class_weights: (k,), an array or a sequence of numbers; None: 1 for every class.

    Attributes:
        per_image: True if the loss is the mean of the values of the batch's images; False if it is
            one value of the whole batch.
    """

    per_image = False

    def __init__(self, class_weights: jax.Array | Sequence[float] | None = None):
        if class_weights is not None:
            class_weights = jnp.asarray(class_weights, jnp.float32)
        self.class_weights = class_weights

    def sums(self, logits: jax.Array, label: jax.Array) -> Any:
        """Returns sums over pixels, to which pixels with label 255 contribute nothing.

        Args:
            logits: float32 (…, k); the leading axes are those of images, in any arrangement.
            label: int (…), 0…k−1, or 255 (`IGNORE_INDEX`).

        Returns:
            A tree of float32 arrays; those of two sets of pixels add up to those of their union.
        """
        raise NotImplementedError

    def value(self, sums: Any) -> jax.Array:
        """Returns the loss, a float32 scalar, from the sums over all pixels of the batch."""
        raise NotImplementedError

    def batch_value(self, sums: Any) -> jax.Array:
        """Returns the loss of a batch from its sums, of each image (b, …) if `per_image`."""
        return jnp.mean(jax.vmap(self.value)(sums)) if self.per_image else self.value(sums)

    def __call__(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """Returns the loss of a batch on one device; the arguments are those of `sums`.

        Raises:
            ValueError: `label` does not have the shape of the logits without their last axis.
        """
        self._check(logits, label)
        sums = jax.vmap(self.sums) if self.per_image else self.sums
        return self.batch_value(sums(logits, label))

    def _check(self, logits: jax.Array, label: jax.Array) -> None:
        """Raises ArgumentError for class weights of other classes, ValueError for other labels."""
        if self.class_weights is not None and self.class_weights.shape != logits.shape[-1:]:
            raise ArgumentError(
                "class_weights",
                "×".join(map(str, self.class_weights.shape)),
                f"must be {logits.shape[-1]} numbers, one for each class of the logits",
            )
        if label.shape != logits.shape[:-1]:
            raise ValueError(
                f"`label` (of shape {label.shape}) must have the shape of the logits "
                f"{logits.shape} without their last axis, {logits.shape[:-1]}"
            )


class PixelLoss(Loss):
    """A weighted mean over pixels: Σ (w[y] + e)·loss / Σ (w[y] + e) over pixels of label y ≠ 255.

    Subclasses implement `per_pixel`. Like PyTorch's weighted mean, it divides by the sum of the
    weights: the `class_weights` w, and the `extra` weights e of pixels, which are 0 by default.
    That sum is known before the network has run, so one pass over the logits suffices.
    """

    def per_pixel(self, logits: jax.Array, target: jax.Array) -> jax.Array:
        """Returns the loss of each pixel, without its weight.

        Args:
            logits: float32 (…, k).
            target: int32 (…), 0…k−1; 0 for ignored pixels, whose loss has no effect.

        Returns:
            float32 (…).
        """
        raise NotImplementedError

    def sums(
        self, logits: jax.Array, label: jax.Array, extra: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the two sums of the mean.

        Args:
            logits, label: see `Loss.sums`.
            extra: a further weight of each pixel, float32 (…); None for 0.
        """
        self._check(logits, label)
        weights = self._weights(label, extra)
        valid = label != IGNORE_INDEX
        losses = self.per_pixel(logits, target_of(label))
        return jnp.sum(jnp.where(valid, losses * weights, 0)), jnp.sum(weights)

    def weight_sum(self, label: jax.Array, extra: jax.Array | None = None) -> jax.Array:
        """Returns the second of `sums`, the sum of weights, which the labels determine."""
        return jnp.sum(self._weights(label, extra))

    def value(self, sums: tuple[jax.Array, jax.Array]) -> jax.Array:
        loss, weight = sums
        return loss * (1 / jnp.maximum(weight, SMALLEST_WEIGHT))

    def _weights(self, label: jax.Array, extra: jax.Array | None) -> jax.Array:
        valid = (label != IGNORE_INDEX).astype(jnp.float32)
        weights = valid
        if self.class_weights is not None:
            weights = weights * self.class_weights[target_of(label)]
        return weights if extra is None else weights + valid * extra


class RankedLoss(Loss):
    """A loss of the values of all pixels at once, such as one that sorts them.

    Subclasses implement `pixel_values` and `value`. The values are computed block by block like
    other sums, and then kept: float32 (b, h, w, c) of the whole batch, on each device. So the loss
    is the same on any number of devices, at the cost of that memory and of sending it around.
    """

    def pixel_values(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """Returns the values of each pixel, of which `value` makes the loss.

        Args:
            logits: float32 (…, k).
            label: int (…), 0…k−1, or 255 (`IGNORE_INDEX`), for which the result has no effect.

        Returns:
            float32 (…, c).
        """
        raise NotImplementedError

    def value(self, sums: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Returns the loss, a float32 scalar, from values (b, h, w, c) and labels (b, h, w).

        Without the axis b if `per_image`.
        """
        raise NotImplementedError

    def sums(self, logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the values of all pixels and their labels, which are not summed."""
        self._check(logits, label)
        return self.pixel_values(logits, label), label


def target_of(label: jax.Array) -> jax.Array:
    """Returns the labels with 0 in place of 255, int32."""
    return jnp.where(label != IGNORE_INDEX, label, 0).astype(jnp.int32)


def one_hot(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Returns bool (…, k); compares with an iota, which fuses where a gather would not."""
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return classes == target[..., None]
