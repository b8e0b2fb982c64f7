"""GoogLeNet as in torchvision: with batch normalisation, without auxiliary classifiers.

Szegedy et al. 2015; batch normalisation: Ioffe & Szegedy 2015. The weights serve in two geometries:

- "same": the 3×3 poolings pad by 1, so that every stride maps n positions to ceil(n / stride);
- "original": the padding of the trained classifier: these poolings do not pad, in ceil mode.

Away from the border both give the same features, shifted by a few pixels.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
from flax import nnx

from fcn_jax.models.backbones.preprocess import INCEPTION, Preprocessing
from fcn_jax.models.feature_map import FeatureMap, concatenate
from fcn_jax.models.geometry import PIXELS
from fcn_jax.models.layers import BatchNorm, NormalisedConv, max_pool
from fcn_jax.models.remat import remat_block

INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
"""Features of each module (table 1).

In order: the 1×1 branch; the reduction and the 3×3 convolution of the second branch, and of the
third; the projection after the pooling.
"""


class Inception(nnx.Module):
    """An Inception module: the concatenated features of four branches.

    The branches are a 1×1 convolution, twice a 1×1 and a 3×3 convolution, and a 3×3 max pooling
    with a 1×1 convolution. The third branch is 5×5 in the paper, but 3×3 in torchvision's weights.

    Args:
        in_features: number of input channels.
        branches: features of the convolutions, in the order of `INCEPTIONS`.
        conv: builds a convolution: (in_features, features, side of the kernel).
    """

    def __init__(
        self,
        in_features: int,
        branches: tuple[int, int, int, int, int, int],
        *,
        conv: Callable[..., NormalisedConv],
    ):
        only, reduced2, features2, reduced3, features3, projected = branches
        self.branch1 = conv(in_features, only, 1)
        self.branch2_reduce = conv(in_features, reduced2, 1)
        self.branch2 = conv(reduced2, features2, 3)
        self.branch3_reduce = conv(in_features, reduced3, 1)
        self.branch3 = conv(reduced3, features3, 3)
        self.branch4 = conv(in_features, projected, 1)

    @remat_block
    def __call__(self, x: FeatureMap, *, train: bool) -> FeatureMap:
        pooled = max_pool(x, window=3, stride=1, padding=1)
        branches = (
            self.branch1(x, train=train),
            self.branch2(self.branch2_reduce(x, train=train), train=train),
            self.branch3(self.branch3_reduce(x, train=train), train=train),
            self.branch4(pooled, train=train),
        )
        return functools.reduce(concatenate, branches)


class GoogLeNet(nnx.Module):
    """GoogLeNet: stage 2 is conv1, stage 4 is conv3, stages 8, 16 and 32 are inception 3b, 4e, 5b.

    These are the last features before the next pooling or the classifier.
    """

    def __init__(
        self,
        *,
        padding: Literal["same", "original"] = "same",
        preprocessing: Preprocessing = INCEPTION,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.preprocessing = preprocessing
        self.pool_padding = 1 if padding == "same" else 0
        norm = functools.partial(BatchNorm, epsilon=1e-3, axis_name=axis_name)
        conv = functools.partial(NormalisedConv, activation=jax.nn.relu, norm=norm, rngs=rngs)
        self.conv1 = conv(preprocessing.channels, 64, 7, stride=2)
        self.conv2 = conv(64, 64, 1)
        self.conv3 = conv(64, 192, 3)
        in_features = 192
        for name, branches in INCEPTIONS.items():
            module = Inception(in_features, branches, conv=conv)
            setattr(self, f"inception{name}", module)
            only, _, features2, _, features3, projected = branches
            in_features = only + features2 + features3 + projected

        self.channels = {2: 64, 4: 192, 8: 480, 16: 832, 32: 1024}
        grid = PIXELS.after(7, stride=2)
        self.grids = {2: grid}
        for stage in (4, 8, 16):
            grid = self.grids[stage] = grid.after(3, stride=2, padding=self.pool_padding)
        self.grids[32] = grid.after(2, stride=2, padding=0)

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        x = self.conv1(image, train=train)
        features = {2: x}
        x = self.conv2(self._pooled(x), train=train)
        features[4] = x = self.conv3(x, train=train)
        features[8] = x = self._inceptions("3", self._pooled(x), train)
        features[16] = x = self._inceptions("4", self._pooled(x), train)
        x = max_pool(x, window=2, stride=2, ceil=True)
        features[32] = self._inceptions("5", x, train)
        return features

    def _inceptions(self, group: str, x: FeatureMap, train: bool) -> FeatureMap:
        for name in INCEPTIONS:
            if name.startswith(group):
                x = getattr(self, f"inception{name}")(x, train=train)
        return x

    def _pooled(self, x: FeatureMap) -> FeatureMap:
        # With a padding of 1 on both sides, ceil mode would add a window.
        return max_pool(
            x, window=3, stride=2, padding=self.pool_padding, ceil=not self.pool_padding
        )
