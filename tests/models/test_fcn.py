from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.errors import ArgumentError
from fcn_jax.models.backbones.preprocess import TORCHVISION, Preprocessing
from fcn_jax.models.backbones.resnet import ResNet
from fcn_jax.models.backbones.small import SmallNet
from fcn_jax.models.backbones.squeezenet import SqueezeNet
from fcn_jax.models.backbones.vgg import VGG16
from fcn_jax.models.fcn import FCN
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import Grid, Window, upsampling_geometry
from fcn_jax.models.layers import BatchNorm, Conv, max_pool, relu
from fcn_jax.models.pure_model import PureModel
from fcn_jax.training.losses import CrossEntropy

BACKBONES: dict[str, Callable[[], Any]] = {
    "small": lambda: SmallNet(features=(4, 6, 8, 10, 12), rngs=nnx.Rngs(0)),
    "squeezenet": lambda: SqueezeNet(rngs=nnx.Rngs(0)),
    "resnet18": lambda: ResNet(18, rngs=nnx.Rngs(0)),
    "vgg16": lambda: VGG16(fc_features=16, rngs=nnx.Rngs(0)),
}


@nnx.jit(static_argnames="train")
def features(
    model: FCN, image: jax.Array, valid: jax.Array | None = None, *, train: bool = False
) -> dict[str, FeatureMap]:
    return model.features(image, train=train, valid=valid)


def shapes_of(network: Callable[[], FCN]) -> FCN:
    """Builds the network with shapes instead of weights, without running the initialisers."""
    return nnx.eval_shape(network)


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)


class Pooled(nnx.Module):
    """A backbone whose stages, at strides 2 and 4, are poolings."""

    def __init__(self) -> None:
        self.preprocessing = TORCHVISION
        self.channels = {2: 6, 4: 8}
        self.grids = {2: Grid(2, 0.5), 4: Grid(4, 1.5)}
        self.conv1 = Conv(3, 6, (3, 3), use_bias=False, rngs=nnx.Rngs(0))
        self.bn1 = BatchNorm(6)
        self.conv2 = Conv(6, 8, (3, 3), rngs=nnx.Rngs(1))

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        half = max_pool(relu(self.bn1(self.conv1(image), train=train)), 2, 2)
        return {2: half, 4: max_pool(relu(self.conv2(half)), 2, 2)}


