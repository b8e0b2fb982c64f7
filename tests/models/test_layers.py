from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.models.feature_map import FeatureMap, add, concatenate, multiply
from fcn_jax.models.interpolation import Interpolate
from fcn_jax.models.layers import (
    Conv,
    average_pool,
    dropout,
    max_pool,
    mirror_pad,
    relu,
    spatial_mean,
)
from fcn_jax.models.normalisation import BatchNorm, GroupNorm
from fcn_jax.models.upsampling import BilinearUpsample, BlockUpsample, ConvTranspose
from tests.arrays import from_torch, kernel_to_torch, normal, to_torch

SIZE = (7, 9)
CANVAS = (13, 16)


# Convolution and pooling


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [
        ((3, 3), 1, 1),
        ((3, 3), 2, 1),
        ((7, 7), 2, 1),
        ((3, 3), 1, 2),
        ((3, 5), 1, 4),
        ((1, 1), 1, 1),
        ((1, 1), 2, 1),
    ],
)
@pytest.mark.parametrize("size", [(11, 8), (1, 6)])
def test_conv_is_pytorchs(
    torch: ModuleType, kernel: tuple[int, int], stride: int, dilation: int, size: tuple[int, int]
) -> None:
    values = normal(0, 2, *size, 3)
    conv = Conv(3, 4, kernel, stride=stride, dilation=dilation, rngs=nnx.Rngs(0))
    assert conv.bias is not None
    conv.bias[...] = jnp.asarray(normal(1, 4))
    expected = torch.nn.functional.conv2d(
        to_torch(torch, values),
        kernel_to_torch(torch, conv.kernel[...]),
        torch.tensor(np.array(conv.bias[...])),
        stride=stride,
        dilation=dilation,
        padding=tuple(dilation * (k - 1) // 2 for k in kernel),
    )
    result = conv(FeatureMap(jnp.asarray(values)))
    np.testing.assert_allclose(result.values, from_torch(expected), atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "arguments"),
    [
        ((3, 3), {"padding": 100}),
        ((7, 7), {"padding": 0}),
        ((11, 11), {"stride": 4, "padding": 2}),
        ((6, 6), {"padding": (2, 3)}),
        ((5, 5), {"groups": 2}),
        ((3, 3), {"stride": 2, "groups": 4}),
    ],
)
def test_conv_with_padding_and_groups_is_pytorchs(
    torch: ModuleType, kernel: tuple[int, int], arguments: dict[str, Any]
) -> None:
    values = normal(0, 2, 13, 14, 4)
    conv = Conv(4, 8, kernel, use_bias=False, rngs=nnx.Rngs(0), **arguments)
    padding = arguments.get("padding", (kernel[0] - 1) // 2)
    before, after = (padding, padding) if isinstance(padding, int) else padding
    expected = torch.nn.functional.conv2d(
        torch.nn.functional.pad(to_torch(torch, values), (before, after) * 2),
        kernel_to_torch(torch, conv.kernel[...]),
        stride=arguments.get("stride", 1),
        groups=arguments.get("groups", 1),
    )
    result = conv(FeatureMap(jnp.asarray(values)))
    np.testing.assert_allclose(result.values, from_torch(expected), atol=1e-5)


def test_average_pool_and_spatial_mean_are_pytorchs(torch: ModuleType) -> None:
    values = normal(0, 2, 6, 7, 3)
    x = FeatureMap(jnp.asarray(values))
    expected = torch.nn.functional.avg_pool2d(to_torch(torch, values), (2, 3), 1)
    np.testing.assert_allclose(average_pool(x, (2, 3)).values, from_torch(expected), atol=1e-6)
    np.testing.assert_allclose(
        spatial_mean(x).values, values.mean((1, 2), keepdims=True), atol=1e-6
    )


def test_conv_refuses_groups_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"must be divisible by `groups` \(=2\)"):
        Conv(3, 4, (3, 3), groups=2, rngs=nnx.Rngs(0))


