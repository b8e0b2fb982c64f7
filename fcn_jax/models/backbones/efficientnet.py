"""EfficientNet-Lite0 as in timm, without its pooling and classifier.

It is EfficientNet-B0 (Tan & Le 2019) for small devices: with ReLU6 and without
squeeze-and-excitation. timm's weights were trained in PyTorch, so they need symmetric padding
instead of TensorFlow's.
"""

import functools

import jax
from flax import nnx

from fcn_jax.models.backbones.mobilenet import Block, InvertedResiduals
from fcn_jax.models.backbones.preprocess import TORCHVISION, Preprocessing
from fcn_jax.models.layers import BatchNorm

GROUPS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Number of blocks, kernel size, stride of the first block, expansion and features (table 1)."""

FIRST_FEATURES = 32
"""Features of the first convolution."""


def blocks() -> list[tuple[str, Block]]:
    """Returns the name and the settings of each block: block1_0, block2_0, block2_1, …"""
    named = []
    in_features = FIRST_FEATURES
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


class EfficientNetLite0(InvertedResiduals):
    """EfficientNet-Lite0; for the stages see `InvertedResiduals`."""

    def __init__(
        self,
        *,
        preprocessing: Preprocessing = TORCHVISION,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            blocks(),
            {2: 16, 4: 24, 8: 40, 16: 112, 32: 1280},
            first_features=FIRST_FEATURES,
            activation=jax.nn.relu6,
            norm=functools.partial(BatchNorm, axis_name=axis_name),
            preprocessing=preprocessing,
            rngs=rngs,
        )
