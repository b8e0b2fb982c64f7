from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.models.backbones.preprocess import CAFFE, TORCHVISION
from fcn_jax.models.backbones.resnet import ResNet
from fcn_jax.models.backbones.small import SmallNet
from fcn_jax.models.backbones.squeezenet import SqueezeNet
from fcn_jax.models.backbones.vgg import VGG16
from fcn_jax.models.layers import FeatureMap

BACKBONES: dict[str, Callable[[], Any]] = {
    "small": lambda: SmallNet(features=(4, 6, 8, 10, 12), rngs=nnx.Rngs(0)),
    "squeezenet": lambda: SqueezeNet(rngs=nnx.Rngs(0)),
    "resnet18": lambda: ResNet(18, rngs=nnx.Rngs(0)),
    "vgg16": lambda: VGG16(fc_features=16, rngs=nnx.Rngs(0)),
}


@nnx.jit(static_argnames="train")
def run(backbone: Any, image: FeatureMap, train: bool = False) -> dict[int, FeatureMap]:
    return backbone(image, train=train)


def image(*size: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, *size, 3)).astype(np.float32)


class Peer:
    """The operations of PyTorch, on the weights of a module of ours."""

    def __init__(self, torch: ModuleType, module: Any):
        self.torch = torch
        self.functional: Any = torch.nn.functional
        self.weights = nnx.to_pure_dict(nnx.state(module))

    def find(self, name: str) -> dict[str, Any]:
        found = self.weights
        for part in name.split("."):
            found = found[part]
        return {key: self.torch.tensor(np.array(value)) for key, value in found.items()}

    def conv(self, x: Any, name: str, stride: int = 1, padding: int = 0) -> Any:
        weights = self.find(name)
        kernel = weights["kernel"].permute(3, 2, 0, 1)
        return self.functional.conv2d(x, kernel, weights.get("bias"), stride, padding)

    def conv_relu(self, x: Any, name: str, stride: int = 1, padding: int = 0) -> Any:
        return self.functional.relu(self.conv(x, name, stride, padding))

    def batch_norm(self, x: Any, name: str, train: bool) -> Any:
        norm = self.find(name)
        return self.functional.batch_norm(
            x, norm["mean"], norm["var"], norm["scale"], norm["bias"], training=train
        )


def squeezenet(peer: Peer, x: Any, train: bool) -> dict[int, Any]:
    features = {2: peer.conv_relu(x, "conv1", 2, 1)}
    x = features[2]
    for name in [f"fire{number}" for number in range(2, 10)]:
        if name in ("fire2", "fire4", "fire6"):
            x = peer.functional.max_pool2d(x, 3, 2, 1)
        x = peer.conv_relu(x, f"{name}.squeeze1x1")
        sides = [
            peer.conv_relu(x, f"{name}.expand1x1"),
            peer.conv_relu(x, f"{name}.expand3x3", padding=1),
        ]
        x = peer.torch.cat(sides, 1)
        if name in ("fire3", "fire5", "fire9"):
            features[{"fire3": 4, "fire5": 8, "fire9": 16}[name]] = x
    return features


def vgg16(peer: Peer, x: Any, train: bool) -> dict[int, Any]:
    features = {}
    for block, depth in enumerate((2, 2, 3, 3, 3), start=1):
        for layer in range(1, depth + 1):
            x = peer.conv_relu(x, f"conv{block}_{layer}", padding=1)
        x = features[2**block] = peer.functional.max_pool2d(x, 2, 2, ceil_mode=True)
    features[32] = peer.conv_relu(peer.conv_relu(x, "fc6", padding=3), "fc7")
    return features


def resnet18(peer: Peer, x: Any, train: bool) -> dict[int, Any]:
    def block(x: Any, name: str, stride: int) -> Any:
        y = peer.conv(x, f"{name}.conv1", stride, 1)
        y = peer.functional.relu(peer.batch_norm(y, f"{name}.bn1", train))
        y = peer.batch_norm(peer.conv(y, f"{name}.conv2", 1, 1), f"{name}.bn2", train)
        if name in ("layer2_0", "layer3_0", "layer4_0"):
            x = peer.conv(x, f"{name}.shortcut.conv", stride)
            x = peer.batch_norm(x, f"{name}.shortcut.bn", train)
        return peer.functional.relu(x + y)

    x = peer.functional.relu(peer.batch_norm(peer.conv(x, "conv1", 2, 3), "bn1", train))
    features = {2: x}
    x = peer.functional.max_pool2d(x, 3, 2, 1)
    for layer in (1, 2, 3, 4):
        x = block(x, f"layer{layer}_0", 1 if layer == 1 else 2)
        x = block(x, f"layer{layer}_1", 1)
        features[2 ** (layer + 1)] = x
    return features


