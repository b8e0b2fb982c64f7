"""Losses of the overlap of prediction and truth: soft Dice, generalised Dice, Jaccard, Tversky.

All are functions of three sums for each class c: Σ p_c·g_c, Σ p_c and Σ g_c over the valid pixels,
with the softmax's probability p_c, and g_c = 1 where c is the label and 0 elsewhere.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.training.losses.base import SMALLEST_WEIGHT, Loss, one_hot, target_of


class OverlapLoss(Loss):
    """1 − the mean of the classes' coefficients; subclasses implement `coefficients`.

    The mean is weighted by `class_weights`; a weight of 0 leaves a class out, such as background.

    Args:
        class_weights: see `Loss`.
        smooth: s > 0, added to numerators and denominators (nnU-Net's: 1e-5).
        per_image: takes the coefficients of each image, and the mean over the images, as MONAI does
            by default. False: of the whole batch, as nnU-Net's batch Dice and
            segmentation_models.pytorch do.
        skip_absent: a class without pixels in the truth costs nothing, whatever is predicted, as in
            segmentation_models.pytorch; it still counts in the mean. False: it costs 1 wherever it
            is predicted, as in nnU-Net and MONAI.
    """

    def __init__(
        self,
        class_weights: jax.Array | Sequence[float] | None = None,
        *,
        smooth: float = 1e-5,
        per_image: bool = False,
        skip_absent: bool = False,
    ):
        if not smooth > 0:
            raise ValueError(f"smooth (={smooth}) must be above 0")
        super().__init__(class_weights)
        self.smooth = smooth
        self.per_image = per_image
        self.skip_absent = skip_absent

    def sums(self, logits: jax.Array, label: jax.Array) -> tuple[jax.Array, ...]:
        """Returns Σ p·g, Σ p and Σ g of each class: float32 (k,) each."""
        self._check(logits, label)
        valid = (label != IGNORE_INDEX)[..., None]
        truth = one_hot(logits, target_of(label)) & valid
        predicted = jnp.where(valid, jax.nn.softmax(logits, axis=-1), 0)
        pixels = tuple(range(logits.ndim - 1))
        return (
            jnp.sum(jnp.where(truth, predicted, 0), pixels),
            jnp.sum(predicted, pixels),
            jnp.sum(truth.astype(jnp.float32), pixels),
        )

    def coefficients(self, both: jax.Array, predicted: jax.Array, truth: jax.Array) -> jax.Array:
        """Returns the coefficient of each class, float32 (k,), from Σ p·g, Σ p and Σ g."""
        raise NotImplementedError

    def value(self, sums: tuple[jax.Array, ...]) -> jax.Array:
        coefficients = self.coefficients(*sums)
        if self.skip_absent:
            coefficients = jnp.where(sums[2] > 0, coefficients, 1)
        weights = jnp.ones_like(coefficients) if self.class_weights is None else self.class_weights
        return 1 - jnp.sum(weights * coefficients) / jnp.maximum(jnp.sum(weights), SMALLEST_WEIGHT)


class Dice(OverlapLoss):
    """Soft Dice loss: 1 − the mean of D_c = (2·Σ p_c·g_c + s) / (Σ p_c + Σ g_c + s).

    Introduced by Milletari et al. 2016 (V-Net), by default in the form of nnU-Net's batch Dice
    (Isensee et al. 2021). For the arguments see `OverlapLoss`.
    """

    def coefficients(self, both: jax.Array, predicted: jax.Array, truth: jax.Array) -> jax.Array:
        return (2 * both + self.smooth) / (predicted + truth + self.smooth)


class Jaccard(OverlapLoss):
    """Soft Jaccard loss: 1 − the mean of (Σ p·g + s) / (Σ p + Σ g − Σ p·g + s) of each class.

    Rahman & Wang 2016. For the arguments see `OverlapLoss`.
    """

    def coefficients(self, both: jax.Array, predicted: jax.Array, truth: jax.Array) -> jax.Array:
        return (both + self.smooth) / (predicted + truth - both + self.smooth)


class Tversky(OverlapLoss):
    """Tversky loss: 1 − the mean of (TP + s) / (TP + α·FP + β·FN + s) of each class.

    TP = Σ p·g, FP = Σ p − TP, FN = Σ g − TP. Salehi et al. 2017, equation 3. With α = β = ½ it is
    the Dice loss, with α = β = 1 the Jaccard loss.

    Args:
        class_weights, smooth, per_image, skip_absent: see `OverlapLoss`.
        alpha: α ≥ 0, the weight of false positives (the paper's best: 0.3).
        beta: β ≥ 0, the weight of false negatives (the paper's best: 0.7).
    """

    def __init__(
        self,
        class_weights: jax.Array | Sequence[float] | None = None,
        *,
        alpha: float = 0.3,
        beta: float = 0.7,
        smooth: float = 1e-5,
        per_image: bool = False,
        skip_absent: bool = False,
    ):
        if not (alpha >= 0 and beta >= 0):
            raise ValueError(f"alpha (={alpha}) and beta (={beta}) must be at least 0")
        super().__init__(class_weights, smooth=smooth, per_image=per_image, skip_absent=skip_absent)
        self.alpha = alpha
        self.beta = beta

    def coefficients(self, both: jax.Array, predicted: jax.Array, truth: jax.Array) -> jax.Array:
        false = self.alpha * (predicted - both) + self.beta * (truth - both)
        return (both + self.smooth) / (both + false + self.smooth)


class GeneralizedDice(OverlapLoss):
    """Generalised Dice loss: 1 − (2·Σ_c w_c·Σ p_c·g_c + s) / (Σ_c w_c·(Σ p_c + Σ g_c) + s).

    Sudre et al. 2017: w_c = 1 / (Σ g_c)². A class without pixels in the truth gets the largest
    weight of the others, as in MONAI, or 0 with `skip_absent`. Here the weights are divided by the
    largest of them, which changes the loss only through s: 1 / (Σ g_c)² of a large image is smaller
    than any usual s. `class_weights` are further factors. For the arguments see `OverlapLoss`.
    """

    def value(self, sums: tuple[jax.Array, ...]) -> jax.Array:
        both, predicted, truth = sums
        weights = jax.lax.stop_gradient(self._weights(truth))
        overlap = 2 * jnp.sum(weights * both) + self.smooth
        return 1 - overlap / (jnp.sum(weights * (predicted + truth)) + self.smooth)

    def _weights(self, truth: jax.Array) -> jax.Array:
        is_present = truth > 0
        fewest = jnp.min(jnp.where(is_present, truth, jnp.inf))
        weights = (fewest / jnp.where(is_present, truth, jnp.inf)) ** 2
        weights = jnp.where(is_present, weights, 0.0 if self.skip_absent else 1.0)
        return weights if self.class_weights is None else weights * self.class_weights
