"""Random access to the decoded records of a split."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fcn_jax.data.channels import decode_channels, join_channels
from fcn_jax.data.images import decode_image
from fcn_jax.data.labels import IGNORE_INDEX, check_labels
from fcn_jax.data.masks import decode_mask
from fcn_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Split:
    """The records of a split; indexing reads and decodes one. Can be pickled.

    `split[i]` is `{"image": uint8 (h, w, c), "label": uint8 (h, w), "name": str}`. If there are
    several label maps, the label is (h, w, m).

    Attributes:
      name: the split as TFDS spells it, such as "train" or "train[:10%]".
      num_classes: by the name of a label map's feature in the records.
      records: TFDS's data source, whose images are still encoded.
      image_feature: the name of the image's feature.
      channel_features: the names of the features of extra channels.
      label_offset: is added to every label; labels that become negative are void.
      place: the folder of the records, for errors.
    """

    name: str
    num_classes: Mapping[str, int]
    records: Any = dataclasses.field(repr=False)
    image_feature: str = "image"
    channel_features: tuple[str, ...] = ()
    label_offset: int = 0
    place: str = ""

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads and decodes one record.

        Raises:
          UserError: names a record that is damaged, has a label that is no class, or whose mask is
            of another size than its image.
        """
        record = self._record(index)
        name = self._record_name(record, index)
        image = _decode(record[self.image_feature], decode_image, name)
        if image.ndim == 2:
            image = image[..., None]
        if image.shape[-1] == 1:
            image = np.repeat(image, 3, axis=-1)
        label = self._decode_labels(record, name)
        if image.dtype != np.uint8 or image.shape != (*label.shape[:2], 3):
            raise UserError(
                f"{name}: the image is {image.dtype} {image.shape}, its mask {label.shape[:2]}; "
                "an image of uint8 (h, w, 3) and a mask of (h, w) are needed"
            )
        extra = [
            (_decode(record[feature], decode_channels, name), f"{name}, {feature}")
            for feature in self.channel_features
        ]
        return {"image": join_channels(image, name, extra), "label": label, "name": name}

    def label(self, index: int) -> np.ndarray:
        """Decodes only the label of a record, which is much faster than all of it."""
        record = self._record(index)
        return self._decode_labels(record, self._record_name(record, index))

    def record_name(self, index: int) -> str:
        """The name of a record, without decoding it."""
        return self._record_name(self._record(index), index)

    def stored_images(self, index: int) -> list[bytes]:
        """The image and the extra channels of a record, encoded as they are stored."""
        record = self._record(index)
        values = [record[feature] for feature in (self.image_feature, *self.channel_features)]
        return [
            value if isinstance(value, bytes) else np.asarray(value).tobytes() for value in values
        ]

    def _record(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in split {self.name}")
        try:
            return self.records[index]
        except RuntimeError as error:  # ArrayRecord's checksums
            reason = str(error).split(";")[0]
            raise UserError(
                f"the prepared records of {self.name} in {self.place} are damaged ({reason}); "
                "remove this folder to have them prepared again"
            ) from error

    def _record_name(self, record: dict[str, Any], index: int) -> str:
        for key in ("name", "file_name", "filename", "image/filename"):
            if isinstance(name := record.get(key), bytes | str):
                return name.decode(errors="surrogateescape") if isinstance(name, bytes) else name
        return f"{self.name}[{index}]"

    def _decode_labels(self, record: dict[str, Any], name: str) -> np.ndarray:
        maps = [
            self._decode_label(record[feature], name, count)
            for feature, count in self.num_classes.items()
        ]
        return maps[0] if len(maps) == 1 else np.stack(maps, axis=-1)

    def _decode_label(self, value: Any, name: str, num_classes: int) -> np.ndarray:
        label = _decode(value, decode_mask, name)
        if label.ndim == 3 and label.shape[-1] == 1:
            label = label[..., 0]
        if self.label_offset:
            shifted = label.astype(np.int32) + self.label_offset
            label = np.where((label == IGNORE_INDEX) | (shifted < 0), IGNORE_INDEX, shifted)
        check_labels(label, num_classes, name)
        return label.astype(np.uint8, copy=False)


def _decode(value: Any, decode: Callable[[bytes, str], np.ndarray], name: str) -> np.ndarray:
    return decode(value, name) if isinstance(value, bytes) else np.asarray(value)
