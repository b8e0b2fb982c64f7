"""U-Net against PyTorch, and its exactness on signals, images and volumes."""

import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.config import ModelConfig
from fcn_jax.errors import ArgumentError
from fcn_jax.models.backbones.contract import FeaturesByStage
from fcn_jax.models.backbones.preprocess import Preprocessing
from fcn_jax.models.backbones.small import SmallNet
from fcn_jax.models.build import abstract_model
from fcn_jax.models.fcn import FCN
from fcn_jax.models.feature_map import FeatureMap, concatenate
from fcn_jax.models.geometry import Grid
from fcn_jax.models.unet import DoubleConv, UNetDecoder, UNetEncoder
from fcn_jax.testing import check_backbone
from tests.arrays import from_torch, kernel_to_torch, to_torch

PLAIN = Preprocessing(mean=(0.0,), std=(1.0,))
FEATURES = (3, 4, 5)


def unet(ndim: int = 2, *, features: tuple[int, ...] = FEATURES, **options: Any) -> FCN:
    encoder = UNetEncoder(
        features=features, ndim=ndim, preprocessing=PLAIN, rngs=nnx.Rngs(0), **options
    )
    decoder = functools.partial(UNetDecoder, **options)
    return FCN(encoder, 2, skips=len(features) - 1, decoder=decoder, rngs=nnx.Rngs(0))


class Whole(nnx.Module):
    """A whole network as a backbone whose only features are the logits.

    Pixel i of them is centred, halfway between the first and the last pixel that it sees, on pixel
    i + offset.
    """

    def __init__(self, network: FCN, offset: float = 0.0):
        self.network = network
        self.preprocessing = PLAIN
        self.ndim = network.ndim
        self.channels, self.grids = {1: 2}, {1: Grid(offset=offset)}

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> FeaturesByStage:
        features = self.network.features(
            image.values, train=train, valid=image.valid, tile=image.tile, keys=keys
        )
        return {1: features["logits"]}


# Against PyTorch


