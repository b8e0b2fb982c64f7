"""Features of the backbones: against PyTorch's, centred on their grids, the same on any canvas."""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from fcn_jax.models.backbones.alexnet import AlexNet, alexnet_caffe
from fcn_jax.models.backbones.efficientnet import EfficientNetLite0
from fcn_jax.models.backbones.googlenet import GoogLeNet
from fcn_jax.models.backbones.mobilenet import MobileNetV3Large
from fcn_jax.models.backbones.preprocess import CAFFE, INCEPTION, TORCHVISION
from fcn_jax.models.backbones.resnet import ResNet
from fcn_jax.models.backbones.small import SmallNet
from fcn_jax.models.backbones.squeezenet import SqueezeNet
from fcn_jax.models.backbones.vgg import VGG16
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.layers import Conv
from fcn_jax.pretrained.source import WeightSource
from fcn_jax.pretrained.tables import timm as timm_tables
from fcn_jax.pretrained.tables import torchvision as torchvision_tables
from tests import backbone_peers as peers

BACKBONES: dict[str, Callable[[], Any]] = {
    "small": lambda: SmallNet(features=(4, 6, 8, 10, 12), rngs=nnx.Rngs(0)),
    "squeezenet": lambda: SqueezeNet(rngs=nnx.Rngs(0)),
    "alexnet": lambda: AlexNet(fc_features=16, rngs=nnx.Rngs(0)),
    "vgg16": lambda: VGG16(fc_features=16, rngs=nnx.Rngs(0)),
    "googlenet": lambda: GoogLeNet(rngs=nnx.Rngs(0)),
    "googlenet_original": lambda: GoogLeNet(padding="original", rngs=nnx.Rngs(0)),
    "resnet18": lambda: ResNet(18, rngs=nnx.Rngs(0)),
    "mobilenet_v3_large": lambda: MobileNetV3Large(rngs=nnx.Rngs(0)),
    "efficientnet_lite0": lambda: EfficientNetLite0(rngs=nnx.Rngs(0)),
}


@nnx.jit(static_argnames="train")
def run(backbone: Any, image: FeatureMap, train: bool = False) -> dict[int, FeatureMap]:
    return backbone(image, train=train)


def image(*size: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, *size, 3)).astype(np.float32)


def channels_first(torch: ModuleType, values: np.ndarray) -> Any:
    return torch.tensor(values.transpose(0, 3, 1, 2).copy())


def assert_equal_features(
    backbone: Any, features: dict[int, FeatureMap], expected: Any, rounding: float = 1e-4
) -> None:
    assert features.keys() == expected.keys() == backbone.channels.keys() == backbone.grids.keys()
    for stage, feature in features.items():
        peer_values = expected[stage].numpy().transpose(0, 2, 3, 1)
        assert feature.values.shape == peer_values.shape
        assert feature.values.shape[-1] == backbone.channels[stage]
        np.testing.assert_allclose(
            feature.values, peer_values, atol=rounding * np.abs(peer_values).max(), rtol=0
        )


def vgg16(**arguments: Any) -> Callable[[], VGG16]:
    return lambda: VGG16(fc_features=16, rngs=nnx.Rngs(0), **arguments)


def caffe_alexnet(padding: str) -> Callable[[], AlexNet]:
    return lambda: alexnet_caffe(padding=padding, fc_features=16, rngs=nnx.Rngs(0))


# Without padding, fc6 needs images of at least 224 pixels, and of 227 in Caffe's AlexNet.
OF_OPERATIONS: dict[str, tuple[Callable[[], Any], Callable[..., Any], str, tuple[int, int]]] = {
    "squeezenet": (BACKBONES["squeezenet"], peers.squeezenet_features, "same", (45, 70)),
    "resnet18": (BACKBONES["resnet18"], peers.resnet18_features, "same", (45, 70)),
    "vgg16": (vgg16(), peers.vgg16_features, "same", (45, 70)),
    "vgg16 paper": (vgg16(padding="paper"), peers.vgg16_features, "paper", (7, 20)),
    "vgg16 original": (vgg16(padding="original"), peers.vgg16_features, "original", (231, 256)),
    "vgg16_bn": (vgg16(batch_norm=True), peers.vgg16_features, "same", (45, 70)),
    "alexnet_caffe": (caffe_alexnet("same"), peers.caffe_alexnet_features, "same", (45, 70)),
    "alexnet_caffe paper": (
        caffe_alexnet("paper"),
        peers.caffe_alexnet_features,
        "paper",
        (37, 60),
    ),
    "alexnet_caffe original": (
        caffe_alexnet("original"),
        peers.caffe_alexnet_features,
        "original",
        (227, 260),
    ),
}


