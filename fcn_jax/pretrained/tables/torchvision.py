"""torchvision's classifiers and segmentation networks."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fcn_jax.data.voc import VOC_CLASSES
from fcn_jax.models.backbones import mobilenet
from fcn_jax.models.backbones.googlenet import INCEPTIONS
from fcn_jax.models.backbones.resnet import DEPTHS
from fcn_jax.models.backbones.vgg import BLOCKS
from fcn_jax.pretrained.source import (
    KernelLayout,
    Table,
    WeightSource,
    batch_norms,
    from_fully_connected,
    from_oihw,
    kernels,
    kernels_and_biases,
    to_oihw,
    unchanged,
)
from fcn_jax.pretrained.tables.caffe import SQUEEZENET_FIRES

COUNTERS = "num_batches_tracked"
"""Ending of the numbers of batches that PyTorch's normalisations count."""


def alexnet() -> WeightSource:
    """`alexnet`, its classifier's first two layers as fc6 and fc7."""
    positions = {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10}
    convolutions = {f"backbone/{ours}": f"features.{n}" for ours, n in positions.items()}
    table = kernels_and_biases(convolutions)
    table |= _fully_connected({"fc6": ("classifier.1", 6), "fc7": ("classifier.4", 1)})
    return WeightSource(
        "AlexNet, torchvision",
        "alexnet",
        "torchvision",
        has=("features.10.weight", "classifier.1.weight"),
        lacks=("features.12.weight", "features.12.squeeze.weight"),
        table=table,
        ignored=("classifier.6.",),
    )


def vgg16() -> WeightSource:
    """`vgg16`, its classifier's first two layers as fc6 and fc7."""
    layers = {f"backbone/conv{name}": f"features.{n}" for name, n in _vgg16_positions(2).items()}
    table = kernels_and_biases(layers)
    table |= _fully_connected({"fc6": ("classifier.0", 7), "fc7": ("classifier.3", 1)})
    return WeightSource(
        "VGG16, torchvision",
        "vgg16",
        "torchvision",
        has=("features.28.weight", "classifier.0.weight"),
        lacks=("features.30.weight", "features.1.running_mean"),
        table=table,
        ignored=("classifier.6.",),
    )


def vgg16_bn() -> WeightSource:
    """`vgg16_bn`."""
    positions = _vgg16_positions(3)
    table = kernels_and_biases({f"backbone/conv{k}": f"features.{n}" for k, n in positions.items()})
    table |= batch_norms({f"backbone/bn{k}": f"features.{n + 1}" for k, n in positions.items()})
    table |= _fully_connected({"fc6": ("classifier.0", 7), "fc7": ("classifier.3", 1)})
    return WeightSource(
        "VGG16 with batch normalisation, torchvision",
        "vgg16_bn",
        "torchvision",
        has=("features.41.running_mean", "classifier.0.weight"),
        lacks=("features.43.weight", "features.44.weight"),
        table=table,
        ignored=("classifier.6.", COUNTERS),
    )


def squeezenet() -> WeightSource:
    """`squeezenet1_1`."""
    layers = {"backbone/conv1": "features.0"}
    for fire, position in zip(SQUEEZENET_FIRES, (3, 4, 6, 7, 9, 10, 11, 12), strict=True):
        layers[f"backbone/{fire}/squeeze1x1"] = f"features.{position}.squeeze"
        for part in ("expand1x1", "expand3x3"):
            layers[f"backbone/{fire}/{part}"] = f"features.{position}.{part}"
    return WeightSource(
        "SqueezeNet 1.1, torchvision",
        "squeezenet",
        "torchvision",
        has=("features.3.squeeze.weight", "features.6.squeeze.weight"),
        table=kernels_and_biases(layers),
        ignored=("classifier.",),
    )


def googlenet() -> WeightSource:
    """`googlenet`, with the auxiliary classifiers or without."""
    layers = {f"backbone/{name}": name for name in ("conv1", "conv2", "conv3")}
    branches = {
        "branch1": "branch1",
        "branch2_reduce": "branch2.0",
        "branch2": "branch2.1",
        "branch3_reduce": "branch3.0",
        "branch3": "branch3.1",
        "branch4": "branch4.1",
    }
    for name in INCEPTIONS:
        for ours, theirs in branches.items():
            layers[f"backbone/inception{name}/{ours}"] = f"inception{name}.{theirs}"
    return WeightSource(
        "GoogLeNet, torchvision",
        "googlenet",
        "inception",
        has=("conv1.conv.weight", "inception5b.branch4.1.conv.weight"),
        table=_normalised(layers, "conv", "bn"),
        ignored=("aux1.", "aux2.", "fc.", COUNTERS),
    )


def mobilenet_v3_large() -> WeightSource:
    """`mobilenet_v3_large`."""
    last = len(mobilenet.BLOCKS) + 1
    layers = {"backbone/conv1": "features.0", "backbone/conv2": f"features.{last}"}
    excitations = {}
    in_features = 16
    for number, block in enumerate(mobilenet.BLOCKS, start=1):
        parts = ["expand"] * (block.expanded != in_features) + ["depthwise"]
        parts += ["excitation"] * (block.squeezed > 0) + ["project"]
        in_features = block.features
        for position, part in enumerate(parts):
            ours, theirs = f"backbone/block{number}/{part}", f"features.{number}.block.{position}"
            if part == "excitation":
                excitations[f"{ours}/squeeze"] = f"{theirs}.fc1"
                excitations[f"{ours}/excite"] = f"{theirs}.fc2"
            else:
                layers[ours] = theirs
    return WeightSource(
        "MobileNetV3-Large, torchvision",
        "mobilenet_v3_large",
        "torchvision",
        has=("features.15.block.2.fc1.weight", f"features.{last}.0.weight"),
        table=_normalised(layers, "0", "1") | kernels_and_biases(excitations),
        ignored=("classifier.", COUNTERS),
    )


