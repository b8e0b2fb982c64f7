"""Means over pixels: cross-entropy and focal loss."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.training.losses.base import PixelLoss, one_hot


class CrossEntropy(PixelLoss):
    """Softmax cross-entropy: log Σ_k exp(logits_k) − logits_y at a pixel with label y.

    With label smoothing ε it is (1 − ε)·w_y·ℓ_y + ε/k·Σ_c w_c·ℓ_c, where ℓ_c = −log p_c and w are
    the class weights, as in PyTorch (Szegedy et al. 2016, section 7, for equal weights).

    Args:
        class_weights: see `Loss`.
        label_smoothing: ε, in 0…1.
    """

    def __init__(
        self,
        class_weights: jax.Array | Sequence[float] | None = None,
        *,
        label_smoothing: float = 0.0,
    ):
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing (={label_smoothing}) must be in 0…1")
        super().__init__(class_weights)
        self.label_smoothing = label_smoothing

    def sums(
        self, logits: jax.Array, label: jax.Array, extra: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        loss, weight = super().sums(logits, label, extra)
        if self.label_smoothing:
            losses = -jax.nn.log_softmax(logits)
            if self.class_weights is not None:
                losses = losses * self.class_weights
            uniform = jnp.where(label != IGNORE_INDEX, jnp.mean(losses, axis=-1), 0)
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * jnp.sum(uniform)
        return loss, weight

    def per_pixel(self, logits: jax.Array, target: jax.Array) -> jax.Array:
        # The maximum drops out of the derivative, which saves the backward pass an eighth on a CPU.
        largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        exponentials = jnp.sum(jnp.exp(logits - largest), axis=-1)
        picked = jnp.sum(jnp.where(one_hot(logits, target), logits, 0), axis=-1)
        return jnp.log(exponentials) + largest[..., 0] - picked


class Focal(CrossEntropy):
    """Focal loss, −α_y·(1 − p_y)^γ·log p_y with the softmax's probability p_y of the label y.

    Lin et al. 2017, equation 5; the `class_weights` are α. With gamma=0 it is cross-entropy.

    Args:
        class_weights: see `Loss`.
        gamma: γ ≥ 0, how strongly pixels that are predicted well are discounted (the paper's: 2).
    """

    def __init__(
        self, class_weights: jax.Array | Sequence[float] | None = None, *, gamma: float = 2.0
    ):
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