class Coordinates(nnx.Module):
    """A backbone whose features are the coordinates of their centres: pixel row and column."""

    def __init__(self, strides: tuple[int, ...], *, between_pixels: bool):
        self.preprocessing = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))
        self.channels = dict.fromkeys(strides, 2)
        self.grids = {s: Grid(s, (s - 1) / 2 if between_pixels else 0.0) for s in strides}

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        maps = {}
        for stride in self.channels:
            size = [-(-n // stride) for n in image.spatial]
            rows, columns = np.mgrid[: size[0], : size[1]] * stride + self.grids[stride].offset
            values = jnp.asarray(np.stack([rows, columns], -1)[None], jnp.float32)
            maps[stride] = image.windowed(values, [Window(1, stride)] * 2)
        return maps


def coordinates(strides: tuple[int, ...], *, between_pixels: bool, **arguments: Any) -> FCN:
    model = FCN(
        Coordinates(strides, between_pixels=between_pixels),
        2,
        skips=len(strides) - 1,
        rngs=nnx.Rngs(0),
        **arguments,
    )
    for stride in strides:
        getattr(model.head, f"score{stride}").kernel[...] = jnp.eye(2).reshape(1, 1, 2, 2)
    return model


# The position of scores


@pytest.mark.parametrize(
    ("factor", "offset", "filter_size", "crop"),
    [
        (32, 15.5, 64, 16),  # VGG16: 2×2 poolings
        (32, 0.0, 63, 31),  # odd windows only
        (2, 0.5, 4, 1),
        (2, 0.0, 3, 1),
        (8, 3.5, 16, 4),
        (8, -3.0, 15, 10),
        (32, 12.5, 64, 19),  # VGG16 padded by 100: the paper's crops
        (32, 13.0, 63, 18),  # AlexNet padded by 100
        (2, 6.5, 4, -5),  # pool4 cropped by 5: a negative crop of the coarser scores
    ],
)
def test_upsampling_geometry_by_hand(
    factor: int, offset: float, filter_size: int, crop: int
) -> None:
    assert upsampling_geometry(factor, offset) == (filter_size, crop)
    # The centre of the outputs to which coarse position 0 contributes.
    assert (filter_size - 1) / 2 - crop == offset


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("between_pixels", [True, False])
@pytest.mark.parametrize("strides", [(2,), (16,), (32,), (32, 16, 8), (32, 4)])
def test_scores_are_interpolated_at_the_position_of_each_pixel(
    strides: tuple[int, ...], between_pixels: bool, learned: bool
) -> None:
    # Linear interpolation preserves ramps, so the scores are the coordinates of the pixel.
    model = coordinates(
        strides, between_pixels=between_pixels, upsampling="learned" if learned else "fixed"
    )
    coarsest = strides[0]
    size = (5 * coarsest + 3, 4 * coarsest)
    logits = features(model, jnp.zeros((1, *size, 3)))["logits"].values
    assert logits.shape == (1, *size, 2)
    expected = len(strides) * np.stack(np.mgrid[: size[0], : size[1]], -1)
    inner = (slice(2 * coarsest, 3 * coarsest + 1), slice(coarsest, 2 * coarsest + 1))
    np.testing.assert_allclose(logits[0][inner], expected[inner], rtol=1e-5)


def test_half_pixel_alignment_treats_every_backbone_as_centred_on_blocks() -> None:
    model = coordinates((8,), between_pixels=False, half_pixel=True)
    logits = model(jnp.zeros((1, 40, 40, 3)))
    # Feature i has the value 8·i, but is placed at 8·i + 3.5.
    expected = np.mgrid[:40, :40][0] - 3.5
    np.testing.assert_allclose(logits[0, 8:32, 8:32, 0], expected[8:32, 8:32], rtol=1e-5)
    same = coordinates((32, 16), between_pixels=True, half_pixel=True)
    other = coordinates((32, 16), between_pixels=True)
    assert np.array_equal(same(jnp.zeros((1, 70, 70, 3))), other(jnp.zeros((1, 70, 70, 3))))


def test_score_scales_weigh_the_features_coarse_to_fine() -> None:
    model = coordinates((32, 16, 8), between_pixels=True, score_scales=(1, 0.01, 0.0001))
    logits = model(jnp.zeros((1, 128, 128, 3)))
    np.testing.assert_allclose(
        logits[0, 48:80, 48:80, 1], 1.0101 * np.mgrid[48:80, 48:80][1], rtol=1e-5
    )


# Any size, on any canvas


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (32, 64), (97, 131)])
def test_logits_have_the_size_of_the_image(name: str, size: tuple[int, int]) -> None:
    model = shapes_of(lambda: FCN(BACKBONES[name](), 21, skips=2, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    logits = jax.eval_shape(
        lambda state, image: nnx.merge(graph, state)(image),
        state,
        jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8),
    )
    assert logits.shape == (2, *size, 21)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize(("skips", "learned"), [(0, True), (1, False), (2, True), (2, False)])
def test_an_image_has_the_same_logits_on_any_canvas(
    skips: int, learned: bool, randomised: Any
) -> None:
    model = randomised(
        lambda: FCN(
            BACKBONES["small"](),
            5,
            skips=skips,
            upsampling="learned" if learned else "fixed",
            rngs=nnx.Rngs(0),
        )
    )
    size = (45, 70)
    canvas = pictures(1, 64, 75)
    alone = features(model, jnp.asarray(canvas[:, : size[0], : size[1]]))
    batched = features(model, jnp.asarray(canvas), jnp.asarray([size], jnp.int32))
    assert alone.keys() == batched.keys()
    assert float(jnp.abs(alone["logits"].values).max()) > 0.1
    for key, feature in alone.items():
        height, width = feature.spatial
        np.testing.assert_allclose(
            batched[key].values[:, :height, :width],
            feature.values,
            atol=1e-5 * float(jnp.abs(feature.values).max()),
            rtol=0,
        )


@pytest.mark.parametrize("train", [False, True])
def test_an_image_gives_the_same_gradient_on_any_canvas(train: bool, randomised: Any) -> None:
    # Neither ignored pixels outside the image nor the features there contribute.
    network = PureModel(randomised(lambda: FCN(Pooled(), 5, skips=1, rngs=nnx.Rngs(0))))
    params, batch_stats = network.variables
    size = (21, 30)
    canvas = pictures(1, 48, 52)
    label = np.full(canvas.shape[:3], IGNORE_INDEX)
    label[:, : size[0], : size[1]] = canvas[:, : size[0], : size[1], 0] % 5

    @jax.jit
    def gradient(image: jax.Array, label: jax.Array, valid: jax.Array | None) -> Any:
        def loss(params: Any) -> jax.Array:
            values, _ = network((params, batch_stats), image, train=train, valid=valid)
            return CrossEntropy().sums(values["logits"], label)[0]

        return jax.grad(loss)(params)

    window = (slice(None), slice(size[0]), slice(size[1]))
    alone = gradient(jnp.asarray(canvas[window]), jnp.asarray(label[window]), None)
    batched = gradient(jnp.asarray(canvas), jnp.asarray(label), jnp.asarray([size], jnp.int32))
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(alone))
    for expected, leaf in zip(jax.tree.leaves(alone), jax.tree.leaves(batched), strict=True):
        np.testing.assert_allclose(leaf, expected, atol=1e-5 * scale, rtol=1e-3)


