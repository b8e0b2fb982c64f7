"""A convolutionalized classifier gives the classifier's scores, and maps of them."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import heatmap
from fcn_jax.models.backbones.lenet import LeNet
from fcn_jax.models.backbones.preprocess import Preprocessing
from fcn_jax.models.convolutionalize import Average, Classifier, FullyConnected, convolutionalize
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import PIXELS, Grid
from fcn_jax.models.layers import Conv, max_pool
from tests.backbone_peers import published

score = nnx.jit(Classifier.__call__)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Pixels(nnx.Module):
    """A backbone whose features are the pixels."""

    preprocessing = Preprocessing(mean=(0.0,), std=(1.0,))

    def __init__(self):
        self.channels = {1: 1}
        self.grids = {1: PIXELS}

    def __call__(self, image: FeatureMap, **arguments: Any) -> dict[int, FeatureMap]:
        return {1: image}


class Unpadded(nnx.Module):
    """A convolution and a pooling without padding."""

    preprocessing = Preprocessing(mean=(100.0, 110.0, 120.0), std=(50.0, 60.0, 70.0))

    def __init__(self, kernel: int, pooling: int):
        self.pooling = pooling
        self.conv = Conv(3, 4, (kernel, kernel), padding=0, rngs=nnx.Rngs(0))
        grid = PIXELS.after(kernel, padding=0).after(pooling, stride=pooling, padding=0)
        self.channels = {pooling: 4}
        self.grids = {pooling: grid}

    def __call__(self, image: FeatureMap, **arguments: Any) -> dict[int, FeatureMap]:
        return {self.pooling: max_pool(self.conv(image), self.pooling, self.pooling)}


def test_a_fully_connected_layer_slides_as_computed_by_hand():
    weight = np.array([[1, 10, 100, 1000], [1, 0, 0, -1]])
    net = convolutionalize(Pixels(), [FullyConnected(weight, np.array([0, 5]), window=2)])
    image = jnp.array([[1, 2, 3], [4, 5, 6]])[None, :, :, None]
    # The first window is 1 2 / 4 5, the second 2 3 / 5 6.
    np.testing.assert_array_equal(score(net, image), [[[[5421, 5 + 1 - 5], [6532, 5 + 2 - 6]]]])
    assert net.grid == Grid(1, 0.5)
    assert net.num_classes == 2


def test_an_average_before_or_after_a_rectified_layer_as_computed_by_hand():
    layer = FullyConnected(np.array([[1], [-1]]), np.array([0, 3]))
    image = jnp.array([[1, 2, 6], [1, 4, 0]])[None, :, :, None]
    before = convolutionalize(Pixels(), [Average(2), layer, jax.nn.relu])
    np.testing.assert_array_equal(score(before, image), [[[[2, 1], [3, 0]]]])
    after = convolutionalize(Pixels(), [layer, jax.nn.relu, Average(2)])
    np.testing.assert_array_equal(score(after, image), [[[[2, 1.25], [3, 1]]]])
    assert before.grid == after.grid == Grid(1, 0.5)


def test_a_hidden_layer_may_have_any_activation():
    weights = normal(0, 3, 4), normal(1, 2, 3)
    biases = normal(2, 3), normal(3, 2)
    steps = [
        FullyConnected(weights[0], biases[0], window=2),
        jax.nn.hard_swish,
        FullyConnected(weights[1], biases[1]),
    ]
    image = normal(4, 1, 2, 2, 1)
    hidden = weights[0] @ image.ravel() + biases[0]
    expected = weights[1] @ (hidden * np.clip(hidden + 3, 0, 6) / 6) + biases[1]
    net = convolutionalize(Pixels(), steps)
    np.testing.assert_allclose(score(net, image)[0, 0, 0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kernel", "pooling", "side"), [(3, 2, 3), (4, 3, 2), (1, 1, 5)])
def test_without_padding_every_entry_is_the_score_of_its_crop(kernel, pooling, side):
    backbone = Unpadded(kernel, pooling)
    weight, bias = normal(1, 5, 4 * side * side), normal(2, 5)
    net = convolutionalize(backbone, [FullyConnected(weight, bias, side)])
    image = np.random.default_rng(0).integers(256, size=(1, 23, 31, 3)).astype(np.uint8)
    window = kernel - 1 + pooling * side
    scores = np.asarray(score(net, image))
    assert scores.shape[1:3] == tuple((n - window) // pooling + 1 for n in (23, 31))
    assert net.grid == Grid(pooling, (window - 1) / 2)
    corners = [(row * pooling, column * pooling) for row, column in np.ndindex(scores.shape[1:3])]
    crops = np.concatenate([image[:, y : y + window, x : x + window] for y, x in corners])
    features = backbone(FeatureMap(backbone.preprocessing(jnp.asarray(crops))))[pooling].values
    flat = np.asarray(features).transpose(0, 3, 1, 2).reshape(len(crops), -1)  # channels first
    np.testing.assert_allclose(scores.reshape(-1, 5), flat @ weight.T + bias, atol=2e-4)


def test_lenet_has_one_position_on_its_own_size():
    layer = FullyConnected(normal(0, 7, 16 * 5 * 5), normal(1, 7), window=5)
    net = convolutionalize(LeNet(rngs=nnx.Rngs(0)), [layer])
    assert net.grid == Grid(4, 15.5)  # 15.5 is the middle of 32
    scores = nnx.eval_shape(Classifier.__call__, net, jnp.zeros((2, 32, 32, 1)))
    assert scores.shape == (2, 1, 1, 7)
    with pytest.raises(ValueError, match="smaller than the classifier's input"):
        nnx.eval_shape(Classifier.__call__, net, jnp.zeros((1, 31, 100, 1)))


def test_a_weight_that_does_not_fit_is_refused_with_its_shape():
    layer = FullyConnected(normal(0, 7, 100), normal(1, 7), window=5)
    with pytest.raises(ValueError, match=r"\(7, 100\)\) must be \(7, 16·5·5\)"):
        convolutionalize(LeNet(rngs=nnx.Rngs(0)), [layer])


# torchvision's and timm's classifiers, with random weights


def classifier_file(network: Any, path: Path) -> str:
    np.savez(path, **{name: value.numpy() for name, value in network.state_dict().items()})
    return str(path)


def peer_scores(network: Any, torch: ModuleType, image: np.ndarray) -> np.ndarray:
    """Returns the classifier's scores, (b, 1000), of images (b, h, w, 3) in 0…255."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = ((image / 255 - mean) / std).astype(np.float32)
    with torch.no_grad():
        return network(torch.tensor(normalised.transpose(0, 3, 1, 2))).numpy()


