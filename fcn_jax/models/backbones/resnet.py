"""ResNet-18 (He et al. 2016), without its average pooling and classifier, as in d2l's FCN."""

import jax
from flax import nnx

from fcn_jax.models.backbones.preprocess import TORCHVISION, Preprocessing
from fcn_jax.models.layers import BatchNorm, Conv, FeatureMap, add, max_pool, relu


class BasicBlock(nnx.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(
        self,
        in_features: int,
        features: int,
        stride: int,
        *,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        self.conv1 = Conv(in_features, features, (3, 3), stride=stride, use_bias=False, rngs=rngs)
        self.bn1 = BatchNorm(features, axis_name=axis_name)
        self.conv2 = Conv(features, features, (3, 3), use_bias=False, rngs=rngs)
        self.bn2 = BatchNorm(features, axis_name=axis_name)
        self.changes_shape = stride != 1 or in_features != features
        if self.changes_shape:
            self.downsample = Conv(
                in_features, features, (1, 1), stride=stride, use_bias=False, rngs=rngs
            )
            self.downsample_bn = BatchNorm(features, axis_name=axis_name)

    def __call__(self, x: FeatureMap, *, train: bool) -> FeatureMap:
        y = relu(self.bn1(self.conv1(x), train=train))
        y = self.bn2(self.conv2(y), train=train)
        if self.changes_shape:
            x = self.downsample_bn(self.downsample(x), train=train)
        return relu(add(x, y))


class ResNet18(nnx.Module):
    def __init__(
        self,
        *,
        preprocessing: Preprocessing = TORCHVISION,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.preprocessing = preprocessing
        self.channels = {2: 64, 4: 64, 8: 128, 16: 256, 32: 512}
        # Strided windows of odd size with symmetric padding are centred on every s-th pixel.
        self.offsets = dict.fromkeys(self.channels, 0.0)
        self.conv1 = Conv(3, 64, (7, 7), stride=2, use_bias=False, rngs=rngs)
        self.bn1 = BatchNorm(64, axis_name=axis_name)
        in_features = 64
        for layer, features in enumerate((64, 128, 256, 512), start=1):
            for block in range(2):
                stride = 2 if layer > 1 and block == 0 else 1
                module = BasicBlock(in_features, features, stride, axis_name=axis_name, rngs=rngs)
                setattr(self, f"layer{layer}_{block}", module)
                in_features = features

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        x = relu(self.bn1(self.conv1(image), train=train))
        features = {2: x}
        x = max_pool(x, window=3, stride=2, padding=1)
        for layer in range(1, 5):
            for block in range(2):
                x = getattr(self, f"layer{layer}_{block}")(x, train=train)
            features[2 ** (layer + 1)] = x
        return features