@pytest.mark.parametrize(
    ("name", "train"),
    [*((name, False) for name in OF_OPERATIONS), ("resnet18", True), ("vgg16_bn", True)],
)
def test_features_are_those_of_pytorchs_operations(
    torch: ModuleType, randomised: Any, name: str, train: bool
) -> None:
    network, peer_features, padding, size = OF_OPERATIONS[name]
    backbone = randomised(network)
    values = image(*size)
    with torch.no_grad():
        operations = peers.Operations(torch, backbone)
        expected = peer_features(operations, channels_first(torch, values), train, padding)
    features = run(backbone, FeatureMap(jnp.asarray(values)), train=train)
    assert_equal_features(backbone, features, expected)


@dataclasses.dataclass(frozen=True)
class Published:
    """A network of torchvision or timm, and our backbone that takes its weights."""

    name: str
    source: WeightSource
    ours: Callable[[], Any]
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


def dilated_resnet50(output_stride: int) -> Published:
    return Published(
        "resnet50",
        torchvision_tables.resnet(50),
        lambda: ResNet(50, output_stride=output_stride, rngs=nnx.Rngs(0)),
        {"replace_stride_with_dilation": [False, output_stride == 8, True]},
    )


PUBLISHED = {
    "googlenet": Published(
        "googlenet", torchvision_tables.googlenet(), BACKBONES["googlenet_original"]
    ),
    "mobilenet_v3_large": Published(
        "mobilenet_v3_large",
        torchvision_tables.mobilenet_v3_large(),
        BACKBONES["mobilenet_v3_large"],
    ),
    "efficientnet_lite0": Published(
        "efficientnet_lite0", timm_tables.efficientnet_lite0(), BACKBONES["efficientnet_lite0"]
    ),
    "resnet34": Published(
        "resnet34", torchvision_tables.resnet(34), lambda: ResNet(34, rngs=nnx.Rngs(0))
    ),
    "resnet50 at stride 16": dilated_resnet50(16),
    "resnet50 at stride 8": dilated_resnet50(8),
}


@pytest.mark.parametrize(
    ("name", "size", "train"),
    [
        *((name, (45, 71), False) for name in PUBLISHED),
        *(
            pytest.param(name, (64, 96), False, marks=pytest.mark.long)
            for name in ("googlenet", "mobilenet_v3_large", "efficientnet_lite0")
        ),
        ("googlenet", (64, 96), True),
        ("mobilenet_v3_large", (64, 96), True),
        ("efficientnet_lite0", (64, 96), True),
    ],
)
def test_features_are_those_of_the_published_network(
    torch: ModuleType, timm: ModuleType, name: str, size: tuple[int, int], train: bool
) -> None:
    case = PUBLISHED[name]
    network = peers.published(timm, case.name, **case.arguments)
    backbone = peers.backbone_from(case.ours, case.source, network.state_dict())
    values = image(*size)
    stages = peers.PUBLISHED_STAGES[case.name]
    with torch.no_grad():
        expected = peers.published_features(network, stages, channels_first(torch, values), train)
    features = run(backbone, FeatureMap(jnp.asarray(values)), train=train)
    # Deep networks amplify rounding; the largest difference seen was 8e-5.
    assert_equal_features(backbone, features, expected, rounding=5e-4)
    # Training has moved the running statistics with the momentum of the network.
    statistics = peers.flat(nnx.state(backbone, nnx.BatchStat))
    for key, statistic in statistics.items():
        moved = peers.ours(case.source, key, network.state_dict())
        np.testing.assert_allclose(statistic, moved, atol=1e-4 * np.abs(moved).max(), rtol=0)


def test_googlenet_with_padding_is_torchvisions_with_padded_poolings(
    torch: ModuleType, timm: ModuleType
) -> None:
    network = peers.published(timm, "googlenet")
    source = torchvision_tables.googlenet()
    backbone = peers.backbone_from(BACKBONES["googlenet"], source, network.state_dict())
    for pooling in (network.maxpool1, network.maxpool2, network.maxpool3):
        pooling.padding, pooling.ceil_mode = 1, False
    values = image(45, 70)
    stages = peers.PUBLISHED_STAGES["googlenet"]
    with torch.no_grad():
        expected = peers.published_features(network, stages, channels_first(torch, values))
    features = run(backbone, FeatureMap(jnp.asarray(values)))
    assert_equal_features(backbone, features, expected)


@pytest.mark.parametrize("size", [(224, 224), (227, 239)])
def test_alexnet_as_trained_is_torchvisions(
    torch: ModuleType, timm: ModuleType, size: tuple[int, int]
) -> None:
    network = peers.published(timm, "alexnet")
    # Fewer features of fc6 and fc7, for speed.
    for position in (1, 4):
        layer = network.classifier[position]
        layer.weight = torch.nn.Parameter(layer.weight[:16, : 9216 if position == 1 else 16])
        layer.bias = torch.nn.Parameter(layer.bias[:16])
    network.classifier[6] = torch.nn.Identity()
    backbone = peers.backbone_from(
        lambda: AlexNet(padding="original", fc_features=16, rngs=nnx.Rngs(0)),
        torchvision_tables.alexnet(),
        network.state_dict(),
    )
    values = image(*size)
    stages = peers.PUBLISHED_STAGES["alexnet"]
    with torch.no_grad():
        expected = peers.published_features(network, stages, channels_first(torch, values))
    expected[32] = expected[32][..., None, None]  # the classifier has a single position
    assert_equal_features(backbone, run(backbone, FeatureMap(jnp.asarray(values))), expected)


