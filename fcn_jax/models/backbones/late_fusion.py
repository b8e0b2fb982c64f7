"""Late fusion: one backbone for colour, another for the other channels (Long et al. 2015, NYUDv2).

The paper scores the features of each backbone separately and averages the scores before upsampling.
One score layer on the concatenated features of both, each halved, computes the same.
"""

import dataclasses

import jax
from flax import nnx

from fcn_jax.models.backbones.contract import Backbone, spatial_axes
from fcn_jax.models.backbones.preprocess import COLOURS
from fcn_jax.models.feature_map import FeatureMap, concatenate, scaled


class LateFusion(nnx.Module):
    """Two backbones whose halved features are concatenated.

    Args:
        colour: the backbone for the first three channels.
        other: the backbone for the other channels, with the same grids.

    Raises:
        ValueError: the grids differ.
    """

    def __init__(self, colour: Backbone, other: Backbone):
        if colour.grids != other.grids:
            raise ValueError("`colour` and `other` must have the same grids")
        self.colour = colour
        self.other = other
        self.channels = {stage: n + other.channels[stage] for stage, n in colour.channels.items()}
        self.grids = colour.grids
        self.ndim = spatial_axes(colour)
        first, second = colour.preprocessing, other.preprocessing
        self.preprocessing = dataclasses.replace(
            first, mean=first.mean + second.mean, std=first.std + second.std
        )

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        other_keys = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
        features = self.colour(image.map(lambda x: x[..., :COLOURS]), train=train, keys=keys)
        others = self.other(image.map(lambda x: x[..., COLOURS:]), train=train, keys=other_keys)
        return {
            stage: concatenate(scaled(x, 0.5), scaled(others[stage], 0.5))
            for stage, x in features.items()
        }
