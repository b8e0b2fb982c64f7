"""A data set as the doctor looks at it: raw files where there are any, else prepared records."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fcn_jax.config import DataConfig
from fcn_jax.data.datasets import Dataset, open_dataset
from fcn_jax.data.images import decode_image, image_pixels, open_image
from fcn_jax.data.labels import by_map
from fcn_jax.data.masks import decode_mask
from fcn_jax.data.raw import Note, Pair, RawSet, open_raw_set
from fcn_jax.doctor.examine import Seen, examine_pair, examine_record
from fcn_jax.errors import UserError

UNREADABLE, MISSING = "cannot be read", "missing"


class Shown(NamedTuple):
    """An image to be looked at; what is wrong with it was told before.

    image: uint8 (h, w, 3). mask: class indices, (h, w), or the picture that it is, (h, w, 3).
    `UNREADABLE` or `MISSING` where there is none.
    """

    name: str
    image: np.ndarray | str
    mask: np.ndarray | str


@dataclasses.dataclass(frozen=True)
class Subject:
    """split_of: the split of each image. examine, show: an image by its index in that."""

    label_maps: dict[str, tuple[str, ...]]
    splits: tuple[str, ...]
    split_of: Sequence[str]
    examine: Callable[[int], Seen]
    show: Callable[[int, str], Shown]
    notes: tuple[Note, ...] = ()
    is_part: bool = False


@contextlib.contextmanager
def open_subject(data: DataConfig) -> Iterator[Subject]:
    """The data set that the settings name, open for reading.

    Raises:
      UserError: there is nothing to look at, or a set without raw files cannot be prepared.
    """
    with open_raw_set(data) as raw:
        yield _of_files(raw) if raw is not None else _of_records(open_dataset(data))


def _of_files(raw: RawSet) -> Subject:
    num_classes = {name: len(class_names) for name, class_names in raw.label_maps.items()}

    def show(index: int, label_map: str) -> Shown:
        return _shown(raw.pairs[index], label_map, raw.palette)

    return Subject(
        label_maps=dict(raw.label_maps),
        splits=raw.splits,
        split_of=[pair.split for pair in raw.pairs],
        examine=lambda index: examine_pair(raw.pairs[index], num_classes, raw.palette),
        show=show,
        notes=raw.notes,
        is_part=raw.is_part,
    )


def _of_records(dataset: Dataset) -> Subject:
    splits = {name: dataset.split(name) for name in dataset.splits}
    places = [(name, index) for name, split in splits.items() for index in range(len(split))]
    label_maps = tuple(dataset.label_maps)

    def examine(index: int) -> Seen:
        name, place = places[index]
        return examine_record(splits[name], place, label_maps)

    def show(index: int, label_map: str) -> Shown:
        name, place = places[index]
        try:
            record = splits[name][place]
        except UserError:
            return Shown(f"{name}[{place}]", UNREADABLE, UNREADABLE)
        label = by_map(record["label"], label_maps)[label_map]
        return Shown(record["name"], record["image"][..., :3], label)

    return Subject(
        label_maps=dict(dataset.label_maps),
        splits=tuple(splits),
        split_of=[name for name, _ in places],
        examine=examine,
        show=show,
        notes=tuple(Note("split_empty", name) for name, split in splits.items() if not len(split)),
    )


def _shown(pair: Pair, label_map: str, palette: np.ndarray | None) -> Shown:
    image: np.ndarray | str = UNREADABLE
    mask: np.ndarray | str = UNREADABLE if label_map in pair.masks else MISSING
    with contextlib.suppress(UserError):
        image = decode_image(pair.image.read(), pair.image.name)
    if label_map in pair.masks:
        with contextlib.suppress(UserError):
            content = pair.masks[label_map].read()
            mask = content if isinstance(content, np.ndarray) else _mask(content, palette)
    return Shown(pair.name, image, mask)


def _mask(content: bytes, palette: np.ndarray | None) -> np.ndarray:
    try:
        return decode_mask(content, "", palette)
    except UserError:
        return image_pixels(open_image(content, ""), "")
