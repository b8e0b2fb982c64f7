"""Results, losses, gradients and classes by row blocks equal those of the whole image."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.models import row_blocks
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.interpolation import Interpolate
from fcn_jax.models.row_blocks import BlockLayout, RowBlocks, depth_to_space
from fcn_jax.models.upsampling import bilinear_upsample_blocks, conv_transpose_blocks
from fcn_jax.training.losses import CrossEntropy
from tests.arrays import normal

CLASSES = 3
COARSE = (5, 4)
SIZE = (17, 13)
GEOMETRY = {"stride": 4, "crop": 3, "output_size": SIZE}


def learned(values: jax.Array, kernel: jax.Array) -> RowBlocks:
    return conv_transpose_blocks(values, kernel, **GEOMETRY)


def fixed(values: jax.Array, kernel: jax.Array) -> RowBlocks:
    return bilinear_upsample_blocks(values + kernel.sum(), 7, **GEOMETRY)


def interpolated(values: jax.Array, kernel: jax.Array) -> RowBlocks:
    like = FeatureMap(jnp.zeros((len(values), *SIZE, 1)), jnp.asarray([SIZE, (11, 13)], jnp.int32))
    valid = jnp.asarray([COARSE, (3, 4)], jnp.int32)
    return Interpolate().in_blocks(FeatureMap(values + kernel.sum(), valid), like)


UPSAMPLINGS = pytest.mark.parametrize("upsample", [learned, fixed, interpolated])


@pytest.fixture(params=[1, 3000, 2**30])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Sets the size of blocks: the smallest possible, some rows, or everything."""
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", {"cpu": request.param})
    return request.param


def inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    values = jnp.asarray(normal(0, 2, *COARSE, CLASSES))
    kernel = jnp.asarray(normal(1, 7, 7, CLASSES, CLASSES))
    label = np.random.default_rng(2).integers(0, CLASSES, (2, *SIZE))
    label[:, :2] = IGNORE_INDEX
    return values, kernel, jnp.asarray(label)


def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", {"cpu": 2**40})


@UPSAMPLINGS
def test_blocks_are_parts_of_the_whole(
    upsample: Callable[..., RowBlocks], block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, kernel, _ = inputs()
    cut = upsample(values, kernel)
    result, classes = cut.whole(), cut.map(lambda scores: jnp.argmax(scores, axis=-1))
    at_once(monkeypatch)
    expected = upsample(values, kernel).whole()
    assert result.shape == (2, *SIZE, CLASSES)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(classes, jnp.argmax(expected, axis=-1))


@UPSAMPLINGS
def test_the_loss_and_its_gradient_equal_those_of_the_whole(
    upsample: Callable[..., RowBlocks], block_bytes: int
) -> None:
    values, kernel, label = inputs()

    def by_blocks(values, kernel):
        cut = upsample(values, kernel)

        def of_block(scores, label):
            return CrossEntropy().sums(scores, label)

        loss, weight = cut.total(of_block, cut.layout.to_blocks(label, IGNORE_INDEX))
        return 3 * loss, weight

    def of_the_whole(values, kernel):
        loss, weight = CrossEntropy().sums(upsample(values, kernel).whole(), label)
        return 3 * loss, weight

    def differentiated(function):
        return jax.jit(jax.value_and_grad(function, (0, 1), has_aux=True))(values, kernel)

    (loss, weight), gradients = differentiated(by_blocks)
    (expected_loss, expected_weight), expected = differentiated(of_the_whole)
    assert weight == expected_weight == 2 * (SIZE[0] - 2) * SIZE[1]
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(by_blocks)(values, kernel)[0], loss, rtol=1e-6)
    for gradient, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("limit", "blocks"), [(1, 6), (199, 6), (200, 3), (500, 2), (600, 1)])
