"""The mean of several networks, and dropout in prediction, against their members one by one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.models.backbones.small import SmallNet
from fcn_jax.models.ensemble import DropoutModel, Ensemble, has_dropout
from fcn_jax.models.fcn import FCN
from fcn_jax.models.pure_model import PureModel, predict
from fcn_jax.models.unet import UNetEncoder

MAPS = {"things": 5, "heights": 3}


@pytest.fixture(scope="module")
def network(randomised: Callable[[Callable[[], FCN]], FCN]) -> PureModel:
    """A network with two label maps that ends in learned upsampling."""

    def build() -> FCN:
        return FCN(SmallNet(features=(4, 6), rngs=nnx.Rngs(0)), MAPS, skips=1, rngs=nnx.Rngs(1))

    return PureModel(randomised(build))


def stacked(network: PureModel, count: int):
    """Members whose weights differ: (params, batch_stats) of each, and stacked."""
    members = [
        jax.tree.map(lambda x, n=n: x * (1 + 0.1 * n), network.variables) for n in range(count)
    ]
    return members, jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def test_the_logits_of_an_ensemble_are_the_logarithm_of_the_mean_probability(network):
    members, variables = stacked(network, 3)
    ensemble = Ensemble(network, 3)
    image = jax.random.randint(jax.random.key(0), (2, 21, 34, 3), 0, 256).astype(jnp.uint8)
    size = jnp.array([[21, 34], [17, 20]])

    @jax.jit
    def of_ensemble(variables):
        values, _ = ensemble(variables, image, valid=size)
        blocks, _ = ensemble.logits_in_blocks(variables, image, valid=size)
        in_blocks = {name: of_map.map(jnp.exp) for name, of_map in blocks.items()}
        return values, in_blocks, predict(ensemble, variables, image, size)

    @jax.jit
    def of_member(variables):
        return network(variables, image, valid=size)[0]

    values, in_blocks, classes = of_ensemble(variables)
    each = [of_member(one) for one in members]
    for name in MAPS:
        logits = [np.asarray(one[f"logits_{name}"]) for one in each]
        powers = [np.exp(x - x.max(-1, keepdims=True)) for x in logits]
        mean = np.mean([x / x.sum(-1, keepdims=True) for x in powers], axis=0)
        np.testing.assert_allclose(np.exp(values[f"logits_{name}"]), mean, atol=1e-6)
        np.testing.assert_allclose(in_blocks[name], mean, atol=1e-6)
        np.testing.assert_array_equal(classes[name], mean.argmax(-1))
        assert (mean.argmax(-1) != logits[0].argmax(-1)).any()


def test_the_shapes_and_members_of_an_ensemble_are_those_of_its_stacked_weights(network):
    members, variables = stacked(network, 2)
    shapes = Ensemble(network, 2).variables
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, variables)
    for found, expected in zip(Ensemble(network, 2).members(variables), members, strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture(scope="module")
def with_dropout(randomised: Callable[[Callable[[], FCN]], FCN]) -> PureModel:
    """U-Net's contracting path; dropout is followed by linear layers only."""

    def build() -> FCN:
        backbone = UNetEncoder(features=(4, 6), norm="batch", dropout_rate=0.5, rngs=nnx.Rngs(0))
        return FCN(backbone, 3, skips=0, rngs=nnx.Rngs(1))

    return PureModel(randomised(build))


def test_the_mean_logits_over_samples_of_dropout_are_those_without_dropout(with_dropout):
    image = jax.random.randint(jax.random.key(0), (1, 8, 6, 3), 0, 256).astype(jnp.uint8)
    model, variables = DropoutModel(with_dropout), with_dropout.variables
    sample = jax.jit(lambda key: model((variables, key), image)[0]["logits"])
    samples = jax.vmap(sample)(jax.random.split(jax.random.key(1), 2000))
    plain = jax.jit(with_dropout)(variables, image)[0]["logits"]
    error = samples.std(axis=0) / np.sqrt(len(samples))
    assert error.min() > 0
    assert (np.abs(samples.mean(axis=0) - plain) / error).max() < 5
    np.testing.assert_array_equal(sample(jax.random.key(7)), sample(jax.random.key(7)))
    assert has_dropout(with_dropout)


def test_a_network_without_dropout_is_known(network):
    assert not has_dropout(network)
