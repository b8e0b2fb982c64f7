"""VGG16 (Simonyan & Zisserman 2015), its fully connected layers as convolutions (Long et al. 2015).

Every convolution pads to the same size, fc6 included (7×7, padding 3). The paper instead pads the
image by 100 and fc6 not at all; where no padding is seen the features are the same.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.models.backbones.preprocess import CAFFE, Preprocessing
from fcn_jax.models.layers import Conv, FeatureMap, dropout, max_pool, relu

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Features and number of convolutions before each pooling."""


class VGG16(nnx.Module):
    def __init__(
        self,
        *,
        fc_features: int = 4096,
        dropout_rate: float = 0.5,
        preprocessing: Preprocessing = CAFFE,
        rngs: nnx.Rngs,
    ):
        self.preprocessing = preprocessing
        self.dropout_rate = dropout_rate
        self.channels = {2: 64, 4: 128, 8: 256, 16: 512, 32: fc_features}
        self.offsets = {stride: (stride - 1) / 2 for stride in self.channels}
        in_features = 3
        for block, (features, depth) in enumerate(BLOCKS, start=1):
            for layer in range(1, depth + 1):
                conv = Conv(in_features, features, (3, 3), rngs=rngs)
                setattr(self, f"conv{block}_{layer}", conv)
                in_features = features
        self.fc6 = Conv(512, fc_features, (7, 7), rngs=rngs)
        self.fc7 = Conv(fc_features, fc_features, (1, 1), rngs=rngs)

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        x = image
        features = {}
        for block, (_, depth) in enumerate(BLOCKS, start=1):
            for layer in range(1, depth + 1):
                x = relu(getattr(self, f"conv{block}_{layer}")(x))
            x = max_pool(x, window=2, stride=2)
            features[2**block] = x
        keys6 = keys7 = None
        if train and keys is not None:
            keys6, keys7 = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
        x = dropout(relu(self.fc6(x)), self.dropout_rate, keys6)
        x = dropout(relu(self.fc7(x)), self.dropout_rate, keys7)
        features[32] = x
        return features