def resnet(depth: int) -> WeightSource:
    """`resnet18` to `resnet152`."""
    return WeightSource(
        f"ResNet-{depth}, torchvision",
        f"resnet{depth}",
        "torchvision",
        table=_resnet_table(depth, prefix=""),
        ignored=("fc.", COUNTERS),
        **_resnet_marks(depth, prefix=""),
    )


def fcn_resnet(depth: int) -> WeightSource:
    """`segmentation.fcn_resnet50` and `fcn_resnet101`, with the auxiliary head or without."""
    table = _resnet_table(depth, prefix="backbone.")
    for ours, theirs in {
        "head/score32": "classifier",
        "auxiliary/score16": "aux_classifier",
    }.items():
        table |= kernels({f"{ours}/conv": f"{theirs}.0"})
        table |= batch_norms({f"{ours}/bn": f"{theirs}.1"})
        table |= kernels_and_biases({f"{ours}/score": f"{theirs}.4"})
    return WeightSource(
        f"FCN on ResNet-{depth}, torchvision",
        f"resnet{depth}",
        "torchvision",
        table=table,
        ignored=(COUNTERS,),
        model={
            "output_stride": 8,
            "skips": 0,
            "head": "hidden",
            "upsampling": "interpolate",
            "dropout": 0.1,
        },
        label_maps={"": VOC_CLASSES},
        # DeepLabV3 ends in classifier.4 as well, but has no convolution at 0.
        **_resnet_marks(
            depth, prefix="backbone.", also=("classifier.0.weight", "classifier.4.weight")
        ),
    )


def to_state_dict(source: WeightSource, ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of a source's table: our tensors under their names, as PyTorch holds them.

    Raises KeyError where one of the backbone or the head is missing. The counters of batches, which
    PyTorch does not use where it has a momentum, are zero.
    """
    inverse: dict[KernelLayout, KernelLayout] = {unchanged: unchanged, from_oihw: to_oihw}
    state = {
        theirs: np.ascontiguousarray(inverse[layout](ours[name]))
        for name, (theirs, layout) in source.table.items()
        if name in ours or not name.startswith("auxiliary")
    }
    norms = [name.removesuffix("running_var") for name in state if name.endswith("running_var")]
    return state | {norm + COUNTERS: np.zeros((), np.int64) for norm in norms}


def _resnet_table(depth: int, prefix: str) -> Table:
    convolutions = {"backbone/conv1": f"{prefix}conv1"}
    norms = {"backbone/bn1": f"{prefix}bn1"}
    for layer, count in enumerate(DEPTHS[depth], start=1):
        for block in range(count):
            ours, theirs = f"backbone/layer{layer}_{block}", f"{prefix}layer{layer}.{block}"
            for part in (1, 2) if depth < 50 else (1, 2, 3):
                convolutions[f"{ours}/conv{part}"] = f"{theirs}.conv{part}"
                norms[f"{ours}/bn{part}"] = f"{theirs}.bn{part}"
            # Where the shape changes: the first block, unless it has as many features as the stem.
            if block == 0 and (layer > 1 or depth >= 50):
                convolutions[f"{ours}/shortcut/conv"] = f"{theirs}.downsample.0"
                norms[f"{ours}/shortcut/bn"] = f"{theirs}.downsample.1"
    return kernels(convolutions) | batch_norms(norms)


def _resnet_marks(depth: int, prefix: str, also: tuple[str, ...] = ()) -> dict[str, Any]:
    """What tells a depth from the others: its last blocks, and the kind of its blocks."""
    counts = DEPTHS[depth]
    third = f"{prefix}layer1.0.conv3.weight"
    has = [
        f"{prefix}layer{layer}.{count - 1}.conv2.weight" for layer, count in enumerate(counts, 1)
    ]
    lacks = [f"{prefix}layer{layer}.{count}.conv2.weight" for layer, count in enumerate(counts, 1)]
    (has if depth >= 50 else lacks).append(third)
    return {"has": (*has, *also), "lacks": tuple(lacks)}


def _normalised(layers: dict[str, str], convolution: str, norm: str) -> Table:
    """Of modules that are a convolution and its normalisation, by their names for these two."""
    return kernels(
        {f"{ours}/conv": f"{theirs}.{convolution}" for ours, theirs in layers.items()}
    ) | (batch_norms({f"{ours}/bn": f"{theirs}.{norm}" for ours, theirs in layers.items()}))


def _vgg16_positions(step: int) -> dict[str, int]:
    """'1_1' … '5_3' → index in `features`, of so many modules a convolution and one a pooling."""
    positions: dict[str, int] = {}
    position = 0
    for block, (_, depth) in enumerate(BLOCKS, start=1):
        for layer in range(1, depth + 1):
            positions[f"{block}_{layer}"] = position
            position += step
        position += 1
    return positions


def _fully_connected(layers: dict[str, tuple[str, int]]) -> Table:
    """Our name → (theirs, side of the kernel)."""
    table: Table = {}
    for ours, (theirs, side) in layers.items():
        layout = from_fully_connected(side, side)
        table |= kernels_and_biases({f"backbone/{ours}": theirs}, layout=layout)
    return table
