"""Net surgery: turns a classifier into a fully convolutional network with the same scores.

A classifier ends in fully connected layers, which need a fixed image size. A fully connected layer
on a feature map of h×w positions equals a convolution with an h×w kernel, which also slides over
larger maps. On an image of the classifier's input size the result has one position, with the
classifier's scores; on a larger image it is a map of scores (Long, Shelhamer & Darrell 2015,
section 3.1; for strings of digits Matan et al. 1991). In the same way the average over all
positions becomes a sliding average.

    LeNet       [FullyConnected(w, b, window=5), relu, FullyConnected(w, b), …]
    VGG16       [FullyConnected(w, b)]       fc6 and fc7 are convolutions of the backbone already
    ResNet      [Average(7), FullyConnected(w, b)]
    MobileNetV3 [Average(7), FullyConnected(w, b), hard_swish, FullyConnected(w, b)]
    SqueezeNet  [FullyConnected(w, b), relu, Average(13)]

If no layer of the backbone pads, every position of the map has the classifier's scores of the crop
in its window. Two things break this: padding, because the classifier pads a crop with zeros where
the map reads the rest of the image; and layers that average over the whole image, such as the
squeeze-and-excitation of MobileNetV3. On an image of the classifier's input size the two always
agree.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax.models.backbones.contract import Backbone
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import Grid
from fcn_jax.models.layers import Conv, average_pool


@dataclasses.dataclass(frozen=True, eq=False)
class FullyConnected:
    """A fully connected layer in the format of PyTorch and Caffe: weight @ features + bias.

    Attributes:
        weight: (out, in·window·window), for a map that was flattened channels first; or the kernel
            of a convolution, (out, in, window, window).
        bias: (out,).
        window: side of the map that was flattened, in positions; 1 after another fully connected
            layer or an average, and for a 1×1 convolution.
    """

    weight: np.ndarray
    bias: np.ndarray
    window: int = 1


@dataclasses.dataclass(frozen=True)
class Average:
    """The mean over a feature map of `window` × `window` positions."""

    window: int


ClassifierLayer = FullyConnected | Average | Callable[[jax.Array], jax.Array]
"""A step after the backbone: a layer, or an activation such as `jax.nn.relu`."""


def convolutionalize(
    backbone: Backbone, steps: Sequence[ClassifierLayer], *, stage: int | None = None
) -> "Classifier":
    """Builds the network that scores every window of an image as the classifier scores an image.

    Args:
        backbone: the backbone with the classifier's weights and padding (padding="original").
        steps: the classifier's layers after the backbone, in order.
        stage: the stage that the first of them reads; None for the coarsest.

    Raises:
        ValueError: the shape of a weight does not match its input or its bias.
    """
    stage = max(backbone.channels) if stage is None else stage
    grid, features = backbone.grids[stage], backbone.channels[stage]
    layers: list[Callable[[FeatureMap], FeatureMap]] = []
    for step in steps:
        if isinstance(step, FullyConnected):
            layer = convolution(step, features)
            features = layer.kernel.shape[-1]
            grid = grid.after(step.window, padding=0)
            layers.append(layer)
        elif isinstance(step, Average):
            grid = grid.after(step.window, padding=0)
            layers.append(functools.partial(average_pool, window=(step.window, step.window)))
        else:
            layers.append(functools.partial(FeatureMap.map, function=step))
    return Classifier(backbone, layers, stage=stage, grid=grid, num_classes=features)


def convolution(layer: FullyConnected, in_features: int) -> Conv:
    """Converts a fully connected layer to a convolution without padding.

    Args:
        layer: the weights.
        in_features: number of channels of the map that the layer flattens.

    Raises:
        ValueError: the shape of the weight does not match `in_features` or the bias.
    """
    out_features, side = len(layer.bias), layer.window
    if layer.weight.size != out_features * in_features * side * side:
        raise ValueError(
            f"`weight` (of shape {layer.weight.shape}) must be "
            f"({out_features}, {in_features}·{side}·{side}), to match its bias and its input"
        )
    weight = np.reshape(layer.weight, (out_features, in_features, side, side))
    kernel = jnp.asarray(weight.transpose(2, 3, 1, 0), jnp.float32)
    conv = Conv(
        in_features,
        out_features,
        (side, side),
        padding=0,
        kernel_init=lambda *_: kernel,
        rngs=nnx.Rngs(0),
    )
    conv.bias = nnx.Param(jnp.asarray(layer.bias, jnp.float32))
    return conv


class Classifier(nnx.Module):
    """A backbone followed by the sliding layers of a classifier.

    Attributes:
        stage: the stage of the backbone that the layers read.
        grid: grid of the score map: the window of position (i, j) is centred on pixel
            (stride·i + offset, stride·j + offset).
        num_classes: scores per position.
    """

    def __init__(
        self,
        backbone: Backbone,
        layers: Sequence[Callable[[FeatureMap], FeatureMap]],
        *,
        stage: int,
        grid: Grid,
        num_classes: int,
    ):
        self.backbone = backbone
        self.layers = nnx.List(layers)
        self.stage = stage
        self.grid = grid
        self.num_classes = num_classes

    def __call__(self, image: jax.Array) -> jax.Array:
        """Scores every window.

        Args:
            image: channels in 0…255, uint8 or float (b, h, w, c), at least as large as the
                classifier's input.

        Returns:
            Scores, float32 (b, h', w', k), before any softmax.

        Raises:
            ValueError: the image is smaller than one window.
        """
        x = FeatureMap(self.backbone.preprocessing(image))
        x = self.backbone(x)[self.stage]
        for layer in self.layers:
            x = layer(x)
        if 0 in x.spatial:
            raise ValueError(
                f"`image` (of shape {image.shape}) is smaller than the classifier's input"
            )
        return x.values
