"""The FCN authors' Caffe networks give the same numbers when OpenCV and when we run them.

Each network is written here as a prototxt and a .caffemodel of random weights, layer by layer as in
the authors' code (fcn.berkeleyvision.org), with narrow layers.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import pretrained
from fcn_jax.heatmap import load_classifier
from fcn_jax.models.backbones import vgg
from fcn_jax.models.backbones.alexnet import alexnet_caffe
from fcn_jax.models.backbones.vgg import VGG16
from fcn_jax.models.fcn import FCN
from tests.peers import FC_FEATURES, check_segmentation, pictures

CLASSES = 21


@pytest.fixture
def opencv() -> ModuleType:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        pytest.skip("OpenCV reads no Caffe networks from version 5 on")
    return cv2


def varint(number: int) -> bytes:
    encoded = b""
    while number > 127:
        encoded += bytes([number & 127 | 128])
        number >>= 7
    return encoded + bytes([number])


def field(number: int, content: bytes) -> bytes:
    """Returns a length-delimited field of a protocol buffer."""
    return varint(number << 3 | 2) + varint(len(content)) + content


class CaffeNet:
    """A network in Caffe's terms: a prototxt, and a .caffemodel written byte by byte."""

    def __init__(self) -> None:
        self.text = 'input: "data"\ninput_shape { dim: 1 dim: 3 dim: 64 dim: 64 }\n'
        self.model = field(1, b"random")
        self.random = np.random.default_rng(0)

    def layer(
        self,
        name: str,
        kind: str,
        bottoms: Sequence[str],
        settings: str = "",
        blobs: Sequence[np.ndarray] = (),
    ) -> str:
        below = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
        self.text += f'layer {{ name: "{name}" type: "{kind}" {below} top: "{name}" {settings} }}\n'
        content = field(1, name.encode()) + field(2, kind.encode())
        for blob in blobs:
            shape = field(7, field(1, b"".join(map(varint, blob.shape))))
            data = field(5, blob.astype("<f4").tobytes())
            content += field(7, shape + data)
        self.model += field(100, content)
        return name

    def convolution(
        self, name: str, x: str, shape: tuple[int, int, int], pad: int = 0, stride: int = 1,
        group: int = 1,
    ) -> str:  # fmt: skip
        """shape: (out, in, side of the kernel)."""
        features, before, side = shape
        fan_in = before // group * side**2
        blobs = [
            self.random.normal(0, (2 / fan_in) ** 0.5, (features, before // group, side, side)),
            self.random.normal(0, 0.1, features),
        ]
        settings = (
            f"convolution_param {{ num_output: {features} kernel_size: {side} pad: {pad} "
            f"stride: {stride} group: {group} }}"
        )
        return self.layer(name, "Convolution", [x], settings, blobs)

    def inner_product(self, name: str, x: str, shape: tuple[int, int]) -> str:
        """shape: (out, in)."""
        weight = self.random.standard_normal(shape, np.float32) * (2 / shape[1]) ** 0.5
        bias = self.random.normal(0, 0.1, shape[0])
        settings = f"inner_product_param {{ num_output: {shape[0]} }}"
        return self.layer(name, "InnerProduct", [x], settings, [weight, bias])

    def rectified(self, x: str) -> str:
        return self.layer(f"relu_{x}", "ReLU", [x])

    def pool(self, name: str, x: str, side: int) -> str:
        settings = f"pooling_param {{ pool: MAX kernel_size: {side} stride: 2 }}"
        return self.layer(name, "Pooling", [x], settings)

    def deconvolution(self, name: str, x: str, side: int, stride: int) -> str:
        settings = (
            f"convolution_param {{ num_output: {CLASSES} kernel_size: {side} stride: {stride} "
            "bias_term: false }"
        )
        kernel = self.random.normal(0, 1 / side, (CLASSES, CLASSES, side, side))
        return self.layer(name, "Deconvolution", [x], settings, [kernel])

    def crop(self, name: str, x: str, like: str, offset: int) -> str:
        settings = f"crop_param {{ axis: 2 offset: {offset} }}"
        return self.layer(name, "Crop", [x, like], settings)

    def add(self, name: str, x: str, y: str) -> str:
        return self.layer(name, "Eltwise", [x, y], "eltwise_param { operation: SUM }")

    def fully_connected(self, x: str, features: int, side: int) -> str:
        x = self.rectified(self.convolution("fc6", x, (FC_FEATURES, features, side)))
        return self.rectified(self.convolution("fc7", x, (FC_FEATURES, FC_FEATURES, 1)))

    def save(self, folder: Path) -> None:
        (folder / "net.prototxt").write_text(self.text)
        (folder / "net.caffemodel").write_bytes(self.model)


def vgg16(skips: int, *, at_once: bool = False) -> CaffeNet:
    net = CaffeNet()
    x, before = "data", 3
    for block, (features, depth) in enumerate(vgg.BLOCKS, start=1):
        for number in range(1, depth + 1):
            pad = 100 if block == number == 1 else 1
            x = net.convolution(f"conv{block}_{number}", x, (features, before, 3), pad)
            x, before = net.rectified(x), features
        x = net.pool(f"pool{block}", x, 2)
    x = net.convolution("score_fr", net.fully_connected(x, before, 7), (CLASSES, FC_FEATURES, 1))
    if skips == 0:
        return finished(net, net.deconvolution("upscore", x, 64, 32), 19)
    x = net.deconvolution("upscore2", x, 4, 2)
    x = net.add("fuse_pool4", x, skip(net, 4, vgg.BLOCKS[3][0], x, 5, 0.01 if at_once else 1.0))
    if skips == 1:
        return finished(net, net.deconvolution("upscore16", x, 32, 16), 27)
    x = net.deconvolution("upscore_pool4", x, 4, 2)
    x = net.add("fuse_pool3", x, skip(net, 3, vgg.BLOCKS[2][0], x, 9, 0.0001 if at_once else 1.0))
    return finished(net, net.deconvolution("upscore8", x, 16, 8), 31)


def skip(net: CaffeNet, block: int, features: int, like: str, offset: int, scale: float) -> str:
    x = f"pool{block}"
    if scale != 1.0:
        factors = np.full(features, scale)
        x = net.layer(f"scale_{x}", "Scale", [x], "", [factors])
    x = net.convolution(f"score_pool{block}", x, (CLASSES, features, 1))
    return net.crop(f"score_pool{block}c", x, like, offset)


def alexnet() -> CaffeNet:
    net = CaffeNet()
    x = net.fully_connected(alexnet_features(net, pad=100), 256, 6)
    x = net.convolution("score_fr", x, (CLASSES, FC_FEATURES, 1))
    return finished(net, net.deconvolution("upscore", x, 63, 32), 18)


def caffenet() -> CaffeNet:
    """Returns the classifier bvlc_reference_caffenet, of 10 classes."""
    net = CaffeNet()
    x = net.inner_product("fc6", alexnet_features(net, pad=0), (FC_FEATURES, 256 * 6 * 6))
    x = net.inner_product("fc7", net.rectified(x), (FC_FEATURES, FC_FEATURES))
    net.inner_product("fc8", net.rectified(x), (10, FC_FEATURES))
    return net


def alexnet_features(net: CaffeNet, pad: int) -> str:
    def normalised(name: str, x: str) -> str:
        return net.layer(name, "LRN", [x], "lrn_param { local_size: 5 alpha: 1e-4 beta: 0.75 }")

    x = net.rectified(net.convolution("conv1", "data", (96, 3, 11), pad=pad, stride=4))
    x = normalised("norm1", net.pool("pool1", x, 3))
    x = net.rectified(net.convolution("conv2", x, (256, 96, 5), pad=2, group=2))
    x = normalised("norm2", net.pool("pool2", x, 3))
    x = net.rectified(net.convolution("conv3", x, (384, 256, 3), pad=1))
    x = net.rectified(net.convolution("conv4", x, (384, 384, 3), pad=1, group=2))
    x = net.rectified(net.convolution("conv5", x, (256, 384, 3), pad=1, group=2))
    return net.pool("pool5", x, 3)


def finished(net: CaffeNet, x: str, offset: int) -> CaffeNet:
    net.crop("score", x, "data", offset)
    return net


def ours_vgg16(skips: int, score_scales: Sequence[float] = ()) -> Callable[[], FCN]:
    def make() -> FCN:
        backbone = VGG16(padding="paper", rngs=nnx.Rngs(0))
        return FCN(backbone, CLASSES, skips=skips, score_scales=score_scales, rngs=nnx.Rngs(0))

    return make


def ours_alexnet() -> FCN:
    backbone = alexnet_caffe(padding="paper", rngs=nnx.Rngs(0))
    return FCN(backbone, CLASSES, skips=0, rngs=nnx.Rngs(0))


NETWORKS: dict[str, tuple[Callable[[], CaffeNet], Callable[[], FCN], str]] = {
    "voc-fcn32s": (lambda: vgg16(0), ours_vgg16(0), "FCN-32s on VGG16, Caffe"),
    "voc-fcn16s": (lambda: vgg16(1), ours_vgg16(1), "FCN-16s on VGG16, Caffe"),
    "voc-fcn8s": (lambda: vgg16(2), ours_vgg16(2), "FCN-8s on VGG16, Caffe"),
    "voc-fcn8s-atonce": (
        lambda: vgg16(2, at_once=True),
        ours_vgg16(2, (1.0, 0.01, 0.0001)),
        "FCN-8s at once on VGG16, Caffe",
    ),
    "voc-fcn-alexnet": (alexnet, ours_alexnet, "FCN-32s on AlexNet, Caffe"),
}


def blob_of(image: np.ndarray) -> np.ndarray:
    """Converts RGB uint8 (h, w, 3) like Caffe's data layer: float32 (1, 3, h, w), BGR."""
    mean = np.asarray([104.00699, 116.66877, 122.67892])
    return (image[..., ::-1] - mean).transpose(2, 0, 1)[None].astype(np.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_authors_networks(opencv: ModuleType, narrow: None, tmp_path: Path, name: str) -> None:
    theirs, ours, source = NETWORKS[name]
    theirs().save(tmp_path)
    weights = pretrained.read(str(tmp_path / "net.caffemodel"))
    assert weights.provenance.source == source
    peer = opencv.dnn.readNetFromCaffe(
        str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel")
    )

    def logits(image: np.ndarray) -> np.ndarray:
        peer.setInput(blob_of(image))
        return peer.forward("score")[0].transpose(1, 2, 0)

    check_segmentation(
        f"Caffe {name}", ours, tmp_path / "net.caffemodel", logits, [(64, 64), (45, 83), (97, 30)]
    )


def test_the_classifiers_inner_products_become_convolutions(
    opencv: ModuleType, narrow: None, tmp_path: Path
) -> None:
    caffenet().save(tmp_path)
    (image,) = pictures([(227, 227)])
    peer = opencv.dnn.readNetFromCaffe(
        str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel")
    )
    peer.setInput(blob_of(image))
    expected = peer.forward("fc8")
    scores = load_classifier(str(tmp_path / "net.caffemodel"))(jnp.asarray(image)[None])
    assert scores.shape == (1, 1, 1, 10)
    np.testing.assert_allclose(scores[0, 0], expected, atol=1e-4 * np.ptp(expected), rtol=0)
