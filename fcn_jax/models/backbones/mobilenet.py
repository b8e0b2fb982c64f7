"""MobileNetV3-Large (Howard et al. 2019) as in torchvision, without its pooling and classifier.

It consists of inverted residuals (Sandler et al. 2018): blocks with few features at both ends and
many inside, where a depthwise convolution reads the neighbouring positions.
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
    """The settings of an inverted residual.

    Attributes:
        size: side of the depthwise kernel.
        expanded: features of the depthwise convolution.
        features: features of the result.
        squeezed: features of the squeeze in `SqueezeExcitation`; 0 for none.
        activation: activation after the expansion and the depthwise convolution.
        stride: stride of the depthwise convolution.
    """

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
"""The blocks of table 1. `squeezed` is a quarter of `expanded`, rounded to a multiple of 8."""


class SqueezeExcitation(nnx.Module):
    """Scales each channel by a weight that depends on the means over the image (Hu et al. 2018)."""

    def __init__(self, features: int, squeezed: int, *, rngs: nnx.Rngs):
        self.squeeze = Conv(features, squeezed, (1, 1), rngs=rngs)
        self.excite = Conv(squeezed, features, (1, 1), rngs=rngs)

    def __call__(self, x: FeatureMap) -> FeatureMap:
        mean = spatial_mean(x).map(lambda values: values.astype(x.values.dtype))
        return multiply(x, self.excite(relu(self.squeeze(mean))).map(jax.nn.hard_sigmoid))


class InvertedResidual(nnx.Module):
    """A 1×1 expansion, a depthwise convolution and a 1×1 projection, with a residual connection.

    Args:
        in_features: number of input channels.
        block: the settings.
        norm: builds the normalisation for a number of features.
        rngs: streams of random keys for the initial weights.
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
    """The common form of MobileNets and EfficientNets.

    It is a 3×3 convolution of stride 2, inverted residuals and a 1×1 convolution. A stage is the
    last features before the next stride of 2; the last stage is the 1×1 convolution.

    Args:
        blocks: name and settings of each block.
        channels: number of features by stage.
        first_features: features of the first convolution.
        activation: activation after the first and the last convolution.
        norm: builds the normalisation for a number of features.
        preprocessing: normalisation of the pixels.
        rngs: streams of random keys for the initial weights.
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
        # Odd windows with symmetric padding are centred on every s-th pixel.
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
    """MobileNetV3-Large; for the stages see `InvertedResiduals`."""

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
