"""The records of a data set: what each holds, and how they are written.

TFDS's usual base class, `GeneratorBasedBuilder`, keeps up to a gigabyte in memory and needs
TensorFlow beyond that; `ShardBasedBuilder` writes shard after shard, in the order of the samples.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import numpy as np
import tensorflow_datasets as tfds

from fcn_jax.config import DataConfig
from fcn_jax.data.channels import channel_feature, decode_channels, join_channels
from fcn_jax.data.images import decode_image, encode_png
from fcn_jax.data.labels import IGNORE_INDEX, check_labels, label_feature
from fcn_jax.data.masks import as_labels, decode_mask
from fcn_jax.data.raw import (
    NAMES_SHOWN,
    SEE_DOCTOR,
    RawDataset,
    Sample,
    SourceFile,
    check_image_names,
    duplicates,
    list_samples,
)
from fcn_jax.errors import UserError, format_value, listed, width_by_height
from fcn_jax.terminal.progress import progress_bar

RECORDS_PER_SHARD = 256  # TFDS holds one shard in memory while it writes
JPEG_OR_PNG = (b"\xff\xd8\xff", b"\x89PNG")  # first bytes of the files that are stored unchanged


class SegmentationBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes the samples of a raw data set as records, after checking each."""

    name = "records"
    VERSION = tfds.core.Version("1.0.0")
    # TFDS would look for a file of checksums in a package that it does not install.
    url_infos: Mapping[str, Any] | None = None

    def __init__(self, raw: RawDataset, data: DataConfig, stdout: TextIO, **options: Any):
        self._data = data
        self._stdout = stdout
        self._label_maps = {name: list(names) for name, names in raw.label_maps.items()}
        self._palette = raw.palette
        self._splits: dict[str, list[Sample]] = {}
        for sample in _list_samples(raw, data):
            self._splits.setdefault(sample.split, []).append(sample)
        first = next(iter(self._splits.values()))[0]
        self._num_channels = {
            # The records' features are fixed before the other files are read.
            name: decode_channels(file.load_bytes(), str(file.path)).shape[-1]
            for name, file in first.channels.items()
        }
        self._labels_seen = {name: np.zeros(256, bool) for name in self._label_maps}
        super().__init__(file_format="array_record", **options)

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of extra channels."""
        return tuple(self._num_channels)

    def prepare(self) -> None:
        """Writes the records.

        Raises:
          UserError: something is wrong with the raw files.
        """
        total = sum(len(samples) for samples in self._splits.values())
        with progress_bar(f"preparing {self._data.name}", total) as self._bar:
            self.download_and_prepare(file_format="array_record")
        for name, class_names in self._label_maps.items():
            seen = set(np.flatnonzero(self._labels_seen[name]).tolist())
            if seen == {0, IGNORE_INDEX} and len(class_names) == 2:
                of_map = f" of {name}" if name else ""
                raise UserError(
                    f"{self._data.root or self._data.name}: every mask{of_map} holds only 0 and "
                    f"{IGNORE_INDEX}, but {IGNORE_INDEX} means void (neither trained on nor "
                    "scored); save the foreground as 1"
                )

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(), "name": tfds.features.Text()}
        for name, class_names in self._label_maps.items():
            features[label_feature(name)] = tfds.features.LabeledImage(
                labels=class_names, encoding_format="png"
            )
        for name, count in self._num_channels.items():
            features[channel_feature(name)] = tfds.features.Image(shape=(None, None, count))
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Records of {self._data.name} for fcn_jax.",
            features=tfds.features.FeaturesDict(features),
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable]]:
        del dl_manager  # nothing to download
        return {
            split: [
                functools.partial(self._records, samples[start : start + RECORDS_PER_SHARD])
                for start in range(0, len(samples), RECORDS_PER_SHARD)
            ]
            for split, samples in self._splits.items()
        }

    def _records(self, samples: list[Sample]) -> Iterator[tuple[bytes, dict[str, Any]]]:
        for sample in samples:
            try:
                with contextlib.redirect_stdout(self._stdout):  # what the data set's reader prints
                    record = self._record(sample)
                yield _bytes(sample.name), record
            except UserError as error:  # the first; there may be more
                raise UserError(f"{error}{SEE_DOCTOR}") from error
            except Exception as error:
                error.add_note(f"while preparing {sample.name} ({sample.image.path})")
                raise
            self._bar.advance()

    def _record(self, sample: Sample) -> dict[str, Any]:
        encoded = sample.image.load_bytes()
        image, image_name = decode_image(encoded, str(sample.image.path)), str(sample.image.path)
        record: dict[str, Any] = {"image": _stored(encoded, image), "name": _bytes(sample.name)}
        for label_map, class_names in self._label_maps.items():
            file = sample.masks[label_map]
            label = self._load_mask(file)
            check_labels(label, len(class_names), str(file.path))
            if label.shape != image.shape[:2]:
                raise UserError(
                    f"{file.path}: the mask is {width_by_height(label.shape)}, but its image "
                    f"{image_name} is {width_by_height(image.shape)}"
                )
            self._labels_seen[label_map] |= np.bincount(label.reshape(-1), minlength=256) > 0
            record[label_feature(label_map)] = encode_png(label)
        for folder, count in self._num_channels.items():
            file = sample.channels[folder]
            encoded = file.load_bytes()
            channels = decode_channels(encoded, str(file.path))
            if channels.shape[-1] != count:
                raise UserError(
                    f"{file.path}: has {channels.shape[-1]} channels, but the first file of its "
                    f"folder {count}; save all of them grey or all in colour"
                )
            join_channels(image, image_name, [(channels, str(file.path))])
            record[channel_feature(folder)] = _stored(encoded, channels)
        return record

    def _load_mask(self, file: SourceFile) -> np.ndarray:
        content = file.load()
        if isinstance(content, bytes):
            return decode_mask(content, str(file.path), self._palette)
        return as_labels(content, str(file.path))


def _bytes(name: str) -> bytes:
    """Returns a name as bytes; a file name need not be UTF-8."""
    return name.encode(errors="surrogateescape")


def _stored(encoded: bytes, pixels: np.ndarray) -> bytes:
    """The bytes of an image file in a record."""
    return encoded if encoded.startswith(JPEG_OR_PNG) else encode_png(pixels)


def _list_samples(raw: RawDataset, data: DataConfig) -> list[Sample]:
    """Lists and checks the samples for preparation.

    Raises:
      UserError: no samples, a name twice in a split, samples without all masks and channels, or
        channels and label maps that the settings do not name.
    """
    place = data.root or data.name
    samples = list_samples(raw, data)
    if not samples:
        raise UserError(f"{place}: the data set has no images")
    check_image_names((sample.name for sample in samples), place)
    if twice := duplicates((sample.split, sample.name) for sample in samples):
        names = listed([f"{name} in {split}" for split, name in twice], NAMES_SHOWN)
        raise UserError(f"{place}: images of one split must have different names: {names}")
    for split in {sample.split for sample in samples}:
        if not re.fullmatch(r"\w+", split) or split == "all":
            raise UserError(f"{place}: {split!r} cannot be the name of a split")
    maps, folders = list(raw.label_maps), list(data.extra_channels)
    if data.label_maps != ("masks",) and list(data.label_map_names()) != maps:
        raise UserError(
            f"config.data.label_maps (={format_value(data.label_maps)}) must name the label maps "
            f"of {data.name}, {', '.join(maps) or 'which has a single one'}"
        )
    for label_map in maps:
        lacking = [sample.name for sample in samples if label_map not in sample.masks]
        if lacking:
            raise UserError(
                f"{place}: {len(lacking)} images without a mask"
                f"{f' of {label_map}' if label_map else ''}: {listed(lacking, NAMES_SHOWN)}"
                + SEE_DOCTOR
            )
    for sample in samples:
        if list(sample.channels) != folders:
            channels = ", ".join(sample.channels) or "none"
            raise UserError(
                f"config.data.extra_channels (={format_value(data.extra_channels)}) must name the "
                f"channels beside RGB of {data.name}, which has {channels}"
            )
    return samples
