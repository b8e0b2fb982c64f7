"""Compares two runs scored on the same images, and says whether the images can tell them apart.

    python -m fcn_jax.evaluate --workdir=A
    python -m fcn_jax.evaluate --workdir=B
    python -m fcn_jax.compare A B [--split=val]

A and B are folders of runs or of exported runs, or model files FILE.safetensors, that evaluate has
scored: its files DIR/evaluation/SPLIT.json and SPLIT_images.npz are read. SPLIT is the beginning of
their names, such as val, val_geometry for a label map, or val_scales_0.75_1_1.25_flip. Of the
conventions, only native and d2l can be compared: the means of the others are over classes that may
differ between runs.

Prints the scores of both, their difference, and its 95 % interval over the choice of images (paired
bootstrap: `fcn_jax/evaluation/bootstrap.py`); then the images whose own mIoU, over the classes in
their truth, changed most. Writes to A/evaluation/against_B, or to --output=FOLDER,

    SPLIT.json   all these numbers, and those of every image
    SPLIT.png    IoU of each class with its intervals
    SPLIT.html   a page with both, and the images that changed most in each run, which are predicted
                 again for it if the runs and their data can be read

The interval does not include the variation over training seeds.
"""

from absl import flags

from fcn_jax.terminal import cli

if __name__ == "__main__":  # --help and wrong flags do not wait for the imports below
    flags.DEFINE_string("split", "val", "the scores to compare: DIR/evaluation/SPLIT.json")
    flags.DEFINE_string("output", None, "folder to write to (default: A/evaluation/against_B)")
    cli.begin()

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from fcn_jax.errors import UserError
from fcn_jax.evaluation import bootstrap
from fcn_jax.evaluation.bootstrap import Interval
from fcn_jax.evaluation.comparison import (
    Comparison,
    ImageChange,
    compare,
    comparison_to_json,
    largest_changes,
    read_evaluation,
    verdict,
)
from fcn_jax.evaluation.metrics import percent
from fcn_jax.terminal.atomic_files import write_text, write_whole
from fcn_jax.terminal.console import open_console
from fcn_jax.terminal.progress import say

IMAGES_SHOWN = 5
"""The number of images with the largest gains, and with the largest losses."""

A_COLOUR, B_COLOUR = "#4477aa", "#cc6633"


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise UserError("two runs are needed: A and B (see --help)")
    split = flags.FLAGS.split
    first, second = map(Path, arguments)
    if first.resolve() == second.resolve():
        raise UserError(f"A and B are the same run, {first}: give two")
    a, b = (read_evaluation(workdir, split) for workdir in (first, second))
    comparison = compare(a, b)
    report(comparison, split)
    output = flags.FLAGS.output
    folder = Path(output) if output else a.folder / f"against_{b.name}"
    document = json.dumps({"split": split, **comparison_to_json(comparison)}, indent=2) + "\n"
    write_text(folder / f"{split}.json", document)
    write_whole(folder / f"{split}.png", lambda part: plot(comparison, part))
    say(f"numbers and picture: {folder}/{split}.json, .png")
    from fcn_jax.evaluation.comparison_page import comparison_page, predict_changes

    gained, lost = largest_changes(comparison, IMAGES_SHOWN)
    try:
        examples = predict_changes(comparison, split, [*gained, *lost])
    except UserError as error:
        examples = []
        say(f"note: the page is without images: {error}")
    plot_png = (folder / f"{split}.png").read_bytes()
    page = comparison_page(comparison, split, plot_png, examples)
    write_text(folder / f"{split}.html", page)
    say(f"page: {folder}/{split}.html")


def report(comparison: Comparison, split: str) -> None:
    """Prints the tables and the verdict."""
    a, b = comparison.a, comparison.b
    images = len(a.counts.names)
    say(f"A: {a.workdir}, step {a.numbers['step']}")
    say(f"B: {b.workdir}, step {b.numbers['step']}")
    open_console().print(_scores_table(comparison, f"{split}, {images} images"))
    for letter, scored, intervals in (
        ("A", a, comparison.intervals_a),
        ("B", b, comparison.intervals_b),
    ):
        mean_iou = scored.scores.mean_iou
        say(f"{letter}: {bootstrap.describe('mIoU', mean_iou, intervals.mean_iou, images)}")
    if rare := bootstrap.rare_classes(a.counts, a.class_names):
        say(rare)
    say(verdict(comparison))
    gained, lost = largest_changes(comparison, IMAGES_SHOWN)
    for title, rows in (("largest gains in B", gained), ("largest losses in B", lost)):
        if rows:
            open_console().print(_images_table(title, rows))


