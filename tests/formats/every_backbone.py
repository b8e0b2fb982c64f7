"""Compares every backbone's ONNX file in ONNX Runtime with the network; prints size and difference.

    python -m tests.formats.every_backbone [BACKBONE...]

The weights are drawn at random; batch statistics are those of an image. Needs onnx and onnxruntime;
takes some minutes for all backbones.
"""

import sys

from fcn_jax.formats import onnx_file
from fcn_jax.models.tape import record
from fcn_jax.registry import backbones
from tests.formats.networks import (
    SIZES,
    difference,
    of_config,
    tensors_of,
    with_statistics_of_an_image,
)
from tests.formats.test_formats import in_onnxruntime

VARIANTS: dict[str, list[dict[str, object]]] = {
    "vgg16": [{"padding": "paper", "skips": skips} for skips in (0, 1, 2)],
    "resnet50": [
        {"output_stride": 8, "skips": 0, "head": "hidden", "upsampling": "interpolate"},
    ],
    "resnet50c": [
        {"output_stride": 16, "skips": 0, "head": "mmseg", "upsampling": "interpolate"},
    ],
    "unet": [
        {"decoder": "unet", "features": (16, 32, 64, 128, 256), **others}
        for others in ({}, {"norm": "instance"}, {"norm": "group", "padding": "valid"})
    ],
}
"""Settings of the network; FCN-8s with learned upsampling for the backbones that are not named."""

for backbone in sys.argv[1:] or backbones.names:
    for settings in VARIANTS.get(backbone, [{"skips": 2}]):
        network = with_statistics_of_an_image(of_config(backbone=backbone, **settings))
        found = difference(network, in_onnxruntime(network), (*SIZES, (375, 500), (500, 375)))
        channels, tape = network.preprocessing.channels, record(network)
        size = len(onnx_file.build(tape, tensors_of(network), channels=channels, metadata={}))
        described = ", ".join(f"{name}={value}" for name, value in settings.items())
        print(
            f"{backbone} ({described}): {len(tape.operations)} operations, {size / 1e6:.1f} MB, "
            f"logits {found.logits:.0e} of their range, {found.classes} pixels of another class, "
            f"whose two best are at most {found.margin:.0e} apart",
            flush=True,
        )
