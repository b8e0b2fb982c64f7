"""Losses that would train to a wrong result, and errors that name what is wrong with them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from fcn_jax import registry
from fcn_jax.config import Config
from fcn_jax.errors import ArgumentError
from fcn_jax.models.build import abstract_model
from fcn_jax.models.pure_model import PureModel
from fcn_jax.registry import register_loss
from fcn_jax.training.loss_check import check_loss
from fcn_jax.training.losses import CrossEntropy, Loss, PixelLoss, RankedLoss, TopK
from fcn_jax.training.train_step import make_train_step

BUILT_IN = registry.losses.names[:9]


class Brier(Loss):
    """The mean squared error of the probabilities; the mistakes below derive from it."""

    def sums(self, logits: jax.Array, label: jax.Array) -> Any:
        valid = label != 255
        return jnp.sum(jnp.where(valid, self.errors(logits, label), 0)), jnp.sum(1.0 * valid)

    def value(self, sums: Any) -> jax.Array:
        return sums[0] / jnp.maximum(sums[1], 1)

    def errors(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        truth = jax.nn.one_hot(label, logits.shape[-1])
        return jnp.sum((jax.nn.softmax(logits) - truth) ** 2, axis=-1)


@register_loss("not_reduced")
class NotReduced(Brier):
    def sums(self, logits: jax.Array, label: jax.Array) -> Any:
        return self.errors(logits, label), jnp.sum(1.0 * (label != 255))


class FixedAxes(Brier):
    def sums(self, logits: jax.Array, label: jax.Array) -> Any:
        return jnp.sum(self.errors(logits, label), axis=(0, 1, 2)), jnp.sum(1.0 * (label != 255))


class Mean(Brier):
    def sums(self, logits: jax.Array, label: jax.Array) -> Any:
        total, count = super().sums(logits, label)
        return total / jnp.maximum(count, 1), count


class CountsIgnored(Brier):
    def sums(self, logits: jax.Array, label: jax.Array) -> Any:
        return jnp.sum(self.errors(logits, label)), jnp.sum(1.0 * (label != 255))


class Integers(Brier):
    def sums(self, logits: jax.Array, label: jax.Array) -> Any:
        return super().sums(logits, label)[0], jnp.sum(label != 255)


class ValueOfPixels(Brier):
    def value(self, sums: Any) -> jax.Array:
        return jnp.full(6, sums[0])


class NoValue(Loss):
    def sums(self, logits: jax.Array, label: jax.Array) -> Any:
        return jnp.sum(logits)


class NoPerPixel(PixelLoss):
    pass


class PerPixelScalar(PixelLoss):
    def per_pixel(self, logits: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.mean(logits)


class PerPixelOfClasses(PixelLoss):
    def per_pixel(self, logits: jax.Array, target: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(logits)


class OtherWeight(CrossEntropy):
    def sums(self, logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss, weight = super().sums(logits, label)
        return loss, 2 * weight


class NoPixelValues(RankedLoss):
    pass


class PixelValuesWithoutAxis(TopK):
    def pixel_values(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        return super().pixel_values(logits, label)[..., 0]


class RanksIgnored(RankedLoss):
    def pixel_values(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        return logits

    def value(self, sums: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.mean(sums[0])


@register_loss("without_weights")
class WithoutWeights(Brier):
    def __init__(self) -> None:
        super().__init__()


@pytest.mark.parametrize("make", [*map(registry.losses.__getitem__, BUILT_IN), Brier])
def test_good_losses(make: Callable[..., Loss]) -> None:
    check_loss(make)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (NotReduced, r"NotReduced\.sums returns .*\(2, 3\).*: sum over every pixel"),
        (FixedAxes, r"FixedAxes\.sums fails for logits of shape \(2, 3, 4\)"),
        (Mean, r"Mean\.sums of two sets of pixels must add up"),
        (CountsIgnored, r"CountsIgnored\.sums counts pixels with label 255"),
        (Integers, r"Integers\.sums returns float32, int32: its arrays must be float32"),
        (ValueOfPixels, r"ValueOfPixels\.value returns shape \(6,\): it must return a scalar"),
        (NoValue, r"NoValue must have a method `value`"),
        (NoPerPixel, r"NoPerPixel must have a method `per_pixel`"),
        (PerPixelScalar, r"PerPixelScalar\.per_pixel returns shape \(\) .* \(1, 2, 3\)"),
        (PerPixelOfClasses, r"per_pixel returns shape \(1, 2, 3, 4\) for logits of shape"),
        (NoPixelValues, r"NoPixelValues must have a method `pixel_values`"),
        (PixelValuesWithoutAxis, r"pixel_values returns shape \(2, 2, 3\) for logits of shape"),
        (RanksIgnored, r"RanksIgnored\.value counts pixels with label 255"),
        (OtherWeight, r"OtherWeight\.sums must return the sum of losses and `weight_sum"),
        (WithoutWeights, r"WithoutWeights must take the keyword argument class_weights=None"),
        (lambda class_weights: 3, r"int is not a subclass of fcn_jax\.losses\.Loss"),
    ],
)
def test_a_loss_that_breaks_the_contract(make: Callable[..., Loss], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_loss(make)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("not_reduced", r"loss\.names \(=not_reduced\) cannot be used: NotReduced\.sums returns"),
        ("without_weights", r"loss\.names \(=without_weights\) .* argument class_weights=None"),
    ],
)
def test_no_training_step_is_built_with_such_a_loss(name: str, message: str) -> None:
    config = Config()
    config.loss.names = (name,)
    network = PureModel(abstract_model(config.model, 6))
    with pytest.raises(ArgumentError, match=message):
        make_train_step(network, optax.sgd(0.1), config)
