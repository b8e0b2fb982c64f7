"""SqueezeNet 1.1 (Iandola et al. 2016): 1.2 million parameters, for laptops.

The weights serve in two geometries:

- "same": conv1 and the poolings pad by 1, so that every stride maps n positions to
  ceil(n / stride), and the first position of every stage is centred on the first pixel;
- "original": the padding of the trained classifier: these layers do not pad, and poolings use ceil
  mode.

Away from the border both give the same features, shifted by a few pixels.
"""

from typing import Literal

import jax
from flax import nnx

from fcn_jax.models.backbones.preprocess import CAFFE, Preprocessing
from fcn_jax.models.feature_map import FeatureMap, concatenate
from fcn_jax.models.geometry import PIXELS
from fcn_jax.models.layers import Conv, dropout, max_pool, relu
from fcn_jax.models.remat import remat_block


class Fire(nnx.Module):
    """A 1×1 convolution to few features, then concatenated 1×1 and 3×3 convolutions of these."""

    def __init__(self, in_features: int, squeezed: int, expanded: int, *, rngs: nnx.Rngs):
        self.squeeze1x1 = Conv(in_features, squeezed, (1, 1), rngs=rngs)
        self.expand1x1 = Conv(squeezed, expanded, (1, 1), rngs=rngs)
        self.expand3x3 = Conv(squeezed, expanded, (3, 3), rngs=rngs)

    @remat_block
    def __call__(self, x: FeatureMap) -> FeatureMap:
        x = relu(self.squeeze1x1(x))
        return concatenate(relu(self.expand1x1(x)), relu(self.expand3x3(x)))


class SqueezeNet(nnx.Module):
    """SqueezeNet: stage 2 is conv1, stages 4, 8 and 16 are fire3, fire5 and fire9."""

    def __init__(
        self,
        *,
        padding: Literal["same", "original"] = "same",
        dropout_rate: float = 0.5,
        preprocessing: Preprocessing = CAFFE,
        rngs: nnx.Rngs,
    ):
        self.preprocessing = preprocessing
        self.dropout_rate = dropout_rate
        self.padding = 1 if padding == "same" else 0
        self.channels = {2: 64, 4: 128, 8: 256, 16: 512}
        grid = PIXELS
        self.grids = {}
        for stage in self.channels:
            grid = self.grids[stage] = grid.after(3, stride=2, padding=self.padding)
        self.conv1 = Conv(
            preprocessing.channels, 64, (3, 3), stride=2, padding=self.padding, rngs=rngs
        )
        self.fire2 = Fire(64, 16, 64, rngs=rngs)
        self.fire3 = Fire(128, 16, 64, rngs=rngs)
        self.fire4 = Fire(128, 32, 128, rngs=rngs)
        self.fire5 = Fire(256, 32, 128, rngs=rngs)
        self.fire6 = Fire(256, 48, 192, rngs=rngs)
        self.fire7 = Fire(384, 48, 192, rngs=rngs)
        self.fire8 = Fire(384, 64, 256, rngs=rngs)
        self.fire9 = Fire(512, 64, 256, rngs=rngs)

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        x = relu(self.conv1(image))
        features = {2: x}
        features[4] = x = self.fire3(self.fire2(self._pooled(x)))
        features[8] = x = self.fire5(self.fire4(self._pooled(x)))
        x = self.fire9(self.fire8(self.fire7(self.fire6(self._pooled(x)))))
        features[16] = dropout(x, self.dropout_rate, keys)
        return features

    def _pooled(self, x: FeatureMap) -> FeatureMap:
        # With a padding of 1 on both sides, ceil mode would add a window.
        return max_pool(x, window=3, stride=2, padding=self.padding, ceil=self.padding == 0)
