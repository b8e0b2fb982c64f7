"""Losses of dense prediction, as sums: the step divides once, by what all devices counted."""

import jax
import jax.numpy as jnp

from fcn_jax.data.labels import IGNORE_INDEX


def cross_entropy(
    logits: jax.Array, label: jax.Array, class_weights: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy, summed over the pixels that are not void.

    loss = Σ w[y]·(log Σ_k exp(logits_k) − logits_y) over pixels with label y ≠ 255.

    Args:
        logits: float32 (b, h, w, k).
        label: int (b, h, w), 0…k−1 or 255 for void.
        class_weights: float32 (k,); None: 1 for every class.

    Returns:
        The sum of losses, and the sum of weights Σ w[y] (the number of valid pixels where there are
        no class weights): float32 scalars. Their ratio is PyTorch's weighted mean.
    """
    valid = label != IGNORE_INDEX
    target = jnp.where(valid, label, 0).astype(jnp.int32)
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    picked = jnp.sum(jnp.where(classes == target[..., None], logits, 0), axis=-1)
    # The maximum drops out of the derivative, which saves the backward pass an eighth on a CPU.
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    exponentials = jnp.sum(jnp.exp(logits - largest), axis=-1)
    losses = jnp.log(exponentials) + largest[..., 0] - picked
    weights = valid.astype(jnp.float32)
    if class_weights is not None:
        weights = weights * class_weights[target]
    return jnp.sum(jnp.where(valid, losses * weights, 0)), jnp.sum(weights)
