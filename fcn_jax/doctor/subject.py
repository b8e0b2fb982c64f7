"""A data set as the doctor reads it: raw files if there are any, else prepared records."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from fcn_jax.config import DataConfig
from fcn_jax.data.datasets import Dataset, open_dataset
from fcn_jax.data.images import decode_image, image_pixels, open_image
from fcn_jax.data.labels import by_map
from fcn_jax.data.masks import as_labels, decode_mask
from fcn_jax.data.raw import Note, RawDataset, Sample, list_samples, open_raw
from fcn_jax.doctor.examine import ImageReport, examine_record, examine_sample
from fcn_jax.errors import UserError
from fcn_jax.pictures.contact_sheet import Entry

UNREADABLE, MISSING = "unreadable", "missing"


@dataclasses.dataclass(frozen=True)
class Subject:
    """An opened data set.

    examine: reads and checks an image, by its index. load: reads an image and the mask of a label
    map for the picture; both may be texts that say why there is no image.
    """

    label_maps: Mapping[str, tuple[str, ...]]
    splits: tuple[str, ...]
    num_images: int
    examine: Callable[[int], ImageReport]
    load: Callable[[int, str], Entry]
    notes: tuple[Note, ...] = ()
    is_part: bool = False


@contextlib.contextmanager
def open_subject(data: DataConfig) -> Iterator[Subject]:
    """Opens the data set that the settings name.

    Raises:
      UserError: there is nothing to examine, or a set without raw files cannot be prepared.
    """
    raw = open_raw(data)
    if raw is None:
        yield _from_records(open_dataset(data))
    else:
        samples = list_samples(raw, data)
        if not samples and not raw.notes:
            raise UserError(f"{data.root or data.name}: the data set has no images")
        yield _from_files(raw, samples)


def _from_files(raw: RawDataset, samples: Sequence[Sample]) -> Subject:
    num_classes = {name: len(class_names) for name, class_names in raw.label_maps.items()}
    counts = Counter(sample.split for sample in samples)
    missing = [
        Note("part_of_voc", split, f"{counts[split]:,} of {count:,} images")
        for split, count in raw.complete_sizes.items()
        if counts[split] < count
    ]

    def load(index: int, label_map: str) -> Entry:
        sample = samples[index]
        image, mask = _load_image(sample), _load_mask(sample, label_map, raw.palette)
        return Entry(sample.name, image, mask, raw.label_maps[label_map], colours=raw.colours)

    return Subject(
        label_maps=raw.label_maps,
        splits=tuple(raw.splits) or tuple(counts),
        num_images=len(samples),
        examine=lambda index: examine_sample(samples[index], num_classes, raw.palette),
        load=load,
        notes=(*raw.notes, *missing),
        is_part=bool(missing),
    )


def _from_records(dataset: Dataset) -> Subject:
    splits = {name: dataset.split(name) for name in dataset.splits}
    places = [(name, index) for name, split in splits.items() for index in range(len(split))]
    label_maps = tuple(dataset.label_maps)

    def examine(index: int) -> ImageReport:
        split, place = places[index]
        return examine_record(splits[split], place, label_maps)

    def load(index: int, label_map: str) -> Entry:
        split, place = places[index]
        class_names = dataset.label_maps[label_map]
        try:
            record = splits[split][place]
        except UserError:
            return Entry(f"{split}[{place}]", UNREADABLE, UNREADABLE, class_names)
        label = by_map(record["label"], label_maps)[label_map]
        image = record["image"][..., :3]
        return Entry(record["name"], image, label, class_names, colours=dataset.colours)

    return Subject(
        label_maps=dataset.label_maps,
        splits=tuple(splits),
        num_images=len(places),
        examine=examine,
        load=load,
        notes=tuple(Note("split_empty", name) for name, split in splits.items() if not len(split)),
    )


def _load_image(sample: Sample) -> np.ndarray | str:
    try:
        return decode_image(sample.image.load_bytes(), sample.image.name)
    except UserError:
        return UNREADABLE


def _load_mask(sample: Sample, label_map: str, palette: np.ndarray | None) -> np.ndarray | str:
    """Returns class indices, (h, w); if the mask has none, its picture, (h, w, 3)."""
    if label_map not in sample.masks:
        return MISSING
    try:
        content = sample.masks[label_map].load()
        if not isinstance(content, bytes):
            return as_labels(content, "")
        with contextlib.suppress(UserError):
            return decode_mask(content, "", palette)
        return image_pixels(open_image(content, ""), "")
    except UserError:
        return UNREADABLE
