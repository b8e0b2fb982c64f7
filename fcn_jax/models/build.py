"""The network that a config names."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.config import ModelConfig
from fcn_jax.errors import UserError
from fcn_jax.models.backbones import Backbone
from fcn_jax.models.backbones.alexnet import CAFFE_VARIANT, AlexNet
from fcn_jax.models.backbones.efficientnet import EfficientNetLite0
from fcn_jax.models.backbones.googlenet import GoogLeNet
from fcn_jax.models.backbones.late_fusion import LateFusion
from fcn_jax.models.backbones.mobilenet import MobileNetV3Large
from fcn_jax.models.backbones.preprocess import COLOURS, PREPROCESSING, Preprocessing
from fcn_jax.models.backbones.resnet import ResNet
from fcn_jax.models.backbones.small import SmallNet
from fcn_jax.models.backbones.squeezenet import SqueezeNet
from fcn_jax.models.backbones.vgg import VGG16
from fcn_jax.models.fcn import FCN
from fcn_jax.models.remat import remat_blocks

PAPER_GEOMETRY = ("alexnet", "alexnet_caffe", "vgg16", "vgg16_bn")
"""Those that have the paper's padding of 100."""

CAFFE_BACKBONES = ("vgg16", "squeezenet", "alexnet_caffe")
"""Those whose published weights mostly come from Caffe."""

INIT_STREAM = 2**32 - 1
"""Folded into the key of the initial weights. Training folds in the step, which is smaller."""

QUICKLY_COMPILED = {"xla_backend_optimization_level": 1}
"""For a program that runs once: a third of the time to compile, and the same bits."""


def abstract_model(
    config: ModelConfig,
    num_classes: int | Mapping[str, int],
    *,
    channels: int = 3,
    axis_name: str | None = None,
) -> FCN:
    """Builds the network of `build_model` with shapes in place of weights; compiles nothing."""
    return nnx.eval_shape(
        lambda: build_model(
            config, num_classes, channels=channels, rngs=nnx.Rngs(0), axis_name=axis_name
        )
    )


def init_model(
    config: ModelConfig,
    num_classes: int | Mapping[str, int],
    *,
    channels: int = 3,
    seed: int,
    axis_name: str | None = None,
) -> FCN:
    """Builds the network of `build_model` with all initial weights drawn by one program."""

    def draw(key: jax.Array) -> Any:
        rngs = nnx.Rngs(key)
        model = build_model(config, num_classes, channels=channels, rngs=rngs, axis_name=axis_name)
        return nnx.split(model)

    key = init_key(seed)
    return nnx.merge(*jax.jit(draw, compiler_options=QUICKLY_COMPILED)(key))


def init_key(seed: int) -> jax.Array:
    """Returns the PRNG key of the initial weights: the seed's, which training uses, folded."""
    return jax.random.fold_in(jax.random.key(seed), INIT_STREAM)


def build_model(
    config: ModelConfig,
    num_classes: int | Mapping[str, int],
    *,
    channels: int = 3,
    rngs: nnx.Rngs,
    axis_name: str | None = None,
) -> FCN:
    """The network of a config, for images of so many channels.

    num_classes: see `FCN`. axis_name: the mapped axis that batch normalisation in training takes
    its statistics over.

    Raises:
        UserError: a setting that does not go with the backbone.
    """
    preprocessing = PREPROCESSING[preprocessing_name(config)]
    backbone: Backbone
    if config.fusion == "late":
        if channels <= COLOURS:
            raise UserError(
                f"config.model.fusion=late wants more than {COLOURS} channels; the images have "
                f"{channels}"
            )
        backbone = LateFusion(
            build_backbone(config, preprocessing, axis_name=axis_name, rngs=rngs),
            build_backbone(
                config,
                preprocessing.for_channels(channels).beyond(COLOURS),
                axis_name=axis_name,
                rngs=rngs,
            ),
        )
    else:
        backbone = build_backbone(
            config, preprocessing.for_channels(channels), axis_name=axis_name, rngs=rngs
        )
    model = FCN(
        backbone,
        num_classes,
        skips=config.skips,
        hidden=config.head == "hidden",
        auxiliary=config.auxiliary_weight > 0,
        context_features=config.context_features or 0,
        score_scales=config.score_scales or (),
        upsampling=config.upsampling,
        half_pixel=config.alignment == "half_pixel",
        dropout_rate=config.dropout,
        dtype=jnp.dtype(config.compute_dtype),
        axis_name=axis_name,
        rngs=rngs,
    )
    if config.remat:
        remat_blocks(model)
    return model


def preprocessing_name(config: ModelConfig) -> str:
    """A name in `PREPROCESSING`: as the config says, else what the backbone is best known for."""
    if config.preprocessing != "auto":
        return config.preprocessing
    if config.backbone == "googlenet":
        return "inception"
    return "caffe" if config.backbone in CAFFE_BACKBONES else "torchvision"


def build_backbone(
    config: ModelConfig,
    preprocessing: Preprocessing,
    *,
    axis_name: str | None = None,
    rngs: nnx.Rngs,
) -> Backbone:
    """The backbone of a config, for images of as many channels as `preprocessing` has.

    `config.padding` may also be "original", the geometry in which the classifier was trained. No
    segmentation network is made of it: without padding it says nothing of the border.
    """
    name = config.backbone
    if config.padding == "paper" and name not in PAPER_GEOMETRY:
        raise UserError(
            f"config.model.padding=paper goes with {', '.join(PAPER_GEOMETRY)}, not with {name}"
        )
    if config.output_stride != 32 and not name.startswith("resnet"):
        raise UserError(
            f"config.model.output_stride (={config.output_stride}) must be 32 with {name}: only "
            "the ResNets from 50 on are dilated"
        )
    common: dict[str, Any] = {"preprocessing": preprocessing, "rngs": rngs}
    norm: dict[str, Any] = {"axis_name": axis_name}
    padding: dict[str, Any] = {"padding": config.padding}
    dropout: dict[str, Any] = {"dropout_rate": config.dropout}
    match name:
        case "small":
            return SmallNet(**common, **norm)
        case "alexnet":
            return AlexNet(**common, **padding, **dropout)
        case "alexnet_caffe":
            return AlexNet(variant=CAFFE_VARIANT, **common, **padding, **dropout)
        case "vgg16" | "vgg16_bn":
            batch_norm = name == "vgg16_bn"
            return VGG16(batch_norm=batch_norm, **common, **norm, **padding, **dropout)
        case "squeezenet":
            return SqueezeNet(**common, **padding, **dropout)
        case "googlenet":
            return GoogLeNet(**common, **norm, **padding)
        case "mobilenet_v3_large":
            return MobileNetV3Large(**common, **norm)
        case "efficientnet_lite0":
            return EfficientNetLite0(**common, **norm)
        case "resnet18" | "resnet34" | "resnet50" | "resnet101" | "resnet152":
            depth = int(name.removeprefix("resnet"))
            return ResNet(depth, output_stride=config.output_stride, **common, **norm)
        case unknown:
            raise UserError(f"config.model.backbone (={unknown!r}) is not a known backbone")
