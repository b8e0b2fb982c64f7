"""Prediction of volumes in tiles, against sums over the whole volume."""

import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.config import ModelConfig
from fcn_jax.inference.tiles import receptive_field, tiling
from fcn_jax.inference.volumes import ExactVolumePredictor, VolumePredictor, tile_weights
from fcn_jax.models.build import build_model
from fcn_jax.models.pure_model import PureModel
from tests.arrays import normal

PATCH = (4, 6, 4)


class PlaceDependent:
    """A network whose scores depend on the place in the tile, so that weights matter."""

    num_classes: ClassVar = {"": 3}

    def __call__(self, variables: Any, tile: Any) -> tuple[dict[str, Any], Any]:
        return {"logits": tile * variables}, None


def sums_by_hand(variables: np.ndarray, volume: np.ndarray, starts: list[list[int]]) -> np.ndarray:
    sums = np.zeros((*volume.shape[:3], 3))
    for corner in itertools.product(*starts):
        window = tuple(slice(n, n + side) for n, side in zip(corner, PATCH, strict=True))
        logits = volume[window] * variables
        exponentials = np.exp(logits)
        sums[window] += (
            tile_weights(PATCH)[..., None] * exponentials / exponentials.sum(-1, keepdims=True)
        )
    return sums


def test_blocks_are_those_of_the_sums_over_the_whole_volume():
    variables = normal(0, *PATCH, 3)
    volume = normal(1, 11, 7, 6, 1)
    predictor = VolumePredictor(PlaceDependent(), PATCH)  # type: ignore[arg-type]
    expected = sums_by_hand(variables, volume, [[0, 2, 4, 6, 7], [0, 1], [0, 2]]).argmax(-1)
    assert predictor.num_tiles(volume.shape[:3]) == 20
    np.testing.assert_array_equal(predictor(jnp.asarray(variables), volume), expected)
    blocks = list(predictor.blocks(jnp.asarray(variables), volume))
    assert [start for start, _ in blocks] == [0, 2, 4, 6, 7]
    assert sum(len(block) for _, block in blocks) == 11
    assert predictor.spans(volume.shape[:3]) == [
        slice(start, start + len(block)) for start, block in blocks
    ]
    for first in range(1, 5):
        counted: list[None] = []
        rest = list(
            predictor.blocks(
                jnp.asarray(variables), volume, lambda counted=counted: counted.append(None), first
            )
        )
        assert len(counted) == 4 * (5 - first)
        for (start, block), (expected_start, expected_block) in zip(
            rest, blocks[first:], strict=True
        ):
            assert start == expected_start
            np.testing.assert_array_equal(block, expected_block)


def test_the_probabilities_of_draws_are_their_weighted_means_over_the_tiles():
    draws = [normal(0, *PATCH, 3), normal(2, *PATCH, 3)]
    volume = normal(1, 11, 7, 6, 1)
    predictor = VolumePredictor(PlaceDependent(), PATCH)  # type: ignore[arg-type]
    blocks = list(predictor.probability_blocks([jnp.asarray(x) for x in draws], volume))
    assert [start for start, _ in blocks] == [0, 2, 4, 6, 7]
    found = np.concatenate([block for _, block in blocks], axis=1)
    for variables, probabilities in zip(draws, found, strict=True):
        sums = sums_by_hand(variables, volume, [[0, 2, 4, 6, 7], [0, 1], [0, 2]])
        expected = sums / sums.sum(-1, keepdims=True)
        np.testing.assert_allclose(probabilities, expected, rtol=1e-5)


def test_a_volume_smaller_than_a_tile_is_padded_by_zeros():
    variables, volume = normal(0, *PATCH, 3), normal(1, 3, 6, 2, 1)
    predictor = VolumePredictor(PlaceDependent(), PATCH)  # type: ignore[arg-type]
    expected = (volume * variables[:3, :, :2]).argmax(-1)
    np.testing.assert_array_equal(predictor(jnp.asarray(variables), volume), expected)


def test_mirrored_views_are_mirrored_back():
    variables, volume = normal(0, *PATCH, 3), normal(1, *PATCH, 1)
    predictor = VolumePredictor(PlaceDependent(), PATCH, mirror_axes=(0,))  # type: ignore[arg-type]

    def softmax(values):
        return np.exp(values) / np.exp(values).sum(-1, keepdims=True)

    mean = softmax(volume * variables) + softmax(volume * variables[::-1])
    np.testing.assert_array_equal(predictor(jnp.asarray(variables), volume), mean.argmax(-1))


def test_the_weights_are_gaussian_with_a_deviation_of_an_eighth_of_the_side():
    weights = tile_weights((17, 1, 1))
    assert weights[8, 0, 0] == pytest.approx(1)
    # Two voxels from the middle, by σ = 17 / 8.
    assert weights[10, 0, 0] == pytest.approx(np.exp(-((2 / (17 / 8)) ** 2) / 2))
    assert tile_weights((40, 56, 40)).min() == pytest.approx(1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "unet", "decoder": "unet", "features": (3, 4), "norm": "batch"},
        {"backbone": "small", "features": (3, 4, 5), "skips": 2},
    ],
    ids=["U-Net", "FCN-8s"],
)
def test_exact_tiles_with_a_halo_give_the_label_map_of_the_whole_volume(
    settings: dict[str, Any], randomised: Any
) -> None:
    config = ModelConfig(preprocessing="none", dropout=0.0, **settings)
    network = PureModel(
        randomised(lambda: build_model(config, 3, channels=1, ndim=3, rngs=nnx.Rngs(0)))
    )
    volume = normal(2, 37, 20, 33, 1)
    cut = tiling(receptive_field(network, network.variables, 3), 16, min_tile=16)
    assert cut.is_exact
    predictor = ExactVolumePredictor(network, cut)
    blocks = list(predictor.blocks(network.variables, volume))
    assert [start for start, _ in blocks] == [0, 16, 32]
    assert predictor.num_tiles(volume.shape[:3]) == 3 * 2 * 3
    values, _ = jax.jit(network)(network.variables, volume[None])
    whole = np.asarray(values["logits"][0])
    label = np.concatenate([block for _, block in blocks])
    assert len(np.unique(label)) == 3
    # Where two classes tie within rounding, either is the largest.
    chosen = np.take_along_axis(whole, label[..., None].astype(int), axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, whole.max(axis=-1), atol=1e-4 * np.abs(whole).max())
