"""LeNet-5 (LeCun et al. 1998) up to its fully connected layers, which read 5×5 positions.

An image of 32×32 pixels has 5×5 positions. No layer pads, so a window of a wide image has the same
features as the window cut out of the image. Matan et al. (1991) read strings of digits this way.
Unlike the original, it uses max pooling and ReLU.
"""

import jax
from flax import nnx

from fcn_jax.models.backbones.preprocess import Preprocessing
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import PIXELS
from fcn_jax.models.layers import Conv, max_pool, relu

GREY = Preprocessing(mean=(127.5,), std=(127.5,))
"""The normalisation of one channel to −1…1."""


class LeNet(nnx.Module):
    """LeNet-5: stages 2 and 4 are the poolings."""

    def __init__(
        self,
        *,
        features: tuple[int, int] = (6, 16),
        preprocessing: Preprocessing = GREY,
        rngs: nnx.Rngs,
    ):
        self.preprocessing = preprocessing
        self.conv1 = Conv(preprocessing.channels, features[0], (5, 5), padding=0, rngs=rngs)
        self.conv2 = Conv(features[0], features[1], (5, 5), padding=0, rngs=rngs)
        self.channels = {2: features[0], 4: features[1]}
        pool1 = PIXELS.after(5, padding=0).after(2, stride=2, padding=0)
        pool2 = pool1.after(5, padding=0).after(2, stride=2, padding=0)
        self.grids = {2: pool1, 4: pool2}

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        pool1 = max_pool(relu(self.conv1(image)), window=2, stride=2)
        pool2 = max_pool(relu(self.conv2(pool1)), window=2, stride=2)
        return {2: pool1, 4: pool2}