def test_conv_refuses_even_kernels_by_their_size() -> None:
    with pytest.raises(ValueError, match=r"`kernel_size` \(=\(3, 2\)\) must be odd"):
        Conv(3, 4, (3, 2), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 1)]
)
@pytest.mark.parametrize("size", [(8, 10), (7, 9), (3, 4)])
def test_max_pool_is_pytorchs(
    torch: ModuleType, window: int, stride: int, padding: int, size: tuple[int, int], ceil: bool
) -> None:
    values = normal(0, 2, *size, 3)
    expected = torch.nn.functional.max_pool2d(
        to_torch(torch, values), window, stride, padding, ceil_mode=ceil
    )
    result = max_pool(FeatureMap(jnp.asarray(values)), window, stride, padding, ceil=ceil)
    np.testing.assert_array_equal(result.values, from_torch(expected))


def test_max_pool_passes_the_gradient_to_the_largest(torch: ModuleType) -> None:
    values, cotangent = normal(0, 2, 7, 8, 3), normal(1, 2, 4, 4, 3)
    tensor = to_torch(torch, values).requires_grad_()
    torch.nn.functional.max_pool2d(tensor, 3, 2, 1).backward(to_torch(torch, cotangent))
    _, pull_back = jax.vjp(
        lambda values: max_pool(FeatureMap(values), 3, 2, 1).values, jnp.asarray(values)
    )
    np.testing.assert_allclose(
        pull_back(jnp.asarray(cotangent))[0], from_torch(tensor.grad), atol=1e-6
    )


# Batch normalisation


@pytest.mark.parametrize("size", [(5,), (4, 7), (1, 2, 3)])
def test_mirror_pad_is_numpys_reflection_of_each_image(size: tuple[int, ...]) -> None:
    pads = [(6, 9)] * len(size)
    image = normal(0, *size, 2)
    expected = np.pad(image, [*pads, (0, 0)], mode="reflect")
    whole = mirror_pad(FeatureMap(jnp.asarray(image[None])), 6, 9)
    assert np.array_equal(whole.values[0], expected)
    assert (whole.field.first, whole.field.last) == (-6, -6)
    canvas = np.full((2, *(n + 3 for n in size), 2), 99, np.float32)
    canvas[(0, *map(slice, size))] = image
    x = mirror_pad(FeatureMap(jnp.asarray(canvas), jnp.asarray([size, [0] * len(size)])), 6, 9)
    assert x.valid is not None
    assert x.valid.tolist() == [[n + 15 for n in size], [0] * len(size)]
    inside = tuple(slice(n + 15) for n in size)
    assert np.array_equal(x.values[(0, *inside)], expected)


# Dropout


def test_dropout_draws_for_each_image_by_its_key() -> None:
    x = FeatureMap(jnp.ones((4, 20, 20, 5)))
    keys = jax.random.split(jax.random.key(0), 4)
    values = dropout(x, 0.25, keys).values
    np.testing.assert_allclose(np.unique(values), [0, 4 / 3], rtol=1e-6)
    assert abs((np.asarray(values) == 0).mean() - 0.25) < 0.02  # 8000 draws: 4 deviations
    halves = [dropout(FeatureMap(x.values[:2]), 0.25, part).values for part in (keys[:2], keys[2:])]
    assert np.array_equal(values, np.concatenate(halves))
    assert not np.array_equal(values[0], values[1])


def test_dropout_without_keys_or_rate_changes_nothing() -> None:
    x = FeatureMap(jnp.ones((1, 3, 3, 2)))
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.split(jax.random.key(0), 1)) is x


# An image on a canvas


def test_inside_marks_the_top_left() -> None:
    x = FeatureMap(jnp.zeros((2, 2, 3, 4)), jnp.asarray([[1, 2], [2, 1]]))
    inside = x.inside()
    assert inside is not None
    assert inside.shape == (2, 2, 3, 1)
    assert inside[..., 0].astype(int).tolist() == [
        [[1, 1, 0], [0, 0, 0]],
        [[1, 0, 0], [1, 0, 0]],
    ]
    assert FeatureMap(jnp.zeros((2, 2, 3, 4))).inside() is None


