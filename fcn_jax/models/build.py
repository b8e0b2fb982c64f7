"""Builds the network that a config describes."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax import registry
from fcn_jax.config import ModelConfig
from fcn_jax.errors import ArgumentError
from fcn_jax.models.backbones.contract import Backbone, accepts, check_contract, parameters
from fcn_jax.models.backbones.late_fusion import LateFusion
from fcn_jax.models.backbones.preprocess import COLOURS, PREPROCESSING, Preprocessing
from fcn_jax.models.fcn import FCN
from fcn_jax.models.heads import ZEROS
from fcn_jax.models.layers import HE_NORMAL
from fcn_jax.models.remat import remat_blocks
from fcn_jax.models.unet import UNetDecoder

INIT_STREAM = 2**32 - 1
"""Folded into the seed's key for the initial weights; training folds in steps, all smaller."""

QUICKLY_COMPILED = {"xla_backend_optimization_level": 1}
"""Options for a program that runs once: it compiles in a third of the time, to the same bits."""


def abstract_model(
    config: ModelConfig,
    num_classes: int | Mapping[str, int],
    *,
    channels: int = 3,
    ndim: int = 2,
    axis_name: str | None = None,
) -> FCN:
    """Builds the network of `build_model` with shapes instead of weights, without compiling."""
    return nnx.eval_shape(
        lambda: build_model(
            config,
            num_classes,
            channels=channels,
            ndim=ndim,
            rngs=nnx.Rngs(0),
            axis_name=axis_name,
        )
    )


def init_model(
    config: ModelConfig,
    num_classes: int | Mapping[str, int],
    *,
    channels: int = 3,
    ndim: int = 2,
    seed: int,
    axis_name: str | None = None,
) -> FCN:
    """Builds the network of `build_model` with all initial weights drawn by one program."""

    def draw(key: jax.Array) -> Any:
        rngs = nnx.Rngs(key)
        model = build_model(
            config, num_classes, channels=channels, ndim=ndim, rngs=rngs, axis_name=axis_name
        )
        return nnx.split(model)

    key = init_key(seed)
    return nnx.merge(*jax.jit(draw, compiler_options=QUICKLY_COMPILED)(key))


def init_key(seed: int) -> jax.Array:
    """Returns the PRNG key of the initial weights, which differs from every key of training."""
    return jax.random.fold_in(jax.random.key(seed), INIT_STREAM)


def build_model(
    config: ModelConfig,
    num_classes: int | Mapping[str, int],
    *,
    channels: int = 3,
    ndim: int = 2,
    rngs: nnx.Rngs,
    axis_name: str | None = None,
) -> FCN:
    """Builds the network of a config, one layer after another.

    `init_model` does the same in one compiled program.

        model = build_model(ModelConfig(backbone="small"), 21, rngs=nnx.Rngs(0))
        logits = model(image)  # uint8 (b, h, w, 3) -> float32 (b, h, w, 21)

    Args:
        config: the settings of the network.
        num_classes: scores per pixel, or their number by label map (see `FCN`).
        channels: number of channels of the images: RGB, then any others.
        ndim: number of spatial axes: 1 for signals, 2 for images, 3 for volumes.
        rngs: streams of random keys for the initial weights.
        axis_name: the mapped axis over which batch normalisation takes its statistics in training.

    Raises:
        ArgumentError: a setting that cannot be used with the backbone, or with these channels.
        ValueError: `config` is not a `ModelConfig`, or the backbone breaks the contract (see
            `models/backbones/contract.py`).
    """
    if not isinstance(config, ModelConfig):
        raise ValueError(
            f"`config` must be the settings of the network, a ModelConfig, not a "
            f"{type(config).__name__}: give config.model"
        )
    pixels = backbone_preprocessing(config)
    if config.fusion == "late" and channels <= COLOURS:
        raise ArgumentError(
            "model.fusion", "late", f"needs images of more than {COLOURS} channels, not {channels}"
        )
    by_trunk = [pixels.for_channels(channels)]
    if config.fusion == "late":
        by_trunk = [pixels.for_channels(COLOURS), by_trunk[0].beyond(COLOURS)]
    backbone, *others = (
        build_backbone(config, preprocessing, ndim=ndim, axis_name=axis_name, rngs=rngs)
        for preprocessing in by_trunk
    )
    check_contract(backbone, padding=config.padding, axis_name=axis_name)
    decoder, skips = None, config.skips
    if config.decoder == "unet":
        widths, stages = config.decoder_features, len(backbone.channels)
        steps = stages - (config.context_features is None)
        skips = steps if widths is None else len(widths)
        if skips > steps:
            raise ArgumentError(
                "model.decoder_features", widths, f"must have at most {steps} numbers"
            )
        decoder = functools.partial(
            UNetDecoder, features=widths, norm=config.norm, padding=config.padding
        )
    model = FCN(
        LateFusion(backbone, *others) if others else backbone,
        num_classes,
        decoder=decoder,
        skips=skips,
        hidden=config.head == "hidden",
        mmseg_dilation=config.head_dilation if config.head == "mmseg" else None,
        auxiliary=config.auxiliary_weight > 0,
        deep_supervision=config.deep_supervision,
        context_features=config.context_features,
        score_scales=config.score_scales,
        upsampling=config.upsampling,
        half_pixel=config.alignment == "half_pixel",
        score_init=HE_NORMAL if config.score_init == "normal" else ZEROS,
        dropout_rate=config.dropout,
        dtype=jnp.dtype(config.compute_dtype),
        axis_name=axis_name,
        rngs=rngs,
    )
    if config.remat:
        remat_blocks(model)
    return model


