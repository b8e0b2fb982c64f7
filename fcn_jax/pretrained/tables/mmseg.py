"""mmsegmentation's FCNs on ResNetV1c, trained on Cityscapes: FCN-D6 and FCN-D8.

Both have the same names and shapes. They differ in the dilations, which the file does not contain.
"""

from fcn_jax.models.backbones.resnet import DEPTHS
from fcn_jax.pretrained.source import (
    Table,
    WeightSource,
    batch_norms,
    kernels,
    kernels_and_biases,
)

CITYSCAPES_CLASSES = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
"""The classes of Cityscapes' trainIds (cityscapesScripts, `labels.py`)."""

OF_D8 = "if this is FCN-D8, which has the same names, it needs output_stride=8 and head_dilation=1"


def fcn(depth: int) -> WeightSource:
    """Returns the source of fcn-d6_r50-d16 or fcn-d6_r101-d16; the auxiliary head is optional."""
    table = _resnet_table(depth)
    parts = {"conv1": "convs.0", "conv2": "convs.1", "conv_cat": "conv_cat"}
    for ours, theirs, layers in (
        ("head/score32", "decode_head", parts),
        ("auxiliary/score16", "auxiliary_head", {"conv1": "convs.0"}),
    ):
        table |= kernels({f"{ours}/{a}": f"{theirs}.{b}.conv" for a, b in layers.items()})
        norms = {a.replace("conv", "bn"): b for a, b in layers.items()}
        table |= batch_norms({f"{ours}/{a}": f"{theirs}.{b}.bn" for a, b in norms.items()})
        table |= kernels_and_biases({f"{ours}/score": f"{theirs}.conv_seg"})
    last = f"backbone.layer3.{DEPTHS[depth][2] - 1}.conv1.weight"
    beyond = f"backbone.layer3.{DEPTHS[depth][2]}.conv1.weight"
    return WeightSource(
        f"FCN-D6 on ResNet-{depth}, mmsegmentation",
        f"resnet{depth}c",
        "torchvision",
        has=("backbone.stem.0.weight", "decode_head.conv_cat.conv.weight", last),
        lacks=(beyond, "decode_head.convs.2.conv.weight"),
        table=table,
        ignored=("num_batches_tracked",),
        model={
            "output_stride": 16,
            "skips": 0,
            "head": "mmseg",
            "head_dilation": 6,
            "upsampling": "interpolate",
            "dropout": 0.1,
        },
        label_maps={"": CITYSCAPES_CLASSES},
        caveat=OF_D8,
    )


def _resnet_table(depth: int) -> Table:
    convolutions, norms = {}, {}
    for number, place in enumerate((0, 3, 6), start=1):
        convolutions[f"backbone/conv1_{number}"] = f"backbone.stem.{place}"
        norms[f"backbone/bn1_{number}"] = f"backbone.stem.{place + 1}"
    for layer, count in enumerate(DEPTHS[depth], start=1):
        for index in range(count):
            ours, theirs = f"backbone/layer{layer}_{index}", f"backbone.layer{layer}.{index}"
            for number in (1, 2, 3):
                convolutions[f"{ours}/conv{number}"] = f"{theirs}.conv{number}"
                norms[f"{ours}/bn{number}"] = f"{theirs}.bn{number}"
        first = f"backbone.layer{layer}.0.downsample"
        convolutions[f"backbone/layer{layer}_0/shortcut/conv"] = f"{first}.0"
        norms[f"backbone/layer{layer}_0/shortcut/bn"] = f"{first}.1"
    return kernels(convolutions) | batch_norms(norms)
