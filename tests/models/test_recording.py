"""The feature maps of a model by name."""

import contextlib

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax.models.backbones.lenet import LeNet
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.recording import record_maps


def test_maps_after_modules_activations_and_poolings_are_recorded_in_order():
    backbone = LeNet(rngs=nnx.Rngs(0))
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 32, 1)), jnp.float32)
    maps, features = record_maps(backbone, lambda: backbone(FeatureMap(image)))
    assert list(maps) == [
        "conv1",
        "conv1, relu",
        "conv1, pooling",
        "conv2",
        "conv2, relu",
        "conv2, pooling",
    ]
    conv, relu, pool = (maps[name].values for name in list(maps)[:3])
    np.testing.assert_array_equal(conv, backbone.conv1(FeatureMap(image)).values)
    np.testing.assert_array_equal(relu, np.maximum(conv, 0))
    np.testing.assert_array_equal(pool, relu.reshape(1, 14, 2, 14, 2, 6).max((2, 4)))
    np.testing.assert_array_equal(maps["conv2, pooling"].values, features[4].values)


def test_layers_work_as_before_after_a_recording():
    backbone = LeNet(rngs=nnx.Rngs(0))
    before = FeatureMap.map, FeatureMap.windowed, type(backbone.conv1).__call__
    with contextlib.suppress(ZeroDivisionError):
        record_maps(backbone, lambda: 1 / 0)
    assert (FeatureMap.map, FeatureMap.windowed, type(backbone.conv1).__call__) == before
