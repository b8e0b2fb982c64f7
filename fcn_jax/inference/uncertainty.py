"""Uncertainty of every pixel: predictive entropy, and mutual information over several networks.

The draws are the members of an ensemble, samples of dropout (Gal & Ghahramani 2016), or samples of
each member. With p_m the probabilities of draw m and p̄ their mean, in nats,

- the entropy is H(p̄) = −Σ_c p̄_c ln p̄_c: all uncertainty about the class;
- the mutual information is H(p̄) − mean_m H(p_m): how far the draws disagree, which is large where
  more training data would help (BALD, Houlsby et al. 2011, equation 2).

The probabilities of a draw are averaged over its views or tiles first. If a temperature T was
fitted for the network, the entropy is that of the calibrated probabilities softmax(ln p̄ / T):
averaging comes first, as in Rahaman & Thiery 2021. The mutual information is not scaled.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.errors import ArgumentError
from fcn_jax.inference.options import WHOLE, Inference
from fcn_jax.inference.trained import Predictor
from fcn_jax.inference.views import ViewPredictor
from fcn_jax.models.confidence import tempered
from fcn_jax.models.ensemble import DropoutModel, Ensemble, has_dropout
from fcn_jax.models.pure_model import PureModel

MAX_DROPOUT_SAMPLES = 1000


class Uncertainty(NamedTuple):
    """Uncertainty of each pixel or voxel, in nats.

    Attributes:
        entropy: float32 (*spatial), in 0…ln k.
        mutual_information: float32 (*spatial), in 0…ln k; None of a single draw.
    """

    entropy: np.ndarray
    mutual_information: np.ndarray | None


class UncertaintySums:
    """Sums over draws, of which one at a time is held.

    Example:
        >>> sums = UncertaintySums()
        >>> sums.add(np.array([[1.0, 0.0]]))
        >>> sums.add(np.array([[0.0, 1.0]]))
        >>> sums.result().mutual_information.round(3)  # each is certain, and they disagree
        array([0.693], dtype=float32)
    """

    def __init__(self) -> None:
        self._count = 0
        self._sums: tuple[jax.Array, jax.Array] | None = None

    def add(self, probabilities: Any) -> None:
        """Adds a draw: class probabilities, float (*spatial, k)."""
        self._sums = _added(self._sums, jnp.asarray(probabilities, jnp.float32))
        self._count += 1

    def result(self, temperature: float = 1.0) -> Uncertainty:
        """Returns the uncertainty over the draws so far.

        Args:
            temperature: of the mean probabilities; it changes the entropy alone.

        Raises:
            ValueError: there is none.
        """
        if self._sums is None:
            raise ValueError("there are no draws")
        total, entropies = self._sums
        mean = total / self._count
        entropy = plain = np.asarray(entropy_of(mean))
        if temperature != 1:
            entropy = np.asarray(entropy_of(tempered(mean, temperature, are_logits=False)))
        if self._count == 1:
            return Uncertainty(entropy, None)
        # Rounding can make it slightly negative.
        return Uncertainty(entropy, np.maximum(plain - np.asarray(entropies) / self._count, 0))


@jax.jit
def entropy_of(probabilities: jax.Array) -> jax.Array:
    """Computes −Σ p ln p over the last axis, in nats; a probability of 0 adds nothing."""
    return jnp.sum(jax.scipy.special.entr(probabilities), axis=-1)


@jax.jit
def _added(sums: tuple[jax.Array, jax.Array] | None, probabilities: jax.Array) -> Any:
    values = probabilities, entropy_of(probabilities)
    return values if sums is None else jax.tree.map(jnp.add, sums, values)


class Draws(NamedTuple):
    """A network, and the variables of each draw.

    Attributes:
        network: a network of a single member.
        variables: what `network` takes, for each draw.
        dropout_samples: samples of dropout of each member; None for no dropout.
        description: for people, such as "4 members, 10 samples of dropout each".
    """

    network: PureModel
    variables: list[Any]
    dropout_samples: int | None
    description: str


def draws_of(predictor: Predictor, dropout_samples: int | None = None) -> Draws:
    """Returns the draws of a trained network or ensemble.

    Args:
        predictor: the network.
        dropout_samples: samples of dropout for each member, the same for every image; None for no
            dropout.

    Raises:
        ArgumentError: the number is out of range, or the network has no dropout.
    """
    network, members = predictor.network, [predictor.variables]
    if isinstance(predictor.network, Ensemble):
        network = predictor.network.member
        members = predictor.network.members(predictor.variables)
    words = [f"{len(members)} members"] if len(members) > 1 else []
    if dropout_samples is not None:
        _check_samples(network, dropout_samples)
        keys = list(jax.random.split(jax.random.key(0), dropout_samples))
        each = " each" if words else ""
        words.append(f"{dropout_samples} samples of dropout{each}")
        variables = [(member, key) for member in members for key in keys]
        return Draws(DropoutModel(network), variables, dropout_samples, ", ".join(words))
    return Draws(network, members, None, ", ".join(words) or "a single network")


def _check_samples(network: PureModel, samples: int) -> None:
    if not 2 <= samples <= MAX_DROPOUT_SAMPLES:
        raise ArgumentError("dropout_samples", samples, f"must be in 2…{MAX_DROPOUT_SAMPLES}")
    if not has_dropout(network):
        raise ArgumentError(
            "dropout_samples",
            samples,
            "needs a network with dropout: this backbone has none, or it was trained with "
            "config.model.dropout=0",
        )


class UncertaintyPredictor:
    """Predicts the uncertainty of images, one draw after the other.

        predictor = fcn_jax.load_run("runs/voc")
        entropy, information = UncertaintyPredictor(predictor, dropout_samples=20)(image)[""]

    Args:
        predictor: a network of two spatial axes.
        inference: windows, scales and mirror images to average the probabilities over.
        dropout_samples: see `draws_of`.

    Attributes:
        draws: the draws.
        inference: the argument.
    """

    def __init__(
        self,
        predictor: Predictor,
        inference: Inference = WHOLE,
        dropout_samples: int | None = None,
    ):
        self.draws = draws_of(predictor, dropout_samples)
        self.inference = inference
        self._predictor = predictor
        self._views: ViewPredictor | None = None

    def __call__(self, image: np.ndarray) -> dict[str, Uncertainty]:
        """Predicts an image.

        Args:
            image: uint8 (h, w, c).

        Returns:
            The uncertainty by label map; a single one is called "".
        """
        if self._views is None:  # not before the canvases are chosen
            self._views = ViewPredictor(
                self.draws.network, self.inference, self._predictor.canvases
            )
        sums = {name: UncertaintySums() for name in self._predictor.network.label_maps}
        for variables in self.draws.variables:
            for name, values in self._views.probabilities(variables, image).items():
                sums[name].add(values)
        temperatures = self._predictor.temperatures
        return {name: of_map.result(temperatures.get(name, 1.0)) for name, of_map in sums.items()}

    def estimated_bytes(self, size: tuple[int, int]) -> int:
        """Estimates the memory that an image of this height and width needs, in bytes."""
        views = ViewPredictor(self.draws.network, self.inference)
        return views.estimated_bytes(self.draws.variables[0], size, whole_logits=True)
