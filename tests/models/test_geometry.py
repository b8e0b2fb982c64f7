"""Receptive fields: by hand, against the grids of the backbones, and against gradients."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.config import ModelConfig
from fcn_jax.models.backbones import resnet
from fcn_jax.models.backbones.alexnet import AlexNet
from fcn_jax.models.backbones.preprocess import TORCHVISION, Preprocessing
from fcn_jax.models.backbones.resnet import ResNet
from fcn_jax.models.backbones.small import SmallNet
from fcn_jax.models.build import build_backbone
from fcn_jax.models.fcn import FCN
from fcn_jax.models.feature_map import FeatureMap, add, concatenate, multiply
from fcn_jax.models.geometry import ReceptiveField, Window
from fcn_jax.models.interpolation import Interpolate
from fcn_jax.models.layers import Conv, average_pool, max_pool, spatial_mean
from fcn_jax.models.upsampling import BilinearUpsample, ConvTranspose

BACKBONES = {
    "small": ("same",),
    "alexnet": ("same", "paper", "original"),
    "vgg16": ("same", "paper", "original"),
    "squeezenet": ("same", "original"),
    "googlenet": ("same", "original"),
    "efficientnet_lite0": ("same",),
    "resnet18": ("same",),
    "resnet50": ("same",),
}


@functools.cache
def fields_of(backbone: str, padding: str = "same", **settings: Any) -> tuple[Any, dict]:
    """Returns the abstract backbone and the receptive field of each stage."""
    config = ModelConfig(backbone=backbone, padding=padding, **settings)
    module = nnx.eval_shape(lambda: build_backbone(config, TORCHVISION, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(module)
    features = jax.eval_shape(
        lambda state, image: nnx.merge(graph, state)(FeatureMap(image)),
        state,
        jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32),
    )
    return module, {stage: x.field for stage, x in features.items()}


# Receptive fields worked out by hand


def test_a_window_widens_the_receptive_field() -> None:
    # Window 3, stride 2, padding 1: position i depends on the pixels 2i − 1 … 2i + 1.
    # Then window 2, stride 2: on the positions 2i and 2i + 1, so on the pixels 4i − 1 … 4i + 3.
    first = ReceptiveField().through([Window(3, 2, 1)] * 2)
    assert first == ReceptiveField(2, -1, 1, alignment=2)
    assert first.through([Window(2, 2)] * 2) == ReceptiveField(4, -1, 3, alignment=4)
    # Unequal windows: two before from the first, four after from the second.
    assert ReceptiveField().through([Window(5, 1, 2), Window(7, 1, 2)]) == ReceptiveField(1, -2, 4)


def test_a_transposed_convolution_by_hand() -> None:
    # Kernel 4, stride 2, crop 1: output j depends on i = (j + 1)//2 − 1 and (j + 1)//2. If position
    # i depends on the pixels 2i − 1 … 2i + 1, output 0 depends on −3 … 1 and output 1 on −1 … 3,
    # so output j depends on at most j − 3 … j + 2.
    coarse = ReceptiveField(2, -1, 1, alignment=2)
    assert coarse.scattered(1, 4, 2, 1) == ReceptiveField(1, -3, 2, alignment=2)


def test_fields_of_known_width() -> None:
    # VGG16: 404 pixels for fc6, as in section 4 of the paper, and 100 for pool4. 435 for ResNet-18,
    # and 427 for ResNet-50 with its strides in the 3×3 convolutions.
    _, vgg16 = fields_of("vgg16", "paper")
    assert {stage: field.last - field.first + 1 for stage, field in vgg16.items()}[32] == 404
    assert vgg16[16].last - vgg16[16].first + 1 == 100
    for backbone, width in {"resnet18": 435, "resnet50": 427}.items():
        field = fields_of(backbone)[1][32]
        assert field.last - field.first + 1 == width
    assert fields_of("resnet50", output_stride=8)[1][32].alignment == 8


@pytest.mark.parametrize(
    ("backbone", "padding"),
    [(name, padding) for name, paddings in BACKBONES.items() for padding in paddings],
)
def test_receptive_fields_are_centred_on_the_grids(backbone: str, padding: str) -> None:
    module, fields = fields_of(backbone, padding)
    for stage, field in fields.items():
        grid = module.grids[stage]
        assert (field.stride, (field.first + field.last) / 2) == (grid.stride, grid.offset)
        assert field.alignment == grid.stride


def test_features_that_depend_on_the_whole_image_are_unbounded() -> None:
    _, fields = fields_of("mobilenet_v3_large")
    assert [stage for stage, field in fields.items() if field.is_bounded] == [2, 4]
    x = FeatureMap(jnp.ones((1, 4, 4, 2)))
    assert not multiply(x, spatial_mean(x)).field.is_bounded
    pooled = max_pool(x, 2, 2)
    assert not add(pooled, FeatureMap(pooled.values)).field.is_bounded  # two strides


# Receptive fields against gradients

IDENTITY = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def all_pass(network: Callable[[], FCN]) -> Any:
    """Returns the network with weights for which all gradients are positive.

    The kernels are powers of two, so that equal values stay equal without rounding, and the
    gradient of a maximum reaches all values that are equal to it.
    """
    graph, state = nnx.split(nnx.eval_shape(network))

    def value(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        power = np.ceil(np.log2(np.prod(leaf.shape[:-1])))
        by_name = {"kernel": 2.0**-power, "scale": 1.0, "var": 1.0}
        return jnp.full(leaf.shape, by_name.get(path[-1].key, 0.0), leaf.dtype)

    nnx.replace_by_pure_dict(
        state, jax.tree_util.tree_map_with_path(value, nnx.to_pure_dict(state))
    )
    return nnx.merge(graph, state)


def seen_by(
    logits: Callable[[jax.Array], FeatureMap],
    shape: tuple[int, ...],
    axis: int,
    phases: Sequence[int],
) -> tuple[ReceptiveField, int, int]:
    """Compares the receptive field of logits with their gradients, on an image of equal pixels.

    Args:
        logits: computes the feature map of an image.
        shape: shape of the image.
        axis: the axis to look at.
        phases: outputs to look at, as offsets from the middle of the axis.

    Returns:
        The field of the feature map; and, by gradients, the first and the last pixel on which these
        outputs depend, relative to the output.
    """
    image = jnp.ones(shape, jnp.float32)
    claimed = jax.eval_shape(logits, image).field
    middle = shape[axis] // 2 // 32 * 32

    @jax.jit
    def gradient(pixel: jax.Array) -> jax.Array:
        def score(image: jax.Array) -> jax.Array:
            values = logits(image).values
            return jnp.take(values, pixel, axis=axis).sum()

        other_axes = tuple(n for n in range(image.ndim) if n != axis)
        return jnp.abs(jax.grad(score)(image)).sum(other_axes)

    seen = [np.flatnonzero(gradient(jnp.asarray(middle + phase))) for phase in phases]
    first = min(int(where[0]) - middle - phase for phase, where in zip(phases, seen, strict=True))
    last = max(int(where[-1]) - middle - phase for phase, where in zip(phases, seen, strict=True))
    return claimed, first, last


def small(ndim: int = 2, **arguments: Any) -> FCN:
    backbone = SmallNet(features=(2, 2, 4), ndim=ndim, preprocessing=IDENTITY, rngs=nnx.Rngs(0))
    return FCN(backbone, 2, rngs=nnx.Rngs(0), **arguments)


@pytest.mark.parametrize(("ndim", "axis"), [(1, 1), (2, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize(
    "arguments",
    [
        {"skips": 0},
        {"skips": 2, "upsampling": "fixed"},
        {"skips": 1, "half_pixel": True, "context_features": 2},
    ],
)
def test_scores_depend_on_exactly_their_receptive_field(
    arguments: dict[str, Any], ndim: int, axis: int
) -> None:
    model = all_pass(lambda: small(ndim, **arguments))
    others = 5 if ndim < 3 else 1
    shape = (1, *(320 if n == axis else others for n in range(1, ndim + 1)), 3)
    claimed, first, last = seen_by(lambda x: model.features(x)["logits"], shape, axis, range(16))
    assert (claimed.stride, claimed.first, claimed.last) == (1, first, last)


@pytest.mark.parametrize("length", [320, 321, 327])
def test_interpolated_scores_depend_on_no_more_than_their_receptive_field(length: int) -> None:
    model = all_pass(lambda: small(skips=0, hidden=True, upsampling="interpolate"))
    claimed, first, last = seen_by(
        lambda x: model.features(x)["logits"], (1, length, 5, 3), 1, range(0, 8, 3)
    )
    # The field holds for images of any size, so that it is wider by up to a coarse position at both
    # ends, and by what rounding to whole positions adds.
    assert claimed.first <= first <= claimed.first + 3 * 8
    assert claimed.last - 3 * 8 <= last <= claimed.last


def test_the_receptive_field_of_alexnet_padded_by_100() -> None:
    def make() -> FCN:
        backbone = AlexNet(padding="paper", fc_features=2, preprocessing=IDENTITY, rngs=nnx.Rngs(0))
        return FCN(backbone, 1, skips=0, upsampling="fixed", rngs=nnx.Rngs(0))

    model = all_pass(make)
    layer = model.head.upsample32
    # The outputs that depend on the pixels furthest before and furthest after them.
    phases = [(layer.filter_size - 1 - layer.crop) % 32, -layer.crop % 32]
    claimed, first, last = seen_by(lambda x: model.features(x)["logits"], (1, 640, 3, 3), 1, phases)
    assert (claimed.first, claimed.last) == (first, last)


def test_the_receptive_field_of_an_interpolating_dilated_resnet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(resnet.DEPTHS, 50, (1, 1, 2, 1))

    def make() -> FCN:
        backbone = ResNet(50, output_stride=8, preprocessing=IDENTITY, rngs=nnx.Rngs(0))
        return FCN(backbone, 1, skips=0, hidden=True, upsampling="interpolate", rngs=nnx.Rngs(0))

    model = all_pass(make)
    claimed, first, last = seen_by(lambda x: model.features(x)["logits"], (1, 512, 3, 3), 1, (0, 4))
    assert claimed.first <= first <= claimed.first + 3 * 8
    assert claimed.last - 3 * 8 <= last <= claimed.last


LAYERS: dict[str, Callable[[FeatureMap], FeatureMap]] = {
    "strides, even kernels, dilation": lambda x: Conv(
        3, 2, (4, 4), padding=(1, 2), dilation=2, rngs=nnx.Rngs(0)
    )(Conv(3, 3, (6, 6), stride=2, padding=(2, 3), rngs=nnx.Rngs(1))(x)),
    "poolings in ceil mode": lambda x: max_pool(max_pool(x, 3, 2, 1), 2, 2, ceil=True),
    "unequal windows": lambda x: average_pool(x, (4, 1)),
    "branches": lambda x: concatenate(max_pool(x, 2, 2), max_pool(max_pool(x, 5, 1, 2), 2, 2)),
    "learned upsampling": lambda x: ConvTranspose(3, 5, stride=2, crop=3)(max_pool(x, 2, 2), x),
    "negative crop": lambda x: BilinearUpsample(8, stride=4, crop=-5)(max_pool(x, 4, 4), x),
    "interpolation": lambda x: Interpolate()(max_pool(x, 3, 2), x),
}


@pytest.mark.parametrize("name", LAYERS)
def test_receptive_fields_of_layers(name: str) -> None:
    layer = LAYERS[name]

    def run(image: jax.Array) -> FeatureMap:
        return layer(FeatureMap(image))

    def rows(image: jax.Array) -> jax.Array:
        return run(image).values.sum((0, 2, 3))

    image = jnp.ones((1, 97, 9, 3))
    claimed = jax.eval_shape(run, image).field
    seen_first, seen_last = [], []
    gradient = jax.jit(jax.vmap(lambda row: jax.vjp(rows, image)[1](row)[0]))
    count = jax.eval_shape(run, image).spatial[0]
    positions = range(count // 3, count // 3 + 8)
    cotangents = jnp.asarray(np.eye(count)[list(positions)], jnp.float32)
    for position, values in zip(positions, gradient(cotangents), strict=True):
        where = np.flatnonzero(np.abs(values).sum((0, 2, 3)))
        seen_first.append(where[0] - claimed.stride * position)
        seen_last.append(where[-1] - claimed.stride * position)
    if name == "interpolation":
        assert claimed.first <= min(seen_first)
        assert max(seen_last) <= claimed.last
    else:
        assert (claimed.first, claimed.last) == (min(seen_first), max(seen_last))
