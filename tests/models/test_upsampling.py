from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.models import upsampling
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.interpolation import Interpolate
from fcn_jax.models.upsampling import (
    BilinearUpsample,
    BlockUpsample,
    ConvTranspose,
    bilinear_filter,
    bilinear_kernel,
    block_upsample,
)
from tests.arrays import from_torch, normal, to_torch

# Each call is compiled once, instead of once for each operation.
GEOMETRY = ("stride", "crop", "output_size")
conv_transpose = jax.jit(upsampling.conv_transpose, static_argnames=GEOMETRY)
bilinear_upsample = jax.jit(
    upsampling.bilinear_upsample, static_argnames=("filter_size", *GEOMETRY)
)


# Bilinear filters


def test_bilinear_filter_numbers() -> None:
    assert bilinear_filter(1).tolist() == [1]
    assert bilinear_filter(4).tolist() == [0.25, 0.75, 0.75, 0.25]
    assert bilinear_filter(3).tolist() == [0.5, 1, 0.5]
    np.testing.assert_allclose(bilinear_filter(5), np.array([1, 2, 3, 2, 1]) / 3, rtol=1e-6)
    wide = bilinear_filter(64)
    assert wide.shape == (64,)
    assert wide[:2].tolist() == [1 / 64, 3 / 64]
    assert wide[31:33].tolist() == [63 / 64, 63 / 64]
    assert wide[-2:].tolist() == [3 / 64, 1 / 64]
    narrow = bilinear_filter(63)
    assert narrow[:2].tolist() == [1 / 32, 2 / 32]
    assert narrow[31] == 1


def test_bilinear_kernel_is_the_outer_product_on_the_channels_diagonal() -> None:
    kernel = bilinear_kernel(4, 3)
    assert kernel.shape == (4, 4, 3, 3)
    expected = np.array([[1, 3, 3, 1], [3, 9, 9, 3], [3, 9, 9, 3], [1, 3, 3, 1]]) / 16
    for source in range(3):
        for target in range(3):
            shown = expected if source == target else np.zeros((4, 4))
            assert kernel[:, :, source, target].tolist() == shown.tolist()
    volume = bilinear_kernel(3, 2, ndim=3)
    assert volume.shape == (3, 3, 3, 2, 2)
    assert volume[0, 0, 0, 0, 0] == 1 / 8
    assert volume[1, 0, 1, 1, 1] == 1 / 2
    assert volume[1, 1, 1, 0, 1] == 0


# Transposed convolution


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(4, 2, 1), (3, 2, 1), (2, 3, 0), (5, 2, 2), (7, 3, 1), (8, 4, 2), (1, 1, 0), (3, 1, 1)],
)
def test_conv_transpose_is_pytorchs(
    torch: ModuleType, kernel: int, stride: int, padding: int
) -> None:
    values, weights = normal(0, 2, 4, 5, 3), normal(1, kernel, kernel, 3, 2)
    size = tuple((n - 1) * stride + kernel - 2 * padding for n in (4, 5))
    cotangent = normal(2, 2, *size, 2)

    tensor = to_torch(torch, values).requires_grad_()
    # PyTorch's weight is (in, out, kh, kw).
    weight = torch.tensor(weights.transpose(2, 3, 0, 1).copy(), requires_grad=True)
    expected = torch.nn.functional.conv_transpose2d(tensor, weight, stride=stride, padding=padding)
    expected.backward(to_torch(torch, cotangent))

    def run(values: jax.Array, weights: jax.Array) -> jax.Array:
        return conv_transpose(values, weights, stride=stride, crop=padding, output_size=size)

    result, pull_back = jax.vjp(run, jnp.asarray(values), jnp.asarray(weights))
    values_gradient, weights_gradient = jax.jit(pull_back)(jnp.asarray(cotangent))
    np.testing.assert_allclose(result, from_torch(expected), atol=1e-5)
    np.testing.assert_allclose(values_gradient, from_torch(tensor.grad), atol=2e-5)
    np.testing.assert_allclose(
        weights_gradient, weight.grad.numpy().transpose(2, 3, 0, 1), atol=2e-5
    )


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(4, 2, 1), (3, 2, 0), (2, 2, 0)])
@pytest.mark.parametrize("ndim", [1, 3])
def test_conv_transpose_of_signals_and_volumes_is_pytorchs(
    torch: ModuleType, ndim: int, kernel: int, stride: int, padding: int
) -> None:
    size = (2, 3, 4)[:ndim]
    values, weights = normal(0, 1, *size, 2), normal(1, *[kernel] * ndim, 2, 3)
    expected = getattr(torch.nn.functional, f"conv_transpose{ndim}d")(
        to_torch(torch, values),
        torch.tensor(np.moveaxis(weights, (-2, -1), (0, 1)).copy()),
        stride=stride,
        padding=padding,
    )
    result = conv_transpose(
        jnp.asarray(values),
        jnp.asarray(weights),
        stride=stride,
        crop=padding,
        output_size=tuple((n - 1) * stride + kernel - 2 * padding for n in size),
    )
    np.testing.assert_allclose(result, from_torch(expected), atol=1e-5)