def test_parts_are_divided_evenly(limit: int, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", {"cpu": limit})
    assert row_blocks.parts_in_blocks(100, 6) == blocks


def test_several_images_are_interpolated_in_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    values = jnp.asarray(normal(0, 4, *COARSE, 1))
    sizes = jnp.asarray([COARSE, (3, 4), (2, 2), (5, 1)], jnp.int32)
    x = FeatureMap(values, sizes)
    like = FeatureMap(jnp.zeros((4, *SIZE, 1)), jnp.asarray([SIZE, (11, 13), (7, 9), (17, 2)]))
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", {"cpu": 2 * 4 * 17 * 13})
    blocks = Interpolate().in_blocks(x, like)
    assert blocks.layout.num_blocks == 2
    for image in range(4):
        alone = FeatureMap(values[image : image + 1], sizes[image : image + 1])
        alike = FeatureMap(jnp.zeros((1, *SIZE, 1)), like.valid[image : image + 1])
        expected = Interpolate().in_blocks(alone, alike).whole()
        np.testing.assert_allclose(blocks.whole()[image], expected[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stride", [None, 2])
def test_blocks_by_hand(stride: int | None) -> None:
    # Two images of 3×2, padded to 4×4 by a row before and two columns after; blocks of 4 rows.
    layout = BlockLayout(2, (3, 2), (1, 0), (4, 4), rows=4, stride=stride)
    values = jnp.arange(1, 13).reshape(2, 3, 2)
    rows = [[0, 0, 0, 0], [1, 2, 0, 0], [3, 4, 0, 0], [5, 6, 0, 0]]
    by_phase = [[[[0, 0], [1, 2]], [[0, 0], [0, 0]]], [[[3, 4], [5, 6]], [[0, 0], [0, 0]]]]
    blocks = layout.to_blocks(values, 0)
    assert blocks[0].tolist() == (by_phase if stride else rows)
    assert layout.to_rows(blocks[0]).tolist() == rows
    together = jnp.stack([layout.to_rows(block) for block in blocks])
    np.testing.assert_array_equal(layout.to_images(together), values)


def test_no_full_size_scores_are_held() -> None:
    values, kernel = jnp.zeros((4, 64, 64, 21)), jnp.zeros((16, 16, 21, 21))
    label = jnp.zeros((4, 512, 512), jnp.int32)

    def loss(values, kernel):
        cut = conv_transpose_blocks(values, kernel, stride=8, crop=4, output_size=(512, 512))
        blocks = cut.layout.to_blocks(label, IGNORE_INDEX)
        return cut.total(CrossEntropy().sums, blocks)[0]

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(values, kernel).compile()
    scores_bytes = 4 * 512 * 512 * 21 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < scores_bytes


@pytest.mark.parametrize(("ndim", "others"), [(1, (5,)), (2, (3,)), (2, ()), (3, (2,))])
def test_phases_and_their_derivatives_go_to_their_places(ndim: int, others: tuple[int, ...]):
    size, stride = (2, 3, 4)[:ndim], 3
    phases = normal(0, *size, *[stride] * ndim, *others)

    def placed(values: np.ndarray) -> np.ndarray:
        result = np.empty((*[stride * n for n in size], *others), np.float32)
        for index in np.ndindex(*size, *[stride] * ndim):
            pairs = zip(index[:ndim], index[ndim:], strict=True)
            result[tuple(stride * place + phase for place, phase in pairs)] = values[index]
        return result

    def function(values: jax.Array) -> jax.Array:
        return depth_to_space(values, ndim)

    tangent = normal(1, *phases.shape)
    result, moved = jax.jvp(function, (jnp.asarray(phases),), (jnp.asarray(tangent),))
    np.testing.assert_array_equal(result, placed(phases))
    np.testing.assert_array_equal(moved, placed(tangent))
    (returned,) = jax.vjp(function, jnp.asarray(phases))[1](jnp.asarray(placed(tangent)))
    np.testing.assert_array_equal(returned, tangent)
