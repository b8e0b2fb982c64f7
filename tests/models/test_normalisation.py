"""Normalisation layers compared with PyTorch's, and over valid positions only."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.normalisation import BatchNorm, GroupNorm, norm_layer
from tests.arrays import from_torch, normal, to_torch

SIZE = (7, 9)
CANVAS = (13, 16)


def test_batch_norm_is_pytorchs_over_two_steps(torch: ModuleType) -> None:
    peer = torch.nn.BatchNorm2d(3)
    layer = BatchNorm(3)
    scale, bias = normal(5, 3), normal(6, 3)
    layer.scale[...], layer.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    with torch.no_grad():
        peer.weight.copy_(torch.tensor(scale))
        peer.bias.copy_(torch.tensor(bias))
    for step in range(2):
        values = 3 * normal(step, 2, 4, 5, 3) + 7
        expected = peer(to_torch(torch, values))
        result = layer(FeatureMap(jnp.asarray(values)), train=True)
        np.testing.assert_allclose(result.values, from_torch(expected), atol=1e-5)
        np.testing.assert_allclose(layer.mean[...], peer.running_mean.numpy(), rtol=1e-5)
        np.testing.assert_allclose(layer.var[...], peer.running_var.numpy(), rtol=1e-5)
    values = normal(9, 2, 4, 5, 3)
    peer.eval()
    np.testing.assert_allclose(
        layer(FeatureMap(jnp.asarray(values))).values,
        from_torch(peer(to_torch(torch, values))),
        atol=1e-5,
    )


def test_batch_norm_gradient_is_pytorchs(torch: ModuleType) -> None:
    values, cotangent = 3 * normal(0, 2, 4, 5, 3) + 7, normal(1, 2, 4, 5, 3)
    tensor = to_torch(torch, values).requires_grad_()
    torch.nn.BatchNorm2d(3)(tensor).backward(to_torch(torch, cotangent))

    def run(values: jax.Array) -> jax.Array:
        return BatchNorm(3)(FeatureMap(values), train=True).values

    _, pull_back = jax.vjp(run, jnp.asarray(values))
    np.testing.assert_allclose(
        pull_back(jnp.asarray(cotangent))[0], from_torch(tensor.grad), atol=1e-5
    )


def test_batch_norm_counts_valid_positions_only() -> None:
    # Two images, 2×1 and 1×3, on canvases of 2×3 have five values, 1…5.
    values = np.full((2, 2, 3, 1), 1e4, np.float32)
    values[0, :, 0, 0] = [1, 2]
    values[1, 0, :, 0] = [3, 4, 5]
    layer = BatchNorm(1, momentum=0.0)
    layer(FeatureMap(jnp.asarray(values), jnp.asarray([[2, 1], [1, 3]])), train=True)
    np.testing.assert_allclose(layer.mean[...], [3])
    np.testing.assert_allclose(layer.var[...], [2.5])  # (4 + 1 + 0 + 1 + 4) / (5 − 1)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("size", [(50,), (7, 9), (3, 4, 5)])
def test_group_norm_and_its_gradient_are_pytorchs(
    torch: ModuleType, groups: int, size: tuple[int, ...]
) -> None:
    values, cotangent = normal(0, 2, *size, 6) + 3, normal(1, 2, *size, 6)
    norm = GroupNorm(6, groups=groups)
    norm.scale[...], norm.bias[...] = jnp.arange(1.0, 7.0), jnp.arange(6.0)
    tensor = to_torch(torch, values).requires_grad_()
    expected = torch.nn.functional.group_norm(
        tensor, groups, torch.arange(1.0, 7.0), torch.arange(6.0)
    )
    expected.backward(to_torch(torch, cotangent))
    result, pull_back = jax.vjp(lambda values: norm(FeatureMap(values)).values, values)
    np.testing.assert_allclose(result, from_torch(expected), atol=2e-5)
    np.testing.assert_allclose(pull_back(cotangent)[0], from_torch(tensor.grad), atol=2e-5)


def test_group_norm_counts_valid_positions_only() -> None:
    norm = norm_layer("instance", 3)
    assert norm is not None
    image = normal(0, 1, 4, 5, 3)
    canvas = np.full((2, 6, 8, 3), 1e3, np.float32)
    canvas[0, :4, :5] = image[0]
    alone = norm(FeatureMap(jnp.asarray(image)))
    x = norm(FeatureMap(jnp.asarray(canvas), jnp.asarray([[4, 5], [0, 0]])))
    np.testing.assert_allclose(x.values[0, :4, :5], alone.values[0], atol=1e-5)
    assert jnp.isfinite(x.values).all()  # also of a place in the batch without an image
    assert not alone.field.is_bounded


def test_batch_norm_keeps_its_statistics_outside_training() -> None:
    layer = BatchNorm(2)
    x = FeatureMap(jnp.asarray(normal(0, 1, 3, 3, 2)))
    np.testing.assert_allclose(layer(x).values, x.values / np.sqrt(1 + 1e-5), rtol=1e-6)
    assert layer.mean[...].tolist() == [0, 0]
    assert layer.var[...].tolist() == [1, 1]


@pytest.mark.parametrize("kind", ["batch", "group", "instance"])
def test_the_backward_pass_stores_nothing_as_large_as_the_features_but_them(kind: str) -> None:
    graph, weights = nnx.split(norm_layer(kind, 4))

    def run(weights: Any, values: jax.Array) -> jax.Array:
        return nnx.merge(graph, weights)(FeatureMap(values), train=True).values

    values = jax.ShapeDtypeStruct((2, 5, 6, 4), jnp.bfloat16)
    pull_back = jax.eval_shape(lambda *inputs: jax.vjp(run, *inputs)[1], weights, values)
    stored = [leaf.dtype for leaf in jax.tree.leaves(pull_back) if leaf.shape == values.shape]
    assert set(stored) == {jnp.dtype(jnp.bfloat16)}