@pytest.mark.parametrize("name", BACKBONES)
def test_features_are_centred_where_the_grids_say(name: str, randomised: Any) -> None:
    # A feature is nan if it depends on a nan pixel. In half of the images the rows above a cut are
    # nan, in the others the rows below it. The cuts cover more than one stride, so that they show
    # the first and the last row on which each position depends.
    backbone = randomised(BACKBONES[name])
    if name == "mobilenet_v3_large":
        for number in range(1, 16):  # its mean depends on every pixel
            getattr(backbone, f"block{number}").excites = False
    # One more than the coarsest stride, so that some position's border is among the cuts.
    cuts_count = max(backbone.channels) + 1
    height = {"small": 256, "mobilenet_v3_large": 1024, "efficientnet_lite0": 1024}.get(name, 512)
    width = 16 if name == "googlenet_original" else 1  # the smallest that its poolings accept
    rows = np.arange(height)[None, :, None, None]
    cuts = height // 2 + np.arange(cuts_count)[:, None, None, None]
    images = np.where(np.concatenate([rows < cuts, rows >= cuts]), np.nan, 0) * np.ones((width, 3))
    features = run(backbone, FeatureMap(jnp.asarray(images, jnp.float32)))
    for stride, feature in features.items():
        seen = np.isnan(np.asarray(feature.values)[:, :, 0]).any(-1)
        above, below = seen[:cuts_count].sum(0), seen[cuts_count:].sum(0)
        place = stride * np.arange(seen.shape[1])
        first = height // 2 + cuts_count - 1 - above - place
        last = height // 2 - 1 + below - place
        # Only positions that some of the cuts reach and others do not; all must agree.
        (first,) = set(first[(above > 0) & (above < cuts_count)])
        (last,) = set(last[(below > 0) & (below < cuts_count)])
        assert (first + last) / 2 == backbone.grids[stride].offset, stride


def test_preprocessing_by_hand() -> None:
    red = jnp.asarray([[[[255, 0, 51]]]], jnp.uint8)
    np.testing.assert_allclose(
        CAFFE(red)[0, 0, 0], [51 - 104.00699, 0 - 116.66877, 255 - 122.67892], rtol=1e-6
    )
    np.testing.assert_allclose(
        TORCHVISION(red)[0, 0, 0],
        [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225],
        rtol=1e-5,
    )
    np.testing.assert_allclose(INCEPTION(red)[0, 0, 0], [1, -1, -0.6], rtol=1e-5)
    assert CAFFE(red, jnp.bfloat16).dtype == jnp.bfloat16


def test_inception_preprocessing_is_torchvisions_with_transform_input(
    torch: ModuleType, timm: ModuleType
) -> None:
    network = peers.published(timm, "googlenet", transform_input=True)
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 3, 5, 3)), jnp.uint8)
    theirs = network._transform_input(channels_first(torch, np.asarray(TORCHVISION(pixels))))
    np.testing.assert_allclose(
        INCEPTION(pixels), theirs.numpy().transpose(0, 2, 3, 1), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(("size", "stride", "dilation"), [(3, 1, 1), (5, 2, 1), (3, 2, 2)])
def test_depthwise_convolution_is_xlas(
    randomised: Any, size: int, stride: int, dilation: int
) -> None:
    # On a CPU, `Conv` computes a sum over the taps of the kernel.
    def convolution() -> Conv:
        return Conv(
            6, 6, (size, size), stride=stride, dilation=dilation, groups=6, rngs=nnx.Rngs(0)
        )

    conv = randomised(convolution)
    graph, weights = nnx.split(conv)
    border = (dilation * (size - 1) // 2,) * 2

    def ours(values: jax.Array, weights: nnx.State) -> jax.Array:
        return nnx.merge(graph, weights)(FeatureMap(values)).values

    def xlas(values: jax.Array, weights: nnx.State) -> jax.Array:
        result = lax.conv_general_dilated(
            values,
            weights.kernel[...],
            (stride, stride),
            (border, border),
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=6,
        )
        return result + weights.bias[...]

    values = jnp.asarray(np.random.default_rng(0).standard_normal((2, 9, 12, 6)), jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def result_and_gradients(convolve: Callable[..., jax.Array]) -> Any:
        result, pull_back = jax.vjp(convolve, values, weights)
        return result, pull_back(jnp.sin(result))

    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max(), rtol=0),
        result_and_gradients(ours),
        result_and_gradients(xlas),
    )
