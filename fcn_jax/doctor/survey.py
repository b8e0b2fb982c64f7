"""Statistics of a whole data set, computed from the reports of its images."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.doctor.examine import ImageReport, MaskReport


@dataclasses.dataclass(frozen=True)
class LabelStatistics:
    """Statistics of each value 0–255 in some masks, int64 (256,) each.

    pixels: number of pixels. images: number of images in which the value occurs.
    pixels_where_present: all pixels, except void, of these images.
    """

    pixels: np.ndarray
    images: np.ndarray
    pixels_where_present: np.ndarray


@dataclasses.dataclass(frozen=True)
class Survey:
    """The reports of all images of a data set, and statistics of them.

    label_maps: class names by label map; () if unknown. is_part: this is a part of a known data
    set, so that classes may be missing.
    """

    label_maps: Mapping[str, tuple[str, ...]]
    splits: tuple[str, ...]
    train_splits: tuple[str, ...]
    reports: Sequence[ImageReport]
    is_part: bool = False

    def sizes(self, splits: Sequence[str]) -> np.ndarray:
        """Returns heights and widths of the readable images of some splits, int (n, 2)."""
        sizes = [r.size for r in self.reports if r.size is not None and r.split in splits]
        return np.array(sizes, int).reshape(-1, 2)

    def masks(self, label_map: str) -> Iterator[tuple[int, MaskReport]]:
        """Yields the masks of a label map, each with the index of its image."""
        for index, report in enumerate(self.reports):
            if label_map in report.masks:
                yield index, report.masks[label_map]

    def statistics(self, label_map: str, splits: Sequence[str]) -> LabelStatistics:
        """Returns the statistics of a label map in some splits, without spoilt masks."""
        statistics = LabelStatistics(*np.zeros((3, 256), np.int64))
        artefacts_are_spoilt = self.thin_class(label_map) is None
        for index, mask in self.masks(label_map):
            is_spoilt = mask.artefact is not None and artefacts_are_spoilt
            if self.reports[index].split not in splits or is_spoilt:
                continue
            not_void = sum(mask.pixels.values()) - mask.pixels.get(IGNORE_INDEX, 0)
            for value, count in mask.pixels.items():
                statistics.pixels[value] += count
                statistics.images[value] += 1
                statistics.pixels_where_present[value] += not_void
        return statistics

    def thin_class(self, label_map: str) -> int | None:
        """Returns the value whose thin lines look like interpolation but may be drawn as such.

        A border class between two others cannot be distinguished from interpolation between them.
        It is assumed if all traces of interpolation in the set have this one value, and no mask
        has other signs of interpolation or JPEG.
        """
        artefacts = [mask.artefact for _, mask in self.masks(label_map) if mask.artefact]
        values = {value for artefact in artefacts for value in artefact.between}
        kinds = {artefact.kind for artefact in artefacts}
        noted = {note.kind for report in self.reports for note in report.notes}
        other_signs = noted & {"mask_interpolated", "mask_was_jpeg"}
        is_thin = kinds == {"mask_interpolated"} and len(values) == 1 and not other_signs
        return values.pop() if is_thin else None

    def clearest_examples(self, label_map: str) -> dict[int, tuple[float, int]]:
        """Returns the largest share of each label in any image, and the index of that image."""
        examples: dict[int, tuple[float, int]] = {}
        for index, mask in self.masks(label_map):
            if self.reports[index].size is None:
                continue
            area = sum(mask.pixels.values())
            for label, count in mask.pixels.items():
                share = count / area
                if label != IGNORE_INDEX and share > examples.get(label, (0.0, 0))[0]:
                    examples[label] = share, index
        return examples
