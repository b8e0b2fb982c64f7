"""EfficientNet-Lite0 without pooling and classifier, as in timm.

EfficientNet-B0 (Tan & Le 2019) for small devices: ReLU6, no squeeze-and-excitation. Trained in
PyTorch, its weights want padding alike on both sides, not that of TensorFlow.
"""

import functools

import jax
from flax import nnx

from fcn_jax.models.backbones.mobilenet import Block, InvertedResidual
from fcn_jax.models.backbones.preprocess import TORCHVISION, Preprocessing
from fcn_jax.models.geometry import Grid
from fcn_jax.models.layers import BatchNorm, FeatureMap, NormalisedConv

GROUPS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, side of the kernel, stride of the first block, expansion and features (table 1)."""


def blocks() -> list[tuple[str, Block]]:
    """Each with its name: block1_0, block2_0, block2_1, …"""
    named = []
    in_features = 32
    for group, (count, size, stride, expansion, features) in enumerate(GROUPS, start=1):
        for index in range(count):
            block = Block(
                size,
                expansion * in_features,
                features,
                squeezed=0,
                activation=jax.nn.relu6,
                stride=stride if index == 0 else 1,
            )
            named.append((f"block{group}_{index}", block))
            in_features = features
    return named


class EfficientNetLite0(nnx.Module):
    """A stage is what comes before the next stride of 2; 32 is the last 1×1 convolution."""

    def __init__(
        self,
        *,
        preprocessing: Preprocessing = TORCHVISION,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.preprocessing = preprocessing
        self.channels = {2: 16, 4: 24, 8: 40, 16: 112, 32: 1280}
        # Windows of odd size, padded alike on both sides, are centred on every s-th pixel.
        self.grids = {stage: Grid(stage) for stage in self.channels}
        norm = functools.partial(BatchNorm, axis_name=axis_name)
        conv = functools.partial(NormalisedConv, activation=jax.nn.relu6, norm=norm, rngs=rngs)
        self.conv1 = conv(preprocessing.channels, 32, 3, stride=2)
        in_features = 32
        for name, block in blocks():
            setattr(self, name, InvertedResidual(in_features, block, norm=norm, rngs=rngs))
            in_features = block.features
        self.conv2 = conv(in_features, 1280)

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        x = self.conv1(image, train=train)
        features = {}
        stage = 2
        for name, block in blocks():
            if block.stride == 2:
                features[stage] = x
                stage *= 2
            x = getattr(self, name)(x, train=train)
        features[stage] = self.conv2(x, train=train)
        return features