def close(ours: Any, theirs: np.ndarray, tolerance: float = 1e-4) -> bool:
    """Returns whether scores differ by less than `tolerance` times their range."""
    return bool(np.abs(np.asarray(ours) - theirs).max() < tolerance * np.ptp(theirs))


@pytest.mark.parametrize(
    "name",
    [
        "alexnet",
        pytest.param("vgg16", marks=pytest.mark.slow),
        pytest.param("vgg16_bn", marks=pytest.mark.long),
        "squeezenet1_1",
        "googlenet",
        "resnet18",
        pytest.param("resnet34", marks=pytest.mark.long),
        "mobilenet_v3_large",
        "efficientnet_lite0",
    ],
)
def test_on_its_own_size_it_gives_its_peers_scores(name, timm, torch, tmp_path):
    # torchvision builds GoogLeNet this way for its published weights.
    arguments = {"transform_input": True} if name == "googlenet" else {}
    network = published(timm, name, **arguments).eval()
    net = heatmap.load_classifier(classifier_file(network, tmp_path / "w.npz"))
    image = np.random.default_rng(0).integers(256, size=(1, 224, 224, 3)).astype(np.uint8)
    scores = score(net, image)
    assert scores.shape == (1, 1, 1, 1000)
    assert close(scores[:, 0, 0], peer_scores(network, torch, image))


@pytest.mark.parametrize(
    ("name", "stride", "size"), [("squeezenet1_1", 16, (304, 288)), ("resnet18", 32, (288, 320))]
)
def test_larger_images_give_what_torchvisions_features_average_to(
    name: str, stride: int, size: Sequence[int], timm, torch, tmp_path
):
    """With padding in the backbone, positions do not have the scores of crops.

    They have the scores of torchvision's last layer on the average, over each window, of
    torchvision's features of the whole image.
    """
    network = published(timm, name)
    net = heatmap.load_classifier(classifier_file(network, tmp_path / "w.npz"))
    image = np.random.default_rng(0).integers(256, size=(1, *size, 3)).astype(np.uint8)
    if name == "resnet18":
        *trunk, _, linear = network.children()
        peer = torch.nn.Sequential(
            *trunk, torch.nn.AvgPool2d(7, stride=1), pointwise(linear, torch)
        )
    else:
        head = network.classifier[:-1]
        peer = torch.nn.Sequential(network.features, *head, torch.nn.AvgPool2d(13, stride=1))
    expected = peer_scores(peer.eval(), torch, image)
    scores = np.asarray(score(net, image))
    assert net.grid.stride == stride
    assert scores.shape[1:3] == expected.shape[2:] != (1, 1)
    assert close(scores, expected.transpose(0, 2, 3, 1))


def pointwise(linear: Any, torch: ModuleType) -> Any:
    conv = torch.nn.Conv2d(linear.in_features, linear.out_features, 1)
    conv.weight.data = linear.weight.data[:, :, None, None]
    conv.bias.data = linear.bias.data
    return conv
