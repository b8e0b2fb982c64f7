"""Gradients of convolutions against PyTorch's; their computation depends on the kernel's size."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.models.convolution import Geometry, add_bias, convolve, matmul
from fcn_jax.parallel.target import tracing_for
from tests.arrays import normal


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad", "dilation"),
    [
        ((11, 8), (3, 3), 1, 1, 1),
        ((11, 8), (3, 3), 2, 1, 1),
        ((12, 9), (3, 3), 2, 0, 1),  # no window contains the last row and column
        ((11, 9), (3, 3), 1, 4, 4),
        ((13, 12), (5, 5), 1, 2, 1),
        ((13, 12), (7, 7), 2, 3, 1),  # more than MAX_TAPS
        ((9, 8), (1, 3), 1, 0, 1),
        ((6, 7, 8), (3, 3, 3), 1, 1, 1),  # slice by slice
        ((6, 7, 8), (3, 1, 2), 1, 0, 1),
        ((6, 7, 8), (3, 3, 3), 2, 1, 1),
        ((6, 7, 8), (3, 3, 3), 1, 2, 2),
    ],
)
def test_gradients_are_pytorchs(
    torch: ModuleType,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: int,
    pad: int,
    dilation: int,
) -> None:
    values, weights = normal(0, 3, *size, 4), normal(1, *kernel, 4, 5)
    geometry = Geometry(stride, ((pad, pad),) * len(size), dilation)

    tensor = torch.tensor(np.moveaxis(values, -1, 1).copy(), requires_grad=True)
    weight = torch.tensor(np.moveaxis(weights, (-1, -2), (0, 1)).copy(), requires_grad=True)
    convolution = getattr(torch.nn.functional, f"conv{len(size)}d")
    expected = convolution(tensor, weight, stride=stride, padding=pad, dilation=dilation)
    cotangent = normal(2, *expected.shape)
    expected.backward(torch.tensor(cotangent))

    def run(values: jax.Array, weights: jax.Array, cotangent: jax.Array):
        result, pull_back = jax.vjp(lambda x, k: convolve(x, k, geometry), values, weights)
        return result, *pull_back(cotangent)

    result, of_values, of_weights = jax.jit(run)(values, weights, np.moveaxis(cotangent, 1, -1))
    np.testing.assert_allclose(
        result, np.moveaxis(expected.detach().numpy(), 1, -1), atol=5e-5, rtol=1e-5
    )
    np.testing.assert_allclose(
        of_values, np.moveaxis(tensor.grad.numpy(), 1, -1), atol=5e-5, rtol=1e-5
    )
    np.testing.assert_allclose(
        of_weights, np.moveaxis(weight.grad.numpy(), (0, 1), (-1, -2)), atol=2e-4, rtol=1e-4
    )


@pytest.mark.parametrize(("side", "convolutions"), [(5, 0), (7, 1)])
def test_depthwise_kernels_of_many_taps_are_not_unrolled(side: int, convolutions: int) -> None:
    values, kernel = normal(0, 2, 9, 8, 3), normal(1, side, side, 1, 3)
    geometry = Geometry(1, ((side // 2,) * 2,) * 2, groups=3)
    convolved = jax.jit(lambda x, k: convolve(x, k, geometry))
    operations = convolved.lower(values, kernel).as_text()
    assert operations.count("stablehlo.convolution") == convolutions
    by_channel = [
        convolve(values[..., i : i + 1], kernel[..., i : i + 1], Geometry(1, geometry.pads))
        for i in range(3)
    ]
    np.testing.assert_allclose(
        convolved(values, kernel), jnp.concatenate(by_channel, axis=-1), atol=5e-5, rtol=1e-5
    )


def test_the_kernels_gradient_in_bfloat16_is_summed_in_float32() -> None:
    # 32 × 32 positions with input 1 and cotangent 1; in bfloat16 a sum of ones stops at 256.
    values = jnp.ones((2, 32, 32, 1), jnp.bfloat16)
    kernel = jnp.ones((3, 3, 1, 1), jnp.bfloat16)
    geometry = Geometry(1, ((0, 0), (0, 0)))
    gradient = jax.jit(jax.grad(lambda k: convolve(values, k, geometry).astype(jnp.float32).sum()))(
        kernel
    )
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient.astype(jnp.float32), 2 * 30 * 30, rtol=1e-2)


def test_the_biass_gradient_in_bfloat16_is_summed_in_float32() -> None:
    values = jnp.zeros((4, 50, 50, 2), jnp.bfloat16)
    result, pull_back = jax.vjp(add_bias, values, jnp.asarray([1.0, 2.0]))
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(result[0, 0, 0], [1, 2])
    of_values, of_bias = pull_back(jnp.ones_like(values))
    assert (of_values.dtype, of_bias.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(of_bias, 4 * 50 * 50)


@pytest.mark.parametrize(
    ("size", "kernel_size", "dilation", "pads"),
    [
        ((9, 14), (3, 3), 2, ((2, 2), (2, 2))),
        ((13, 11), (3, 5), 4, ((4, 4), (8, 8))),
        ((13, 11), (3, 5), 3, ((0, 3), (6, 0))),
        ((9, 7, 8), (3, 3, 3), 2, ((2, 2),) * 3),
    ],
)
def test_on_a_gpu_dilated_convolutions_have_the_same_gradients(
    size: tuple[int, ...], kernel_size: tuple[int, ...], dilation: int, pads: Any
) -> None:
    values, kernel = normal(0, 2, *size, 3), normal(1, *kernel_size, 3, 4)
    geometry = Geometry(1, pads, dilation)

    def loss(values: Any, kernel: Any) -> Any:
        return jnp.sum(jnp.sin(convolve(values, kernel, geometry)))

    expected = jax.value_and_grad(loss, (0, 1))(values, kernel)
    with tracing_for("gpu"):
        program = jax.make_jaxpr(jax.grad(loss, 1))(values, kernel)
        result = jax.value_and_grad(loss, (0, 1))(values, kernel)
    # The last convolution is that of the kernel's gradient: no stride takes the dilation's place.
    *_, last = (e for e in program.eqns if e.primitive.name == "conv_general_dilated")
    assert last.params["window_strides"] == (1,) * len(size)
    for ours, theirs in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("in_features", "features"), [(3, 5), (5, 3), (4, 4)])
def test_a_product_of_features_is_numpys_and_stores_its_operands_alone(in_features, features):
    values, kernel = normal(0, 2, 3, 4, in_features), normal(1, in_features, features)
    cotangent = normal(2, 2, 3, 4, features)
    result, pull_back = jax.vjp(matmul, jnp.asarray(values), jnp.asarray(kernel))
    of_values, of_kernel = pull_back(jnp.asarray(cotangent))
    np.testing.assert_allclose(result, values @ kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_values, cotangent @ kernel.T, rtol=1e-5, atol=1e-6)
    expected = np.einsum("bhwi,bhwo->io", values, cotangent)
    np.testing.assert_allclose(of_kernel, expected, rtol=1e-5, atol=1e-5)
    stored = sorted(leaf.shape for leaf in jax.tree.leaves(pull_back))
    assert stored == sorted([values.shape, kernel.shape])
