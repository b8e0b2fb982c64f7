"""Conventions of scoring: image size, treatment of void pixels, classes that means are taken over.

The code of different projects gives the same network different scores on the same images. Each
convention scores as its source does; `native` is ours.

| name        | image               | truth           | means are taken over             |
| ----------- | ------------------- | --------------- | -------------------------------- |
| native      | unchanged           | unchanged       | classes in the truth             |
| paper       | unchanged           | unchanged       | classes in truth or prediction   |
| torchvision | shorter side 520    | resized with it | all classes, nan if one is in neither |
| d2l         | a window of 320×480 | cut with it     | classes in the truth             |
| mmseg       | within 2048×512     | unchanged       | classes in truth or prediction   |
| cityscapes  | unchanged           | unchanged       | classes in truth or prediction   |
| ultralytics | unchanged           | unchanged       | all classes, 0 if one is in neither |
| nnunet      | unchanged           | unchanged       | images, then classes without 0   |

mmseg interpolates the logits to the size of the truth. Void pixels are left out, except by d2l,
which counts them as background. nnunet takes the IoU and the Dice of each image, and the means over
the images that have the class in truth or prediction, then over the classes except background.

Sources: the authors' `score.py`; torchvision's `references/segmentation`; 'Dive into Deep
Learning', section on FCNs; mmsegmentation's `IoUMetric` and its VOC settings; cityscapesScripts'
`evalPixelLevelSemanticLabeling.py`; `SemanticMetrics` of Ultralytics 8.4.60 (8.4.100 takes the
classes in the truth, as native); nnU-Net's `evaluate_predictions.py`. Of Ultralytics the means
alone, not the size to which it pads images.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fcn_jax.data.canvases import Size
from fcn_jax.data.labels import IGNORE_INDEX

if TYPE_CHECKING:  # evaluate's flags name the conventions before slow modules are imported
    from fcn_jax.evaluation.metrics import MeanOver

D2L_WINDOW_PX = (320, 480)
TORCHVISION_SHORTER_SIDE_PX = 520
MMSEG_LONGER_SIDE_PX = 2048
MMSEG_SHORTER_SIDE_PX = 512


def _unchanged(record: dict[str, Any], index: int) -> dict[str, Any]:
    return record


@dataclasses.dataclass(frozen=True)
class Convention:
    """One project's way of scoring.

    Attributes:
        name: as given to `evaluate`.
        description: what it does, in a few words.
        mean_over: see `metrics.MeanOver`.
        includes: returns whether an image of a size (h, w) is scored.
        image_size: the size at which the network sees an image of a size (h, w).
        prepare: (record, its index in the split) -> the record with image and label as they are
            scored.
        resizes_logits: whether the logits are interpolated from the image's new size to that of the
            label, which keeps its size, before the classes are predicted.
    """

    name: str
    description: str
    mean_over: "MeanOver"
    includes: Callable[[Size], bool] = lambda size: True
    image_size: Callable[[Size], Size] = lambda size: size
    prepare: Callable[[dict[str, Any], int], dict[str, Any]] = _unchanged
    resizes_logits: bool = False

    def sees_as(self, other: "Convention") -> bool:
        """Returns whether both score the same predictions, and differ in the means alone."""
        own, others = (
            (one.includes, one.image_size, one.prepare, one.resizes_logits) for one in (self, other)
        )
        return own == others


class EvaluationSplit:
    """The records of a split that a convention includes, prepared as it scores them, by index.

    Args:
        records: a random-access source of records (`splits.Split`).
        sizes: heights and widths of their images, int (n, 2).
        convention: the convention.

    Attributes:
        sizes: of the images as the network sees them, int64 (m, 2).
        label_sizes: of the labels that they are scored against, int64 (m, 2).
    """

    def __init__(self, records: Any, sizes: np.ndarray, convention: Convention):
        native = [(int(height), int(width)) for height, width in sizes]
        self._indices = [i for i, size in enumerate(native) if convention.includes(size)]
        self.convention = convention
        self._records = records
        included = [native[index] for index in self._indices]
        seen = [convention.image_size(size) for size in included]
        self.sizes, self.label_sizes = (
            np.array(size, np.int64).reshape(-1, 2)
            for size in (seen, included if convention.resizes_logits else seen)
        )

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        """Returns the name of a record without decoding it."""
        return self._records.record_name(self._indices[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        original = self._indices[index]
        return self.convention.prepare(self._records[original], original)


def shorter_side(size: Size, length: int) -> Size:
    """Scales a size so that its shorter side is `length`; the other side is rounded down."""
    height, width = size
    if height <= width:
        return length, int(length * width / height)
    return int(length * height / width), length


def within(size: Size, longer: int, shorter: int) -> Size:
    """Scales a size to the largest within two lengths, rounded to the nearest."""
    factor = min(longer / max(size), shorter / min(size))
    height, width = (int(side * factor + 0.5) for side in size)
    return height, width


def resize_smooth(image: np.ndarray, size: Size) -> np.ndarray:
    """Resizes uint8 (h, w, c) to (*size, c) by Pillow's bilinear filter, with antialiasing."""
    channels = [
        np.asarray(Image.fromarray(channel).resize((size[1], size[0]), Image.Resampling.BILINEAR))
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.stack(channels, axis=-1)


def resize_plain(image: np.ndarray, size: Size) -> np.ndarray:
    """Resizes uint8 (h, w, c) to (*size, c) by bilinear interpolation without antialiasing.

    OpenCV does so in fixed-point numbers, which may differ by 1.
    """
    values = image.astype(np.float32)
    for axis, length in enumerate(size):
        before = image.shape[axis]
        place = np.clip((np.arange(length) + 0.5) * before / length - 0.5, 0, before - 1)
        lower = np.floor(place).astype(int)
        upper = np.minimum(lower + 1, before - 1)
        shape = [1, 1, 1]
        shape[axis] = length
        share = (place - lower).astype(np.float32).reshape(shape)
        values = values.take(lower, axis) * (1 - share) + values.take(upper, axis) * share
    return np.floor(values + 0.5).astype(np.uint8)


def resize_nearest(label: np.ndarray, size: Size) -> np.ndarray:
    """Resizes uint8 (h, w) or (h, w, m) to (*size) or (*size, m) by Pillow's nearest neighbour."""
    maps = label if label.ndim == 3 else label[..., None]
    resized = [
        np.asarray(Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.NEAREST))
        for values in np.moveaxis(maps, -1, 0)
    ]
    return resized[0] if label.ndim == 2 else np.stack(resized, axis=-1)


