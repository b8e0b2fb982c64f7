"""The scores of Long et al. (2015) and others, from one confusion matrix over a whole split.

`confusion.py` counts it; `scores` turns it into numbers, once. Nothing is averaged over images,
batches or devices on the way.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

ABSENT = "–"

Averaged = Literal["truth", "union", "all"]
"""Which classes have an IoU and count in the means: those that the truth holds; those that it holds
or that were predicted; all, so that the means are nan where a class is in neither."""


@dataclass(frozen=True)
class Scores:
    """Scores as fractions in 0..1; nan where there is no pixel to score.

    Per-class scores are float64 (k,). IoU, Dice, recall and boundary IoU are nan for a class
    without a pixel in the ground truth, even if it was predicted (`averaged_over` changes that for
    IoU and Dice). Precision is nan for a class that was never predicted, and 0 for one that was
    predicted and is absent from the ground truth. Means run over the classes that have a number, or
    over all classes if `averaged_over` is "all".
    """

    pixel_accuracy: float
    mean_accuracy: float
    """The mean recall, by the paper's name."""
    mean_iou: float
    frequency_weighted_iou: float
    mean_dice: float
    per_class_iou: np.ndarray
    per_class_dice: np.ndarray
    """2 n_ii / (t_i + Σ_j n_ji), which is F1 and 2 IoU / (1 + IoU)."""
    per_class_precision: np.ndarray
    """n_ii / Σ_j n_ji: how much of what was predicted as the class is of it."""
    per_class_recall: np.ndarray
    """n_ii / t_i: how much of the class was found; the paper calls it the class's accuracy."""
    pixel_shares: np.ndarray
    """t_i / Σ_i t_i: each class's share of the pixels of the truth."""
    per_class_boundary_iou: np.ndarray | None = None
    """None where it was not asked for; see `fcn_jax/boundary.py`."""

    @property
    def mean_boundary_iou(self) -> float | None:
        if self.per_class_boundary_iou is None:
            return None
        return mean_of_present(self.per_class_boundary_iou)


def scores(
    confusion: np.ndarray,
    averaged_over: Averaged = "truth",
    boundary: np.ndarray | None = None,
) -> Scores:
    """Score a split by its confusion matrix (Long et al. 2015, section 5).

    With n_ij the pixels of class i predicted as class j and t_i = Σ_j n_ij,

    - pixel accuracy is Σ_i n_ii / Σ_i t_i,
    - mean accuracy is the mean of n_ii / t_i,
    - mIoU is the mean of IU_i = n_ii / (t_i + Σ_j n_ji − n_ii),
    - frequency-weighted IoU is Σ_i t_i IU_i / Σ_i t_i,

    and beside the paper's four the mean of Dice_i = 2 n_ii / (t_i + Σ_j n_ji).

    By default the means are over the classes that the truth holds (t_i > 0). Pixels wrongly
    predicted as an absent class still count against the class that they belong to. Other projects
    take them over others: see `fcn_jax/conventions.py`.

    Args:
      confusion: int64 (k, k), rows true and columns predicted, summed over the whole split.
      averaged_over: see `Averaged`.
      boundary: int64 (2, k), the sum of `boundary_counts` over the whole split, for boundary IoU.

    Returns:
      The scores. All of them are nan for a matrix of zeros.
    """
    truth = confusion.sum(axis=1, dtype=np.int64)
    predicted = confusion.sum(axis=0, dtype=np.int64)
    return scores_of_counts(np.diag(confusion), truth, predicted, averaged_over, boundary)


def scores_of_counts(
    hits: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    averaged_over: Averaged = "truth",
    boundary: np.ndarray | None = None,
) -> Scores:
    """The same from what the scores need of a confusion matrix.

    Args:
      hits: int64 (k,), pixels of each class that were found: the diagonal.
      truth: int64 (k,), pixels of each class: the sums of rows.
      predicted: int64 (k,), pixels predicted as each class: the sums of columns.
      averaged_over, boundary: as in `scores`.
    """
    present = truth > 0
    scored = present if averaged_over == "truth" else truth + predicted > 0
    mean = np.mean if averaged_over == "all" else mean_of_present
    pixels = truth.sum()
    iou = ratio(hits, truth + predicted - hits, where=scored)
    recall = ratio(hits, truth, where=present)
    dice = ratio(2 * hits, truth + predicted, where=scored)
    shares = truth / pixels if pixels else np.full(len(truth), np.nan)
    return Scores(
        pixel_accuracy=float(hits.sum() / pixels) if pixels else math.nan,
        mean_accuracy=float(mean(recall)),
        mean_iou=float(mean(iou)),
        frequency_weighted_iou=float((shares * iou)[present].sum()) if pixels else math.nan,
        mean_dice=float(mean(dice)),
        per_class_iou=iou,
        per_class_dice=dice,
        per_class_precision=ratio(hits, predicted, where=predicted > 0),
        per_class_recall=recall,
        pixel_shares=shares,
        per_class_boundary_iou=(
            None
            if boundary is None
            else ratio(boundary[0], boundary[1], where=present & (boundary[1] > 0))
        ),
    )


