"""Name tables of torchvision's classifiers and segmentation networks."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fcn_jax.data.voc import VOC_CLASSES
from fcn_jax.models.backbones import mobilenet
from fcn_jax.models.backbones.googlenet import INCEPTIONS
from fcn_jax.models.backbones.resnet import DEPTHS
from fcn_jax.models.backbones.vgg import BLOCKS
from fcn_jax.pretrained.source import (
    LayoutChange,
    Table,
    WeightSource,
    batch_norms,
    from_fully_connected,
    from_iohw,
    from_oihw,
    kernels,
    kernels_and_biases,
    to_oihw,
    unchanged,
)
from fcn_jax.pretrained.tables.caffe import SQUEEZENET_FIRES

COUNTERS = "num_batches_tracked"
"""Suffix of the batch counters of PyTorch's batch normalisations. No network here uses them."""


def alexnet() -> WeightSource:
    """Returns the source of `alexnet`; the classifier's first two layers are fc6 and fc7."""
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
    """Returns the source of `vgg16`; the classifier's first two layers are fc6 and fc7."""
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
    """Returns the source of `vgg16_bn`; the classifier's first two layers are fc6 and fc7."""
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
    """Returns the source of `squeezenet1_1`."""
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
    """Returns the source of `googlenet`, with or without the auxiliary classifiers."""
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
        table=_conv_and_norm(layers, "conv", "bn"),
        ignored=("aux1.", "aux2.", "fc.", COUNTERS),
    )


def mobilenet_v3_large() -> WeightSource:
    """Returns the source of `mobilenet_v3_large`."""
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
        table=_conv_and_norm(layers, "0", "1") | kernels_and_biases(excitations),
        ignored=("classifier.", COUNTERS),
    )


def resnet(depth: int) -> WeightSource:
    """Returns the source of `resnet18` to `resnet152`."""
    return WeightSource(
        f"ResNet-{depth}, torchvision",
        f"resnet{depth}",
        "torchvision",
        table=_resnet_table(depth, prefix=""),
        ignored=("fc.", COUNTERS),
        **_resnet_signature(depth, prefix=""),
    )


def fcn_resnet(depth: int) -> WeightSource:
    """Returns the source of `segmentation.fcn_resnet50` or `fcn_resnet101`.

    The auxiliary head is optional.
    """
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
        # DeepLabV3 also has classifier.4.weight, but no convolution at classifier.0.
        **_resnet_signature(
            depth, prefix="backbone.", head=("classifier.0.weight", "classifier.4.weight")
        ),
    )


def to_state_dict(source: WeightSource, ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts our tensors to a PyTorch state dict: the inverse of a source's table.

    The batch counters are zero. PyTorch uses them only in layers without a momentum.

    Args:
        source: the source whose names and layout are wanted.
        ours: arrays by our names.

    Raises:
        KeyError: a tensor of the backbone or of the head is missing.
    """
    inverse: dict[LayoutChange, LayoutChange] = {
        unchanged: unchanged,
        from_oihw: to_oihw,
        from_iohw: from_iohw,  # its own inverse
    }
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
            # A layer's first block has a projection shortcut if it changes the shape. In ResNet-18
            # and 34, layer1 does not, because the stem has the same number of features.
            if block == 0 and (layer > 1 or depth >= 50):
                convolutions[f"{ours}/shortcut/conv"] = f"{theirs}.downsample.0"
                norms[f"{ours}/shortcut/bn"] = f"{theirs}.downsample.1"
    return kernels(convolutions) | batch_norms(norms)


def _resnet_signature(depth: int, prefix: str, head: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns `has` and `lacks`: the number of blocks and their kind identify the depth.

    Only bottleneck blocks (depth 50 and more) have a third convolution.
    """
    counts = DEPTHS[depth]
    bottleneck = f"{prefix}layer1.0.conv3.weight"
    has = [
        f"{prefix}layer{layer}.{count - 1}.conv2.weight" for layer, count in enumerate(counts, 1)
    ]
    lacks = [f"{prefix}layer{layer}.{count}.conv2.weight" for layer, count in enumerate(counts, 1)]
    (has if depth >= 50 else lacks).append(bottleneck)
    return {"has": (*has, *head), "lacks": tuple(lacks)}


def _conv_and_norm(layers: dict[str, str], convolution: str, norm: str) -> Table:
    """Returns the entries of modules that consist of a convolution and a batch normalisation.

    Args:
        layers: our path of a module -> torchvision's.
        convolution, norm: torchvision's names of the two submodules.
    """
    return kernels(
        {f"{ours}/conv": f"{theirs}.{convolution}" for ours, theirs in layers.items()}
    ) | (batch_norms({f"{ours}/bn": f"{theirs}.{norm}" for ours, theirs in layers.items()}))


def _vgg16_positions(modules_per_convolution: int) -> dict[str, int]:
    """Returns the index in torchvision's `features` of each convolution, '1_1' … '5_3'.

    A convolution with its ReLU (and batch normalisation) takes `modules_per_convolution` indices,
    and a pooling takes one.
    """
    positions: dict[str, int] = {}
    position = 0
    for block, (_, depth) in enumerate(BLOCKS, start=1):
        for layer in range(1, depth + 1):
            positions[f"{block}_{layer}"] = position
            position += modules_per_convolution
        position += 1
    return positions


def _fully_connected(layers: dict[str, tuple[str, int]]) -> Table:
    """Returns the entries of fully connected layers that become convolutions.

    Args:
        layers: our name -> (torchvision's name, side of the kernel).
    """
    table: Table = {}
    for ours, (theirs, side) in layers.items():
        layout = from_fully_connected(side, side)
        table |= kernels_and_biases({f"backbone/{ours}": theirs}, layout=layout)
    return table
