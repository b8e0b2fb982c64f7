"""The loss that a config names: a weighted sum of registered losses."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fcn_jax import registry
from fcn_jax.config import LossConfig
from fcn_jax.errors import ArgumentError
from fcn_jax.training.losses.base import Loss, PixelLoss


@dataclasses.dataclass(frozen=True)
class WeightedLosses:
    """A weighted sum of losses, Σ weight·loss."""

    losses: tuple[Loss, ...]
    weights: tuple[float, ...]

    def __call__(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """Returns the sum for a batch on one device; see `Loss.__call__`."""
        pairs = zip(self.losses, self.weights, strict=True)
        return jnp.sum(jnp.stack([weight * loss(logits, label) for loss, weight in pairs]))


def build_losses(
    config: LossConfig, label_maps: tuple[str, ...], class_weights: Mapping[str, jax.Array]
) -> dict[str, WeightedLosses]:
    """Builds the losses that a config names, for each label map with its class weights.

    Args:
        config: the settings `loss`.
        label_maps: names of the label maps.
        class_weights: float32 (k,) by label map; label maps without an entry have no weights.

    Raises:
        ArgumentError: no loss has one of the names, or they do not take these options.
    """
    makers = {name: registry.losses[name] for name in config.names}
    for name, make in makers.items():
        if not takes_class_weights(make):
            problem = "its constructor must take the keyword argument class_weights=None"
            raise ArgumentError("loss.names", name, f"cannot be used: {problem}")
    options = _options(config, makers)
    weights = config.weights or (1.0,) * len(config.names)

    def losses_of(label_map: str) -> WeightedLosses:
        given = class_weights.get(label_map)
        losses = [make(class_weights=given, **options[name]) for name, make in makers.items()]
        return WeightedLosses(tuple(losses), weights)

    try:
        built = {label_map: losses_of(label_map) for label_map in label_maps}
    except (TypeError, ValueError) as error:
        raise ArgumentError("loss.options", config.options, f"cannot be used: {error}") from error
    for name, loss in zip(config.names, built[label_maps[0]].losses, strict=True):
        if config.normalization == "sum" and not isinstance(loss, PixelLoss):
            problem = f"must be mean with loss.names={name}, which is no sum over pixels"
            raise ArgumentError("loss.normalization", "sum", problem)
    return built


def _options(config: LossConfig, makers: Mapping[str, Callable[..., Loss]]) -> dict[str, Any]:
    """Returns the options of each loss: "name=value" goes to every loss that takes it."""
    defaults = {
        name: {
            option: parameter.default
            for option, parameter in inspect.signature(make).parameters.items()
            if option != "class_weights"
        }
        for name, make in makers.items()
    }
    options: dict[str, Any] = {name: {} for name in makers}
    for text in config.options:
        address, _, value = text.partition("=")
        *prefix, option = address.strip().split(".")
        takers = [
            name
            for name, known in defaults.items()
            if option in known and (not prefix or prefix == [name])
        ]
        if not takers:
            known = [option for options_of in defaults.values() for option in options_of]
            raise ArgumentError(
                "loss.options",
                config.options,
                f"has an option {address.strip()!r} that loss.names={','.join(makers)} does not "
                f"take: {', '.join(dict.fromkeys(known)) or 'it has none'}",
            )
        for name in takers:
            try:
                options[name][option] = _parsed(value.strip(), defaults[name][option])
            except ValueError:
                raise ArgumentError(
                    "loss.options",
                    config.options,
                    "must be name=number,…, with finite numbers, or name=true",
                ) from None
    return options


def _parsed(text: str, default: Any) -> float | bool:
    if not isinstance(default, bool):
        if not math.isfinite(float(text)):
            raise ValueError
        return float(text)
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError
    return text.lower() in ("true", "1")


def takes_class_weights(make: Callable[..., Loss]) -> bool:
    """Returns whether a constructor takes the keyword argument `class_weights`."""
    parameters = inspect.signature(make).parameters
    return "class_weights" in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )
