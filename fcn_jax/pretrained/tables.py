"""Where each tensor of a source belongs: one table per source, our name → theirs.

Ours are the paths of parameters and batch statistics joined by '/'. The layout says how a tensor
is turned: OIHW convolutions and (out, in) fully connected layers become HWIO kernels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fcn_jax.models.backbones.vgg import BLOCKS

SQUEEZENET_FIRES = tuple(f"fire{number}" for number in range(2, 10))

Layout = Callable[[np.ndarray], np.ndarray]
Table = dict[str, tuple[str, Layout]]


def as_it_is(tensor: np.ndarray) -> np.ndarray:
    return tensor


def from_oihw(tensor: np.ndarray) -> np.ndarray:
    return tensor.transpose(2, 3, 1, 0)


def from_fully_connected(height: int, width: int) -> Layout:
    """(out, in·h·w) to a kernel (h, w, in, out): the same numbers as a convolution."""

    def reshape(tensor: np.ndarray) -> np.ndarray:
        return from_oihw(tensor.reshape(tensor.shape[0], -1, height, width))

    return reshape


@dataclass(frozen=True)
class Source:
    """A published set of weights.

    signature: a name that only this source has. table: our name → (their name, layout).
    left_out: prefixes and endings of their tensors that a segmentation network has no place for.
    absent: our layers that the source does not have and that keep their initial values.
    """

    title: str
    backbone: str
    signature: str
    table: Table
    left_out: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


def squeezenet_caffe() -> Source:
    """SqueezeNet 1.1 under the layer names of its authors' Caffe model."""
    layers = {"conv1": "conv1"}
    for fire in SQUEEZENET_FIRES:
        for part in ("squeeze1x1", "expand1x1", "expand3x3"):
            layers[f"{fire}/{part}"] = f"{fire}/{part}"
    return Source(
        "SqueezeNet 1.1, Caffe names",
        "squeezenet",
        "fire2/squeeze1x1/w",
        _kernels_and_biases(layers, "/w", "/b", from_oihw),
        left_out=("conv10/",),
    )


def squeezenet_torchvision() -> Source:
    """torchvision's `squeezenet1_1`."""
    positions = dict(zip(SQUEEZENET_FIRES, (3, 4, 6, 7, 9, 10, 11, 12), strict=True))
    layers = {"conv1": "features.0"}
    for fire, position in positions.items():
        for part in ("squeeze", "expand1x1", "expand3x3"):
            ours = "squeeze1x1" if part == "squeeze" else part
            layers[f"{fire}/{ours}"] = f"features.{position}.{part}"
    return Source(
        "SqueezeNet 1.1, torchvision",
        "squeezenet",
        "features.3.squeeze.weight",
        _kernels_and_biases(layers, ".weight", ".bias", from_oihw),
        left_out=("classifier.",),
    )


def vgg16_trunk() -> Source:
    """The 13 convolutions of VGG16 under Caffe's layer names, kernels already HWIO."""
    layers = {name: name for name in _vgg16_convolutions()}
    return Source(
        "VGG16 convolutions, Caffe names",
        "vgg16",
        "conv5_3/kernel",
        _kernels_and_biases(layers, "/kernel", "/bias", as_it_is),
        absent=("fc6", "fc7"),
    )


def vgg16_torchvision() -> Source:
    """torchvision's `vgg16`, its classifier's first two layers as fc6 and fc7."""
    layers: dict[str, str] = {}
    position = 0
    for block, (_, depth) in enumerate(BLOCKS, start=1):
        for layer in range(1, depth + 1):
            layers[f"conv{block}_{layer}"] = f"features.{position}"
            position += 2
        position += 1
    table = _kernels_and_biases(layers, ".weight", ".bias", from_oihw)
    table |= _kernels_and_biases(
        {"fc6": "classifier.0"}, ".weight", ".bias", from_fully_connected(7, 7)
    )
    table |= _kernels_and_biases(
        {"fc7": "classifier.3"}, ".weight", ".bias", from_fully_connected(1, 1)
    )
    return Source(
        "VGG16, torchvision", "vgg16", "features.28.weight", table, left_out=("classifier.6.",)
    )


def resnet18_torchvision() -> Source:
    """torchvision's `resnet18`."""
    table: Table = {"backbone/conv1/kernel": ("conv1.weight", from_oihw)}
    table |= _batch_norm("bn1", "bn1")
    for layer in range(1, 5):
        for block in range(2):
            ours, theirs = f"layer{layer}_{block}", f"layer{layer}.{block}"
            for part in (1, 2):
                kernel = f"{theirs}.conv{part}.weight"
                table[f"backbone/{ours}/conv{part}/kernel"] = (kernel, from_oihw)
                table |= _batch_norm(f"{ours}/bn{part}", f"{theirs}.bn{part}")
            if layer > 1 and block == 0:
                kernel = f"{theirs}.downsample.0.weight"
                table[f"backbone/{ours}/shortcut/conv/kernel"] = (kernel, from_oihw)
                table |= _batch_norm(f"{ours}/shortcut/bn", f"{theirs}.downsample.1")
    return Source(
        "ResNet-18, torchvision",
        "resnet18",
        "layer4.1.bn2.running_mean",
        table,
        left_out=("fc.", "num_batches_tracked"),
    )


SOURCES = (
    squeezenet_caffe,
    squeezenet_torchvision,
    vgg16_trunk,
    vgg16_torchvision,
    resnet18_torchvision,
)


def _vgg16_convolutions() -> list[str]:
    return [
        f"conv{block}_{layer}"
        for block, (_, depth) in enumerate(BLOCKS, start=1)
        for layer in range(1, depth + 1)
    ]


def _kernels_and_biases(
    layers: dict[str, str], kernel_end: str, bias_end: str, layout: Layout
) -> Table:
    table: Table = {}
    for ours, theirs in layers.items():
        table[f"backbone/{ours}/kernel"] = (theirs + kernel_end, layout)
        table[f"backbone/{ours}/bias"] = (theirs + bias_end, as_it_is)
    return table


def _batch_norm(ours: str, theirs: str) -> Table:
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return {f"backbone/{ours}/{a}": (f"{theirs}.{b}", as_it_is) for a, b in names.items()}
