"""The comparison of two runs as one HTML file, with the images that changed most."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fcn_jax.data.datasets import open_dataset
from fcn_jax.data.labels import by_map
from fcn_jax.data.palettes import voc_palette
from fcn_jax.errors import UserError
from fcn_jax.evaluation import conventions
from fcn_jax.evaluation.comparison import Comparison, EvaluatedRun, ImageChange, verdict
from fcn_jax.evaluation.metrics import percent
from fcn_jax.evaluation.report_page import interval_text
from fcn_jax.inference.options import WHOLE
from fcn_jax.inference.trained import Predictor, load_run
from fcn_jax.models.fcn import suffix
from fcn_jax.pictures import html_page, layout
from fcn_jax.pictures.html_page import Cell
from fcn_jax.pictures.overlays import tint

PICTURE_PX = 420


class Example(NamedTuple):
    """An image that changed, uint8 (h, w, 3), its label maps, uint8 (h, w), and their colours."""

    change: ImageChange
    image: np.ndarray
    truth: np.ndarray
    a: np.ndarray
    b: np.ndarray
    palette: np.ndarray


def predict_changes(
    comparison: Comparison, stem: str, changes: Sequence[ImageChange]
) -> list[Example]:
    """Predicts images again with both runs.

    Args:
        comparison: the runs.
        stem: the beginning of the names of their files, such as "val" or "val_geometry".
        changes: the images.

    Raises:
        UserError: the images, a run or its data cannot be read, or the scores are of another
            convention or of windows, scales and mirror images.
    """
    for run in (comparison.a, comparison.b):
        if run.numbers.get("convention", conventions.NATIVE.name) != conventions.NATIVE.name or (
            run.numbers.get("inference", WHOLE.description) != WHOLE.description
        ):
            raise UserError(f"{run.workdir} was not scored natively, on whole images")
    predictors = [_load(run) for run in (comparison.a, comparison.b)]
    label_map = next(
        (name for name in predictors[0].label_maps if name and stem.endswith(suffix(name))),
        next(iter(predictors[0].label_maps)),
    )
    split_name = stem.removesuffix(suffix(label_map))
    dataset = open_dataset(predictors[0].config.data)
    split = dataset.split(split_name)
    names = comparison.a.counts.names
    if len(split) != len(names):
        raise UserError(f"{dataset.name} no longer has the {len(names)} images of {split_name}")
    palette = predictors[0].palette
    examples = []
    for change in changes:
        record = split[names.index(change.image)]
        if record["name"] != change.image:
            raise UserError(f"{dataset.name} no longer has the images of {split_name}")
        truth = by_map(record["label"], tuple(predictors[0].label_maps))[label_map]
        a, b = (predictor.predict_maps(record["image"])[label_map] for predictor in predictors)
        examples.append(Example(change, record["image"][..., :3], truth, a, b, palette))
    return examples


def comparison_page(
    comparison: Comparison, stem: str, plot_png: bytes, examples: Sequence[Example]
) -> str:
    """Returns the comparison as an HTML page.

    Args:
        comparison: the runs.
        stem: the beginning of the names of their files.
        plot_png: the plot of the classes' IoU.
        examples: images that changed; empty to leave them out.
    """
    a, b = comparison.a, comparison.b
    difference = comparison.intervals_of_difference
    title = f"{a.name} and {b.name} on {stem}"
    parts = [
        f"<h1>{html_page.text_html(title)}</h1>",
        html_page.paragraph_html(f"A: {a.workdir}, step {a.numbers['step']}", faint=True),
        html_page.paragraph_html(f"B: {b.workdir}, step {b.numbers['step']}", faint=True),
        html_page.numbers_html(
            [
                (f"{percent(a.scores.mean_iou)} %", "mIoU of A"),
                (f"{percent(b.scores.mean_iou)} %", "mIoU of B"),
                (
                    f"{100 * (b.scores.mean_iou - a.scores.mean_iou):+.1f}",
                    f"points, 95 % interval {interval_text(difference.mean_iou, signed=True)}",
                ),
            ]
        ),
        html_page.paragraph_html(verdict(comparison)),
        html_page.section_html(
            "Classes",
            _classes(comparison),
            f'<div class="plot">{html_page.png_html(plot_png, "IoU of each class")}</div>',
        ),
    ]
    for heading, wanted in (("Largest gains in B", 1), ("Largest losses in B", -1)):
        drawn = [_example(x, a.class_names) for x in examples if _sign(x.change) == wanted]
        if drawn:
            explanation = "Left of the slider is A, right of it B; the truth is below."
            parts.append(
                html_page.section_html(
                    heading,
                    html_page.paragraph_html(explanation, faint=True),
                    f'<div class="pairs">{"".join(drawn)}</div>',
                )
            )
    return html_page.page_html(title, parts)


def _load(run: EvaluatedRun) -> Predictor:
    predictor = load_run(run.workdir)
    step = run.numbers["step"]
    return predictor if predictor.step == step else load_run(run.workdir, step)


def _sign(change: ImageChange) -> int:
    return 1 if change.b > change.a else -1


def _classes(comparison: Comparison) -> str:
    a, b = comparison.a.scores.per_class_iou, comparison.b.scores.per_class_iou
    difference, palette = comparison.intervals_of_difference.per_class_iou, voc_palette()
    rows = []
    for index, name in enumerate(comparison.a.class_names):
        red, green, blue = palette[index].tolist()
        change = float(b[index] - a[index])
        rows.append(
            [
                Cell(name, colour=(red, green, blue)),
                Cell(percent(a[index]), float(a[index])),
                Cell(percent(b[index]), float(b[index])),
                Cell("" if np.isnan(change) else f"{100 * change:+.1f}", change),
                Cell(interval_text(difference[index], signed=True), difference[index].low),
            ]
        )
    heads = ["class", "IoU of A in %", "IoU of B in %", "B − A", "95 % interval"]
    return html_page.table_html(heads, rows)


def _example(example: Example, class_names: Sequence[str]) -> str:
    truth, a, b = (
        np.asarray(
            layout.thumbnail(tint(example.image, label, class_names, example.palette), PICTURE_PX)
        )
        for label in (example.truth, example.a, example.b)
    )
    name, before, after = example.change
    caption = f"{name}: mIoU {percent(before)} % in A, {percent(after)} % in B"
    pair = html_page.slider_html(a, b, f"prediction for {name}")
    below = html_page.photo_html(truth, f"truth of {name}")
    return html_page.figure_html(f'{pair}<div class="pair">{below}</div>', caption)