@pytest.mark.parametrize(
    ("name", "peer_network", "train"),
    [
        ("squeezenet", squeezenet, False),
        ("vgg16", vgg16, False),
        ("resnet18", resnet18, False),
        ("resnet18", resnet18, True),
    ],
)
def test_features_are_pytorchs_at_every_stride(
    torch: ModuleType, randomised: Any, name: str, peer_network: Any, train: bool
) -> None:
    backbone = randomised(BACKBONES[name])
    values = image(45, 70)
    with torch.no_grad():
        expected = peer_network(
            Peer(torch, backbone), torch.tensor(values.transpose(0, 3, 1, 2).copy()), train
        )
    features = run(backbone, FeatureMap(jnp.asarray(values)), train=train)
    assert features.keys() == expected.keys() == backbone.channels.keys()
    for stride, feature in features.items():
        assert feature.values.shape == (
            2,
            -(-45 // stride),
            -(-70 // stride),
            backbone.channels[stride],
        )
        peer_values = expected[stride].numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(
            feature.values, peer_values, atol=1e-4 * np.abs(peer_values).max(), rtol=0
        )


@pytest.mark.parametrize("name", BACKBONES)
def test_features_are_centred_where_the_grids_say(name: str, randomised: Any) -> None:
    # nan spreads to whatever sees it. Of images of one column, some are nan above a row, some from
    # it on, for as many rows as the stride: so each position's first and last row of sight show.
    backbone = randomised(BACKBONES[name])
    cuts_count = max(backbone.channels)
    height = {"vgg16": 512, "resnet18": 512}.get(name, 256)
    rows = np.arange(height)[None, :, None, None]
    cuts = height // 2 + np.arange(cuts_count)[:, None, None, None]
    images = np.where(np.concatenate([rows < cuts, rows >= cuts]), np.nan, 0) * np.ones(3)
    features = run(backbone, FeatureMap(jnp.asarray(images, jnp.float32)))
    for stride, feature in features.items():
        seen = np.isnan(np.asarray(feature.values)[:, :, 0]).any(-1)
        above, below = seen[:cuts_count].sum(0), seen[cuts_count:].sum(0)
        place = stride * np.arange(seen.shape[1])
        first = height // 2 + cuts_count - 1 - above - place
        last = height // 2 - 1 + below - place
        # Those that some cuts show and others do not; all look equally far.
        (first,) = set(first[(above > 0) & (above < cuts_count)])
        (last,) = set(last[(below > 0) & (below < cuts_count)])
        assert (first + last) / 2 == backbone.grids[stride].offset, stride


@pytest.mark.parametrize("name", BACKBONES)
def test_features_of_an_image_do_not_depend_on_its_canvas(name: str, randomised: Any) -> None:
    backbone = randomised(BACKBONES[name])
    sizes = [(37, 53), (64, 33)]
    canvases = 100 * image(70, 64)
    alone = []
    for index, (height, width) in enumerate(sizes):
        picture = image(height, width)[index : index + 1]
        canvases[index, :height, :width] = picture[0]
        alone.append(run(backbone, FeatureMap(jnp.asarray(picture))))
    together = run(backbone, FeatureMap(jnp.asarray(canvases), jnp.asarray(sizes, jnp.int32)))
    for stride, feature in together.items():
        assert feature.valid is not None
        for index, size in enumerate(sizes):
            height, width = (-(-n // stride) for n in size)
            assert feature.valid[index].tolist() == [height, width]
            expected = np.asarray(alone[index][stride].values[0])
            np.testing.assert_allclose(
                feature.values[index, :height, :width],
                expected,
                atol=1e-5 * np.abs(expected).max(),
                rtol=0,
            )


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
    assert CAFFE(red, jnp.bfloat16).dtype == jnp.bfloat16
