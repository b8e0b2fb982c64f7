"""The records of one split of a prepared data set, decoded one by one when asked for."""

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
    """The records of a split, by index: read and decoded when asked for. Can be pickled.

    `split[i]` is `{"image": uint8 (h, w, c), "label": uint8 (h, w), "name": str}`, with a label of
    (h, w, m) where there are several label maps. num_classes: of each, by its feature.
    """

    name: str
    num_classes: Mapping[str, int]
    records: Any = dataclasses.field(repr=False)  # TFDS's data source; images still encoded
    image_feature: str = "image"
    channel_features: tuple[str, ...] = ()
    label_offset: int = 0
    place: str = ""  # the folder of the records, for errors

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One record.

        Raises:
          UserError: a label that is no class, or an image that its mask does not fit; named.
        """
        record = self._record(index)
        name = self._record_name(record, index)
        image = _decoded(record[self.image_feature], decode_image, name)
        if image.ndim == 2:
            image = image[..., None]
        if image.shape[-1] == 1:
            image = np.repeat(image, 3, axis=-1)
        label = self._decoded_labels(record, name)
        if image.dtype != np.uint8 or image.shape != (*label.shape[:2], 3):
            raise UserError(
                f"{name}: the image is {image.dtype} {image.shape}, its mask {label.shape[:2]}; "
                "an image of uint8 (h, w, 3) and a mask of (h, w) are needed"
            )
        further = [
            (_decoded(record[feature], decode_channels, name), f"{name}, {feature}")
            for feature in self.channel_features
        ]
        return {"image": join_channels(image, name, further), "label": label, "name": name}

    def label(self, index: int) -> np.ndarray:
        """The label of a record alone, as in the record: much faster than the whole of it."""
        record = self._record(index)
        return self._decoded_labels(record, self._record_name(record, index))

    def record_name(self, index: int) -> str:
        """The name of a record; nothing is decoded."""
        return self._record_name(self._record(index), index)

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
                return name.decode() if isinstance(name, bytes) else name
        return f"{self.name}[{index}]"

    def _decoded_labels(self, record: dict[str, Any], name: str) -> np.ndarray:
        maps = [
            self._decoded_label(record[feature], name, count)
            for feature, count in self.num_classes.items()
        ]
        return maps[0] if len(maps) == 1 else np.stack(maps, axis=-1)

    def _decoded_label(self, value: Any, name: str, num_classes: int) -> np.ndarray:
        label = _decoded(value, decode_mask, name)
        if label.ndim == 3 and label.shape[-1] == 1:
            label = label[..., 0]
        if self.label_offset:
            shifted = label.astype(np.int32) + self.label_offset
            label = np.where((label == IGNORE_INDEX) | (shifted < 0), IGNORE_INDEX, shifted)
        check_labels(label, num_classes, name)
        return label.astype(np.uint8, copy=False)


def _decoded(value: Any, decode: Callable[[bytes, str], np.ndarray], name: str) -> np.ndarray:
    return decode(value, name) if isinstance(value, bytes) else np.asarray(value)