def backbone_preprocessing(config: ModelConfig) -> Preprocessing:
    """Returns the normalisation that a config names or, for "auto", the backbone's own."""
    if config.preprocessing != "auto":
        return PREPROCESSING[config.preprocessing]
    own = parameters(registry.backbones[config.backbone])["preprocessing"].default
    if not isinstance(own, Preprocessing):
        raise ValueError(f"backbone {config.backbone}: the argument preprocessing has no default")
    return own


def preprocessing_name(config: ModelConfig) -> str:
    """Returns the name in `PREPROCESSING` of a config's normalisation; "auto" if it has none."""
    own = backbone_preprocessing(config)
    return next((name for name, known in PREPROCESSING.items() if known == own), "auto")


def build_backbone(
    config: ModelConfig,
    preprocessing: Preprocessing,
    *,
    ndim: int = 2,
    axis_name: str | None = None,
    rngs: nnx.Rngs,
) -> Backbone:
    """Builds the backbone of a config.

    Args:
        config: the settings of the network. `config.padding` may also be "original", the geometry
            in which the classifier was trained. It is for classifiers only: without padding, the
            border of an image has no features.
        preprocessing: the normalisation of the images, which also sets the number of channels.
        axis_name: see `BatchNorm`.
        rngs: streams of random keys for the initial weights.

    Raises:
        ArgumentError: the backbone is unknown, or does not support a setting.
    """
    factory = registry.backbones[config.backbone]
    unused: dict[str, tuple[Any, ...]] = {
        "padding": ("same", "original"),
        "output_stride": (32,),
        "features": (None,),
        "norm": ("batch",) if config.decoder == "fcn" else (config.norm,),
    }
    for option, usual in unused.items():
        value = getattr(config, option)
        if value not in usual and not accepts(factory, option, value):
            names = registry.backbones.names
            able = [name for name in names if accepts(registry.backbones[name], option, value)]
            raise ArgumentError(
                f"model.{option}",
                value,
                f"is not supported by {config.backbone}, only by {', '.join(able)}",
            )
    options = {
        "padding": config.padding,
        "output_stride": config.output_stride,
        "norm": config.norm,
        "dropout_rate": config.dropout,
        "axis_name": axis_name,
        "ndim": ndim,
    }
    declared = parameters(factory)
    if config.features is not None:
        options["features"] = config.features
    if ndim != 2 and "ndim" not in declared:
        names = registry.backbones.names
        able = [name for name in names if "ndim" in parameters(registry.backbones[name])]
        raise ArgumentError(
            "model.backbone",
            config.backbone,
            f"is for images, not for {ndim} spatial axes as {' and '.join(able)} are",
        )
    supported = {name: value for name, value in options.items() if name in declared}
    return factory(preprocessing=preprocessing, rngs=rngs, **supported)
