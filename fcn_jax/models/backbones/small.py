"""A small network of our own, for the embedded default and for tests: trained from scratch."""

import jax
from flax import nnx

from fcn_jax.models.backbones.preprocess import TORCHVISION, Preprocessing
from fcn_jax.models.layers import BatchNorm, Conv, FeatureMap, max_pool, relu


class SmallNet(nnx.Module):
    """Five blocks of convolution, batch normalisation, ReLU and 2×2 pooling."""

    def __init__(
        self,
        *,
        features: tuple[int, ...] = (16, 32, 64, 96, 128),
        preprocessing: Preprocessing = TORCHVISION,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.preprocessing = preprocessing
        self.channels = {2**block: n for block, n in enumerate(features, start=1)}
        self.offsets = {stride: (stride - 1) / 2 for stride in self.channels}
        for block, (n_in, n_out) in enumerate(zip((3, *features), features, strict=False), start=1):
            conv = Conv(n_in, n_out, (3, 3), use_bias=False, rngs=rngs)
            setattr(self, f"conv{block}", conv)
            setattr(self, f"bn{block}", BatchNorm(n_out, axis_name=axis_name))

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        x = image
        features = {}
        for block, stride in enumerate(self.channels, start=1):
            x = getattr(self, f"conv{block}")(x)
            x = relu(getattr(self, f"bn{block}")(x, train=train))
            features[stride] = x = max_pool(x, window=2, stride=2)
        return features