def mean_of_present(per_class: np.ndarray) -> float:
    """The mean over the classes that have a number; nan where none has."""
    present = per_class[~np.isnan(per_class)]
    return float(present.mean()) if len(present) else math.nan


def scores_table(scores: Scores, class_names: Sequence[str]) -> Table:
    """Lay the scores out in percent for `rich.print`: a line for each class, then the overall ones.

    Args:
      scores: of k classes.
      class_names: k names.

    Raises:
      ValueError: `class_names` does not have k entries.
    """
    _check_length("class_names", class_names, scores)
    boundary = scores.per_class_boundary_iou
    columns = {
        "IoU": scores.per_class_iou,
        "Dice": scores.per_class_dice,
        "precision": scores.per_class_precision,
        "recall\n(accuracy)": scores.per_class_recall,
        **({} if boundary is None else {"boundary\nIU": boundary}),
        "pixels": np.where(np.isnan(scores.per_class_iou), np.nan, scores.pixel_shares),
    }
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,  # else VOC's seven columns take more than 80 characters
        caption="all in %",
        caption_justify="left",
    )
    table.add_column("class", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for i, name in enumerate(class_names):
        absent = math.isnan(scores.per_class_iou[i])
        cells = [percent(values[i]) for values in columns.values()]
        table.add_row(Text(name), *cells, style="dim" if absent else None)
    table.add_section()
    table.add_row("mIoU", percent(scores.mean_iou), style="bold")
    table.add_row("frequency-weighted IoU", percent(scores.frequency_weighted_iou))
    table.add_row("mean Dice", "", percent(scores.mean_dice))
    table.add_row("mean accuracy", "", "", "", percent(scores.mean_accuracy))
    table.add_row("pixel accuracy", "", "", "", percent(scores.pixel_accuracy))
    if scores.mean_boundary_iou is not None:
        table.add_row("mean boundary IoU", *[""] * 4, percent(scores.mean_boundary_iou))
    return table


def to_json(scores: Scores, class_names: Sequence[str], images: int) -> dict[str, Any]:
    """Scores as a dictionary that is valid JSON: fractions, None where there is nothing to score.

    The keys are the names of the fields of `Scores`; what is per class is a dictionary by name.
    Boundary IoU is there where it was asked for.

    Raises:
      ValueError: `class_names` does not have one name for each class.
    """
    _check_length("class_names", class_names, scores)
    overall = ["pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou", "mean_dice"]
    by_class = ["iou", "dice", "precision", "recall"]
    if scores.per_class_boundary_iou is not None:
        overall.append("mean_boundary_iou")
        by_class.append("boundary_iou")
    document: dict[str, Any] = {name: number_or_none(getattr(scores, name)) for name in overall}
    for name in [*(f"per_class_{score}" for score in by_class), "pixel_shares"]:
        document[name] = {
            class_name: number_or_none(value)
            for class_name, value in zip(class_names, getattr(scores, name), strict=True)
        }
    return {**document, "images": images}


def _check_length(name: str, values: Sequence[str] | np.ndarray, scores: Scores) -> None:
    if len(values) != len(scores.per_class_iou):
        raise ValueError(
            f"`{name}` (of length {len(values)}) must have one entry for each of the "
            f"{len(scores.per_class_iou)} classes scored"
        )


def ratio(part: np.ndarray, whole: np.ndarray, *, where: np.ndarray) -> np.ndarray:
    """float64; nan but where told."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=where)


def percent(fraction: float) -> str:
    """For the terminal, with one decimal and no sign."""
    return ABSENT if math.isnan(fraction) else f"{100 * fraction:.1f}"


def number_or_none(number: float) -> float | None:
    """A number as JSON holds it: None for nan."""
    return None if math.isnan(number) else float(number)
