"""The scores of Long et al. (2015) and others, from one confusion matrix over a whole split.

Nothing is averaged over images, batches or devices before.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

ABSENT = "–"

MeanOver = Literal["truth", "union", "all", "zero", "cases"]
"""The classes that have an IoU and count in the means: classes in the truth; in the truth or the
prediction; all, so that the means are nan if a class is in neither; or all, where a class that is
in neither has 0. "cases": see `case_scores`."""


@dataclass(frozen=True)
class Scores:
    """Scores as fractions in 0..1; nan where there is no pixel to score.

    Per-class scores are float64 (k,). IoU, Dice, recall and boundary IoU are nan for a class
    without a pixel in the truth, even if it was predicted (`mean_over` changes that for IoU and
    Dice). Precision is nan for a class that was never predicted, and 0 for one that was predicted
    and is absent from the truth. Means are taken over the classes with a number, or over all
    classes if `mean_over` is "all".
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
    """n_ii / Σ_j n_ji: the correct share of the pixels predicted as the class."""
    per_class_recall: np.ndarray
    """n_ii / t_i: the correct share of the class's pixels; the paper calls it class accuracy."""
    pixel_shares: np.ndarray
    """t_i / Σ_i t_i: the class's share of the pixels in the truth."""
    per_class_boundary_iou: np.ndarray | None = None
    """None if it was not computed; see `boundary.py`."""

    @property
    def mean_boundary_iou(self) -> float | None:
        if self.per_class_boundary_iou is None:
            return None
        return mean_of_present(self.per_class_boundary_iou)


def scores(
    confusion: np.ndarray,
    mean_over: MeanOver = "truth",
    boundary: np.ndarray | None = None,
) -> Scores:
    """Computes the scores of a split from its confusion matrix (Long et al. 2015, section 5).

    With n_ij the pixels of class i predicted as class j and t_i = Σ_j n_ij,

    - pixel accuracy is Σ_i n_ii / Σ_i t_i,
    - mean accuracy is the mean of n_ii / t_i,
    - mIoU, the paper's "mean IU", is the mean of IoU_i = n_ii / (t_i + Σ_j n_ji − n_ii),
    - frequency-weighted IoU is Σ_i t_i IoU_i / Σ_i t_i,

    and in addition to the paper's four, mean Dice is the mean of 2 n_ii / (t_i + Σ_j n_ji).

    By default the means are taken over the classes in the truth (t_i > 0). Pixels wrongly predicted
    as an absent class still count against their own class. Other projects average over other
    classes: see `conventions.py`.

    Args:
        confusion: int64 (k, k), true by predicted class, summed over the whole split.
        mean_over: the classes that the means are taken over.
        boundary: int64 (2, k), the sum of `boundary_counts` over the whole split, for boundary IoU.

    Returns:
        The scores; all of them are nan for a matrix of zeros.
    """
    truth = confusion.sum(axis=1, dtype=np.int64)
    predicted = confusion.sum(axis=0, dtype=np.int64)
    return scores_from_counts(np.diag(confusion), truth, predicted, mean_over, boundary)


def scores_from_counts(
    hits: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    mean_over: MeanOver = "truth",
    boundary: np.ndarray | None = None,
) -> Scores:
    """Computes `scores` from the sums of a confusion matrix that they need.

    Args:
        hits: int64 (k,), correct pixels of each class: the diagonal.
        truth: int64 (k,), pixels of each class: the sums of the rows.
        predicted: int64 (k,), pixels predicted as each class: the sums of the columns.
        mean_over, boundary: as in `scores`.
    """
    present = truth > 0
    scored = present if mean_over == "truth" else truth + predicted > 0
    mean = np.mean if mean_over in ("all", "zero") else mean_of_present
    pixels = truth.sum()
    iou = ratio(hits, truth + predicted - hits, where=scored)
    recall = ratio(hits, truth, where=present)
    dice = ratio(2 * hits, truth + predicted, where=scored)
    if mean_over == "zero":
        iou, recall, dice = (np.nan_to_num(per_class) for per_class in (iou, recall, dice))
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


def case_scores(
    hits: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    boundary: np.ndarray | None = None,
) -> Scores:
    """Computes the scores as nnU-Net does: Dice and IoU of each image, then their means.

    The Dice and the IoU of a class are the means over the images that have the class in the truth
    or the prediction; the others have nan, and so has a class that is in no image. The means over
    the classes leave out class 0, the background (nnU-Net's `foreground_mean`), and are nan if one
    of the others has nan. The other scores are those of all images together.

    Args:
        hits, truth, predicted: int64 (n, k), as in `scores_from_counts`, of each image.
        boundary: as in `scores`.
    """
    cases = truth + predicted > 0
    count = cases.sum(axis=0)
    means = [
        ratio(np.nansum(ratio(part, whole, where=cases), axis=0), count, where=count > 0)
        for part, whole in ((hits, truth + predicted - hits), (2 * hits, truth + predicted))
    ]
    together = scores_from_counts(
        hits.sum(axis=0), truth.sum(axis=0), predicted.sum(axis=0), "union", boundary
    )
    iou, dice = means
    return replace(
        together,
        per_class_iou=iou,
        per_class_dice=dice,
        mean_iou=float(iou[1:].mean()) if len(iou) > 1 else math.nan,
        mean_dice=float(dice[1:].mean()) if len(dice) > 1 else math.nan,
    )


def mean_of_present(per_class: np.ndarray) -> float:
    """Returns the mean over the classes that have a number; nan if none has."""
    present = per_class[~np.isnan(per_class)]
    return float(present.mean()) if len(present) else math.nan


def scores_table(scores: Scores, class_names: Sequence[str]) -> Table:
    """Lays out the scores in percent: a line for each class, then the overall scores.

    Raises:
        ValueError: `class_names` does not have one name for each class.
    """
    _check_length("class_names", class_names, scores)
    boundary = scores.per_class_boundary_iou
    columns = {
        "IoU": scores.per_class_iou,
        "Dice": scores.per_class_dice,
        "precision": scores.per_class_precision,
        "recall\n(accuracy)": scores.per_class_recall,
        **({} if boundary is None else {"boundary\nIoU": boundary}),
        "% of\npixels": np.where(np.isnan(scores.per_class_iou), np.nan, scores.pixel_shares),
    }
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,  # keeps seven columns within 80 characters
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
    """Returns the scores as a dictionary that is valid JSON: fractions, None instead of nan.

    The keys are the fields of `Scores`; scores per class are dictionaries by class name. Boundary
    IoU is included if it was computed.

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
    """Divides in float64; nan except where `where` is true."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=where)


def percent(fraction: float) -> str:
    """Formats a fraction in percent with one decimal, without the sign."""
    return ABSENT if math.isnan(fraction) else f"{100 * fraction:.1f}"


def number_or_none(number: float) -> float | None:
    """Returns a number for JSON: None for nan."""
    return None if math.isnan(number) else float(number)
