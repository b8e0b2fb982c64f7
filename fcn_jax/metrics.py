"""The four scores of Long et al. (2015), from one confusion matrix over a whole split.

`confusion_matrix` counts on the device, one batch at a time. The caller adds the counts up in int64
on the host; `scores` then turns the sum into numbers, once. Nothing is averaged over images,
batches or devices on the way.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from fcn_jax.data.labels import VOID_LABEL

ABSENT = "–"


@partial(jax.jit, static_argnames="num_classes")
def confusion_matrix(label: jax.Array, prediction: jax.Array, num_classes: int) -> jax.Array:
    """Count how often each true class was predicted as each class.

    Args:
      label: true classes, any integer type, (b, ...). `VOID_LABEL` and every other value outside
        0..k−1 (padding) is left out.
      prediction: predicted classes, any integer type, same shape. A value outside 0..k−1, which no
        argmax over k scores yields, is left out too.
      num_classes: k; static under `jax.jit`.

    Returns:
      int32 (k, k): rows are true classes, columns predicted ones. Exact up to 2³¹ − 1 pixels.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> confusion_matrix(jnp.array([[0, 1, 1, 255]]), jnp.array([[0, 0, 1, 1]]), 2).tolist()
      [[1, 0], [1, 1]]
    """
    if label.shape != prediction.shape:
        raise ValueError(
            f"`label` (shape {label.shape}) and `prediction` (shape {prediction.shape}) must have "
            "the same shape"
        )
    # One histogram for each item of the batch, then their sum: on a CPU at least three times as
    # fast as one over all pixels, and a batch split over devices is counted where it lies.
    rows = (label.shape[0], -1) if label.ndim > 1 else (1, -1)
    truth = label.astype(jnp.int32).reshape(rows)
    guess = prediction.astype(jnp.int32).reshape(rows)
    counted = (
        (truth != VOID_LABEL)
        & ((truth >= 0) & (truth < num_classes))
        & ((guess >= 0) & (guess < num_classes))
    )
    num_cells = num_classes * num_classes
    cell = jnp.where(counted, truth * num_classes + guess, num_cells)

    def histogram(cell: jax.Array) -> jax.Array:
        return jnp.zeros(num_cells, jnp.int32).at[cell].add(1, mode="drop")

    return jax.vmap(histogram)(cell).sum(axis=0).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Scores:
    """Scores as fractions in 0..1; nan where there is no pixel to score."""

    pixel_accuracy: float
    mean_accuracy: float
    mean_iu: float
    frequency_weighted_iu: float
    per_class_iu: np.ndarray
    """float64 (k,); nan where the truth holds no pixel of the class."""
    per_class_accuracy: np.ndarray
    """float64 (k,); nan where the truth holds no pixel of the class."""


def scores(confusion: np.ndarray) -> Scores:
    """Score a split by its confusion matrix (Long et al. 2015, section 5).

    With n_ij the pixels of class i predicted as class j and t_i = Σ_j n_ij,

    - pixel accuracy is Σ_i n_ii / Σ_i t_i,
    - mean accuracy is the mean of n_ii / t_i,
    - mean IU is the mean of IU_i = n_ii / (t_i + Σ_j n_ji − n_ii),
    - frequency-weighted IU is Σ_i t_i IU_i / Σ_i t_i.

    Both means are over the classes that the truth holds (t_i > 0). Pixels wrongly predicted as an
    absent class still count against the class that they belong to.

    Args:
      confusion: int64 (k, k), rows true and columns predicted, summed over the whole split.

    Returns:
      The scores. All of them are nan for a matrix of zeros.
    """
    hits = np.diag(confusion).astype(np.float64)
    truth = confusion.sum(axis=1, dtype=np.int64)
    predicted = confusion.sum(axis=0, dtype=np.int64)
    present = truth > 0
    accuracy = np.full(len(hits), np.nan)
    iu = np.full(len(hits), np.nan)
    accuracy[present] = hits[present] / truth[present]
    iu[present] = hits[present] / (truth + predicted - hits)[present]
    if not present.any():
        return Scores(math.nan, math.nan, math.nan, math.nan, iu, accuracy)
    return Scores(
        pixel_accuracy=float(hits.sum() / truth.sum()),
        mean_accuracy=float(accuracy[present].mean()),
        mean_iu=float(iu[present].mean()),
        frequency_weighted_iu=float((truth[present] * iu[present]).sum() / truth.sum()),
        per_class_iu=iu,
        per_class_accuracy=accuracy,
    )


def scores_table(scores: Scores, class_names: Sequence[str], pixel_shares: np.ndarray) -> Table:
    """Lay the scores out in percent for `rich.print`: a line for each class, then the four.

    Args:
      scores: of k classes.
      class_names: k names.
      pixel_shares: (k,) in 0..1, each class's share of the pixels of the truth.

    Raises:
      ValueError: `class_names` or `pixel_shares` does not have k entries.
    """
    _check_length("class_names", class_names, scores)
    _check_length("pixel_shares", pixel_shares, scores)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", overflow="fold")
    table.add_column("IU %", justify="right", no_wrap=True)
    table.add_column("accuracy %", justify="right", no_wrap=True)
    table.add_column("pixels %", justify="right", no_wrap=True)
    for name, iu, accuracy, share in zip(
        class_names, scores.per_class_iu, scores.per_class_accuracy, pixel_shares, strict=True
    ):
        absent = math.isnan(iu)
        table.add_row(
            Text(name),
            _percent(iu),
            _percent(accuracy),
            ABSENT if absent else _percent(share),
            style="dim" if absent else None,
        )
    table.add_section()
    table.add_row("mean IU", _percent(scores.mean_iu), style="bold")
    table.add_row("frequency-weighted IU", _percent(scores.frequency_weighted_iu))
    table.add_row("mean accuracy", "", _percent(scores.mean_accuracy))
    table.add_row("pixel accuracy", "", _percent(scores.pixel_accuracy))
    return table


def to_json(scores: Scores, class_names: Sequence[str], images: int) -> dict[str, Any]:
    """Scores as a dictionary that is valid JSON: fractions, None where there is nothing to score.

    Raises:
      ValueError: `class_names` does not have one name for each class.
    """
    _check_length("class_names", class_names, scores)
    return {
        "pixel_accuracy": _number_or_none(scores.pixel_accuracy),
        "mean_accuracy": _number_or_none(scores.mean_accuracy),
        "mean_iu": _number_or_none(scores.mean_iu),
        "frequency_weighted_iu": _number_or_none(scores.frequency_weighted_iu),
        "per_class_iu": {
            name: _number_or_none(iu)
            for name, iu in zip(class_names, scores.per_class_iu, strict=True)
        },
        "images": images,
    }


def _check_length(name: str, values: Sequence[str] | np.ndarray, scores: Scores) -> None:
    if len(values) != len(scores.per_class_iu):
        raise ValueError(
            f"`{name}` (of length {len(values)}) must have one entry for each of the "
            f"{len(scores.per_class_iu)} classes scored"
        )


def _percent(fraction: float) -> str:
    return ABSENT if math.isnan(fraction) else f"{100 * fraction:.1f}"


def _number_or_none(number: float) -> float | None:
    return None if math.isnan(number) else float(number)
