"""Other projects' networks give the same numbers here, with their weights read from a file.

Each peer runs images of three sizes one by one; ours runs them together, on one canvas. The
differences are printed: `pytest -s tests/pretrained/test_peers.py`.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from fcn_jax import pretrained
from fcn_jax.config import ModelConfig, load
from fcn_jax.models.backbones import vgg
from fcn_jax.models.backbones.preprocess import PREPROCESSING
from fcn_jax.models.backbones.vgg import VGG16
from fcn_jax.models.build import QUICKLY_COMPILED, build_backbone, build_model
from fcn_jax.models.fcn import FCN
from fcn_jax.models.feature_map import FeatureMap
from tests.peers import (
    FC_FEATURES,
    canvases,
    check_segmentation,
    initialized,
    pictures,
    randomised_peer,
    to_torch,
)

CONFIGS = Path(__file__).parents[2] / "configs"

# Whole segmentation networks


@pytest.mark.parametrize("depth", [50, pytest.param(101, marks=pytest.mark.long)])
def test_torchvisions_fcn_resnet(
    torch: ModuleType, torchvision: ModuleType, tmp_path: Path, depth: int
) -> None:
    make = getattr(torchvision.models.segmentation, f"fcn_resnet{depth}")
    peer = randomised_peer(torch, make(weights=None, weights_backbone=None, aux_loss=True))
    torch.save(peer.state_dict(), tmp_path / "fcn.pth")
    weights = pretrained.read(str(tmp_path / "fcn.pth"))
    config = weights.provenance.config.model

    def logits(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            scores = peer(to_torch(torch, image, PREPROCESSING["torchvision"]))["out"]
        return scores[0].numpy().transpose(1, 2, 0)

    check_segmentation(
        f"torchvision fcn_resnet{depth}",
        lambda: build_model(config, 21, rngs=nnx.Rngs(0)),
        tmp_path / "fcn.pth",
        logits,
        [(96, 64), (75, 101), (33, 120)],
    )


def test_torchvisions_auxiliary_head(
    torch: ModuleType, torchvision: ModuleType, tmp_path: Path
) -> None:
    make = torchvision.models.segmentation.fcn_resnet50
    peer = randomised_peer(torch, make(weights=None, weights_backbone=None, aux_loss=True))
    for module in peer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.save(peer.state_dict(), tmp_path / "fcn.pth")
    config = pretrained.read(str(tmp_path / "fcn.pth")).provenance.config.model
    assert config.auxiliary_weight == 0.5
    network, variables = initialized(
        lambda: build_model(config, 21, rngs=nnx.Rngs(0)), tmp_path / "fcn.pth"
    )
    image = pictures([(65, 70)])[0]
    peer.train()  # normalises by the batch; it returns the auxiliary head only then
    with torch.no_grad():
        expected = peer(to_torch(torch, image, PREPROCESSING["torchvision"]))
    run = jax.jit(lambda v, x: network(v, x, train=True), compiler_options=QUICKLY_COMPILED)
    values, _ = run(variables, image[None])
    for ours, theirs in {"logits": "out", "logits_auxiliary": "aux"}.items():
        scores = expected[theirs].numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(values[ours], scores, atol=2e-4 * np.ptp(scores), rtol=0)


def mmsegs_fcn_d6(torch: ModuleType, torchvision: ModuleType) -> Any:
    """mmsegmentation's fcn-d6_r50-d16 under its names, on torchvision's residual blocks.

    `FCNHead` and `ResNetV1c` by their code and by configs/fcn/fcn-d6_r50-d16_4xb2-40k_cityscapes.
    """
    nn = torch.nn

    def conv_module(before: int, features: int, dilation: int = 1) -> Any:
        conv = nn.Conv2d(before, features, 3, padding=dilation, dilation=dilation, bias=False)
        layers = {"conv": conv, "bn": nn.BatchNorm2d(features), "activate": nn.ReLU()}
        module = nn.Sequential()
        for name, layer in layers.items():
            module.add_module(name, layer)
        return module

    def stem_layer(before: int, features: int, stride: int) -> list[Any]:
        conv = nn.Conv2d(before, features, 3, stride=stride, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(features), nn.ReLU()]

    dilate = [False, False, True]
    resnet = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=dilate)
    network = nn.Module()
    backbone = network.backbone = nn.Module()
    backbone.stem = nn.Sequential(
        *stem_layer(3, 32, 2), *stem_layer(32, 32, 1), *stem_layer(32, 64, 1)
    )
    for layer in range(1, 5):
        setattr(backbone, f"layer{layer}", getattr(resnet, f"layer{layer}"))
    head = network.decode_head = nn.Module()
    head.convs = nn.Sequential(conv_module(2048, 512, 6), conv_module(512, 512, 6))
    head.conv_cat = conv_module(2048 + 512, 512)
    head.conv_seg = nn.Conv2d(512, 19, 1)
    auxiliary = network.auxiliary_head = nn.Module()
    auxiliary.convs = nn.Sequential(conv_module(1024, 256, 6))
    auxiliary.conv_seg = nn.Conv2d(256, 19, 1)

    def forward(image: Any) -> tuple[Any, Any]:
        x = nn.functional.max_pool2d(backbone.stem(image), 3, stride=2, padding=1)
        third = backbone.layer3(backbone.layer2(backbone.layer1(x)))
        last = backbone.layer4(third)
        both = torch.cat([last, head.convs(last)], dim=1)
        scores = head.conv_seg(head.conv_cat(both)), auxiliary.conv_seg(auxiliary.convs(third))
        size = image.shape[2:]
        return tuple(
            nn.functional.interpolate(x, size, mode="bilinear", align_corners=False) for x in scores
        )

    network.forward = forward
    return network


def test_mmsegs_fcn_d6(torch: ModuleType, torchvision: ModuleType, tmp_path: Path) -> None:
    peer = randomised_peer(torch, mmsegs_fcn_d6(torch, torchvision))
    torch.save({"meta": {}, "state_dict": peer.state_dict()}, tmp_path / "fcn.pth")
    config = pretrained.read(str(tmp_path / "fcn.pth")).provenance.config.model
    expected = load(CONFIGS / "cityscapes_fcn_d6_resnet50.py").model
    expected.auxiliary_weight = 0.5  # of every file with an auxiliary head
    expected.preprocessing = config.preprocessing
    assert config == expected

    def logits(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            scores, _ = peer(to_torch(torch, image, PREPROCESSING["torchvision"]))
        return scores[0].numpy().transpose(1, 2, 0)

    check_segmentation(
        "mmsegmentation FCN-D6",
        lambda: build_model(config, 19, rngs=nnx.Rngs(0)),
        tmp_path / "fcn.pth",
        logits,
        [(96, 64), (33, 120)],
    )


def small_vgg16(skips: int, **settings: Any) -> Callable[[], FCN]:
    def make() -> FCN:
        backbone = VGG16(padding="paper", rngs=nnx.Rngs(0))
        return FCN(backbone, 21, skips=skips, rngs=nnx.Rngs(0), **settings)

    return make


@pytest.mark.parametrize("name", ["FCN32s", "FCN16s", "FCN8s", "FCN8sAtOnce"])
def test_torchfcns_networks(
    torch: ModuleType, torchfcn: ModuleType, narrow: None, tmp_path: Path, name: str
) -> None:
    peer = getattr(torchfcn, name)()
    before = 3
    for block, (features, depth) in enumerate(vgg.BLOCKS, start=1):
        for layer in range(1, depth + 1):
            padding = 100 if block == layer == 1 else 1
            convolution = torch.nn.Conv2d(before, features, 3, padding=padding)
            setattr(peer, f"conv{block}_{layer}", convolution)
            before = features
        if hasattr(peer, f"score_pool{block}"):
            setattr(peer, f"score_pool{block}", torch.nn.Conv2d(features, 21, 1))
    peer.fc6 = torch.nn.Conv2d(before, FC_FEATURES, 7)
    peer.fc7 = torch.nn.Conv2d(FC_FEATURES, FC_FEATURES, 1)
    peer.score_fr = torch.nn.Conv2d(FC_FEATURES, 21, 1)
    randomised_peer(torch, peer)
    torch.save(peer.state_dict(), tmp_path / "fcn.pth")

    def logits(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            scores = peer(to_torch(torch, image, PREPROCESSING["caffe"]))
        return scores[0].numpy().transpose(1, 2, 0)

    skips = {"FCN32s": 0, "FCN16s": 1}.get(name, 2)
    scales = (1.0, 0.01, 0.0001) if name == "FCN8sAtOnce" else ()
    check_segmentation(
        f"torchfcn {name}",
        small_vgg16(skips, score_scales=scales),
        tmp_path / "fcn.pth",
        logits,
        [(64, 64), (45, 83), (97, 30)],
    )


# Classifiers: our last features under the peer's own last layers

ANY_SIZES = ((96, 64), (75, 101), (33, 120))

ONE_POSITION = ((224, 224), (231, 225), (227, 239))
"""Sizes at which the fully connected layers have one position, without adaptive pooling."""

CLASSIFIERS = {
    "alexnet": ("alexnet", ONE_POSITION),
    "vgg16": ("vgg16", ONE_POSITION),
    "vgg16_bn": ("vgg16_bn", ONE_POSITION),
    "squeezenet1_1": ("squeezenet", ANY_SIZES),
    "googlenet": ("googlenet", ANY_SIZES),
    "mobilenet_v3_large": ("mobilenet_v3_large", ANY_SIZES),
    "resnet18": ("resnet18", ANY_SIZES),
    "resnet34": ("resnet34", ANY_SIZES),
    "resnet50": ("resnet50", ANY_SIZES),
    "resnet101": ("resnet101", ANY_SIZES),
    "resnet152": ("resnet152", ANY_SIZES),
    "efficientnet_lite0": ("efficientnet_lite0", ANY_SIZES),  # timm's
}
"""torchvision's name -> ours, and the sizes of the test's images."""


class Trunk(nnx.Module):
    """A backbone with the name that it has in an FCN."""

    def __init__(self, backbone: Any):
        self.backbone = backbone

    def __call__(self, image: jax.Array, valid: jax.Array) -> FeatureMap:
        """Returns the last features."""
        features = self.backbone(FeatureMap(self.backbone.preprocessing(image), valid))
        return features[max(features)]


def trunk_as_trained(backbone: str, preprocessing: str) -> Trunk:
    """Returns a backbone in the geometry of the classifier."""
    config = ModelConfig(backbone=backbone, padding="original")
    return Trunk(build_backbone(config, PREPROCESSING[preprocessing], rngs=nnx.Rngs(0)))


def classifier(torch: ModuleType, request: pytest.FixtureRequest, name: str) -> Any:
    """Returns torchvision's or timm's network; VGG16 and AlexNet are narrow."""
    if name == "efficientnet_lite0":
        return request.getfixturevalue("timm").create_model(name)
    models = request.getfixturevalue("torchvision").models
    if name == "googlenet":  # in the form of its published weights
        return models.googlenet(
            weights=None, init_weights=False, aux_logits=False, transform_input=True
        )
    if name not in ("alexnet", "vgg16", "vgg16_bn"):
        return getattr(models, name)(weights=None)
    if name == "alexnet":
        with torch.device("meta"):
            peer = models.alexnet(weights=None)
        peer.features.to_empty(device="cpu")
        inputs = {1: 256 * 6 * 6, 4: FC_FEATURES, 6: FC_FEATURES}
    else:
        widths = [w for features, depth in vgg.BLOCKS for w in (*[features] * depth, "M")]
        layers = models.vgg.make_layers(widths, batch_norm=name == "vgg16_bn")
        with torch.device("meta"):
            peer = models.VGG(layers, init_weights=False)
        inputs = {0: vgg.BLOCKS[-1][0] * 7 * 7, 3: FC_FEATURES, 6: FC_FEATURES}
    for index, in_features in inputs.items():
        out_features = 1000 if index == 6 else FC_FEATURES
        peer.classifier[index] = torch.nn.Linear(in_features, out_features)
    return peer


def last_layers(peer: Any, name: str, features: Any) -> Any:
    """Returns the scores (k,) that the peer's last layers give our features (h, w, c)."""
    if name in ("alexnet", "vgg16", "vgg16_bn"):
        assert features.shape[:2] == (1, 1)
        return peer.classifier[6](features[0, 0])
    if name == "squeezenet1_1":
        conv10 = peer.classifier[1](features.permute(2, 0, 1)[None])
        return conv10.relu().mean((0, 2, 3))
    average = features.mean((0, 1))
    return (peer.fc if hasattr(peer, "fc") else peer.classifier)(average)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long) if name in ("resnet101", "resnet152") else name
        for name in CLASSIFIERS
    ],
)
def test_classifiers(
    torch: ModuleType,
    narrow: None,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    name: str,
) -> None:
    backbone, sizes = CLASSIFIERS[name]
    peer = randomised_peer(torch, classifier(torch, request, name))
    torch.save(peer.state_dict(), tmp_path / "weights.pth")
    weights = pretrained.read(str(tmp_path / "weights.pth"))
    assert weights.provenance.backbone == backbone
    parts: Any = nnx.split(
        nnx.eval_shape(lambda: trunk_as_trained(backbone, weights.provenance.preprocessing)),
        nnx.Param,
        nnx.BatchStat,
    )
    graph, *states = parts
    empty: Any = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), tuple(map(nnx.to_pure_dict, states))
    )
    variables, _ = weights.apply(empty)

    @functools.partial(jax.jit, compiler_options=QUICKLY_COMPILED)
    def run(variables: Any, image: jax.Array, valid: jax.Array) -> FeatureMap:
        for state, values in zip(states, variables, strict=True):
            nnx.replace_by_pure_dict(state, values)
        return nnx.merge(graph, *states)(image, valid)

    images = pictures(sizes)
    features = run(variables, *canvases(images))
    assert features.valid is not None
    ours, theirs = [], []
    for index, image in enumerate(images):
        with torch.no_grad():
            theirs.append(peer(to_torch(torch, image, PREPROCESSING["torchvision"]))[0].numpy())
            height, width = features.valid[index]
            values = torch.tensor(np.array(features.values[index, :height, :width]))
            ours.append(last_layers(peer, name, values).numpy())
    largest = np.abs(np.stack(ours) - theirs).max() / np.ptp(theirs)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables[0]))
    print(f"\n{name}: {parameters:,} parameters, {largest:.1e} of the range")
    assert largest < 1e-4
