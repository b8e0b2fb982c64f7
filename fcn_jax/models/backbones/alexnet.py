"""AlexNet (Krizhevsky et al. 2012) with fc6 and fc7 as convolutions (Long et al. 2015).

There are two networks, each with its own published weights. `alexnet_caffe`, from which the FCN
paper starts, has local response normalisation and convolutions in two groups. torchvision's
(Krizhevsky 2014) has neither, and fewer features. Both have three geometries:

- "same": every layer maps n positions to ceil(n / stride);
- "paper": conv1 pads by 100, fc6 does not pad, and poolings use ceil mode (the authors' code);
- "original": the padding of the trained classifier. fc6 has one position on 224×224 pixels with
  torchvision's weights, and on 227×227 pixels with Caffe's.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from fcn_jax.models.backbones.preprocess import CAFFE, TORCHVISION, Preprocessing
from fcn_jax.models.backbones.vgg import fully_connected
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import PIXELS
from fcn_jax.models.layers import Conv, max_pool, relu


@dataclasses.dataclass(frozen=True)
class Variant:
    """The differences between Caffe's and torchvision's AlexNet.

    Attributes:
        features: features of conv1 … conv5.
        groups: groups of conv2, conv4 and conv5.
        input_padding: padding of conv1 in the trained classifier.
        normalises: whether local response normalisation follows the first two poolings.
    """

    features: tuple[int, ...]
    groups: int
    input_padding: int
    normalises: bool


TORCHVISION_VARIANT = Variant((64, 192, 384, 256, 256), 1, 2, False)
CAFFE_VARIANT = Variant((96, 256, 384, 384, 256), 2, 0, True)


class AlexNet(nnx.Module):
    """AlexNet: stage 4 is conv1, stages 8 and 16 are the first two poolings, stage 32 is fc7."""

    def __init__(
        self,
        *,
        variant: Variant = TORCHVISION_VARIANT,
        padding: Literal["same", "paper", "original"] = "same",
        fc_features: int = 4096,
        dropout_rate: float = 0.5,
        preprocessing: Preprocessing = TORCHVISION,
        rngs: nnx.Rngs,
    ):
        self.preprocessing = preprocessing
        self.dropout_rate = dropout_rate
        self.normalises = variant.normalises
        self.pool_padding = 1 if padding == "same" else 0
        # torchvision pools in floor mode, Caffe in ceil mode.
        self.ceil = padding == "paper" or (padding == "original" and variant is CAFFE_VARIANT)
        input_padding = {"same": 5, "paper": 100, "original": variant.input_padding}[padding]
        fc_padding = (2, 3) if padding == "same" else 0

        def conv(number: int, size: int, **arguments) -> Conv:
            before = (self.preprocessing.channels, *variant.features)[number - 1]
            groups = variant.groups if number in (2, 4, 5) else 1
            features = variant.features[number - 1]
            return Conv(before, features, (size, size), groups=groups, rngs=rngs, **arguments)

        self.conv1 = conv(1, 11, stride=4, padding=input_padding)
        self.conv2 = conv(2, 5)
        self.conv3 = conv(3, 3)
        self.conv4 = conv(4, 3)
        self.conv5 = conv(5, 3)
        self.fc6 = Conv(variant.features[-1], fc_features, (6, 6), padding=fc_padding, rngs=rngs)
        self.fc7 = Conv(fc_features, fc_features, (1, 1), rngs=rngs)

        self.channels = {
            4: variant.features[0],
            8: variant.features[0],
            16: variant.features[1],
            32: fc_features,
        }
        conv1 = PIXELS.after(11, stride=4, padding=input_padding)
        pool1 = conv1.after(3, stride=2, padding=self.pool_padding)
        pool2 = pool1.after(3, stride=2, padding=self.pool_padding)
        pool5 = pool2.after(3, stride=2, padding=self.pool_padding)
        self.grids = {4: conv1, 8: pool1, 16: pool2, 32: pool5.after(6, padding=fc_padding)}

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        x = relu(self.conv1(image))
        features = {4: x}
        x = features[8] = self._normalised(self._pooled(x))
        x = relu(self.conv2(x))
        x = features[16] = self._normalised(self._pooled(x))
        x = relu(self.conv5(relu(self.conv4(relu(self.conv3(x))))))
        features[32] = fully_connected(
            self._pooled(x), (self.fc6, self.fc7), self.dropout_rate, keys
        )
        return features

    def _pooled(self, x: FeatureMap) -> FeatureMap:
        return max_pool(x, window=3, stride=2, padding=self.pool_padding, ceil=self.ceil)

    def _normalised(self, x: FeatureMap) -> FeatureMap:
        return x.map(local_response_normalization) if self.normalises else x


alexnet_caffe = functools.partial(AlexNet, variant=CAFFE_VARIANT, preprocessing=CAFFE)


def local_response_normalization(
    values: jax.Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """Computes x / (1 + α/n · Σ x²)^β, the sum over n channels around each channel.

    Krizhevsky et al. 2012, section 3.3, with their α, β and n. The constant 1, instead of the
    paper's 2, and the division by n are those of Caffe and PyTorch.

    Args:
        values: features (b, *spatial, c).
        size: n.
        alpha: α.
        beta: β.

    Returns:
        (b, *spatial, c) in the dtype of `values`; the sums are float32.
    """
    squares = jnp.square(values.astype(jnp.float32))
    ones = (1,) * (values.ndim - 1)
    total = lax.reduce_window(squares, 0.0, lax.add, (*ones, size), (*ones, 1), "SAME")
    return (values / (1 + alpha / size * total) ** beta).astype(values.dtype)