def _torchvision_size(size: Size) -> Size:
    return shorter_side(size, TORCHVISION_SHORTER_SIDE_PX)


def _torchvision(record: dict[str, Any], index: int) -> dict[str, Any]:
    size = _torchvision_size(record["label"].shape[:2])
    return {
        **record,
        "image": resize_smooth(record["image"], size),
        "label": resize_nearest(record["label"], size),
    }


def _mmseg_size(size: Size) -> Size:
    return within(size, MMSEG_LONGER_SIDE_PX, MMSEG_SHORTER_SIDE_PX)


def _mmseg(record: dict[str, Any], index: int) -> dict[str, Any]:
    size = _mmseg_size(record["label"].shape[:2])
    return {**record, "image": resize_plain(record["image"], size)}


def _d2l(record: dict[str, Any], index: int) -> dict[str, Any]:
    # The book draws a new window each time; ours depends on the image's index in the split.
    slack = np.subtract(record["label"].shape[:2], D2L_WINDOW_PX)
    top, left = np.random.default_rng(index).integers(0, slack + 1)
    rows = slice(top, top + D2L_WINDOW_PX[0])
    columns = slice(left, left + D2L_WINDOW_PX[1])
    label = record["label"][rows, columns]
    return {
        **record,
        "image": record["image"][rows, columns],
        "label": np.where(label == IGNORE_INDEX, 0, label).astype(np.uint8),
    }


NATIVE = Convention(
    "native", "images and labels unchanged, means over the classes in the truth", "truth"
)
PAPER = Convention(
    "paper",
    "as the authors' code: images and labels unchanged, means over the classes in truth or "
    "prediction",
    "union",
)
TORCHVISION = Convention(
    "torchvision",
    "as its reference scripts: image and label resized to a shorter side of "
    f"{TORCHVISION_SHORTER_SIDE_PX}, means over all classes, nan if one is in neither truth nor "
    "prediction",
    "all",
    image_size=_torchvision_size,
    prepare=_torchvision,
)
D2L = Convention(
    "d2l",
    "as 'Dive into Deep Learning': a window of 320×480 of every image of at least that size, void "
    "counted as background; the book reports pixel accuracy only",
    "truth",
    includes=lambda size: size[0] >= D2L_WINDOW_PX[0] and size[1] >= D2L_WINDOW_PX[1],
    image_size=lambda size: D2L_WINDOW_PX,
    prepare=_d2l,
)
MMSEG = Convention(
    "mmseg",
    f"as mmsegmentation: images resized to fit {MMSEG_LONGER_SIDE_PX}×{MMSEG_SHORTER_SIDE_PX}, "
    "logits interpolated to the label's size, means over the classes in truth or prediction",
    "union",
    image_size=_mmseg_size,
    prepare=_mmseg,
    resizes_logits=True,
)
CITYSCAPES = Convention(
    "cityscapes",
    "as its evalPixelLevelSemanticLabeling.py: images and labels unchanged, which must be trainIds "
    "with 255 for classes that are not evaluated, means over the classes in truth or prediction",
    "union",
)
ULTRALYTICS = Convention(
    "ultralytics",
    "images and labels unchanged, means over all classes, where one in neither truth nor "
    "prediction counts as 0",
    "zero",
)
NNUNET = Convention(
    "nnunet",
    "as nnU-Net's evaluation: images and labels unchanged, Dice and IoU of each image, their means "
    "over the images that have the class in truth or prediction, then over the classes but the "
    "first",
    "cases",
)
CONVENTIONS: Mapping[str, Convention] = MappingProxyType(
    {
        convention.name: convention
        for convention in (
            NATIVE,
            PAPER,
            TORCHVISION,
            D2L,
            MMSEG,
            CITYSCAPES,
            ULTRALYTICS,
            NNUNET,
        )
    }
)