# Parts of the network


def test_intermediate_features_have_names() -> None:
    graph, state = nnx.split(
        shapes_of(lambda: FCN(BACKBONES["small"](), 5, skips=2, rngs=nnx.Rngs(0)))
    )
    named = jax.eval_shape(
        lambda state, image: nnx.merge(graph, state).features(image),
        state,
        jax.ShapeDtypeStruct((1, 100, 70, 3), jnp.uint8),
    )
    assert {
        name: (feature.spatial, feature.values.shape[-1]) for name, feature in named.items()
    } == {
        "pixels": ((100, 70), 3),
        "backbone2": ((50, 35), 4),
        "backbone4": ((25, 18), 6),
        "backbone8": ((13, 9), 8),
        "backbone16": ((7, 5), 10),
        "backbone32": ((4, 3), 12),
        "score32": ((4, 3), 5),
        "score16": ((7, 5), 5),
        "fused16": ((7, 5), 5),
        "score8": ((13, 9), 5),
        "fused8": ((13, 9), 5),
        "logits": ((100, 70), 5),
    }


def test_scores_start_at_zero() -> None:
    model = FCN(Pooled(), 5, skips=1, rngs=nnx.Rngs(0))
    assert not np.any(features(model, jnp.asarray(pictures(1, 20, 20)))["logits"].values)


def test_bfloat16_stays_close_and_gives_float32_logits(randomised: Any) -> None:
    exact = randomised(lambda: FCN(BACKBONES["small"](), 5, skips=2, rngs=nnx.Rngs(0)))
    rounded = randomised(
        lambda: FCN(BACKBONES["small"](), 5, skips=2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    )
    image = jnp.asarray(pictures(1, 64, 64))
    expected, result = features(exact, image), features(rounded, image)
    assert result["backbone2"].values.dtype == jnp.bfloat16
    assert result["logits"].values.dtype == jnp.float32
    difference = np.abs(result["logits"].values - expected["logits"].values)
    # bfloat16 has 8 significant bits: 0.4 % per operation.
    assert 0 < difference.max() < 0.05 * np.abs(expected["logits"].values).max()


def test_dropout_is_drawn_for_each_image_by_its_key(randomised: Any) -> None:
    network = PureModel(
        randomised(lambda: FCN(BACKBONES["squeezenet"](), 3, skips=0, rngs=nnx.Rngs(0)))
    )

    @jax.jit
    def run(image: jax.Array, keys: jax.Array) -> jax.Array:
        return network(network.variables, image, train=True, keys=keys)[0]["logits"]

    image = jnp.asarray(np.repeat(pictures(1, 32, 32), 2, axis=0))
    keys = jax.random.split(jax.random.key(3), 2)
    logits = run(image, keys)
    assert not np.allclose(logits[0], logits[1])
    np.testing.assert_allclose(run(image, keys[::-1]), logits[::-1], rtol=1e-4, atol=1e-4)


# Settings


@pytest.mark.parametrize("skips", [-1, 3])
def test_too_many_skips_are_refused(skips: int) -> None:
    with pytest.raises(ArgumentError, match=rf"model.skips \(={skips}\) must be in 0…2"):
        FCN(Coordinates((32, 16, 8), between_pixels=True), 5, skips=skips, rngs=nnx.Rngs(0))


def test_score_scales_must_cover_every_stride() -> None:
    message = r"model.score_scales \(=0.1\) must have at least 2 factors.* strides 32, 16"
    with pytest.raises(ArgumentError, match=message):
        FCN(
            Coordinates((32, 16, 8), between_pixels=True),
            5,
            skips=1,
            score_scales=(0.1,),
            rngs=nnx.Rngs(0),
        )
