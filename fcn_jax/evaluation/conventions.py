"""How a score is taken: what the network sees of an image, what void counts, what a mean is over.

The same network on the same images gets different numbers by the code of different projects. Each
convention here scores as its source does; `native` is ours.

| name        | image               | truth           | means are over                   |
| ----------- | ------------------- | --------------- | -------------------------------- |
| native      | as it is            | as it is        | classes in the truth             |
| paper       | as it is            | as it is        | classes in truth or prediction   |
| torchvision | shorter side 520    | resized with it | all classes, nan if one is in neither |
| d2l         | a window of 320×480 | cut with it     | classes in the truth             |
| mmseg       | within 2048×512     | as it is        | classes in truth or prediction   |

mmseg brings the logits back to the size of the truth. Void is left out, but by d2l, where it is
background. Sources: the authors' `score.py`; torchvision's `references/segmentation`; 'Dive into
Deep Learning', section on FCNs; mmsegmentation's `IoUMetric` and its VOC settings.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fcn_jax.data.canvases import Size
from fcn_jax.data.labels import IGNORE_INDEX

if TYPE_CHECKING:  # the names of conventions are flags, which are read before JAX is imported
    from fcn_jax.evaluation.metrics import Averaged

D2L_WINDOW_PX = (320, 480)
TORCHVISION_SHORTER_SIDE_PX = 520
MMSEG_LONGER_SIDE_PX = 2048
MMSEG_SHORTER_SIDE_PX = 512


def _as_it_is(record: dict[str, Any], index: int) -> dict[str, Any]:
    return record


@dataclasses.dataclass(frozen=True)
class Convention:
    """One project's way of scoring.

    Attributes:
      name: as given on the command line.
      says: what it does, in a few words.
      averaged_over: see `metrics.Averaged`.
      takes: whether an image of a size (h, w) is scored.
      image_size: of an image of a size (h, w), what the network sees.
      prepare: (record, its index in the split) -> the record with image and label as they are
        scored.
      brings_back: whether the label keeps its size where the image is resized; the logits are then
        interpolated back to it before the classes are taken.
    """

    name: str
    description: str
    averaged_over: "Averaged"
    takes: Callable[[Size], bool] = lambda size: True
    image_size: Callable[[Size], Size] = lambda size: size
    prepare: Callable[[dict[str, Any], int], dict[str, Any]] = _as_it_is
    brings_back: bool = False


class ScoredSplit:
    """The records of a split as a convention scores them, by index; some may be left out.

    Attributes:
      convention: whose.
      sizes: of the images as the network sees them, int (n, 2).
      label_sizes: of the label maps that they are scored against, int (n, 2).
    """

    def __init__(self, records: Any, sizes: np.ndarray, convention: Convention):
        native = [(int(height), int(width)) for height, width in sizes]
        self._indices = [index for index, size in enumerate(native) if convention.takes(size)]
        self.convention = convention
        self._records = records
        kept = [native[index] for index in self._indices]
        self.sizes = np.array([convention.image_size(size) for size in kept], np.int64)
        self.label_sizes = np.array(kept, np.int64) if convention.brings_back else self.sizes
        self.sizes, self.label_sizes = self.sizes.reshape(-1, 2), self.label_sizes.reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, place: int) -> str:
        """Of a record, without decoding it."""
        return self._records.record_name(self._indices[place])

    def __getitem__(self, place: int) -> dict[str, Any]:
        index = self._indices[place]
        return self.convention.prepare(self._records[index], index)


def shorter_side(size: Size, length: int) -> Size:
    """The size with its shorter side of `length`, the other in proportion, rounded down."""
    height, width = size
    if height <= width:
        return length, int(length * width / height)
    return int(length * height / width), length


def within(size: Size, longer: int, shorter: int) -> Size:
    """The largest size of the same proportions within two lengths, rounded to the nearest."""
    factor = min(longer / max(size), shorter / min(size))
    height, width = (int(side * factor + 0.5) for side in size)
    return height, width


def resize_smooth(image: np.ndarray, size: Size) -> np.ndarray:
    """Pillow's bilinear filter, which averages where it shrinks: uint8 (h, w, c) to (*size, c)."""
    channels = [
        np.asarray(Image.fromarray(channel).resize(size[::-1], Image.Resampling.BILINEAR))
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.stack(channels, axis=-1)


def resize_plain(image: np.ndarray, size: Size) -> np.ndarray:
    """Interpolates between the four nearest pixels, also where it shrinks, as OpenCV does.

    uint8 (h, w, c) to (*size, c); OpenCV's fixed-point numbers may differ by 1.
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
    """Pillow's nearest neighbour, uint8 (h, w) or (h, w, m) to (*size) or (*size, m)."""
    maps = label if label.ndim == 3 else label[..., None]
    resized = [
        np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST))
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
    # The book draws the window anew each time; ours depends on the image's place in the split.
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
    "native", "images and labels as they are, means over the classes in the truth", "truth"
)
PAPER = Convention(
    "paper",
    "as the authors' code: images and labels as they are, means over the classes that are in the "
    "truth or were predicted",
    "union",
)
TORCHVISION = Convention(
    "torchvision",
    "as its reference scripts: image and label resized to a shorter side of "
    f"{TORCHVISION_SHORTER_SIDE_PX}, means over all classes, nan where one is nowhere",
    "all",
    image_size=_torchvision_size,
    prepare=_torchvision,
)
D2L = Convention(
    "d2l",
    "as 'Dive into Deep Learning': a window of 320×480 of every image that is as large, void "
    "counted as background; the book gives pixel accuracy only",
    "truth",
    takes=lambda size: size[0] >= D2L_WINDOW_PX[0] and size[1] >= D2L_WINDOW_PX[1],
    image_size=lambda size: D2L_WINDOW_PX,
    prepare=_d2l,
)
MMSEG = Convention(
    "mmseg",
    f"as mmsegmentation: images resized to fit {MMSEG_LONGER_SIDE_PX}×{MMSEG_SHORTER_SIDE_PX}, "
    "logits brought back to the label's size, means over the classes that are in the truth or were "
    "predicted",
    "union",
    image_size=_mmseg_size,
    prepare=_mmseg,
    brings_back=True,
)
CONVENTIONS: Mapping[str, Convention] = MappingProxyType(
    {convention.name: convention for convention in (NATIVE, PAPER, TORCHVISION, D2L, MMSEG)}
)
