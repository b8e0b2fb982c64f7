"""Net surgery: a classifier becomes a fully convolutional network that gives the same scores.

A classifier ends in fully connected layers, which want one size of image. But a fully connected
layer on a feature map of h×w positions is a convolution whose window covers all of them, so the
same weights, put into an h×w kernel, also slide over larger maps: on an image of the classifier's
own size there is one position, with the classifier's scores, and on a larger one a map of them
(Long, Shelhamer & Darrell 2015, section 3.1; for strings of digits Matan et al. 1991). In the same
way the average over all positions becomes an average that slides.

    LeNet       [FullyConnected(w, b, window=5), relu, FullyConnected(w, b), …]
    VGG16       [FullyConnected(w, b)]       fc6 and fc7 are convolutions of our backbone already
    ResNet      [Average(7), FullyConnected(w, b)]
    MobileNetV3 [Average(7), FullyConnected(w, b), hard_swish, FullyConnected(w, b)]
    SqueezeNet  [FullyConnected(w, b), relu, Average(13)]

How far map and classifier agree: where no layer of the backbone pads, each entry of the map is the
classifier's score of the crop that its window sees. Padding breaks this, since around a crop the
classifier sees zeros where the map sees the rest of the image; and so does what looks at the whole
image at once, as the squeezes of MobileNetV3 do. On an image of the classifier's own size the two
agree in any case.
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
    """A fully connected layer as PyTorch and Caffe keep it: weight @ features + bias.

    weight: (out, in·window·window), the flattened map channels first; of a convolution the same
    numbers as (out, in, window, window). bias: (out,). window: height and width of the map that
    was flattened, in positions; 1 for a layer behind another one, behind an average, or for a 1×1
    convolution.
    """

    weight: np.ndarray
    bias: np.ndarray
    window: int = 1


@dataclasses.dataclass(frozen=True)
class Average:
    """The mean over a map of `window` × `window` positions."""

    window: int


ClassifierLayer = FullyConnected | Average | Callable[[jax.Array], jax.Array]
"""Of a classifier's end: a layer, or an activation such as `jax.nn.relu`."""


def convolutionalize(
    backbone: Backbone, steps: Sequence[ClassifierLayer], *, stage: int | None = None
) -> "Classifier":
    """The network that scores every window of an image as the classifier scored its whole image.

    Args:
        backbone: with the classifier's weights, and padded as it was (padding="original").
        steps: what the classifier did with the backbone's features, in its order.
        stage: of the features; None: the coarsest.

    Raises:
        ValueError: a weight that does not fit what comes before it.
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
    """The same weights in a kernel (window, window, in, out), which slides without padding."""
    out_features, side = len(layer.bias), layer.window
    if layer.weight.size != out_features * in_features * side * side:
        raise ValueError(
            f"`weight` (of shape {layer.weight.shape}) must be "
            f"({out_features}, {in_features}·{side}·{side}), for its bias and its input"
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
    """A backbone and what makes scores of its features, position by position.

    grid: where the windows of the score map lie: position (i, j) is centred on pixel
    (stride·i + offset, stride·j + offset).
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
            image: channels in 0…255, uint8 or float (b, h, w, c), no smaller than what the
                classifier was trained on.

        Returns:
            Scores: float32 (b, h', w', k), before any softmax.

        Raises:
            ValueError: the image is smaller than one window.
        """
        x = FeatureMap(self.backbone.preprocessing(image))
        x = self.backbone(x)[self.stage]
        for layer in self.layers:
            x = layer(x)
        if 0 in x.spatial:
            raise ValueError(
                f"`image` (of shape {image.shape}) is smaller than the classifier's own input"
            )
        return x.values
