"""What a prepared record holds, and the writing of records: the base of this package's builders.

TFDS's usual base, `GeneratorBasedBuilder`, keeps what it is given in memory up to a gigabyte and
needs TensorFlow beyond; `ShardBasedBuilder` writes shard after shard, in the order given.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from fcn_jax.data.labels import check_labels, decode_image, encode_png
from fcn_jax.errors import UserError
from fcn_jax.progress import progress_bar

RECORDS_PER_SHARD = 256  # TFDS holds one shard in memory while it writes
JPEG_OR_PNG = (b"\xff\xd8\xff", b"\x89PNG")  # first bytes of the files that are kept as they are


class Source(NamedTuple):
    """An image and its label map before preparation, unread.

    `image` gives the encoded file, `label` the class indices, uint8 (h, w); `image_name` and
    `label_name` stand for them in errors.
    """

    name: str
    image: Callable[[], bytes]
    image_name: str
    label: Callable[[], Any]
    label_name: str


class SegmentationBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes the `Source`s that a subclass's `_sources` lists, after checking each."""

    VERSION = tfds.core.Version("1.0.0")
    # TFDS would look for a file of checksums, by way of a package that it does not install.
    url_infos: Mapping[str, Any] | None = None

    def __init__(self, *, class_names: Sequence[str], **options: Any):
        self._class_names = list(class_names)
        self.open_files = contextlib.ExitStack()  # closed when preparation ends
        super().__init__(file_format="array_record", **options)

    def prepare(self, download_dir: str) -> None:
        """Write the records; when this fails or is interrupted, none are left.

        Raises:
          UserError: something is wrong with the raw files.
        """
        with self.open_files:
            self.download_and_prepare(download_dir=download_dir, file_format="array_record")

    def _sources(self, dl_manager: Any) -> dict[str, list[Source]]:
        raise NotImplementedError

    def _check_all(self) -> None:
        """Called once after the last record, for what only the whole set shows."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.LabeledImage(labels=self._class_names, encoding_format="png"),
            "name": tfds.features.Text(),
        }
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

    def _records(self, sources: list[Source]) -> Iterator[tuple[str, dict[str, Any]]]:
        for source in sources:
            yield source.name, self._record(source)
            self._bar.advance()
            self._remaining -= 1
        if not self._remaining:
            self._check_all()

    def _record(self, source: Source) -> dict[str, Any]:
        image = source.image()
        label = source.label()
        check_labels(label, len(self._class_names), source.label_name)
        decoded = decode_image(image, source.image_name)
        height, width, _ = decoded.shape
        if label.shape != (height, width):
            raise UserError(
                f"{source.label_name}: the mask is {label.shape[1]} × {label.shape[0]}, "
                f"but its image {source.image_name} is {width} × {height}"
            )
        if not image.startswith(JPEG_OR_PNG):
            image = encode_png(decoded)
        return {"image": image, "label": encode_png(label), "name": source.name}
