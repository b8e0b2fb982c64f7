"""Curves as SVG: loss and scores by training step, and histograms."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Curve(NamedTuple):
    """Values by training step; None is left out."""

    name: str
    steps: Sequence[int]
    values: Sequence[float | None]


def curves_svg(losses: Sequence[Curve], scores: Sequence[Curve], best_step: int | None) -> str:
    """Draws losses above scores over the same steps.

    Args:
        losses: drawn on a logarithmic axis.
        scores: fractions in 0…1.
        best_step: the step that is marked; None for none.

    Returns:
        An SVG element.
    """
    figure = _figure((9, 5.2))
    above, below = figure.subplots(2, 1, sharex=True)
    for axes, curves, title in ((above, losses, "training loss"), (below, scores, "evaluation")):
        for curve in curves:
            values = np.array([np.nan if v is None else v for v in curve.values], float)
            marker = "o" if axes is below else ""
            axes.plot(curve.steps, values, marker=marker, markersize=3.5, label=curve.name)
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        if best_step is not None:
            axes.axvline(best_step, color="0.35", linestyle=":", linewidth=1.2)
        if curves:
            axes.legend(frameon=False, fontsize=9)
    if losses and all((v or 1) > 0 for curve in losses for v in curve.values):
        above.set_yscale("log")
    below.set_ylim(0, 1)
    if best_step is not None:
        below.annotate(
            f"best: step {best_step}", (best_step, 0.02), fontsize=9, ha="right", rotation=90
        )
    below.set_xlabel("step")
    return _svg(figure)


def histogram_svg(values: np.ndarray, label: str) -> str:
    """Draws how many images have which score: values in 0…1, nan left out. Returns an SVG."""
    figure = _figure((9, 2.2))
    axes = figure.add_subplot()
    axes.hist(values[~np.isnan(values)], bins=np.linspace(0, 1, 41).tolist(), color="#4477aa")
    axes.set_xlabel(label)
    axes.set_ylabel("images")
    axes.set_xlim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _figure(size: tuple[float, float]) -> "Figure":
    # See `plots.plot_confusion` for the late import and for `Figure` without pyplot.
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _svg(figure: "Figure") -> str:
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fcn_jax"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
