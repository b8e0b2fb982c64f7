"""Fully convolutional networks: scores of a backbone's features, fused and brought to full size.

FCN-32s scores the coarsest features and upsamples the scores; FCN-16s first doubles them and adds
scores of the next finer features; FCN-8s does that once more (Long, Shelhamer & Darrell 2015,
section 4). On a backbone whose coarsest stride is not 32 the same holds from its own stride on.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.config import ModelConfig
from fcn_jax.errors import UserError
from fcn_jax.models.backbones import Backbone
from fcn_jax.models.layers import (
    BilinearUpsample,
    Conv,
    ConvTranspose,
    FeatureMap,
    add,
    max_pool,
    relu,
)

DATA_AXIS = "data"
"""Name of the axis that the batch is spread over: the devices."""


class FCN(nnx.Module):
    """A backbone, a 1×1 score layer on each fused stride, and upsampling to the image's size.

    Score layers start at zero; upsampling starts, or stays, bilinear.

    Args:
        backbone: see `models/backbones`.
        num_classes: scores per pixel, background among them.
        skips: finer strides fused: 0, 1, 2 for FCN-32s, 16s, 8s.
        context_features: where above 0, `Context` adds a stride twice the backbone's coarsest.
        score_scales: factors of the features before they are scored, coarse to fine: one for each
            fused stride, or none, for 1. The at-once FCN-8s has (1, 0.01, 0.0001); features of
            about unit size let all score layers learn at one rate.
        learned_upsampling: whether the bilinear filters are trained.
        half_pixel: upsample as if each coarse position were centred on the block of pixels that it
            stands for (PyTorch's `align_corners=False`, d2l's padding of stride/2), instead of
            where the backbone's layers put it.
        dtype: of the backbone's activations; scores and logits are float32.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        skips: int,
        context_features: int = 0,
        score_scales: Sequence[float] = (),
        learned_upsampling: bool = True,
        half_pixel: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone
        self.dtype = dtype
        channels, offsets = dict(backbone.channels), {**backbone.offsets, 1: 0.0}
        self.has_context = context_features > 0
        if self.has_context:
            coarsest = max(channels)
            self.context = Context(channels[coarsest], context_features, rngs=rngs)
            channels[2 * coarsest] = context_features
            offsets[2 * coarsest] = offsets[coarsest]  # of the pooling's centred windows
        coarse_to_fine = sorted(channels, reverse=True)
        if not 0 <= skips < len(coarse_to_fine):
            raise UserError(
                f"config.model.skips (={skips}) must lie in 0…{len(coarse_to_fine) - 1}: the "
                f"backbone has features at strides {coarse_to_fine}"
            )
        self.strides = tuple(coarse_to_fine[: skips + 1])
        self.score_scales = tuple(score_scales) or (1.0,) * len(self.strides)
        if len(self.score_scales) != len(self.strides):
            raise UserError(
                f"config.model.score_scales (={self.score_scales}) must have {len(self.strides)} "
                f"factors, for the strides {self.strides}"
            )
        for stride, finer in zip(self.strides, (*self.strides[1:], 1), strict=True):
            score = Conv(
                channels[stride],
                num_classes,
                (1, 1),
                kernel_init=nnx.initializers.zeros,
                rngs=rngs,
            )
            setattr(self, f"score{stride}", score)
            factor = stride // finer
            offset = (factor - 1) / 2 if half_pixel else (offsets[stride] - offsets[finer]) / finer
            filter_size, crop = upsampling_geometry(factor, offset)
            upsample: ConvTranspose | BilinearUpsample
            if learned_upsampling:
                upsample = ConvTranspose(num_classes, filter_size, stride=factor, crop=crop)
            else:
                upsample = BilinearUpsample(filter_size, stride=factor, crop=crop)
            setattr(self, f"upsample{stride}", upsample)

    def __call__(
        self,
        image: jax.Array,
        *,
        train: bool = False,
        valid: jax.Array | None = None,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """Scores every pixel.

        Args:
            image: RGB in 0…255, uint8 or float (b, h, w, 3), of any size.
            train: whether batch normalisation uses, and updates by, the batch's statistics, and
                dropout is on where `keys` are given.
            valid: int32 (b, 2), rows and columns of each canvas that are image; None: all. The
                logits inside are those of the image alone; outside they mean nothing.
            keys: PRNG keys for dropout, (b,): one for each image.

        Returns:
            logits: float32 (b, h, w, k).
        """
        return self.features(image, train=train, valid=valid, keys=keys)["logits"].values

    def features(
        self,
        image: jax.Array,
        *,
        train: bool = False,
        valid: jax.Array | None = None,
        keys: jax.Array | None = None,
    ) -> dict[str, FeatureMap]:
        """Everything in between, by name: backbone2 …, score32 …, fused16 …, logits."""
        pixels = FeatureMap(self.backbone.preprocessing(image, self.dtype), valid)
        by_stride = self.backbone(pixels, train=train, keys=keys)
        named = {f"backbone{stride}": x for stride, x in by_stride.items()}
        scaled = {
            stride: dataclasses.replace(by_stride[stride], values=by_stride[stride].values * scale)
            for stride, scale in zip(self.strides, self.score_scales, strict=True)
            if stride in by_stride
        }
        if self.has_context:
            context = self.context(scaled[self.strides[1]])
            named["context"] = context
            scaled[self.strides[0]] = dataclasses.replace(
                context, values=context.values * self.score_scales[0]
            )
        fused: FeatureMap | None = None
        for index, stride in enumerate(self.strides):
            score = getattr(self, f"score{stride}")(scaled[stride])
            score = score.map(lambda v: v.astype(jnp.float32))
            named[f"score{stride}"] = score
            if fused is None:
                fused = score
            else:
                coarser = self.strides[index - 1]
                fused = add(score, getattr(self, f"upsample{coarser}")(fused, like=score))
                named[f"fused{stride}"] = fused
        assert fused is not None
        named["logits"] = getattr(self, f"upsample{self.strides[-1]}")(fused, like=pixels)
        return named


class Context(nnx.Module):
    """What fc6 and fc7 are to VGG16, for backbones that have no such layers: a wider view.

    A 3×3 pooling of stride 2, then two 3×3 convolutions. Each adds 64 pixels to the field of view
    where the backbone's coarsest stride is 16.
    """

    def __init__(self, in_features: int, features: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv(in_features, features, (3, 3), rngs=rngs)
        self.conv2 = Conv(features, features, (3, 3), rngs=rngs)

    def __call__(self, x: FeatureMap) -> FeatureMap:
        x = max_pool(x, window=3, stride=2, padding=1)
        return relu(self.conv2(relu(self.conv1(x))))


def upsampling_geometry(factor: int, offset: float) -> tuple[int, int]:
    """Bilinear filter size, and crop, that put coarse position i at factor·i + offset.

    A filter of even size 2·factor is centred between two outputs, one of odd size 2·factor − 1 on
    an output; the offset, to the nearest half, decides. The paper's nets follow the same rule:
    kernel 64 at stride 32 for VGG16, whose poolings of 2 put positions between pixels, and 63 for
    AlexNet, whose odd windows put them on pixels.

    Raises:
        ValueError: the position would lie before the first output's reach.
    """
    doubled = round(2 * offset)
    filter_size = 2 * factor if doubled % 2 else 2 * factor - 1
    centre = (filter_size - 1) / 2
    crop = int(centre - doubled / 2)
    if crop < 0:
        raise ValueError(f"`offset` (={offset}) exceeds the reach of a filter of {filter_size}")
    return filter_size, crop


def build(
    config: ModelConfig, num_classes: int, *, rngs: nnx.Rngs, axis_name: str | None = None
) -> FCN:
    """The network that a config names.

    `axis_name`: the mapped axis that batch normalisation in training takes its statistics over.
    """
    from fcn_jax.models.backbones.resnet import ResNet18
    from fcn_jax.models.backbones.small import SmallNet
    from fcn_jax.models.backbones.squeezenet import SqueezeNet
    from fcn_jax.models.backbones.vgg import VGG16

    backbone: Backbone
    match config.backbone:
        case "small":
            backbone = SmallNet(axis_name=axis_name, rngs=rngs)
        case "vgg16":
            backbone = VGG16(dropout_rate=config.dropout, rngs=rngs)
        case "resnet18":
            backbone = ResNet18(axis_name=axis_name, rngs=rngs)
        case "squeezenet":
            backbone = SqueezeNet(dropout_rate=config.dropout, rngs=rngs)
        case unknown:
            raise UserError(f"config.model.backbone (={unknown!r}) is not a known backbone")
    return FCN(
        backbone,
        num_classes,
        skips=config.skips,
        context_features=config.context_features,
        score_scales=config.score_scales,
        learned_upsampling=config.upsampling == "learned",
        half_pixel=config.alignment == "half_pixel",
        dtype=jnp.dtype(config.compute_dtype),
        rngs=rngs,
    )
