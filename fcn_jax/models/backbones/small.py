"""A small network that is trained from scratch, for the default config and for tests."""

import jax
from flax import nnx

from fcn_jax.models.backbones.preprocess import TORCHVISION, Preprocessing
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import Grid
from fcn_jax.models.layers import BatchNorm, Conv, relu
from fcn_jax.models.remat import remat_block


class Block(nnx.Module):
    """Two 3×3 convolutions, the first with stride 2, each with batch normalisation and ReLU."""

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        ndim: int,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        kernel_size = (3,) * ndim
        self.conv1 = Conv(in_features, features, kernel_size, stride=2, use_bias=False, rngs=rngs)
        self.bn1 = BatchNorm(features, axis_name=axis_name)
        self.conv2 = Conv(features, features, kernel_size, use_bias=False, rngs=rngs)
        self.bn2 = BatchNorm(features, axis_name=axis_name)

    @remat_block
    def __call__(self, x: FeatureMap, *, train: bool) -> FeatureMap:
        x = relu(self.bn1(self.conv1(x), train=train))
        return relu(self.bn2(self.conv2(x), train=train))


class SmallNet(nnx.Module):
    """A chain of blocks; stages 2, 4, 8, … are their outputs."""

    def __init__(
        self,
        *,
        features: tuple[int, ...] = (24, 48, 96, 128, 160),
        ndim: int = 2,
        preprocessing: Preprocessing = TORCHVISION,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.preprocessing = preprocessing
        self.ndim = ndim
        self.channels = {2**block: count for block, count in enumerate(features, start=1)}
        # Odd windows with symmetric padding are centred on every s-th pixel.
        self.grids = {stride: Grid(stride) for stride in self.channels}
        for block, (before, count) in enumerate(
            zip((preprocessing.channels, *features), features, strict=False), start=1
        ):
            module = Block(before, count, ndim=ndim, axis_name=axis_name, rngs=rngs)
            setattr(self, f"block{block}", module)

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        x = image
        features = {}
        for block, stride in enumerate(self.channels, start=1):
            features[stride] = x = getattr(self, f"block{block}")(x, train=train)
        return features
