"""The most probable classes of every pixel and its entropy, as bytes that a page can show."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.data.canvases import Size
from fcn_jax.inference.trained import Predictor
from fcn_jax.inference.views import on_canvas
from fcn_jax.models.pure_model import PureModel

MAX_SHOWN = 3
"""Number of classes that are kept for a pixel."""


class PixelDetails(NamedTuple):
    """The prediction for every pixel of an image.

    Attributes:
        classes: the n most probable classes, the most probable first: uint8 (h, w, n).
        probabilities: their probabilities in units of 1/255: uint8 (h, w, n).
        entropy: entropy of all classes' probabilities in units of 1/255 of its maximum, the
            logarithm of the number of classes: uint8 (h, w).
    """

    classes: np.ndarray
    probabilities: np.ndarray
    entropy: np.ndarray


class DetailPredictor:
    """Predicts the details of every pixel, without ever storing the logits of a whole image.

    Args:
        predictor: the network.
        canvases: heights and widths of canvases, the smallest first. The network is compiled once
            for each canvas that is used.
    """

    def __init__(self, predictor: Predictor, canvases: list[Size]):
        self._variables = predictor.variables
        self._canvases = canvases
        temperatures = {
            name: predictor.temperatures.get(name, 1.0) for name in predictor.network.label_maps
        }
        self._details = jax.jit(functools.partial(_details, predictor.network, temperatures))

    def __call__(self, image: np.ndarray) -> dict[str, PixelDetails]:
        """Predicts an image.

        Args:
            image: uint8 (h, w, c).

        Returns:
            Details by label map.
        """
        canvas, size = on_canvas(image, self._canvases)
        height, width, _ = image.shape
        by_name = {}
        for name, packed in self._details(self._variables, canvas, size).items():
            values = np.asarray(packed)[:height, :width]
            shown = values.shape[-1] // 2
            by_name[name] = PixelDetails(
                values[..., :shown], values[..., shown:-1], values[..., -1]
            )
        return by_name


def _details(
    network: PureModel,
    temperatures: dict[str, float],
    variables: tuple[Any, Any],
    image: jax.Array,
    size: jax.Array,
) -> dict[str, jax.Array]:
    """Returns classes, probabilities and entropy side by side, uint8 (H, W, 2 n + 1)."""
    logits, _ = network.logits_in_blocks(variables, image, valid=size)
    return {
        name: blocks.map(functools.partial(_packed, temperatures[name]))[0]
        for name, blocks in logits.items()
    }


def _packed(temperature: float, logits: jax.Array) -> jax.Array:
    num_classes = logits.shape[-1]
    log_probabilities = jax.nn.log_softmax(logits / temperature)
    probabilities = jnp.exp(log_probabilities)
    entropy = -jnp.sum(probabilities * log_probabilities, axis=-1) / math.log(max(num_classes, 2))
    classes, shown = [], []
    # Repeated argmax, because top_k sorts all classes of every pixel on a CPU.
    left = logits
    for _ in range(min(MAX_SHOWN, num_classes)):
        best = jnp.argmax(left, axis=-1)
        classes.append(best.astype(jnp.uint8))
        chosen = jax.nn.one_hot(best, num_classes, dtype=bool)
        shown.append(_bytes(jnp.sum(jnp.where(chosen, probabilities, 0), axis=-1)))
        left = jnp.where(chosen, -jnp.inf, left)
    return jnp.stack([*classes, *shown, _bytes(entropy)], axis=-1)


def _bytes(share: jax.Array) -> jax.Array:
    return jnp.round(255 * jnp.clip(share, 0, 1)).astype(jnp.uint8)
