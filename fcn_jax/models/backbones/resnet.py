"""ResNets (He et al. 2016) as in torchvision, without their average pooling and classifier.

The 3×3 convolution of a bottleneck has the stride. With an output stride of 16 or 8 the last stages
are dilated instead of strided: they use the same weights at a finer stride.
"""

import functools
from typing import Literal

import jax
from flax import nnx

from fcn_jax.models.backbones.preprocess import TORCHVISION, Preprocessing
from fcn_jax.models.feature_map import FeatureMap, add
from fcn_jax.models.geometry import Grid
from fcn_jax.models.layers import BatchNorm, Conv, max_pool, relu
from fcn_jax.models.remat import remat_block

DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Number of blocks in each of the four stages, by depth (He et al. 2016, table 1)."""


class BasicBlock(nnx.Module):
    """A residual block of two 3×3 convolutions."""

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        stride: int,
        dilation: int,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        if dilation != 1:
            raise ValueError(
                f"`dilation` (={dilation}) must be 1 in the blocks of ResNet-18 and 34"
            )
        self.conv1 = Conv(in_features, features, (3, 3), stride=stride, use_bias=False, rngs=rngs)
        self.bn1 = BatchNorm(features, axis_name=axis_name)
        self.conv2 = Conv(features, features, (3, 3), use_bias=False, rngs=rngs)
        self.bn2 = BatchNorm(features, axis_name=axis_name)
        self.shortcut = Shortcut(
            in_features, features, stride=stride, axis_name=axis_name, rngs=rngs
        )

    @remat_block
    def __call__(self, x: FeatureMap, *, train: bool) -> FeatureMap:
        y = relu(self.bn1(self.conv1(x), train=train))
        y = self.bn2(self.conv2(y), train=train)
        return relu(add(self.shortcut(x, train=train), y))


class Bottleneck(nnx.Module):
    """A residual block of 1×1, 3×3 and 1×1 convolutions; the last has four times the features."""

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        stride: int,
        dilation: int,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        self.conv1 = Conv(in_features, features, (1, 1), use_bias=False, rngs=rngs)
        self.bn1 = BatchNorm(features, axis_name=axis_name)
        self.conv2 = Conv(
            features,
            features,
            (3, 3),
            stride=stride,
            dilation=dilation,
            use_bias=False,
            rngs=rngs,
        )
        self.bn2 = BatchNorm(features, axis_name=axis_name)
        self.conv3 = Conv(features, 4 * features, (1, 1), use_bias=False, rngs=rngs)
        self.bn3 = BatchNorm(4 * features, axis_name=axis_name)
        self.shortcut = Shortcut(
            in_features, 4 * features, stride=stride, axis_name=axis_name, rngs=rngs
        )

    @remat_block
    def __call__(self, x: FeatureMap, *, train: bool) -> FeatureMap:
        y = relu(self.bn1(self.conv1(x), train=train))
        y = relu(self.bn2(self.conv2(y), train=train))
        y = self.bn3(self.conv3(y), train=train)
        return relu(add(self.shortcut(x, train=train), y))


class Shortcut(nnx.Module):
    """The shortcut of a block: the identity, or a 1×1 convolution if the shape changes."""

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        stride: int,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        self.changes_shape = stride != 1 or in_features != features
        if self.changes_shape:
            self.conv = Conv(
                in_features, features, (1, 1), stride=stride, use_bias=False, rngs=rngs
            )
            self.bn = BatchNorm(features, axis_name=axis_name)

    def __call__(self, x: FeatureMap, *, train: bool) -> FeatureMap:
        return self.bn(self.conv(x), train=train) if self.changes_shape else x


class ResNet(nnx.Module):
    """ResNet: stage 2 is conv1, stages 4, 8, 16 and 32 are layer1 to layer4.

    Args:
        depth: 18, 34, 50, 101 or 152.
        output_stride: stride of layer4: 32, 16 or 8; 32 for depths 18 and 34.
        preprocessing: normalisation of the pixels.
        axis_name: see `BatchNorm`.
        rngs: streams of random keys for the initial weights.
    """

    def __init__(
        self,
        depth: int,
        *,
        output_stride: Literal[32, 16, 8] = 32,
        deep_stem: bool = False,
        preprocessing: Preprocessing = TORCHVISION,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.preprocessing = preprocessing
        self.depths = DEPTHS[depth]
        kind = BasicBlock if depth < 50 else Bottleneck
        expansion = 1 if depth < 50 else 4
        stem = ((7, 64),) if not deep_stem else ((3, 32), (3, 32), (3, 64))
        in_features = preprocessing.channels
        self.stem_names = tuple("" if not deep_stem else f"_{n}" for n in range(1, len(stem) + 1))
        for number, (size, features) in enumerate(stem):
            conv = Conv(
                in_features,
                features,
                (size, size),
                stride=2 if number == 0 else 1,
                use_bias=False,
                rngs=rngs,
            )
            setattr(self, f"conv1{self.stem_names[number]}", conv)
            bn = BatchNorm(features, axis_name=axis_name)
            setattr(self, f"bn1{self.stem_names[number]}", bn)
            in_features = features
        # Odd windows with symmetric padding are centred on every s-th pixel.
        self.channels, self.grids = {2: 64}, {2: Grid(2)}
        in_features, stride, dilation = 64, 4, 1
        for layer, count in enumerate(self.depths, start=1):
            features = 64 * 2 ** (layer - 1)
            before = dilation
            strided = 1
            if layer > 1 and stride < output_stride:
                stride, strided = 2 * stride, 2
            elif layer > 1:
                dilation *= 2
            for index in range(count):
                # The first block has the dilation of the previous stage, as in torchvision.
                module = kind(
                    in_features,
                    features,
                    stride=strided if index == 0 else 1,
                    dilation=before if index == 0 else dilation,
                    axis_name=axis_name,
                    rngs=rngs,
                )
                setattr(self, f"layer{layer}_{index}", module)
                in_features = features * expansion
            self.channels[2 ** (layer + 1)] = in_features
            self.grids[2 ** (layer + 1)] = Grid(stride)

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        x = image
        for name in self.stem_names:
            conv, bn = getattr(self, f"conv1{name}"), getattr(self, f"bn1{name}")
            x = relu(bn(conv(x), train=train))
        features = {2: x}
        x = max_pool(x, window=3, stride=2, padding=1)
        for layer, count in enumerate(self.depths, start=1):
            for index in range(count):
                x = getattr(self, f"layer{layer}_{index}")(x, train=train)
            features[2 ** (layer + 1)] = x
        return features


def _basic_resnet(
    depth: int,
    *,
    preprocessing: Preprocessing = TORCHVISION,
    axis_name: str | None = None,
    rngs: nnx.Rngs,
) -> ResNet:
    """Builds a ResNet without the option `output_stride`, since basic blocks are not dilated."""
    return ResNet(depth, preprocessing=preprocessing, axis_name=axis_name, rngs=rngs)


resnet18 = functools.partial(_basic_resnet, 18)
resnet34 = functools.partial(_basic_resnet, 34)
resnet50 = functools.partial(ResNet, 50)
resnet101 = functools.partial(ResNet, 101)
resnet152 = functools.partial(ResNet, 152)
resnet50c = functools.partial(ResNet, 50, deep_stem=True)
resnet101c = functools.partial(ResNet, 101, deep_stem=True)
