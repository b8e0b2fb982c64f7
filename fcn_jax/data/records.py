"""What a prepared record holds, and the writing of records: the base of this package's builders.

TFDS's usual base, `GeneratorBasedBuilder`, keeps what it is given in memory up to a gigabyte and
needs TensorFlow beyond; `ShardBasedBuilder` writes shard after shard, in the order given.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from fcn_jax.data.channels import channel_feature, decode_channels, join_channels
from fcn_jax.data.images import decode_image, encode_png
from fcn_jax.data.labels import check_labels, label_feature
from fcn_jax.errors import UserError, width_by_height
from fcn_jax.terminal.progress import progress_bar

RECORDS_PER_SHARD = 256  # TFDS holds one shard in memory while it writes
JPEG_OR_PNG = (b"\xff\xd8\xff", b"\x89PNG")  # first bytes of the files that are kept as they are


class UnreadFile(NamedTuple):
    """One of the pictures that make a record, unread. name: stands for it in errors."""

    read: Callable[[], Any]
    name: str


class RecordSource(NamedTuple):
    """A record before preparation.

    image: gives the encoded file. labels: each gives the class indices of a label map, uint8
    (h, w). channels: each gives the encoded file of further channels.
    """

    name: str
    image: UnreadFile
    labels: Sequence[UnreadFile]
    channels: Sequence[UnreadFile] = ()


class SegmentationBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes the `RecordSource`s that a subclass's `_sources` lists, after checking each.

    label_maps: class names by label map; a single one is called "". further_channels: how many
    channels of a source's `channels`, by name.
    """

    VERSION = tfds.core.Version("1.0.0")
    # TFDS would look for a file of checksums, by way of a package that it does not install.
    url_infos: Mapping[str, Any] | None = None

    def __init__(
        self,
        *,
        label_maps: Mapping[str, Sequence[str]],
        further_channels: Mapping[str, int] | None = None,
        **options: Any,
    ):
        self._label_maps = {name: list(class_names) for name, class_names in label_maps.items()}
        self._further_channels = dict(further_channels or {})
        self.open_files = contextlib.ExitStack()  # closed when preparation ends
        super().__init__(file_format="array_record", **options)

    def prepare(self, download_dir: str) -> None:
        """Write the records; when this fails or is interrupted, none are left.

        Raises:
          UserError: something is wrong with the raw files.
        """
        with self.open_files:
            self.download_and_prepare(download_dir=download_dir, file_format="array_record")

    def _sources(self, dl_manager: Any) -> dict[str, list[RecordSource]]:
        raise NotImplementedError

    def _check_all(self) -> None:
        """Called once after the last record, for what only the whole set shows."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(), "name": tfds.features.Text()}
        for name, class_names in self._label_maps.items():
            features[label_feature(name)] = tfds.features.LabeledImage(
                labels=class_names, encoding_format="png"
            )
        for name, count in self._further_channels.items():
            features[channel_feature(name)] = tfds.features.Image(shape=(None, None, count))
        return tfds.core.DatasetInfo(
            builder=self,
            description=(type(self).__doc__ or "").splitlines()[0],
            features=tfds.features.FeaturesDict(features),
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable]]:
        splits = self._sources(dl_manager)
        total = sum(len(sources) for sources in splits.values())
        self._bar = self.open_files.enter_context(progress_bar(f"preparing {self.name}", total))
        self._remaining = total
        return {
            split: [
                functools.partial(self._records, sources[start : start + RECORDS_PER_SHARD])
                for start in range(0, len(sources), RECORDS_PER_SHARD)
            ]
            for split, sources in splits.items()
        }

    def _records(self, sources: list[RecordSource]) -> Iterator[tuple[str, dict[str, Any]]]:
        for source in sources:
            yield source.name, self._record(source)
            self._bar.advance()
            self._remaining -= 1
        if not self._remaining:
            self._check_all()

    def _record(self, source: RecordSource) -> dict[str, Any]:
        image = source.image.read()
        decoded = decode_image(image, source.image.name)
        record = {"image": _kept(image, decoded), "name": source.name}
        for (name, class_names), part in zip(self._label_maps.items(), source.labels, strict=True):
            label = part.read()
            check_labels(label, len(class_names), part.name)
            if label.shape != decoded.shape[:2]:
                raise UserError(
                    f"{part.name}: the mask is {width_by_height(label.shape)}, but its image "
                    f"{source.image.name} is {width_by_height(decoded.shape)}"
                )
            record[label_feature(name)] = encode_png(label)
        for (name, count), part in zip(
            self._further_channels.items(), source.channels, strict=True
        ):
            encoded = part.read()
            channels = decode_channels(encoded, part.name)
            if channels.shape[-1] != count:
                raise UserError(
                    f"{part.name}: has {channels.shape[-1]} channels, but the first file of its "
                    f"folder {count}; save all of them grey or all in colour"
                )
            join_channels(decoded, source.image.name, [(channels, part.name)])
            record[channel_feature(name)] = _kept(encoded, channels)
        return record


def _kept(encoded: bytes, pixels: np.ndarray) -> bytes:
    """A file as it goes into a record."""
    return encoded if encoded.startswith(JPEG_OR_PNG) else encode_png(pixels)