@pytest.mark.parametrize(("ndim", "stride"), [(1, 2), (1, 3), (2, 2), (2, 4), (3, 2), (2, 1)])
def test_blocks_are_pytorchs_transposed_convolution(
    torch: ModuleType, ndim: int, stride: int
) -> None:
    size = (3, 4, 2)[:ndim]
    values, weights = normal(0, 2, *size, 3), normal(1, *[stride] * ndim, 3, 4)
    cotangent = normal(2, 2, *(stride * n for n in size), 4)
    tensor = to_torch(torch, values).requires_grad_()
    weight = torch.tensor(np.moveaxis(weights, (-2, -1), (0, 1)).copy(), requires_grad=True)
    expected = getattr(torch.nn.functional, f"conv_transpose{ndim}d")(tensor, weight, stride=stride)
    expected.backward(to_torch(torch, cotangent))
    result, pull_back = jax.vjp(block_upsample, jnp.asarray(values), jnp.asarray(weights))
    of_values, of_weights = pull_back(jnp.asarray(cotangent))
    np.testing.assert_allclose(result, from_torch(expected), atol=1e-5)
    np.testing.assert_allclose(of_values, from_torch(tensor.grad), atol=2e-5)
    expected_of_weights = np.moveaxis(weight.grad.numpy(), (0, 1), (-2, -1))
    np.testing.assert_allclose(of_weights, expected_of_weights, atol=5e-5)


def test_blocks_take_the_size_and_the_valid_part_of_the_finer_map() -> None:
    x = FeatureMap(jnp.asarray(normal(0, 1, 4, 5, 3)), jnp.asarray([[2, 3]]))
    like = FeatureMap(jnp.zeros((1, 7, 10, 1)), jnp.asarray([[3, 5]]))
    y = BlockUpsample(3, 2, stride=2, rngs=nnx.Rngs(0))(x, like)
    assert y.values.shape == (1, 7, 10, 2)
    assert y.valid is like.valid
    # He et al. 2015: of three features each output is made of, the variance is 2 / 3.
    wide = BlockUpsample(256, 128, stride=2, rngs=nnx.Rngs(0)).kernel[...]
    assert abs(float(jnp.std(wide)) - (2 / 256) ** 0.5) < 1e-3


def test_conv_transpose_scatters_the_kernel() -> None:
    # out[j] = Σ_i values[i]·kernel[j + crop − 2i], by hand; 0 out of reach of all inputs.
    values = jnp.asarray([[[1.0], [10.0]]])
    kernel = jnp.asarray([1.0, 2.0, 3.0]).reshape(3, 1, 1)
    for crop, expected in ((0, [1, 2, 13, 20, 30, 0, 0, 0]), (3, [20, 30, 0]), (1, [2, 13])):
        result = conv_transpose(values, kernel, stride=2, crop=crop, output_size=(len(expected),))
        assert result[0, :, 0].tolist() == expected


@pytest.mark.parametrize(("crop", "output"), [(0, 30), (1, 7), (4, 1), (6, 11), (13, 2), (20, 3)])
def test_conv_transpose_windows_of_one_result(crop: int, output: int) -> None:
    values, weights = normal(0, 1, 3, 3, 2), normal(1, 6, 6, 2, 2)
    whole = np.zeros((1, 60, 60, 2), np.float32)
    for row in range(3):
        for column in range(3):
            patch = np.einsum("bi,hwio->bhwo", values[:, row, column], weights)
            whole[:, 4 * row : 4 * row + 6, 4 * column : 4 * column + 6] += patch
    result = conv_transpose(
        jnp.asarray(values), jnp.asarray(weights), stride=4, crop=crop, output_size=(output, 5)
    )
    np.testing.assert_allclose(
        result, whole[:, crop : crop + output, crop : crop + 5], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (3, 2), (2, 2), (6, 3)])
