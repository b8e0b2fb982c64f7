"""MobileNetV3-Large (Howard et al. 2019) without pooling and classifier, as in torchvision.

Inverted residuals (Sandler et al. 2018): few features between blocks, many within, where a
convolution that keeps the features apart looks at the neighbours.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
from flax import nnx

from fcn_jax.models.backbones.preprocess import TORCHVISION, Preprocessing
from fcn_jax.models.feature_map import FeatureMap, add, multiply
from fcn_jax.models.geometry import Grid
from fcn_jax.models.layers import BatchNorm, Conv, NormalisedConv, relu, spatial_mean
from fcn_jax.models.remat import remat_block

Activation = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Block:
    """size: of the kernel. expanded: features within. squeezed: features that the squeeze leaves,
    0 without one."""

    size: int
    expanded: int
    features: int
    squeezed: int
    activation: Activation
    stride: int = 1


BLOCKS = (
    Block(3, 16, 16, 0, jax.nn.relu),
    Block(3, 64, 24, 0, jax.nn.relu, stride=2),
    Block(3, 72, 24, 0, jax.nn.relu),
    Block(5, 72, 40, 24, jax.nn.relu, stride=2),
    Block(5, 120, 40, 32, jax.nn.relu),
    Block(5, 120, 40, 32, jax.nn.relu),
    Block(3, 240, 80, 0, jax.nn.hard_swish, stride=2),
    Block(3, 200, 80, 0, jax.nn.hard_swish),
    Block(3, 184, 80, 0, jax.nn.hard_swish),
    Block(3, 184, 80, 0, jax.nn.hard_swish),
    Block(3, 480, 112, 120, jax.nn.hard_swish),
    Block(3, 672, 112, 168, jax.nn.hard_swish),
    Block(5, 672, 160, 168, jax.nn.hard_swish, stride=2),
    Block(5, 960, 160, 240, jax.nn.hard_swish),
    Block(5, 960, 160, 240, jax.nn.hard_swish),
)
"""Table 1. A quarter of the features is squeezed to, rounded to a multiple of 8."""


class SqueezeExcitation(nnx.Module):
    """Weighs the features by what their means over the image say (Hu et al. 2018)."""

    def __init__(self, features: int, squeezed: int, *, rngs: nnx.Rngs):
        self.squeeze = Conv(features, squeezed, (1, 1), rngs=rngs)
        self.excite = Conv(squeezed, features, (1, 1), rngs=rngs)

    def __call__(self, x: FeatureMap) -> FeatureMap:
        mean = spatial_mean(x).map(lambda values: values.astype(x.values.dtype))
        return multiply(x, self.excite(relu(self.squeeze(mean))).map(jax.nn.hard_sigmoid))


class InvertedResidual(nnx.Module):
    """Expands the features (1×1), filters each by itself, and projects them (1×1).

    norm: makes the normalisation of so many features.
    """

    def __init__(
        self, in_features: int, block: Block, *, norm: Callable[[int], BatchNorm], rngs: nnx.Rngs
    ):
        conv = functools.partial(NormalisedConv, norm=norm, rngs=rngs)
        expanded, activation = block.expanded, block.activation
        self.is_residual = block.stride == 1 and in_features == block.features
        self.expands = expanded != in_features
        self.excites = block.squeezed > 0
        if self.expands:
            self.expand = conv(in_features, expanded, activation=activation)
        self.depthwise = conv(
            expanded,
            expanded,
            block.size,
            stride=block.stride,
            groups=expanded,
            activation=activation,
        )
        if self.excites:
            self.excitation = SqueezeExcitation(expanded, block.squeezed, rngs=rngs)
        self.project = conv(expanded, block.features)

    @remat_block
    def __call__(self, x: FeatureMap, *, train: bool) -> FeatureMap:
        y = self.expand(x, train=train) if self.expands else x
        y = self.depthwise(y, train=train)
        if self.excites:
            y = self.excitation(y)
        y = self.project(y, train=train)
        return add(x, y) if self.is_residual else y


class InvertedResiduals(nnx.Module):
    """A 3×3 convolution of stride 2, blocks, and a 1×1 convolution: MobileNets and EfficientNets.

    A stage is what comes before the next stride of 2; the last is the 1×1 convolution.

    Args:
        first_features: of the first convolution. channels: of each stage.
        blocks: each with its name.
        activation: of the two convolutions.
        norm: makes the normalisation of so many features.
    """

    def __init__(
        self,
        blocks: Sequence[tuple[str, Block]],
        channels: dict[int, int],
        *,
        first_features: int,
        activation: Activation,
        norm: Callable[[int], BatchNorm],
        preprocessing: Preprocessing,
        rngs: nnx.Rngs,
    ):
        self.preprocessing = preprocessing
        self.channels = channels
        # Windows of odd size, padded alike on both sides, are centred on every s-th pixel.
        self.grids = {stage: Grid(stage) for stage in channels}
        conv = functools.partial(NormalisedConv, activation=activation, norm=norm, rngs=rngs)
        self.conv1 = conv(preprocessing.channels, first_features, 3, stride=2)
        in_features = first_features
        for name, block in blocks:
            setattr(self, name, InvertedResidual(in_features, block, norm=norm, rngs=rngs))
            in_features = block.features
        self.conv2 = conv(in_features, channels[max(channels)])
        self.strides = tuple((name, block.stride) for name, block in blocks)

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        x = self.conv1(image, train=train)
        features = {}
        stage = 2
        for name, stride in self.strides:
            if stride == 2:
                features[stage] = x
                stage *= 2
            x = getattr(self, name)(x, train=train)
        features[stage] = self.conv2(x, train=train)
        return features


class MobileNetV3Large(InvertedResiduals):
    def __init__(
        self,
        *,
        preprocessing: Preprocessing = TORCHVISION,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            [(f"block{number}", block) for number, block in enumerate(BLOCKS, start=1)],
            {2: 16, 4: 24, 8: 40, 16: 112, 32: 960},
            first_features=16,
            activation=jax.nn.hard_swish,
            norm=functools.partial(BatchNorm, momentum=0.99, epsilon=1e-3, axis_name=axis_name),
            preprocessing=preprocessing,
            rngs=rngs,
        )
