"""The most probable class of a pixel and its probability, packed into one integer.

Whole numbers add up exactly, in any order and on any number of devices; sums of floats do not.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = TypeVar("Array", bound=Any)

UNIT = 2**21
"""A confidence of 1: probabilities are rounded to multiples of 2⁻²¹, about 5e-7."""

CLASS_BITS = 8


def packed_confidence(
    logits: jax.Array, temperature: Any = 1.0, classes: jax.Array | None = None
) -> jax.Array:
    """Computes the class of the largest logit and its probability.

    Args:
        logits: float (…, k), k up to 256; or the logarithms of probabilities.
        temperature: the probabilities are those of softmax(logits / temperature) (Guo et al. 2017,
            section 4.2). The class does not depend on it.
        classes: the classes, int (…), if they are known; None for those of the largest logits.

    Returns:
        int32 (…), for `unpacked`.
    """
    if classes is None:
        classes = jnp.argmax(logits, axis=-1)
    below = logits - jnp.max(logits, axis=-1, keepdims=True)
    confidence = 1 / jnp.sum(jnp.exp(below / temperature), axis=-1)
    units = jnp.round(confidence * UNIT).astype(jnp.int32)
    return (units << CLASS_BITS) | classes.astype(jnp.int32)


def tempered(scores: jax.Array, temperature: Any, *, are_logits: bool) -> jax.Array:
    """Returns softmax(logits / temperature), with the logarithms of probabilities as logits.

    Args:
        scores: logits, or probabilities that are averages over views or networks, float (…, k).
        temperature: see `packed_confidence`.
        are_logits: which of them.
    """
    logits = scores if are_logits else jnp.log(scores)
    return jax.nn.softmax(logits / temperature)


def unpacked(packed: Array) -> tuple[Array, Array]:
    """Returns the classes, and the probabilities in units of 1/`UNIT`; NumPy's arrays or JAX's."""
    return packed & (2**CLASS_BITS - 1), packed >> CLASS_BITS


def classes_of(packed: np.ndarray) -> np.ndarray:
    """Returns the classes, uint8."""
    return unpacked(packed)[0].astype(np.uint8)