def test_flax_holds_the_same_kernel_flipped_in_space(kernel: int, stride: int) -> None:
    values, weights = normal(0, 2, 4, 3, 3), normal(1, kernel, kernel, 3, 2)
    layer = nnx.ConvTranspose(
        3, 2, (kernel, kernel), strides=stride, padding="VALID", use_bias=False, rngs=nnx.Rngs(0)
    )
    layer.kernel[...] = jnp.asarray(weights[::-1, ::-1])
    expected = layer(jnp.asarray(values))
    result = conv_transpose(
        jnp.asarray(values),
        jnp.asarray(weights),
        stride=stride,
        crop=0,
        output_size=expected.shape[1:3],
    )
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("filter_size", "stride", "crop", "output"),
    [
        (4, 2, 1, (8, 10)),
        (3, 2, 1, (7, 9)),
        (16, 8, 4, (29, 45)),
        (31, 16, 15, (64, 75)),
        (64, 32, 19, (90, 140)),
    ],
)
def test_bilinear_upsample_is_conv_transpose_with_the_bilinear_kernel(
    filter_size: int, stride: int, crop: int, output: tuple[int, int]
) -> None:
    values = jnp.asarray(normal(0, 2, 4, 5, 3))
    expected = conv_transpose(
        values,
        jnp.asarray(bilinear_kernel(filter_size, 3)),
        stride=stride,
        crop=crop,
        output_size=output,
    )
    result = bilinear_upsample(values, filter_size, stride=stride, crop=crop, output_size=output)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("stride", [2, 4, 8, 32])
def test_bilinear_upsample_interpolates_like_pytorch_away_from_the_border(
    torch: ModuleType, stride: int
) -> None:
    values = normal(0, 2, 4, 5, 3)
    size = (4 * stride, 5 * stride)
    expected = torch.nn.functional.interpolate(
        to_torch(torch, values), size=size, mode="bilinear", align_corners=False
    )
    result = bilinear_upsample(
        jnp.asarray(values), 2 * stride, stride=stride, crop=stride // 2, output_size=size
    )
    inner = (slice(None), *[slice(stride // 2, n - stride // 2) for n in size])
    np.testing.assert_allclose(result[inner], from_torch(expected)[inner], atol=1e-5)


def test_learned_upsampling_starts_as_fixed() -> None:
    x = FeatureMap(jnp.asarray(normal(0, 2, 4, 5, 3)), jnp.asarray([[4, 5], [2, 3]]))
    like = FeatureMap(jnp.zeros((2, 15, 20, 1)), jnp.asarray([[15, 20], [7, 11]]))
    learned = ConvTranspose(3, 8, stride=4, crop=2)(x, like)
    fixed = BilinearUpsample(8, stride=4, crop=2)(x, like)
    assert learned.spatial == fixed.spatial == (15, 20)
    np.testing.assert_allclose(learned.values, fixed.values, atol=1e-5)


@pytest.mark.parametrize("output", [(33, 40), (37, 70), (5, 7), (4, 3)])
def test_interpolation_is_pytorchs_at_any_size(torch: ModuleType, output: tuple[int, int]) -> None:
    values = normal(0, 2, 5, 7, 3)
    expected = torch.nn.functional.interpolate(
        to_torch(torch, values), output, mode="bilinear", align_corners=False
    )
    result = Interpolate()(FeatureMap(jnp.asarray(values)), FeatureMap(jnp.zeros((2, *output, 1))))
    np.testing.assert_allclose(result.values, from_torch(expected), atol=2e-6)


@pytest.mark.parametrize("crop", [-1, -5, -8])
def test_a_negative_crop_adds_zeros_before(crop: int) -> None:
    values, kernel = normal(0, 1, 3, 2, 2), normal(1, 8, 8, 2, 2)
    plain = conv_transpose(values, kernel, stride=4, crop=0, output_size=(16, 12))
    moved = conv_transpose(values, kernel, stride=4, crop=crop, output_size=(16 - crop, 12 - crop))
    assert not np.any(moved[:, :-crop])
    assert not np.any(moved[:, :, :-crop])
    np.testing.assert_allclose(moved[:, -crop:, -crop:], plain, atol=1e-6)
