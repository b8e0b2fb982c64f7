"""Forward-mode and forward-over-reverse derivatives of operations with custom rules."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.models.backbones.small import SmallNet
from fcn_jax.models.convolution import Geometry, convolve
from fcn_jax.models.fcn import FCN
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.layers import relu
from fcn_jax.models.upsampling import conv_transpose_blocks
from tests.arrays import normal


def rectified(values: jax.Array) -> jax.Array:
    return relu(FeatureMap(values)).values


def inner(a: Any, b: Any) -> float:
    return sum(float(jnp.vdot(x, y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_relu_forward_and_backward_is_jaxs() -> None:
    values, tangent = (jnp.asarray(normal(seed, 1, 4, 5, 3)) for seed in (0, 1))
    for ours, expected in zip(
        jax.jvp(rectified, (values,), (tangent,)),
        jax.jvp(jax.nn.relu, (values,), (tangent,)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, expected)
    gradient = jax.grad(lambda x: (rectified(x) ** 3).sum())
    hessian_product = jax.jvp(gradient, (values,), (tangent,))[1]
    np.testing.assert_allclose(hessian_product, 6 * jnp.maximum(values, 0) * tangent, rtol=1e-6)
    # At zero the derivative is 0, as in JAX.
    assert jax.grad(lambda x: rectified(x).sum())(jnp.zeros((1, 1, 1, 1))) == 0


def test_a_convolutions_tangent_is_xlas() -> None:
    geometry = Geometry(2, ((1, 1), (1, 1)))
    values, kernel = jnp.asarray(normal(0, 3, 9, 8, 4)), jnp.asarray(normal(1, 3, 3, 4, 5))
    tangents = jnp.asarray(normal(2, *values.shape)), jnp.asarray(normal(3, *kernel.shape))

    def xlas(values: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            values, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    result = jax.jvp(lambda x, k: convolve(x, k, geometry), (values, kernel), tangents)
    for ours, expected in zip(result, jax.jvp(xlas, (values, kernel), tangents), strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-5)


@pytest.mark.parametrize("upsampling", ["learned", "interpolate"])
def test_a_model_forward_backward_and_both(upsampling: str, randomised: Any) -> None:
    # <c, J t> = <Jᵀ c, t>, and a Hessian is symmetric.
    model = randomised(
        lambda: FCN(
            SmallNet(features=(4, 5), rngs=nnx.Rngs(0)),
            3,
            skips=1,
            upsampling=upsampling,
            rngs=nnx.Rngs(0),
        )
    )
    graph, params, others = nnx.split(model, nnx.Param, ...)
    image = np.random.default_rng(0).integers(0, 256, (2, 11, 10, 3))
    image = jnp.asarray(image, jnp.float32)

    def logits(inputs: Any) -> jax.Array:
        params, image = inputs
        return nnx.merge(graph, params, others)(image)

    def like(seed: int) -> Any:
        random = np.random.default_rng(seed)
        return jax.tree.map(
            lambda x: jnp.asarray(random.standard_normal(x.shape), x.dtype), (params, image)
        )

    def loss(inputs: Any) -> jax.Array:
        return jnp.sum(jax.nn.logsumexp(logits(inputs), axis=-1))

    @jax.jit
    def derivatives(inputs: Any, first: Any, second: Any) -> Any:
        value, forward = jax.jvp(logits, (inputs,), (first,))
        cotangent = jnp.sin(value)
        backward = jax.vjp(logits, inputs)[1](cotangent)[0]
        products = [jax.jvp(jax.grad(loss), (inputs,), (t,))[1] for t in (first, second)]
        return cotangent, forward, backward, *products

    first, second = like(1), like(2)
    cotangent, forward, backward, of_first, of_second = derivatives((params, image), first, second)
    assert inner(cotangent, forward) == pytest.approx(inner(backward, first), rel=1e-4)
    assert inner(of_first, second) == pytest.approx(inner(of_second, first), rel=1e-3)
    assert abs(inner(of_first, second)) > 1


def test_the_tangent_of_a_sum_over_row_blocks_is_that_of_the_whole() -> None:
    values, kernel = jnp.asarray(normal(0, 2, 5, 4, 3)), jnp.asarray(normal(1, 7, 7, 3, 3))
    tangents = jnp.asarray(normal(2, *values.shape)), jnp.asarray(normal(3, *kernel.shape))

    def blocks(values: jax.Array, kernel: jax.Array) -> Any:
        return conv_transpose_blocks(values, kernel, stride=4, crop=3, output_size=(17, 13))

    def total(values: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        cut = blocks(values, kernel)
        inside = cut.layout.to_blocks(jnp.ones((2, 17, 13)), 0)
        return cut.total(
            lambda rows, inside: ((jnp.sin(rows).sum(-1) * inside).sum(), inside.sum()), inside
        )

    def of_the_whole(values: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sin(blocks(values, kernel).whole()).sum()

    (value, count), (tangent, none) = jax.jvp(total, (values, kernel), tangents)
    expected = jax.jvp(of_the_whole, (values, kernel), tangents)
    np.testing.assert_allclose((value, tangent), expected, rtol=1e-4)
    assert (count, none) == (2 * 17 * 13, 0)
