"""The contract of backbones, and the check of it when a network is built."""

import functools
import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args, get_origin

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.models.backbones.preprocess import Preprocessing
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import Grid
from fcn_jax.models.layers import BatchNorm

FeaturesByStage = dict[int, FeatureMap]


class Backbone(Protocol):
    """A network that computes features by stage from normalised pixels.

    A stage is named after the stride of its features in the classifier: 2, 4, 8, 16, 32, or some
    of these. A dilated ResNet keeps these names, but computes its last stages at a finer stride,
    which is the stride of their grids.

    **Positions.** A grid of stride s has ceil(n / s) positions on n pixels, on each axis. A window
    of size k and any stride satisfies this if the padding before and the padding after add up to
    k − 1. The size k is the extent of the window, the gaps of a dilated kernel included. `Conv`
    pads odd kernels this way by default. Even windows need unequal padding: `padding=(0, 3)` for a
    4×4 convolution of stride 4, `(2, 3)` for 6×6. A 2×2 pooling of stride 2 takes `ceil=True`.

    **Grids.** Position i of a stage is centred on pixel stride·i + offset. Build the grids along
    with the layers: `PIXELS.after(window, stride, padding)` for the first layer, and `.after(…)` of
    the result for the next.

    **Canvases.** Images of several sizes are batched on canvases of one size, each image at the top
    left of its canvas. A layer that reads neighbouring positions must first replace the values
    outside the image, with `x.filled()`, and must return `x.windowed(values, windows)`, which
    updates sizes, positions and receptive fields. The layers of `models/layers.py` do both. Use
    `x.map(function)` for functions of single positions, and `spatial_mean` for a mean over the
    image.

    **The factory.** The registered class or function is called with keyword arguments only, and
    only with those that its signature names:

    - `preprocessing`: the normalisation, and with `preprocessing.channels` the number of channels.
      Its default must be the normalisation that the backbone's published weights need.
    - `rngs`: streams of random keys for the initial weights.
    - `axis_name`: pass it to every `BatchNorm`; without it the statistics are per device.
    - `padding`, `output_stride`, `norm`, `features`, `dropout_rate`: the settings `padding`,
      `output_stride`, `norm`, `features` and `dropout` of `config.model`. Annotate the first three
      with the values that are supported: `output_stride: Literal[32, 16]`.
    - `ndim`: the number of spatial axes, if the backbone supports others than 2.

    Other arguments need defaults. To offer other values of them, register them under more names:
    `register_backbone("patches_wide")(functools.partial(Patches, width=2))`.

    Attributes:
        preprocessing: the normalisation of channels in 0…255 to the input of `__call__`.
        channels: number of features by stage.
        grids: grid by stage.
        ndim: number of spatial axes; a backbone without this attribute has 2.
    """

    preprocessing: Preprocessing
    channels: dict[int, int]
    grids: dict[int, Grid]

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> FeaturesByStage:
        """Computes the features of every stage.

        Args:
            image: normalised pixels (b, h, w, channels).
            train: whether batch normalisation uses the statistics of the batch and updates the
                running ones.
            keys: PRNG keys for dropout, (b,), one for each image; None for no dropout. Samples of
                dropout in prediction have keys without `train`.

        Returns:
            Features (b, h', w', channels[stage]) by stage.
        """
        ...


def parameters(factory: Any) -> Mapping[str, inspect.Parameter]:
    """Returns the parameters of a factory by name, without those that a `partial` has bound."""
    # Nested partials become one, and a factory that is not a partial becomes one.
    partial = functools.partial(factory)
    code: Any = partial.func
    arguments = partial.args
    if isinstance(code, type):  # the metaclass of flax's modules hides the signature of a class
        code, arguments = code.__init__, (None, *arguments)  # type: ignore[misc]
    return inspect.signature(functools.partial(code, *arguments, **partial.keywords)).parameters


def accepts(factory: Any, option: str, value: Any) -> bool:
    """Returns whether a factory has a parameter, and its annotation (if any) allows the value."""
    parameter = parameters(factory).get(option)
    if parameter is None:
        return False
    if get_origin(parameter.annotation) is not Literal:
        return True
    return value in get_args(parameter.annotation)


def spatial_axes(backbone: Backbone) -> int:
    """Returns the number of spatial axes of a backbone's images."""
    return getattr(backbone, "ndim", 2)