def plot(comparison: Comparison, path: Path) -> None:
    """Plots each class's IoU in A and in B with their intervals, as a PNG.

    Names of classes that are absent from the truth are in brackets.
    """
    # See `plots.plot_confusion` for the late import and for `Figure` without pyplot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    a, b = comparison.a, comparison.b
    labels = ("A", "B") if a.name == b.name else (f"A, {a.name}", f"B, {b.name}")
    rows = np.arange(len(a.class_names))
    figure = Figure(figsize=(7.5, 1.7 + 0.3 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for label, scored, intervals, colour, shift in (
        (labels[0], a, comparison.intervals_a, A_COLOUR, -0.15),
        (labels[1], b, comparison.intervals_b, B_COLOUR, 0.15),
    ):
        low, high = 100 * np.array(intervals.per_class_iou).T
        axes.hlines(rows + shift, low, high, color=colour, linewidth=2, alpha=0.45)
        mean = percent(scored.scores.mean_iou)
        axes.plot(
            100 * scored.scores.per_class_iou,
            rows + shift,
            "o",
            color=colour,
            markersize=5,
            label=f"{label}: mIoU {mean} %",
        )
    absent = np.isnan(a.scores.per_class_iou)
    ticks = [f"({name})" if absent[i] else name for i, name in enumerate(a.class_names)]
    axes.set_yticks(rows, ticks, parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first class on top
    axes.set_xlim(-2, 102)
    axes.set_xlabel(f"IoU in %, with its 95 % interval over {len(a.counts.names)} images")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    for text in figure.legend(loc="outside upper left", frameon=False).get_texts():
        text.set_parse_math(False)
    figure.savefig(path, dpi=150, format="png")


def _scores_table(comparison: Comparison, title: str) -> Table:
    a, b = comparison.a.scores, comparison.b.scores
    difference = comparison.intervals_of_difference
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption="all in %", caption_justify="left")
    table.add_column(Text(title), overflow="fold")
    for name in ("A", "B", "B − A", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for i, name in enumerate(comparison.a.class_names):
        cells = _cells(a.per_class_iou[i], b.per_class_iou[i], difference.per_class_iou[i])
        table.add_row(Text(name), *cells, style="dim" if math.isnan(a.per_class_iou[i]) else None)
    table.add_section()
    table.add_row("mIoU", *_cells(a.mean_iou, b.mean_iou, difference.mean_iou), style="bold")
    table.add_row(
        "frequency-weighted IoU", *_cells(a.frequency_weighted_iou, b.frequency_weighted_iou)
    )
    table.add_row("mean Dice", *_cells(a.mean_dice, b.mean_dice))
    table.add_row("mean accuracy", *_cells(a.mean_accuracy, b.mean_accuracy))
    table.add_row(
        "pixel accuracy",
        *_cells(a.pixel_accuracy, b.pixel_accuracy, difference.pixel_accuracy),
    )
    # From the files: the counts do not determine it.
    boundary_a, boundary_b = (
        run.numbers.get("mean_boundary_iou") for run in (comparison.a, comparison.b)
    )
    if boundary_a is not None and boundary_b is not None:
        table.add_row("mean boundary IoU", *_cells(boundary_a, boundary_b))
    return table


def _images_table(title: str, rows: Sequence[ImageChange]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(title, overflow="fold")
    for name in ("A", "B", "B − A"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, a, b in rows:
        table.add_row(Text(name), *_cells(a, b)[:3])
    return table


def _cells(a: float, b: float, interval: Interval = bootstrap.NO_INTERVAL) -> list[str]:
    shown = "" if math.isnan(b - a) else f"{100 * (b - a):+.1f}"
    low, high = interval
    between = "" if math.isnan(low) else f"{100 * low:+.1f} to {100 * high:+.1f}"
    return [percent(a), percent(b), shown, between]


if __name__ == "__main__":
    cli.run(main)
