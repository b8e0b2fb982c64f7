"""Images of three sizes on canvases have the logits of each image alone, for every network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.data import shapes
from fcn_jax.data.images import read_image
from fcn_jax.models.backbones.alexnet import AlexNet, alexnet_caffe
from fcn_jax.models.backbones.contract import Backbone
from fcn_jax.models.backbones.efficientnet import EfficientNetLite0
from fcn_jax.models.backbones.googlenet import GoogLeNet
from fcn_jax.models.backbones.lenet import LeNet
from fcn_jax.models.backbones.mobilenet import MobileNetV3Large
from fcn_jax.models.backbones.resnet import ResNet
from fcn_jax.models.backbones.small import SmallNet
from fcn_jax.models.backbones.squeezenet import SqueezeNet
from fcn_jax.models.backbones.vgg import VGG16
from fcn_jax.models.fcn import FCN
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.layers import BatchNorm
from fcn_jax.testing.recording import UNOPTIMISED

SIZES = [(97, 131), (120, 80), (33, 140)]
CANVAS = (128, 160)
VOC = Path(__file__).parents[3] / "shared/data/VOCdevkit/VOC2012"

BACKBONES: dict[str, Callable[[], Backbone]] = {
    "small": lambda: SmallNet(rngs=nnx.Rngs(0)),
    "lenet": lambda: LeNet(rngs=nnx.Rngs(0)),
    "squeezenet": lambda: SqueezeNet(rngs=nnx.Rngs(0)),
    "alexnet": lambda: AlexNet(fc_features=16, rngs=nnx.Rngs(0)),
    "alexnet_caffe paper": lambda: alexnet_caffe(padding="paper", fc_features=16, rngs=nnx.Rngs(0)),
    "vgg16": lambda: VGG16(fc_features=16, rngs=nnx.Rngs(0)),
    "googlenet": lambda: GoogLeNet(rngs=nnx.Rngs(0)),
    "resnet18": lambda: ResNet(18, rngs=nnx.Rngs(0)),
    "resnet50 stride 8": lambda: ResNet(50, output_stride=8, rngs=nnx.Rngs(0)),
    "mobilenet_v3_large": lambda: MobileNetV3Large(rngs=nnx.Rngs(0)),
    "efficientnet_lite0": lambda: EfficientNetLite0(rngs=nnx.Rngs(0)),
}

DISTINCT = (
    "small",
    "squeezenet",
    "alexnet_caffe paper",
    "vgg16",
    "resnet50 stride 8",
)
"""Backbones that are compared by default, the others by -m long. `check_backbone` compares the
features of each, in tests/test_testing.py."""

HEADS: dict[str, dict[str, Any]] = {
    "32s fixed": {"skips": 0, "upsampling": "fixed"},
    "16s half pixel": {"skips": 1, "half_pixel": True},
    "8s learned": {"skips": 2},
    "32s context": {"skips": 0, "context_features": 8},
    "torchvision's": {"skips": 0, "hidden": True, "upsampling": "interpolate"},
}


class Given:
    """A backbone that returns features which were computed before."""

    def __init__(self, backbone: Backbone):
        self.preprocessing = backbone.preprocessing
        self.channels, self.grids = backbone.channels, backbone.grids
        self.features: dict[int, FeatureMap] = {}

    def __call__(self, image: FeatureMap, **_: Any) -> dict[int, FeatureMap]:
        return self.features


class EveryHead(nnx.Module):
    """One backbone with every head, so that the backbone is compiled once."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        self.given = Given(backbone)
        most = len(backbone.channels) - 1
        self.networks = nnx.List(
            FCN(self.given, 5, **{**head, "skips": min(head["skips"], most)}, rngs=nnx.Rngs(0))
            for head in HEADS.values()
        )

    def __call__(
        self, image: jax.Array, valid: jax.Array | None = None, *, train: bool = False
    ) -> dict[str, jax.Array]:
        pixels = FeatureMap(self.backbone.preprocessing(image, jnp.float32), valid)
        self.given.features = self.backbone(pixels, train=train)
        return {
            name: network(image, train=train, valid=valid)
            for name, network in zip(HEADS, self.networks, strict=True)
        }


def images_of_three_sizes() -> list[np.ndarray]:
    """Returns crops of photos if VOC is available, else crops of drawn images."""
    photos = sorted((VOC / "JPEGImages").glob("*.jpg"))[:3]
    pictures = [read_image(path) for path in photos] or [
        shapes.draw(f"val_{index:03}")[0] for index in range(3)
    ]
    tiled = [np.tile(picture, (3, 3, 1)) for picture in pictures]
    return [picture[:height, :width] for picture, (height, width) in zip(tiled, SIZES, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in DISTINCT else pytest.mark.long) for name in BACKBONES],
)
def test_images_on_canvases_have_the_logits_of_each_image_alone(name: str, randomised: Any) -> None:
    model = randomised(lambda: EveryHead(BACKBONES[name]()))
    channels = model.backbone.preprocessing.channels
    images = [picture[..., :channels] for picture in images_of_three_sizes()]
    canvases = np.full((len(SIZES), *CANVAS, channels), 77, np.uint8)
    for canvas, picture in zip(canvases, images, strict=True):
        canvas[: picture.shape[0], : picture.shape[1]] = picture
    sizes = jnp.asarray(SIZES, jnp.int32)
    _normalise(model, canvases, sizes)
    graph, state = nnx.split(model)
    run = jax.jit(
        lambda state, *arguments: nnx.merge(graph, state)(*arguments),
        compiler_options=UNOPTIMISED,
    )
    together = run(state, canvases, sizes)
    worst, ties = 0.0, 0
    for index, (picture, (height, width)) in enumerate(zip(images, SIZES, strict=True)):
        alone = run(state, picture[None])
        for head, logits in alone.items():
            expected = np.asarray(logits[0])
            ours = np.asarray(together[head][index, :height, :width])
            reach = np.ptp(expected)
            assert reach > 0
            difference = float(np.abs(ours - expected).max() / reach)
            worst = max(worst, difference)
            assert difference < 1e-4, head
            ties += _ties(ours, expected)
    print(f"{name}: logits differ by at most {worst:.1e} of their range, classes on {ties} pixels")


def _normalise(model: EveryHead, canvases: np.ndarray, sizes: jax.Array) -> None:
    """Sets the statistics of batch normalisation to those of these images.

    With random statistics, the features of deep networks grow and cancel until rounding matters.
    """
    norms = [m for _, m in nnx.iter_graph(model) if isinstance(m, BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = 0.0
    graph, state = nnx.split(model)

    def statistics(state: Any) -> Any:
        model = nnx.merge(graph, state)
        model(canvases, sizes, train=True)
        return nnx.state(model)

    nnx.update(model, jax.jit(statistics, compiler_options=UNOPTIMISED)(state))


def _ties(ours: np.ndarray, expected: np.ndarray) -> int:
    """Counts the pixels of another class; asserts that their two best scores differ by rounding."""
    differ = ours.argmax(-1) != expected.argmax(-1)
    second, best = np.moveaxis(np.sort(expected[differ], axis=-1)[..., -2:], -1, 0)
    assert (best - second <= 1e-5 * np.ptp(expected)).all()
    assert differ.mean() < 1e-3
    return int(differ.sum())