def torch_unet(torch: ModuleType, model: FCN, norm: str, padding: int) -> Any:
    """milesial's layout of the network, with the model's weights: a function of (b, c, *n)."""
    ndim = model.ndim
    functional = torch.nn.functional
    convolve = getattr(functional, f"conv{ndim}d")
    upsample = getattr(functional, f"conv_transpose{ndim}d")
    pool = getattr(functional, f"max_pool{ndim}d")

    def tensor(value: Any) -> Any:
        return torch.tensor(np.asarray(value[...]))

    def normalise(x: Any, layer: Any) -> Any:
        scale, bias = tensor(layer.scale), tensor(layer.bias)
        if norm == "batch":
            return functional.batch_norm(x, tensor(layer.mean), tensor(layer.var), scale, bias)
        return functional.group_norm(x, layer.groups, scale, bias)

    def twice(x: Any, block: Any) -> Any:
        for conv, layer in ((block.conv1, block.norm1), (block.conv2, block.norm2)):
            bias = None if conv.bias is None else tensor(conv.bias)
            x = convolve(x, kernel_to_torch(torch, conv.kernel[...]), bias, padding=padding)
            x = torch.relu(x if layer is None else normalise(x, layer))
        return x

    def run(x: Any) -> Any:
        encoder: Any = model.backbone
        decoder, head = model.decoder, model.head
        skips = {}
        for stage in encoder.channels:
            x = twice(pool(x, 2) if stage > 1 else x, getattr(encoder, f"level{stage}"))
            skips[stage] = x
        for stage in decoder.stages[1:]:
            up, block = getattr(decoder, f"up{stage}"), getattr(decoder, f"level{stage}")
            # PyTorch's weight is (in, out, *k).
            weight = torch.tensor(np.moveaxis(np.asarray(up.kernel[...]), (-2, -1), (0, 1)).copy())
            x = upsample(x, weight, tensor(up.bias), stride=2)
            skip = skips[stage]
            for axis in range(2, 2 + ndim):  # the centre of the skip
                surplus = skip.shape[axis] - x.shape[axis]
                skip = skip.narrow(axis, surplus // 2, x.shape[axis])
            x = twice(torch.cat([skip, x], dim=1), block)
        score = head.score1
        return convolve(x, kernel_to_torch(torch, score.kernel[...]), tensor(score.bias))

    return run


@pytest.mark.parametrize(
    ("ndim", "norm"),
    [(1, "batch"), (2, "none"), (2, "batch"), (2, "group"), (2, "instance"), (3, "instance")],
)
def test_it_computes_what_pytorch_does(
    torch: ModuleType, ndim: int, norm: str, randomised: Any
) -> None:
    features = (8, 16, 16) if norm == "group" else FEATURES
    model = randomised(lambda: unet(ndim, features=features, norm=norm))
    size = (16, 24, 8)[:ndim]
    image = np.random.default_rng(0).standard_normal((2, *size, 1)).astype(np.float32)
    expected = from_torch(torch_unet(torch, model, norm, padding=1)(to_torch(torch, image)))
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(model(image), expected, atol=2e-5 * np.abs(expected).max())


def test_without_padding_it_computes_what_pytorch_does_on_the_mirrored_image(
    torch: ModuleType, randomised: Any
) -> None:
    model = randomised(lambda: unet(norm="none", padding="valid"))
    # By hand, for two poolings: 4 positions a level at strides 1 and 2 down and up, and 4 at the
    # coarsest stride of 4, are 40 pixels, 20 at either end. Poolings of 30 + 40 + 2 pixels leave
    # out none.
    image = np.random.default_rng(0).standard_normal((1, 30, 26, 1)).astype(np.float32)
    mirrored = np.pad(image, [(0, 0), (20, 22), (20, 22), (0, 0)], mode="reflect")
    expected = from_torch(torch_unet(torch, model, "none", padding=0)(to_torch(torch, mirrored)))
    assert expected.shape == (1, 32, 28, 2)
    np.testing.assert_allclose(model(image), expected[:, :30, :26], atol=1e-5)


def test_the_papers_network_needs_92_pixels_around_its_output() -> None:
    encoder = nnx.eval_shape(lambda: UNetEncoder(padding="valid", rngs=nnx.Rngs(0)))
    # 572×572 pixels in, 388×388 out (figure 1).
    assert encoder.mirrored == ((572 - 388) // 2, (572 - 388) // 2 + 15)
    config = ModelConfig(backbone="unet", decoder="unet", padding="valid", norm="none")
    model = abstract_model(config, 2, channels=1)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    # 31,030,593 with one class, as milesial's layout without normalisation has, and one class more.
    assert parameters == 31_030_593 + 65


# Exactness


@pytest.mark.parametrize(
    ("ndim", "options"),
    [
        (1, {}),
        (1, {"padding": "valid"}),
        (2, {}),
        (2, {"padding": "valid", "norm": "none"}),
        (2, {"norm": "group"}),
        (3, {"norm": "none"}),
    ],
)
def test_mixed_sizes_and_tiles_give_what_the_whole_image_gives_alone(
    ndim: int, options: dict[str, Any]
) -> None:
    def make(*, axis_name: str | None = None, rngs: nnx.Rngs) -> Whole:
        return Whole(unet(ndim, **options))

    padding = options.get("padding", "same")
    report = check_backbone(make, padding=padding, compile_times=False)
    print(report)
    if options.get("norm") == "group":
        assert report.checks["tiles"] == "not checked: features depend on the whole image"
    else:
        # Two 3×3 convolutions at strides 1, 2, 4, 2 and 1 see 1 + 4·10 pixels, poolings of 2×2 at
        # strides 1 and 2 another 3; a pixel is up to 3 from where its block at stride 4 begins.
        assert report.checks["receptive fields"] == "47 pixels at stage 1"


@pytest.mark.parametrize("ndim", [1, 3])
def test_signals_and_volumes_keep_the_contract_of_backbones(ndim: int) -> None:
    make = functools.partial(SmallNet, features=(2, 3), ndim=ndim, preprocessing=PLAIN)
    assert "receptive fields" in check_backbone(make, compile_times=False).checks


def test_a_decoder_on_another_backbone_is_exact() -> None:
    def make(*, axis_name: str | None = None, rngs: nnx.Rngs) -> Whole:
        trunk = SmallNet(features=(3, 4, 5), preprocessing=PLAIN, rngs=rngs)
        decoder = functools.partial(UNetDecoder, features=(6, 6))
        # Windows of odd size are centred on a pixel, and blocks of 2×2 begin there, so the steps to
        # strides 4 and 2 move the centre by 2 + 1 pixels.
        return Whole(FCN(trunk, 2, skips=2, decoder=decoder, rngs=rngs), offset=-3)

    check_backbone(make, compile_times=False)


def test_the_backward_pass_stores_two_feature_maps_and_not_their_concatenation() -> None:
    block = DoubleConv(5, 4, padding="same", norm="group", ndim=2, axis_name=None, rngs=nnx.Rngs(0))
    graph, weights = nnx.split(block)
    random = np.random.default_rng(0)
    x, y = (jnp.asarray(random.standard_normal((1, 6, 6, c)), jnp.float32) for c in (2, 3))

    def both(weights: Any, *values: jax.Array) -> jax.Array:
        inputs = FeatureMap(values[0]), FeatureMap(values[1])
        return nnx.merge(graph, weights)(inputs, train=True).values

    def joined(weights: Any, *values: jax.Array) -> jax.Array:
        joined = concatenate(FeatureMap(values[0]), FeatureMap(values[1]))
        return nnx.merge(graph, weights)(joined, train=True).values

    def stored(function: Any) -> set[int]:
        """The channels of the features that the backward pass uses."""
        pull_back = jax.eval_shape(lambda *inputs: jax.vjp(function, *inputs)[1], weights, x, y)
        return {leaf.shape[-1] for leaf in jax.tree.leaves(pull_back) if leaf.shape[1:3] == (6, 6)}

    assert stored(both) == {2, 3, 4}
    assert stored(joined) == {4, 5}
    results = (jax.vjp(function, weights, x, y) for function in (both, joined))
    ours, expected = (jax.tree.leaves(pull_back(jnp.cos(y))) for y, pull_back in results)
    for gradient, wanted in zip(ours, expected, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5)


# The network of a config


def config(**settings: Any) -> ModelConfig:
    return ModelConfig(**{"backbone": "unet", "decoder": "unet", "features": (4, 6, 8)} | settings)


def test_a_config_chooses_depth_width_and_normalisation() -> None:
    shapes = abstract_model(config(norm="group", decoder_features=(7, 5)), 3)
    assert shapes.backbone.channels == {1: 4, 2: 6, 4: 8}
    assert shapes.decoder.channels == {4: 8, 2: 7, 1: 5}
    assert shapes.backbone.level4.norm2.groups == 8
    assert shapes.backbone.level2.norm1.groups == 2
    image = jax.ShapeDtypeStruct((2, 9, 13, 3), np.uint8)
    assert jax.eval_shape(lambda model, x: model(x), shapes, image).shape == (2, 9, 13, 3)
    # Fewer steps end at a coarser stride, whose scores are upsampled.
    short = abstract_model(config(backbone="resnet18", features=None, decoder_features=(8, 6)), 3)
    assert short.decoder.channels == {32: 512, 16: 8, 8: 6}
    assert jax.eval_shape(lambda model, x: model(x), short, image).shape == (2, 9, 13, 3)


def test_the_auxiliary_head_scores_the_next_coarser_stage_of_the_decoder() -> None:
    shapes = abstract_model(config(auxiliary_weight=0.5), 3)
    assert shapes.auxiliary.stages == (2,)


def test_deep_supervision_scores_coarser_stages_of_the_decoder_in_training_alone() -> None:
    shapes = abstract_model(config(deep_supervision=2), 3)
    assert (shapes.deep2.stages, shapes.deep4.stages) == ((2,), (4,))
    image = jax.ShapeDtypeStruct((2, 9, 13, 3), np.uint8)

    def logits(train: bool) -> dict[str, tuple[int, ...]]:
        named = nnx.eval_shape(lambda model, x: model.features(x, train=train), shapes, image)
        return {name: x.values.shape for name, x in named.items() if name.startswith("logits")}

    assert logits(False) == {"logits": (2, 9, 13, 3)}
    assert logits(True) == dict.fromkeys(("logits", "logits_deep2", "logits_deep4"), (2, 9, 13, 3))


def test_remat_computes_the_same_network_in_blocks() -> None:
    shapes = abstract_model(config(remat=True), 3)
    assert shapes.backbone.level1.remat
    assert shapes.decoder.level1.remat


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder_features": (8, 8, 8)}, r"model.decoder_features .* at most 2 numbers"),
        ({"deep_supervision": 3}, r"model.deep_supervision .* at most 2, the stages"),
        ({"features": (8,)}, r"model.features \(=8\) must have at least two levels"),
        ({"backbone": "vgg16"}, r"model.features .* by vgg16, only by small, unet"),
        (
            {"backbone": "vgg16", "features": None, "decoder": "fcn", "norm": "group"},
            r"model.norm \(=group\) is not supported by vgg16, only by unet",
        ),
        (
            {"backbone": "resnet18", "features": None, "padding": "valid"},
            r"model.padding \(=valid\) is not supported by resnet18, only by unet",
        ),
    ],
)
def test_settings_that_the_network_cannot_have(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        abstract_model(config(**settings), 2)


def test_only_unet_and_small_take_signals() -> None:
    with pytest.raises(ArgumentError, match=r"resnet18\) is for images, .* small and unet are"):
        abstract_model(ModelConfig(backbone="resnet18"), 2, ndim=1)
