"""Training losses: sums over pixels, and a value computed once from the sums of the whole batch.

The training step adds the sums over blocks of rows, accumulation steps and devices before it takes
the value, so a loss does not depend on how the batch was divided. Select one with `loss.name` and
give its options with `loss.options`.

Write a loss in one of two ways, and register it by name:

    @register_loss("squared_error")
    class SquaredError(PixelLoss):  # a weighted mean over pixels
        def per_pixel(self, logits, target):
            truth = jax.nn.one_hot(target, logits.shape[-1])
            return jnp.sum((jax.nn.softmax(logits) - truth) ** 2, axis=-1)

    @register_loss("jaccard")
    class Jaccard(Loss):  # any other function of sums
        def sums(self, logits, label): ...
        def value(self, sums): ...

The constructor takes the keyword argument `class_weights=None` first, and the options of the loss
as further keyword arguments. `loss_check.check_loss` checks a loss on a few pixels, as the
training step does when it is built.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fcn_jax import registry
from fcn_jax.config import LossConfig
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
    """

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

    def __call__(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """Returns the loss of a batch on one device; the arguments are those of `sums`.

        Raises:
            ValueError: `label` does not have the shape of the logits without their last axis.
        """
        self._check(logits, label)
        return self.value(self.sums(logits, label))

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
    """A weighted mean over pixels: Σ w[y]·loss / Σ w[y] over pixels with label y ≠ 255.

    Subclasses implement `per_pixel`. Like PyTorch's weighted mean, it divides by the sum of the
    weights w, the `class_weights`. That sum is known before the network has run, so one pass over
    the logits suffices.
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

    def sums(self, logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        self._check(logits, label)
        weights = self._weights(label)
        valid = label != IGNORE_INDEX
        losses = self.per_pixel(logits, _target(label))
        return jnp.sum(jnp.where(valid, losses * weights, 0)), jnp.sum(weights)

    def weight_sum(self, label: jax.Array) -> jax.Array:
        """Returns the second of `sums`, the sum of weights, which the labels determine."""
        return jnp.sum(self._weights(label))

    def value(self, sums: tuple[jax.Array, jax.Array]) -> jax.Array:
        loss, weight = sums
        return loss * (1 / jnp.maximum(weight, SMALLEST_WEIGHT))

    def _weights(self, label: jax.Array) -> jax.Array:
        weights = (label != IGNORE_INDEX).astype(jnp.float32)
        if self.class_weights is not None:
            weights = weights * self.class_weights[_target(label)]
        return weights


class CrossEntropy(PixelLoss):
    """Softmax cross-entropy: log Σ_k exp(logits_k) − logits_y at a pixel with label y."""

    def per_pixel(self, logits: jax.Array, target: jax.Array) -> jax.Array:
        # The maximum drops out of the derivative, which saves the backward pass an eighth on a CPU.
        largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        exponentials = jnp.sum(jnp.exp(logits - largest), axis=-1)
        picked = jnp.sum(jnp.where(_one_hot(logits, target), logits, 0), axis=-1)
        return jnp.log(exponentials) + largest[..., 0] - picked


class Focal(CrossEntropy):
    """Focal loss, −α_y·(1 − p_y)^γ·log p_y with the softmax's probability p_y of the label y.

    Lin et al. 2017, equation 5; the `class_weights` are α. With gamma=0 it is cross-entropy.

    Args:
        class_weights: see `Loss`.
        gamma: γ ≥ 0, how strongly pixels that are predicted well are discounted (the paper's: 2).
    """

    def __init__(self, class_weights: jax.Array | None = None, *, gamma: float = 2.0):
        if not gamma >= 0:
            raise ValueError(f"gamma (={gamma}) must be at least 0")
        super().__init__(class_weights)
        self.gamma = gamma

    def per_pixel(self, logits: jax.Array, target: jax.Array) -> jax.Array:
        losses = super().per_pixel(logits, target)
        if self.gamma == 0:
            return losses
        # 1 − p = 1 − exp(−loss); above 0, where the derivative of a power below 1 is finite.
        missing = jnp.maximum(-jnp.expm1(-losses), jnp.finfo(jnp.float32).tiny)
        return missing**self.gamma * losses


class Dice(Loss):
    """Soft Dice loss: 1 − D with D the mean of the classes' Dice coefficients over the whole batch.

    D_c = (2·Σ p_c·g_c + s) / (Σ p_c + Σ g_c + s) over the batch's valid pixels, with the softmax's
    probability p_c of class c, g_c = 1 where it is the label, and s = `smooth`. Introduced by
    Milletari et al. 2016 (V-Net), here in the form of nnU-Net's batch Dice (Isensee et al. 2021).
    The mean is weighted by `class_weights`; a weight of 0 leaves a class out, such as background.

    Args:
        class_weights: see `Loss`.
        smooth: s > 0, for classes that are neither in the labels nor predicted (nnU-Net's: 1e-5).
    """

    def __init__(self, class_weights: jax.Array | None = None, *, smooth: float = 1e-5):
        if not smooth > 0:
            raise ValueError(f"smooth (={smooth}) must be above 0")
        super().__init__(class_weights)
        self.smooth = smooth

    def sums(self, logits: jax.Array, label: jax.Array) -> tuple[jax.Array, ...]:
        """Returns Σ p·g, Σ p and Σ g of each class: float32 (k,) each."""
        self._check(logits, label)
        valid = (label != IGNORE_INDEX)[..., None]
        truth = _one_hot(logits, _target(label)) & valid
        predicted = jnp.where(valid, jax.nn.softmax(logits, axis=-1), 0)
        pixels = tuple(range(logits.ndim - 1))
        return (
            jnp.sum(jnp.where(truth, predicted, 0), pixels),
            jnp.sum(predicted, pixels),
            jnp.sum(truth.astype(jnp.float32), pixels),
        )

    def value(self, sums: tuple[jax.Array, ...]) -> jax.Array:
        both, predicted, truth = sums
        dice = (2 * both + self.smooth) / (predicted + truth + self.smooth)
        weights = jnp.ones_like(dice) if self.class_weights is None else self.class_weights
        return 1 - jnp.sum(weights * dice) / jnp.maximum(jnp.sum(weights), SMALLEST_WEIGHT)


def build_losses(
    config: LossConfig, label_maps: tuple[str, ...], class_weights: Mapping[str, jax.Array]
) -> dict[str, Loss]:
    """Builds the loss that a config names, for each label map with its class weights.

    Args:
        config: the settings `loss`.
        label_maps: names of the label maps.
        class_weights: float32 (k,) by label map; label maps without an entry have no weights.

    Raises:
        ArgumentError: no loss has the name, or it does not take these options.
    """
    make = registry.losses[config.name]
    if not takes_class_weights(make):
        raise ArgumentError(
            "loss.name",
            config.name,
            "cannot be used: its constructor must take the keyword argument class_weights=None",
        )
    options = _options(config)
    known = [name for name in inspect.signature(make).parameters if name != "class_weights"]
    for name in options:
        if name not in known:
            problem = f"has an option {name!r} that loss.name={config.name} does not take: "
            raise ArgumentError(
                "loss.options", config.options, problem + (", ".join(known) or "it has none")
            )
    try:
        losses = {
            name: make(class_weights=class_weights.get(name), **options) for name in label_maps
        }
    except (TypeError, ValueError) as error:
        raise ArgumentError("loss.options", config.options, f"cannot be used: {error}") from error
    if config.normalization == "sum" and not isinstance(losses[label_maps[0]], PixelLoss):
        raise ArgumentError(
            "loss.normalization",
            "sum",
            f"must be mean with loss.name={config.name}, which is no sum over pixels",
        )
    return losses


def _options(config: LossConfig) -> dict[str, float]:
    try:
        pairs = [option.split("=") for option in config.options]
        options = {name.strip(): float(value) for name, value in pairs}
        if not all(map(math.isfinite, options.values())):
            raise ValueError
        return options
    except ValueError:
        problem = "must be name=number,…, with finite numbers"
        raise ArgumentError("loss.options", config.options, problem) from None


def takes_class_weights(make: Callable[..., Loss]) -> bool:
    """Returns whether a constructor takes the keyword argument `class_weights`."""
    parameters = inspect.signature(make).parameters
    return "class_weights" in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def _target(label: jax.Array) -> jax.Array:
    return jnp.where(label != IGNORE_INDEX, label, 0).astype(jnp.int32)


def _one_hot(logits: jax.Array, target: jax.Array) -> jax.Array:
    """bool (…, k); compares with an iota, which fuses where a gather would not."""
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return classes == target[..., None]
