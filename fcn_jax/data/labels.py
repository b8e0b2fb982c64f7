"""What a label map is: class indices, the void label, the colours that stand for them."""

import numpy as np

VOID_LABEL = 255
"""Pixels that are neither trained on nor scored (VOC's object borders, a canvas's outside)."""

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def voc_palette() -> np.ndarray:
    """VOC's colour of each label: uint8 (256, 3), RGB.

    The bits of the label are dealt in turn to red, green and blue, from the highest bit down
    (VOC development kit, `VOClabelcolormap`). Label 0 is black, 1 (128, 0, 0), 255 (224, 224, 192).
    """
    label = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((label >> (3 * bit + channel)) & 1) << (7 - bit)).astype(
                np.uint8
            )
    return palette
