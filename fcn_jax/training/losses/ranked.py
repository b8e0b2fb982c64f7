"""Losses that rank all pixels of the batch: OHEM, top-k cross-entropy, Lovász-Softmax."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.training.losses.base import SMALLEST_WEIGHT, RankedLoss, target_of
from fcn_jax.training.losses.pixel import CrossEntropy


class HardPixels(RankedLoss):
    """Cross-entropy of the hardest pixels, Σ w·loss / Σ w over those; subclasses choose them.

    Memory: one number for each pixel of the batch, and a sort of them.
    """

    def pixel_values(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """Returns the cross-entropy of each pixel without its class weight: float32 (…, 1)."""
        return CrossEntropy().per_pixel(logits, target_of(label))[..., None]

    def value(self, sums: tuple[jax.Array, jax.Array]) -> jax.Array:
        values, label = sums
        losses, weights = values[..., 0], (label != IGNORE_INDEX).astype(jnp.float32)
        if self.class_weights is not None:
            weights = weights * self.class_weights[target_of(label)]
        chosen = self.chosen(lax.stop_gradient(losses), weights, label)
        weights = jnp.where(chosen & (label != IGNORE_INDEX), weights, 0)
        return jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), SMALLEST_WEIGHT)

    def chosen(self, losses: jax.Array, weights: jax.Array, label: jax.Array) -> jax.Array:
        """Returns which pixels count, bool (b, h, w); the arguments have the same shape."""
        raise NotImplementedError


class OnlineHardExamples(HardPixels):
    """Online hard example mining: cross-entropy of the pixels predicted with less than a threshold.

    The pixels are those of mmsegmentation's `OHEMPixelSampler`: the probability of the label is
    below `thresh`, or below that of the valid pixel at place min_kept·b in ascending order, if that
    is more. The loss is the mean over these pixels; mmsegmentation divides their sum by the number
    of all pixels of the batch, so its values and gradients are smaller by the share of the chosen.

    Args:
        class_weights: see `Loss`.
        thresh: probability in 0…1 (mmsegmentation's configs: 0.7).
        min_kept: number of pixels of each image, on average over the batch, that are kept at least.
    """

    def __init__(
        self,
        class_weights: jax.Array | Sequence[float] | None = None,
        *,
        thresh: float = 0.7,
        min_kept: float = 100_000,
    ):
        if not 0 <= thresh <= 1:
            raise ValueError(f"thresh (={thresh}) must be in 0…1")
        if not (min_kept >= 1 and min_kept == int(min_kept)):
            raise ValueError(f"min_kept (={min_kept}) must be a whole number, at least 1")
        super().__init__(class_weights)
        self.thresh = thresh
        self.min_kept = int(min_kept)

    def chosen(self, losses: jax.Array, weights: jax.Array, label: jax.Array) -> jax.Array:
        valid = label != IGNORE_INDEX
        probability = jnp.exp(-losses)
        ascending = jnp.sort(jnp.where(valid, probability, jnp.inf), axis=None)
        kept = min(self.min_kept * len(label), label.size - 1)
        last = jnp.minimum(kept, jnp.maximum(jnp.sum(valid) - 1, 0))
        return probability < jnp.maximum(ascending[last], self.thresh)


class TopK(HardPixels):
    """Top-k cross-entropy: the mean over the share of the batch's valid pixels with the largest.

    Wu et al. 2016; nnU-Net's `TopKLoss`, which takes the share of all pixels, ignored ones
    included. With class weights the pixels are ranked by their weighted loss. At least one pixel is
    taken.

    Args:
        class_weights: see `Loss`.
        share: above 0 and at most 1 (nnU-Net's: 0.1).
    """

    def __init__(
        self, class_weights: jax.Array | Sequence[float] | None = None, *, share: float = 0.1
    ):
        if not 0 < share <= 1:
            raise ValueError(f"share (={share}) must be above 0 and at most 1")
        super().__init__(class_weights)
        self.share = share

    def chosen(self, losses: jax.Array, weights: jax.Array, label: jax.Array) -> jax.Array:
        valid = label != IGNORE_INDEX
        descending = jnp.argsort(jnp.where(valid, -losses * weights, jnp.inf), axis=None)
        count = jnp.maximum(jnp.floor(self.share * jnp.sum(valid)), 1)
        places = jnp.arange(label.size) < count
        chosen = jnp.zeros(label.size, bool).at[descending].set(places, unique_indices=True)
        return chosen.reshape(label.shape)


class LovaszSoftmax(RankedLoss):
    """Lovász-Softmax: the convex extension of the Jaccard loss, the mean over the classes present.

    Berman et al. 2018, equations 11 and 12 and algorithm 1. The mean over the classes that are in
    the truth is weighted by `class_weights`.

    Memory: the probabilities of all pixels of the batch and their gradient, float32 (b, h, w, k)
    each, on every device: 21 MB an image of 500 × 500 pixels and 21 classes, twice. No block of
    rows spares it.

    Args:
        class_weights: see `Loss`.
        per_image: takes the loss of each image, and the mean over the images. False: of the whole
            batch, as the paper's figures.
    """

    def __init__(
        self,
        class_weights: jax.Array | Sequence[float] | None = None,
        *,
        per_image: bool = False,
    ):
        super().__init__(class_weights)
        self.per_image = per_image

    def pixel_values(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """Returns the probabilities of all classes: float32 (…, k)."""
        return jax.nn.softmax(logits, axis=-1)

    def value(self, sums: tuple[jax.Array, jax.Array]) -> jax.Array:
        probabilities, label = sums
        label = jnp.asarray(label).reshape(-1)
        valid = label != IGNORE_INDEX

        def of_class(index_and_probability: tuple[jax.Array, jax.Array]) -> jax.Array:
            index, probability = index_and_probability
            truth = label == index
            errors = jnp.where(valid, jnp.abs(truth - probability), 0)
            return jnp.sum(errors * lax.stop_gradient(_lovasz_slopes(errors, truth, valid)))

        num_classes = probabilities.shape[-1]
        classes = jnp.arange(num_classes)
        losses = lax.map(of_class, (classes, probabilities.reshape(-1, num_classes).T))
        weights = jnp.any(label[:, None] == classes, axis=0).astype(jnp.float32)
        if self.class_weights is not None:
            weights = weights * self.class_weights
        return jnp.sum(weights * losses) / jnp.maximum(jnp.sum(weights), SMALLEST_WEIGHT)


def _lovasz_slopes(errors: jax.Array, truth: jax.Array, valid: jax.Array) -> jax.Array:
    """The derivative of the Lovász extension by the error of each pixel (algorithm 1): (n,).

    In the order of descending errors, it is the growth of the Jaccard loss when one more pixel is
    wrong. Ignored pixels come last and have no slope.
    """
    descending = jnp.argsort(jnp.where(valid, -errors, jnp.inf))
    truth, counted = truth[descending], valid[descending]
    positives = jnp.sum(truth)
    found = positives - jnp.cumsum(truth)
    union = positives + jnp.cumsum(counted & ~truth)
    jaccard_loss = 1 - found / jnp.maximum(union, 1)
    growth = jnp.diff(jaccard_loss, prepend=0.0) * counted
    return jnp.zeros_like(errors).at[descending].set(growth, unique_indices=True)
