"""Plots of a confusion matrix and of a calibration."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_confusion(
    confusion: np.ndarray, class_names: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Plots a confusion matrix in percent of each true class, as a heat map with class names.

    The percentages are written for up to 25 classes. Rows of classes that the truth lacks are
    hatched, and their names are in brackets.

    Args:
      confusion: integers (k, k), rows true and columns predicted.
      class_names: k names.
      path: the file to write; its suffix gives the format (`.png`, `.pdf`, `.svg`).

    Raises:
      ValueError: `class_names` does not have k names.
    """
    # Matplotlib takes half a second to import. A Figure without pyplot needs no display and no
    # global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    k = len(confusion)
    if len(class_names) != k:
        raise ValueError(f"`class_names` (={len(class_names)} names) must have {k} names")
    truth = confusion.sum(axis=1, keepdims=True)
    percent = np.divide(100 * confusion, truth, out=np.full((k, k), np.nan), where=truth > 0)
    absent = truth[:, 0] == 0

    side_inches = min(2.6 + 0.42 * k, 24.0)
    figure = Figure(figsize=(side_inches + 1.2, side_inches), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    heat = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    bar = figure.colorbar(heat, ax=axes, shrink=0.75, pad=0.015)
    bar.ax.spines[:].set_visible(False)
    bar.set_label("% of the true class's pixels")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    _name_ticks(axes, class_names, absent)
    for row in np.flatnonzero(absent):
        axes.axhspan(row - 0.5, row + 0.5, facecolor="0.93", edgecolor="0.75", hatch="///", lw=0)
    if k <= 25:
        for row, column in np.argwhere(percent >= 0.5):
            value = percent[row, column]
            colour = "white" if value > 60 else "black"
            axes.text(
                column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour
            )
    figure.savefig(path, dpi=150)


def plot_reliability(
    pixels: np.ndarray,
    accuracies: np.ndarray,
    confidences: np.ndarray,
    title: str,
    path: str | os.PathLike[str],
) -> None:
    """Plots the accuracy of pixels by their confidence, above the share of the pixels in each bin.

    Bins of equal width; the line from corner to corner is perfect calibration.

    Args:
      pixels: int (bins,), in each bin.
      accuracies: float (bins,), nan in empty bins.
      confidences: float (bins,), the mean in each bin, nan in empty ones.
      title: a line above the plot.
      path: the file to write; its suffix gives the format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = 1 / len(pixels)
    starts = np.arange(len(pixels)) * width
    filled = pixels > 0
    figure = Figure(figsize=(4.6, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    heights = accuracies[filled]
    above.bar(starts[filled], heights, width, align="edge", color="#4477aa")
    above.bar(
        starts[filled],
        confidences[filled] - heights,
        width,
        bottom=heights,
        align="edge",
        color="#ee667733",
        edgecolor="#ee6677",
        hatch="///",
        label="gap to the mean confidence",
    )
    above.plot((0, 1), (0, 1), color="0.35", linestyle=":", linewidth=1.2)
    above.set_ylim(0, 1)
    above.set_ylabel("accuracy")
    above.set_title(title, loc="left", fontsize=10)
    above.legend(frameon=False, fontsize=8, loc="upper left")
    below.bar(starts, 100 * pixels / max(pixels.sum(), 1), width, align="edge", color="0.6")
    below.set_ylabel("% of pixels")
    below.set_xlabel("confidence: probability of the predicted class")
    below.set_xlim(0, 1)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _name_ticks(axes: "Axes", class_names: Sequence[str], absent: np.ndarray) -> None:
    k = len(class_names)
    shown = range(0, k, math.ceil(k / 120))  # more than 120 names would overlap
    names = [f"({class_names[i]})" if absent[i] else class_names[i] for i in shown]
    font_points = 9 if k <= 40 else 6
    axes.set_xticks(shown, names, rotation=90, fontsize=font_points, parse_math=False)
    axes.set_yticks(shown, names, fontsize=font_points, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(k + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(k + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