def spatial_layers() -> dict[str, Any]:
    """Returns each spatial layer, as a function of a feature map with 3 channels."""
    rngs = nnx.Rngs(0)
    features = jnp.asarray(normal(4, 3))
    norm = BatchNorm(3)
    norm.mean[...], norm.var[...] = features, 1 + features**2
    up_size = FeatureMap(jnp.zeros((1, 4 * CANVAS[0], 4 * CANVAS[1], 1)))

    def upsampled(layer: Any) -> Any:
        def run(x: FeatureMap) -> FeatureMap:
            if x.valid is None:
                return layer(x, FeatureMap(jnp.zeros((1, *[4 * n for n in x.spatial], 1))))
            return layer(x, FeatureMap(up_size.values, 4 * x.valid))

        return run

    return {
        "conv 3×3": Conv(3, 4, (3, 3), rngs=rngs),
        "conv 1×1": Conv(3, 4, (1, 1), rngs=rngs),
        "conv 1×1 stride 2": Conv(3, 4, (1, 1), stride=2, rngs=rngs),
        "conv 7×7 stride 2": Conv(3, 4, (7, 7), stride=2, rngs=rngs),
        "conv dilated": Conv(3, 4, (3, 3), dilation=2, rngs=rngs),
        "conv padded by 9": Conv(3, 4, (3, 3), padding=9, rngs=rngs),
        "conv 4×4 unpadded": Conv(3, 4, (4, 4), stride=2, padding=0, rngs=rngs),
        "conv 6×6": Conv(3, 4, (6, 6), padding=(2, 3), rngs=rngs),
        "conv in groups": Conv(3, 6, (3, 3), groups=3, rngs=rngs),
        "pool 2×2": lambda x: max_pool(x, 2, 2),
        "pool 2×2, ceil": lambda x: max_pool(x, 2, 2, ceil=True),
        "pool 3×3, ceil": lambda x: max_pool(x, 3, 2, ceil=True),
        "average": lambda x: average_pool(x, (3, 2)),
        "mean": lambda x: multiply(x, spatial_mean(x)),
        "pool 3×3 padded": lambda x: max_pool(x, 3, 2, 1),
        "batch norm": lambda x: norm(x),
        "batch norm in training": lambda x: BatchNorm(3)(x, train=True),
        "group norm": GroupNorm(3, groups=3),
        "mirrored": lambda x: mirror_pad(x, 3, 20),
        "relu, add, concatenate": lambda x: concatenate(relu(x), add(x, x)),
        "upsampling learned": upsampled(ConvTranspose(3, 8, stride=4, crop=2)),
        "upsampling fixed": upsampled(BilinearUpsample(7, stride=4, crop=3)),
        "upsampling, room before": upsampled(BilinearUpsample(8, stride=4, crop=-5)),
        "upsampling in blocks": upsampled(BlockUpsample(3, 2, stride=4, rngs=rngs)),
        "interpolation": upsampled(Interpolate()),
        "two": lambda x: max_pool(Conv(3, 4, (3, 3), rngs=nnx.Rngs(1))(x), 3, 2, 1),
    }


@pytest.mark.parametrize("name", list(spatial_layers()))
def test_values_outside_the_image_change_nothing(name: str) -> None:
    layer = jax.jit(spatial_layers()[name])
    image = normal(0, 1, *SIZE, 3)
    canvas = 1e3 * np.abs(normal(1, 1, *CANVAS, 3))
    canvas[:, : SIZE[0], : SIZE[1]] = image
    alone = layer(FeatureMap(jnp.asarray(image)))
    batched = layer(FeatureMap(jnp.asarray(canvas), jnp.asarray([SIZE], jnp.int32)))
    height, width = alone.spatial
    assert batched.valid.tolist() == [[height, width]]
    np.testing.assert_allclose(
        batched.values[:, :height, :width], alone.values, atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("name", list(spatial_layers()))
def test_values_outside_the_image_stay_finite(name: str) -> None:
    # Even if they are masked later, 0·∞ in the gradient of a kernel would be nan.
    x = FeatureMap(jnp.asarray(normal(0, 1, *CANVAS, 3)), jnp.asarray([[2, 3]], jnp.int32))
    assert np.isfinite(jax.jit(spatial_layers()[name])(x).values).all()


def test_the_gradient_of_a_factor_of_an_image_is_summed_in_float32() -> None:
    x = FeatureMap(jnp.ones((2, 40, 40, 3), jnp.bfloat16))

    def product(factor: jax.Array) -> jax.Array:
        return multiply(x, FeatureMap(factor)).values

    result, pull_back = jax.vjp(product, jnp.full((2, 1, 1, 3), 2, jnp.bfloat16))
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(result, 2)
    # A sum of ones in bfloat16 stops at 256.
    np.testing.assert_array_equal(pull_back(jnp.ones_like(result))[0], 40 * 40)
