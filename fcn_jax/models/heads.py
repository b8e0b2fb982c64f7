"""Heads: score a backbone's features, fuse the scores from coarse to fine and upsample them."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.models.feature_map import FeatureMap, add, concatenate
from fcn_jax.models.geometry import PIXELS, Grid, upsampling_geometry
from fcn_jax.models.interpolation import Interpolate
from fcn_jax.models.layers import BatchNorm, Conv, dropout, relu
from fcn_jax.models.row_blocks import RowBlocks
from fcn_jax.models.upsampling import BilinearUpsample, ConvTranspose

ZEROS = nnx.initializers.zeros


class SkipHead(nnx.Module):
    """The skip architecture: upsamples coarse scores and adds the scores of finer features.

    Long, Shelhamer & Darrell 2015, section 4. With one stage this is the head of FCN-32s. With one
    stage, `hidden=True` and `upsampling="interpolate"` it is the head of torchvision's FCN.

    Args:
        channels: number of features by stage.
        grids: grid by stage (see `Backbone`).
        num_classes: scores per pixel.
        stages: the stages to score, from coarse to fine.
        hidden: whether a 3×3 convolution precedes the coarsest score layer (`HiddenScore`).
        mmseg_dilation: None, or the dilation of `MMSegScore`: with two layers and its input if
            `hidden` is False, with one layer, as mmsegmentation's auxiliary head, if it is True.
        dropout_rate: dropout of the hidden features, in 0…1.
        upsampling: "learned", "fixed" (both start bilinear) or "interpolate".
        half_pixel: see `FCN`.
        score_init: initialiser of the score layers' kernels.
        ndim: number of spatial axes.
        axis_name: see `BatchNorm`.
        rngs: streams of random keys for the initial weights.
    """

    def __init__(
        self,
        channels: Mapping[int, int],
        grids: Mapping[int, Grid],
        num_classes: int,
        *,
        stages: Sequence[int],
        hidden: bool = False,
        mmseg_dilation: int | None = None,
        dropout_rate: float = 0.0,
        upsampling: str = "learned",
        half_pixel: bool = False,
        score_init: nnx.Initializer = ZEROS,
        ndim: int = 2,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.stages = tuple(stages)
        for stage in self.stages:
            score: Conv | HiddenScore | MMSegScore
            if mmseg_dilation is not None and stage == self.stages[0]:
                score = MMSegScore(
                    channels[stage],
                    num_classes,
                    features=256 if hidden else 512,
                    depth=1 if hidden else 2,
                    concatenates=not hidden,
                    dilation=mmseg_dilation,
                    dropout_rate=dropout_rate,
                    ndim=ndim,
                    axis_name=axis_name,
                    rngs=rngs,
                )
            elif hidden and stage == self.stages[0]:
                score = HiddenScore(
                    channels[stage],
                    num_classes,
                    dropout_rate=dropout_rate,
                    ndim=ndim,
                    axis_name=axis_name,
                    rngs=rngs,
                )
            else:
                score = score_layer(
                    channels[stage], num_classes, kernel_init=score_init, ndim=ndim, rngs=rngs
                )
            setattr(self, f"score{stage}", score)
        targets = [*(grids[stage] for stage in self.stages[1:]), PIXELS]
        for stage, target in zip(self.stages, targets, strict=True):
            upsample = upsampling_layer(
                num_classes, grids[stage], target, upsampling, half_pixel=half_pixel, ndim=ndim
            )
            setattr(self, f"upsample{stage}", upsample)

    def __call__(
        self,
        features: Mapping[int, FeatureMap],
        image: FeatureMap,
        *,
        train: bool = False,
        keys: jax.Array | None = None,
    ) -> dict[str, FeatureMap]:
        """Computes the scores of every stage and the logits.

        Args:
            features: features by stage.
            image: the pixels, for the size of the logits.
            train, keys: see `Backbone`.

        Returns:
            Float32 feature maps by name: score32, …, fused16, …, and `logits` at the image's size.
        """
        named: dict[str, FeatureMap] = {}
        fused: FeatureMap | None = None
        coarser = 0
        for stage in self.stages:
            layer = getattr(self, f"score{stage}")
            if isinstance(layer, HiddenScore | MMSegScore):
                score = layer(features[stage], train=train, keys=keys)
            else:
                score = layer(features[stage])
            score = named[f"score{stage}"] = score.map(lambda values: values.astype(jnp.float32))
            if fused is None:
                fused = score
            else:
                fused = add(score, getattr(self, f"upsample{coarser}")(fused, like=score))
                named[f"fused{stage}"] = fused
            coarser = stage
        assert fused is not None
        named["logits"] = getattr(self, f"upsample{coarser}")(fused, like=image)
        return named

    def logits_in_blocks(self, scores: Mapping[str, FeatureMap], image: FeatureMap) -> RowBlocks:
        """Prepares the logits in blocks of rows, from the scores that `__call__` returned."""
        finest = self.stages[-1]
        coarse = scores[f"fused{finest}" if len(self.stages) > 1 else f"score{finest}"]
        return getattr(self, f"upsample{finest}").in_blocks(coarse, like=image)


class HiddenScore(nnx.Module):
    """A 3×3 convolution to a quarter of the features, then the scores (torchvision's `FCNHead`)."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        dropout_rate: float,
        ndim: int = 2,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        hidden = in_features // 4
        self.dropout_rate = dropout_rate
        self.conv = Conv(in_features, hidden, (3,) * ndim, use_bias=False, rngs=rngs)
        self.bn = BatchNorm(hidden, axis_name=axis_name)
        self.score = score_layer(hidden, num_classes, ndim=ndim, rngs=rngs)

    def __call__(self, x: FeatureMap, *, train: bool, keys: jax.Array | None) -> FeatureMap:
        x = relu(self.bn(self.conv(x), train=train))
        return self.score(dropout(x, self.dropout_rate, keys))


class MMSegScore(nnx.Module):
    """Dilated 3×3 convolutions, then the scores (mmsegmentation's `FCNHead`).

    Args:
        in_features: number of input features.
        num_classes: scores per pixel.
        features: of each convolution.
        depth: number of dilated convolutions.
        concatenates: whether a further 3×3 convolution, not dilated, sees the input beside the
            last of these.
        dilation: of the convolutions.
        dropout_rate: dropout before the score layer, in 0…1.
        ndim: number of spatial axes.
        axis_name: see `BatchNorm`.
        rngs: streams of random keys for the initial weights.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        features: int,
        depth: int,
        concatenates: bool,
        dilation: int,
        dropout_rate: float,
        ndim: int,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        size = (3,) * ndim
        self.depth = depth
        self.concatenates = concatenates
        self.dropout_rate = dropout_rate
        inputs = [in_features, *[features] * (depth - 1)]
        for number, count in enumerate(inputs, start=1):
            conv = Conv(count, features, size, dilation=dilation, use_bias=False, rngs=rngs)
            setattr(self, f"conv{number}", conv)
            setattr(self, f"bn{number}", BatchNorm(features, axis_name=axis_name))
        if concatenates:
            both = in_features + features
            self.conv_cat = Conv(both, features, size, use_bias=False, rngs=rngs)
            self.bn_cat = BatchNorm(features, axis_name=axis_name)
        self.score = score_layer(features, num_classes, ndim=ndim, rngs=rngs)

    def __call__(self, x: FeatureMap, *, train: bool, keys: jax.Array | None) -> FeatureMap:
        y = x
        for number in range(1, self.depth + 1):
            conv, bn = getattr(self, f"conv{number}"), getattr(self, f"bn{number}")
            y = relu(bn(conv(y), train=train))
        if self.concatenates:
            y = relu(self.bn_cat(self.conv_cat(concatenate(x, y)), train=train))
        return self.score(dropout(y, self.dropout_rate, keys))


def score_layer(
    in_features: int,
    num_classes: int,
    *,
    kernel_init: nnx.Initializer = ZEROS,
    ndim: int = 2,
    rngs: nnx.Rngs,
) -> Conv:
    """Builds a 1×1 convolution that starts at zero, as in the paper, or by another initialiser."""
    return Conv(in_features, num_classes, (1,) * ndim, kernel_init=kernel_init, rngs=rngs)


def upsampling_layer(
    features: int, coarse: Grid, fine: Grid, kind: str, *, half_pixel: bool, ndim: int = 2
) -> ConvTranspose | BilinearUpsample | Interpolate:
    """Builds the upsampling from one grid to a finer one.

    Args:
        features: number of channels.
        coarse, fine: grids of the input and the output.
        kind: "learned", "fixed" or "interpolate".
        half_pixel: see `FCN`.
    """
    if coarse == fine == PIXELS:
        return BilinearUpsample(1, stride=1, crop=0)  # the identity
    if kind == "interpolate":
        return Interpolate()
    factor = coarse.stride // fine.stride
    offset = (factor - 1) / 2 if half_pixel else (coarse.offset - fine.offset) / fine.stride
    filter_size, crop = upsampling_geometry(factor, offset)
    if kind == "learned":
        return ConvTranspose(features, filter_size, stride=factor, crop=crop, ndim=ndim)
    return BilinearUpsample(filter_size, stride=factor, crop=crop)
