"""Scores of volumes by case and class, and their mean as nnU-Net takes it.

nnU-Net's mean of a class is over the cases (nan where the class is in neither truth nor
prediction), and its overall number is the mean of the classes without the background. The scores of
`metrics.py` are of all voxels of all cases together instead.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.evaluation.image_counts import ImageCounts
from fcn_jax.evaluation.metrics import ABSENT, mean_of_present, number_or_none, ratio

PERCENTILE = 95


@dataclasses.dataclass(frozen=True)
class CaseScores:
    """Scores by case and class, float64 (n, k).

    Attributes:
        names: n names of cases.
        dice, iou: nan where a class is in neither truth nor prediction.
        hd95_mm: see `hausdorff95_mm`; nan also where a class is in only one of the two.
    """

    names: tuple[str, ...]
    dice: np.ndarray
    iou: np.ndarray
    hd95_mm: np.ndarray

    @classmethod
    def of(cls, counts: ImageCounts, hd95_mm: np.ndarray) -> "CaseScores":
        total = counts.truth + counts.predicted
        present = total > 0
        return cls(
            counts.names,
            ratio(2 * counts.hits, total, where=present),
            ratio(counts.hits, total - counts.hits, where=present),
            hd95_mm,
        )

    def means(self, name: str) -> np.ndarray:
        """Returns the mean of a score over the cases for each class: float64 (k,)."""
        return np.array([mean_of_present(column) for column in getattr(self, name).T])

    def foreground_mean(self, name: str) -> float:
        """Returns the mean of a score over the classes after the first, of their `means`."""
        return mean_of_present(self.means(name)[1:])

    def table(self, class_names: Sequence[str]) -> Table:
        """Lays out the means of the classes without the background, and their worst cases."""
        table = Table(
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            caption="means over cases, then over classes without the background (nnU-Net's)",
            caption_justify="left",
        )
        table.add_column("by case", overflow="fold")
        for title in ("Dice %", "IoU %", "HD95\nmm", "worst\nDice %"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("worst case", overflow="fold")
        means = {name: self.means(name) for name in ("dice", "iou", "hd95_mm")}
        for index in range(1, len(class_names)):
            of_class = self.dice[:, index]
            worst = None if np.isnan(of_class).all() else int(np.nanargmin(of_class))
            table.add_row(
                Text(class_names[index]),
                _shown(100 * means["dice"][index]),
                _shown(100 * means["iou"][index]),
                _shown(means["hd95_mm"][index], 2),
                ABSENT if worst is None else _shown(100 * of_class[worst]),
                Text(ABSENT if worst is None else self.names[worst]),
            )
        table.add_section()
        table.add_row(
            "mean",
            _shown(100 * self.foreground_mean("dice")),
            _shown(100 * self.foreground_mean("iou")),
            _shown(self.foreground_mean("hd95_mm"), 2),
            style="bold",
        )
        return table

    def to_json(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Returns the means and the scores of each case as valid JSON, None instead of nan."""
        scores = ("dice", "iou", "hd95_mm")

        def by_class(values: np.ndarray) -> dict[str, float | None]:
            return {
                name: number_or_none(value) for name, value in zip(class_names, values, strict=True)
            }

        return {
            "averaging": "nnU-Net: over cases, then over classes without the background",
            "foreground_mean": {
                score: number_or_none(self.foreground_mean(score)) for score in scores
            },
            "mean": {score: by_class(self.means(score)) for score in scores},
            "cases": {
                name: {score: by_class(getattr(self, score)[index]) for score in scores}
                for index, name in enumerate(self.names)
            },
        }


def hausdorff95_of_classes(
    truth: np.ndarray, predicted: np.ndarray, num_classes: int, spacing_mm: Sequence[float]
) -> np.ndarray:
    """Returns `hausdorff95_mm` of every class after the first: float64 (k,), nan of the first.

    Args:
        truth, predicted: uint8 (x, y, z); where `truth` is 255, neither counts.
        num_classes: k.
        spacing_mm: size of a voxel.
    """
    valid = truth != IGNORE_INDEX
    result = np.full(num_classes, math.nan)
    for label in range(1, num_classes):
        result[label] = hausdorff95_mm(
            (truth == label) & valid, (predicted == label) & valid, spacing_mm
        )
    return result


def hausdorff95_mm(one: np.ndarray, other: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Returns the 95 % Hausdorff distance of two masks, in mm.

    The surface of a mask is its voxels with a neighbour, by a face, outside the mask or the volume.
    The distances from each voxel of one surface to the nearest voxel of the other have a 95th
    percentile; the larger one of the two directions is taken, as in MONAI's
    `compute_hausdorff_distance(percentile=95)`.

    Args:
        one, other: bool (x, y, z).
        spacing_mm: size of a voxel.

    Returns:
        nan if a mask is empty.
    """
    import scipy.ndimage

    union = one | other
    if not one.any() or not other.any():
        return math.nan
    # All distances are between voxels of the masks, so their bounding box is enough.
    box = scipy.ndimage.find_objects(union.astype(np.uint8))[0]
    one, other = np.pad(one[box], 1), np.pad(other[box], 1)
    surfaces = [mask & ~scipy.ndimage.binary_erosion(mask) for mask in (one, other)]
    percentiles = []
    for surface, target in (surfaces, surfaces[::-1]):
        distance = scipy.ndimage.distance_transform_edt(~target, sampling=spacing_mm)
        percentiles.append(np.percentile(distance[surface], PERCENTILE))
    return float(max(percentiles))


def _shown(value: float, digits: int = 1) -> str:
    return ABSENT if math.isnan(value) else f"{value:.{digits}f}"