def check_contract(
    backbone: Backbone, *, padding: str = "same", axis_name: str | None = None
) -> None:
    """Checks that a backbone keeps the contract, without running or compiling it.

    Args:
        backbone: the backbone, whose parameters may be abstract (`nnx.eval_shape`).
        padding: "same" if a stage of stride s must have ceil(n / s) positions; "paper" or "valid"
            if it may have more, because the image is padded; "original" if it may have any number.
        axis_name: the axis over which every `BatchNorm` must take its statistics.

    Raises:
        ValueError: a stage has the wrong number of positions or features, or its positions are not
            centred where `grids` says; a `BatchNorm` has another axis; or an attribute is missing,
            or a layer holds a random state or does not take or return a `FeatureMap`.
    """
    name = type(backbone).__name__
    for attribute in ("preprocessing", "channels", "grids"):
        if not hasattr(backbone, attribute):
            raise ValueError(
                f"{name} has no attribute {attribute}: its __init__ must set self.{attribute} "
                "(see models/backbones/contract.py)"
            )
    check_no_random_state(backbone)
    for path, module in nnx.iter_modules(backbone):  # type: ignore[arg-type]
        if isinstance(module, BatchNorm) and module.axis_name != axis_name:
            raise ValueError(
                f"{name}.{'.'.join(map(str, path))} has axis_name={module.axis_name!r}, not "
                f"{axis_name!r}: a backbone must pass its argument axis_name on to every BatchNorm"
            )
    # One size is a multiple of every stride, the other is one more than a multiple. A count that is
    # right for both is right for every size, because it grows by one with every stride. The sizes
    # are large because classifiers without padding need large images.
    coarsest = max(grid.stride for grid in backbone.grids.values())
    size = (8 * coarsest + 1, 9 * coarsest, 8 * coarsest + 1)[: spatial_axes(backbone)]
    features = abstract_features(backbone, (1, *size, backbone.preprocessing.channels))
    if not features.keys() == backbone.channels.keys() == backbone.grids.keys():
        raise ValueError(
            f"{name} returns the stages {sorted(features)}, but has channels of "
            f"{sorted(backbone.channels)} and grids of {sorted(backbone.grids)}"
        )
    for stage, x in features.items():
        grid, field = backbone.grids[stage], x.field
        if x.values.shape[-1] != backbone.channels[stage]:
            raise ValueError(
                f"stage {stage} of {name} has {x.values.shape[-1]} features; channels[{stage}] "
                f"is {backbone.channels[stage]}"
            )
        expected, rule = x.spatial, ""
        if padding == "same":
            expected = tuple(-(-n // grid.stride) for n in size)
            rule = f"ceil(n / {grid.stride})"
        elif padding in ("paper", "valid"):
            reach = [math.floor((n - 1 - grid.offset) / grid.stride) + 1 for n in size]
            expected = tuple(map(max, x.spatial, reach))
            rule = "to reach every pixel"
        if x.spatial != expected:
            raise ValueError(
                f"stage {stage} of {name} has {_by(x.spatial)} positions on an image of "
                f"{_by(size)} pixels; expected {_by(expected)}, {rule}: the padding of each window "
                "must add up to its size less one (see models/backbones/contract.py)"
            )
        centre = (field.first + field.last) / 2
        if field.stride != grid.stride or (math.isfinite(centre) and centre != grid.offset):
            raise ValueError(
                f"position i of stage {stage} of {name} is centred on pixel {field.stride}·i + "
                f"{centre:g} by its layers, and on {grid.stride}·i + {grid.offset:g} by "
                f"grids[{stage}]"
            )


def check_no_random_state(backbone: Any) -> None:
    """Raises ValueError if a layer draws random numbers by itself, such as `nnx.Dropout`."""
    for path, _ in nnx.to_flat_state(nnx.state(backbone, nnx.RngState)):
        raise ValueError(
            f"{type(backbone).__name__}.{'.'.join(map(str, path))} is the random state of an "
            "nnx.Dropout or nnx.Rngs, and a backbone must hold none: use dropout(x, rate, keys) of "
            "fcn_jax.models.layers with the argument keys of __call__"
        )


REMEDIES = (
    ("for +: 'FeatureMap'", "write add(x, y), of fcn_jax.models.feature_map"),
    ("for *: 'FeatureMap'", "write multiply(x, y), of fcn_jax.models.feature_map"),
    (
        "FeatureMap",
        "the layers of fcn_jax.models.layers take a FeatureMap; those of flax and jax.nn take "
        "arrays: x.map(layer), if each position depends on itself alone",
    ),
)
"""What an error message contains -> what to write instead; the first one that fits."""


def abstract_features(backbone: Backbone, shape: tuple[int, ...]) -> FeaturesByStage:
    """Returns the shapes of the features for float32 pixels of shape (b, *spatial, c).

    Raises:
        ValueError: a layer is given a `FeatureMap` that it does not take, or a stage is not one.
    """
    name = type(backbone).__name__
    graph, state = nnx.split(backbone)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    try:
        features = jax.eval_shape(
            lambda state, image: nnx.merge(graph, state)(FeatureMap(image)),
            shapes,
            jax.ShapeDtypeStruct(shape, jnp.float32),
        )
    except (AttributeError, TypeError) as error:
        remedy = next((remedy for part, remedy in REMEDIES if part in str(error)), None)
        if remedy is None:
            raise
        raise ValueError(f"{name}: {error}: {remedy}") from error
    for x in features.values() if isinstance(features, dict) else [features]:
        if not (isinstance(features, dict) and isinstance(x, FeatureMap)):
            kind = "an array" if isinstance(x, jax.ShapeDtypeStruct) else f"a {type(x).__name__}"
            raise ValueError(
                f"{name} must return a FeatureMap for each stage, {{stride: x}}, not {kind}: "
                "x.map(function) and x.windowed(values, windows) make one"
            )
    return features


def _by(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))
