"""Weights with Caffe's layer names: the authors' FCNs and the classifiers that they start from.

In a `.caffemodel`, a layer's kernel and bias are named 'layer/0' and 'layer/1'. The .npz files of
the same networks have other names.
"""

import dataclasses

from fcn_jax.data.voc import VOC_CLASSES
from fcn_jax.pretrained.source import (
    Table,
    WeightSource,
    from_fully_connected,
    from_iohw,
    from_oihw,
    kernels_and_biases,
    unchanged,
)
from fcn_jax.pretrained.tables.torchfcn import PAPER_MODEL, SKIP_LAYERS, VGG16_LAYERS

SQUEEZENET_FIRES = tuple(f"fire{number}" for number in range(2, 10))

ALEXNET_CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")


def squeezenet() -> WeightSource:
    """Returns SqueezeNet 1.1 (.npz)."""
    layers = {"backbone/conv1": "conv1"}
    for fire in SQUEEZENET_FIRES:
        for part in ("squeeze1x1", "expand1x1", "expand3x3"):
            layers[f"backbone/{fire}/{part}"] = f"{fire}/{part}"
    return WeightSource(
        "SqueezeNet 1.1, Caffe names",
        "squeezenet",
        "caffe",
        has=("fire2/squeeze1x1/w",),
        table=kernels_and_biases(layers, "/w", "/b"),
        ignored=("conv10/",),
    )


def vgg16_trunk() -> WeightSource:
    """Returns the 13 convolutions of VGG16, whose kernels are HWIO already (.npz)."""
    layers = {f"backbone/{name}": name for name in VGG16_LAYERS[:-2]}
    return WeightSource(
        "VGG16 convolutions, Caffe names",
        "vgg16",
        "caffe",
        has=("conv5_3/kernel",),
        lacks=("backbone/conv5_3/kernel",),
        table=kernels_and_biases(layers, "/kernel", "/bias", unchanged),
        missing_layers=("fc6", "fc7"),
    )


def vgg16() -> WeightSource:
    """Returns the classifier VGG_ILSVRC_16_layers (.caffemodel)."""
    return WeightSource(
        "VGG16, Caffe",
        "vgg16",
        "caffe",
        has=("conv5_3/0", "fc8/0"),
        table=_vgg16_table(),
        ignored=("fc8/",),
    )


def vgg16_fcn(net: str) -> WeightSource:
    """Returns voc-fcn32s, -16s or -8s (.caffemodel)."""
    scores, upsamplings = SKIP_LAYERS[net]
    last = list(upsamplings.values())[-1]
    return WeightSource(
        f"{net} on VGG16, Caffe",
        "vgg16",
        "caffe",
        has=("conv5_3/0", "score_fr/0", f"{last}/0"),
        lacks=("scale_pool4/0",),
        table=_vgg16_table() | _head_table(scores, upsamplings),
        model=PAPER_MODEL | {"skips": len(scores) - 1},
        label_maps={"": VOC_CLASSES},
    )


def vgg16_fcn_at_once() -> WeightSource:
    """Returns voc-fcn8s-atonce (.caffemodel), whose scaling of pool4 and pool3 is a setting."""
    trained_in_stages = vgg16_fcn("FCN-8s")
    return dataclasses.replace(
        trained_in_stages,
        title="FCN-8s at once on VGG16, Caffe",
        has=(*trained_in_stages.has, "scale_pool4/0"),
        lacks=(),
        ignored=("scale_pool",),
        model={**trained_in_stages.model, "score_scales": (1.0, 0.01, 0.0001)},
    )


def alexnet() -> WeightSource:
    """Returns the classifier bvlc_reference_caffenet (.caffemodel)."""
    return WeightSource(
        "AlexNet (CaffeNet), Caffe",
        "alexnet_caffe",
        "caffe",
        has=("conv5/0", "fc8/0"),
        table=_alexnet_table(),
        ignored=("fc8/",),
    )


def alexnet_fcn() -> WeightSource:
    """Returns voc-fcn-alexnet (.caffemodel)."""
    scores, upsamplings = SKIP_LAYERS["FCN-32s"]
    return WeightSource(
        "FCN-32s on AlexNet, Caffe",
        "alexnet_caffe",
        "caffe",
        has=("conv5/0", "score_fr/0", "upscore/0"),
        table=_alexnet_table() | _head_table(scores, upsamplings),
        model=PAPER_MODEL | {"skips": 0},
        label_maps={"": VOC_CLASSES},
    )


def _vgg16_table() -> Table:
    table = _layers({f"backbone/{name}": name for name in VGG16_LAYERS[:-2]})
    return table | _fully_connected({"fc6": 7, "fc7": 1})


def _alexnet_table() -> Table:
    table = _layers({f"backbone/{name}": name for name in ALEXNET_CONVOLUTIONS})
    return table | _fully_connected({"fc6": 6, "fc7": 1})


def _head_table(scores: dict[str, str], upsamplings: dict[str, str]) -> Table:
    table = _layers({f"head/{ours}": theirs for ours, theirs in scores.items()})
    for ours, theirs in upsamplings.items():
        table[f"head/{ours}/kernel"] = (f"{theirs}/0", from_iohw)
    return table


def _layers(layers: dict[str, str]) -> Table:
    return kernels_and_biases(layers, "/0", "/1", from_oihw)


def _fully_connected(sides: dict[str, int]) -> Table:
    """Returns the entries of inner products or convolutions, by name and side of the kernel."""
    table: Table = {}
    for name, side in sides.items():
        layout = from_fully_connected(side, side)
        table |= kernels_and_biases({f"backbone/{name}": name}, "/0", "/1", layout)
    return table
