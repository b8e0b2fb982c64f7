"""What a backbone must offer, and the check of it when a network is built."""

import functools
import inspect
import math
from collections.abc import Mapping
from typing import Any, Protocol, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.models.backbones.preprocess import Preprocessing
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import Grid
from fcn_jax.models.layers import BatchNorm

FeaturesByStage = dict[int, FeatureMap]


class Backbone(Protocol):
    """A network from normalised pixels to features by stage.

    A stage is named by the stride of its features in the classifier: 2, 4, 8, 16, 32, or some of
    these. A dilated ResNet keeps the names and computes its last stages at a finer stride, which is
    the stride of their grids.

    **Positions.** A grid of stride s has ceil(n / s) positions on n pixels, on each axis. A window
    of size k, moved by any stride, keeps to this if the padding before and the padding after it
    add up to k − 1; k is the extent from end to end, the gaps of a dilated kernel included. `Conv`
    pads odd kernels so by default. Even windows are padded unequally: `padding=(0, 3)` for a 4×4
    convolution of stride 4, `(2, 3)` for 6×6. A pooling of 2×2 and stride 2 takes `ceil=True`.

    **Grids.** Position i of a stage is centred on pixel stride·i + offset. Build the grid along
    with the layers: `PIXELS.after(window, stride, padding)` of the first, `.after(…)` of the next.

    **Canvases.** Images of several sizes share one array, each at its top left. A layer that looks
    at neighbours must first replace the values outside the image, `x.filled()`, and must return
    `x.windowed(values, windows)`, which keeps track of sizes, positions and receptive fields. The
    layers of `models/layers.py` do both. `x.map(function)` serves for functions of one position. A
    mean over the image is `spatial_mean`.

    **The factory.** The class or function that is registered is called with keyword arguments
    alone, and with those that its signature names:

    - `preprocessing`: the normalisation, and with `preprocessing.channels` the number of channels.
      Its default is the normalisation that the published weights of the backbone need.
    - `rngs`: streams of random keys for the initial weights.
    - `axis_name`: for every `BatchNorm`, whose statistics are otherwise those of one device.
    - `padding`, `output_stride`, `dropout_rate`: the settings `padding`, `output_stride` and
      `dropout` of `config.model`. Annotate the first two with the values that are supported:
      `output_stride: Literal[32, 16]`.

    Further arguments need defaults. To offer several values of them, register several names:
    `register_backbone("patches_wide")(functools.partial(Patches, width=2))`.

    Attributes:
        preprocessing: maps channels in 0…255 to the input of `__call__`.
        channels: stage -> number of features, for each stage.
        grids: stage -> where its features are.
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
            train: whether batch normalisation uses the statistics of the batch, and updates the
                running ones by them.
            keys: PRNG keys (b,) for dropout in training, one for each image; None: no dropout.

        Returns:
            Stage -> features (b, h', w', channels[stage]).
        """
        ...


def parameters(factory: Any) -> Mapping[str, inspect.Parameter]:
    """Returns the arguments that a factory can be called with, by name."""
    partial = functools.partial(factory)  # one level, whatever was given
    code: Any = partial.func
    arguments = partial.args
    if isinstance(code, type):  # the metaclass of flax's modules hides the signature of a class
        code, arguments = code.__init__, (None, *arguments)  # type: ignore[misc]
    return inspect.signature(functools.partial(code, *arguments, **partial.keywords)).parameters


def accepts(factory: Any, option: str, value: Any) -> bool:
    """Returns whether a factory's signature names an option and, where annotated, this value."""
    parameter = parameters(factory).get(option)
    if parameter is None:
        return False
    values = get_args(parameter.annotation)
    return not values or value in values


def check_contract(
    backbone: Backbone, *, padding: str = "same", axis_name: str | None = None
) -> None:
    """Checks a backbone without running or compiling it.

    Args:
        backbone: its parameters may be shapes alone (`nnx.eval_shape`).
        padding: "same" if a stage of stride s must have ceil(n / s) positions; "paper" if it may
            have more, as an image padded by 100 has; "original" if it may have any number.
        axis_name: the axis over which every `BatchNorm` must take its statistics.

    Raises:
        ValueError: a stage has too few or too many positions, other features than `channels`, or
            is not where `grids` says; or a `BatchNorm` has another axis.
    """
    name = type(backbone).__name__
    for path, module in nnx.iter_modules(backbone):  # type: ignore[arg-type]
        if isinstance(module, BatchNorm) and module.axis_name != axis_name:
            raise ValueError(
                f"{name}.{'.'.join(map(str, path))} has axis_name={module.axis_name!r}, not "
                f"{axis_name!r}: a backbone must pass its argument axis_name on to every BatchNorm"
            )
    # One more than a multiple of every stride, and a multiple: a count that is right for both is
    # right for every size, since it grows by one with each stride. Classifiers need large images.
    coarsest = max(grid.stride for grid in backbone.grids.values())
    size = (8 * coarsest + 1, 9 * coarsest)
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
        elif padding == "paper":
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


def abstract_features(backbone: Backbone, shape: tuple[int, ...]) -> FeaturesByStage:
    """Returns the features of float32 pixels of a shape (b, h, w, c), as shapes alone."""
    graph, state = nnx.split(backbone)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    return jax.eval_shape(
        lambda state, image: nnx.merge(graph, state)(FeatureMap(image)),
        shapes,
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )


def _by(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))
