"""U-Net's weights for the narrow borders between touching objects (Ronneberger et al. 2015).

A label map gives classes, not objects: an object is a connected component of pixels that are
neither of the border's class nor void, joined by their sides.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from fcn_jax.data.labels import IGNORE_INDEX

LEVELS = 254
"""The map's 1 as a byte; 255 is the ignore index."""

REACH = 4
"""In standard deviations: the weight of a border whose distances sum up to more rounds to 0."""


def border_map(label: np.ndarray, border_class: int, sigma_px: float) -> np.ndarray:
    """Computes exp(−(d₁ + d₂)² / 2σ²) of section 3, equation 2, on the pixels of the border.

    d₁ and d₂ are the distances to the nearest and to the second nearest object, in pixels between
    the pixels' centres. Elsewhere, and where only one object is near, the map is 0.

    Args:
        label: class indices, uint8 (h, w).
        border_class: the class between the objects.
        sigma_px: σ.

    Returns:
        uint8 (h, w) in units of 1/254.
    """
    from scipy import ndimage

    border = label == border_class
    objects, _ = ndimage.label(~border & (label != IGNORE_INDEX))
    far = REACH * sigma_px
    distances = np.full((2, *label.shape), far, np.float32)
    margin = int(np.ceil(far))
    for number, box in enumerate(ndimage.find_objects(objects), start=1):
        near = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in box)
        distance = ndimage.distance_transform_edt(objects[near] != number)
        nearest, second = (of_rank[near] for of_rank in distances)
        np.minimum(second, np.maximum(nearest, distance), out=second)
        np.minimum(nearest, distance, out=nearest)
    values = np.exp(-(distances.sum(axis=0) ** 2) / (2 * sigma_px**2))
    # No second object is near where its distance is the largest.
    values[~border | (distances[1] >= far)] = 0
    return np.round(LEVELS * values).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class WithBorders:
    """Records whose labels have the map of `border_map` behind their label maps.

    Attributes:
        records: a random-access source of records, with labels (h, w) or (h, w, m).
        border_class, sigma_px: see `border_map`; of the first label map.
    """

    records: Sequence[dict[str, Any]]
    border_class: int
    sigma_px: float

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        maps = np.atleast_3d(record["label"])
        borders = border_map(maps[..., 0], self.border_class, self.sigma_px)
        return record | {"label": np.concatenate([maps, borders[..., None]], axis=-1)}
