"""VGG16 (Simonyan & Zisserman 2015) with fc6 and fc7 as convolutions (Long et al. 2015).

The weights serve in three geometries:

- "same": every convolution keeps the size, fc6 included (7×7, padding 3);
- "paper": conv1_1 pads by 100, poolings use ceil mode and fc6 does not pad (the authors' code);
- "original": the trained classifier: poolings use floor mode and fc6 does not pad. On 224×224
  pixels fc7 has one position.

Positions whose receptive field contains no padding have the same features in all three.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.models.backbones.preprocess import CAFFE, TORCHVISION, Preprocessing
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import PIXELS
from fcn_jax.models.layers import BatchNorm, Conv, dropout, max_pool, relu
from fcn_jax.models.remat import remat_block

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Features and number of convolutions before each pooling."""


class VGG16(nnx.Module):
    """VGG16: stages 2, 4, 8 and 16 are the first four poolings, stage 32 is fc7."""

    def __init__(
        self,
        *,
        padding: Literal["same", "paper", "original"] = "same",
        batch_norm: bool = False,
        fc_features: int = 4096,
        dropout_rate: float = 0.5,
        preprocessing: Preprocessing = CAFFE,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.preprocessing = preprocessing
        self.dropout_rate = dropout_rate
        self.ceil = padding != "original"
        self.channels = {2**number: features for number, (features, _) in enumerate(BLOCKS, 1)}
        self.channels[32] = fc_features
        input_padding = 100 if padding == "paper" else 1
        fc_padding = 3 if padding == "same" else 0
        grid = PIXELS.after(3, padding=input_padding)
        self.grids = {}
        in_features = preprocessing.channels
        for number, (features, depth) in enumerate(BLOCKS, start=1):
            for layer in range(1, depth + 1):
                first = number == layer == 1
                conv = Conv(
                    in_features,
                    features,
                    (3, 3),
                    padding=input_padding if first else 1,
                    rngs=rngs,
                )
                setattr(self, f"conv{number}_{layer}", conv)
                if batch_norm:
                    setattr(self, f"bn{number}_{layer}", BatchNorm(features, axis_name=axis_name))
                in_features = features
            grid = self.grids[2**number] = grid.after(2, stride=2, padding=0)
        self.has_batch_norm = batch_norm
        self.fc6 = Conv(in_features, fc_features, (7, 7), padding=fc_padding, rngs=rngs)
        self.fc7 = Conv(fc_features, fc_features, (1, 1), rngs=rngs)
        self.grids[32] = grid.after(7, padding=fc_padding)

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        x = image
        features = {}
        for number in range(1, len(BLOCKS) + 1):
            x = features[2**number] = self._block(x, number=number, train=train)
        features[32] = fully_connected(x, (self.fc6, self.fc7), self.dropout_rate, keys)
        return features

    @remat_block
    def _block(self, x: FeatureMap, *, number: int, train: bool) -> FeatureMap:
        _, depth = BLOCKS[number - 1]
        for layer in range(1, depth + 1):
            x = getattr(self, f"conv{number}_{layer}")(x)
            if self.has_batch_norm:
                x = getattr(self, f"bn{number}_{layer}")(x, train=train)
            x = relu(x)
        return max_pool(x, window=2, stride=2, ceil=self.ceil)


vgg16_bn = functools.partial(VGG16, batch_norm=True, preprocessing=TORCHVISION)


def fully_connected(
    x: FeatureMap, layers: tuple[Conv, Conv], dropout_rate: float, keys: jax.Array | None
) -> FeatureMap:
    """Computes fc6 and fc7, each with ReLU and dropout.

    Args:
        x: features of the last pooling.
        layers: fc6 and fc7.
        dropout_rate: see `layers.dropout`.
        keys: PRNG keys (b,), one for each image; None for no dropout.
    """
    keys_by_layer: tuple[jax.Array | None, ...] = (None, None)
    if keys is not None:
        keys_by_layer = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
    for layer, layer_keys in zip(layers, keys_by_layer, strict=True):
        x = dropout(relu(layer(x)), dropout_rate, layer_keys)
    return x
