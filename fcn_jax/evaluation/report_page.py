"""The report of an evaluation as one HTML file: curves, scores, confusions, images, settings."""

import json
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fcn_jax.config import Config, settings
from fcn_jax.errors import format_value
from fcn_jax.evaluation import bootstrap
from fcn_jax.evaluation.bootstrap import Intervals
from fcn_jax.evaluation.evaluator import Evaluation, MapEvaluation
from fcn_jax.evaluation.metrics import percent
from fcn_jax.pictures import curves, html_page, layout
from fcn_jax.pictures.colours import palette_of, palette_with_grey_void
from fcn_jax.pictures.html_page import Cell
from fcn_jax.pictures.overlays import error_map
from fcn_jax.pictures.sheets import SheetRow
from fcn_jax.pretrained import Provenance

CONFUSIONS_SHOWN = 12
THUMBNAIL_PX = 280
PACKAGES = ("fcn_jax", "jax", "flax", "optax", "numpy")


def report_page(
    evaluation: Evaluation,
    scored: MapEvaluation,
    intervals: Intervals | None,
    stem: Path,
    *,
    title: str,
    workdir: Path,
    step: int,
    provenance: Provenance | None,
) -> str:
    """Returns the report of a label map as an HTML page.

    Args:
        evaluation: the evaluation.
        scored: the label map.
        intervals: of its scores; None where the convention has none.
        stem: beginning of the names of the pictures that were written before.
        title: the page's heading, such as "runs/voc on val".
        workdir: folder of the run, in which the log is looked for.
        step: training step of the weights.
        provenance: settings of the run; None leaves out how to reproduce it.
    """
    scores, names = scored.scores, scored.class_names
    images = len(scored.counts.names)
    parts = [
        f"<h1>{html_page.text_html(title)}</h1>",
        html_page.paragraph_html(
            f"Step {step}, {images} images, {evaluation.inference.description}; convention "
            f"{evaluation.convention.name}: {evaluation.convention.description}",
            faint=True,
        ),
        html_page.numbers_html(
            [
                (f"{percent(scores.mean_iou)} %", "mIoU" + _interval_words(intervals)),
                (f"{percent(scores.pixel_accuracy)} %", "pixel accuracy"),
                (f"{percent(scores.mean_accuracy)} %", "mean accuracy"),
                (f"{percent(scores.frequency_weighted_iou)} %", "frequency-weighted IoU"),
                (f"{percent(scores.mean_dice)} %", "mean Dice"),
            ]
        ),
    ]
    if plot := _curves(workdir):
        parts.append(html_page.section_html("Training", f'<div class="plot">{plot}</div>'))
    parts.append(html_page.section_html("Classes", *_classes(scored, intervals)))
    figure = _png(stem, "confusion", "confusion matrix")
    parts.append(
        html_page.section_html(
            "Confusions",
            html_page.list_html(largest_confusions(scored.confusion, names)),
            f'<div class="plot">{figure}</div>',
        )
    )
    if (calibration := scored.calibration) is not None:
        sentence = str(calibration)
        figure = _png(stem, "reliability", "reliability plot")
        parts.append(
            html_page.section_html(
                "Calibration",
                html_page.paragraph_html(f"{sentence[0].upper()}{sentence[1:]}."),
                f'<div class="plot">{figure}</div>',
            )
        )
    own = scored.counts.mean_iou_by_image
    parts.append(
        html_page.section_html(
            "Images",
            html_page.paragraph_html("mIoU of each image alone, over the classes in its truth:"),
            f'<div class="plot">{curves.histogram_svg(own, "mIoU of an image")}</div>',
        )
    )
    for heading, rows in (("Worst images", scored.worst), ("Median images", scored.median)):
        if rows:
            drawn = [_row(row, scored) for row in rows]
            titles = "image, truth, prediction, error (red: wrong, grey: void)"
            parts.append(
                html_page.section_html(
                    heading, html_page.paragraph_html(titles, faint=True), *drawn
                )
            )
    if provenance is not None:
        parts.append(html_page.section_html("Reproduce", *_reproduce(provenance, workdir)))
    return html_page.page_html(title, parts)


def _png(stem: Path, kind: str, alternative: str) -> str:
    return html_page.png_html(stem.with_name(f"{stem.name}_{kind}.png").read_bytes(), alternative)


def largest_confusions(confusion: np.ndarray, names: Sequence[str]) -> list[str]:
    """Names the largest errors, those with the most pixels, in a sentence each."""
    errors = confusion.copy()
    np.fill_diagonal(errors, 0)
    sentences = []
    for place in np.argsort(-errors, axis=None, kind="stable")[:CONFUSIONS_SHOWN]:
        true, predicted = map(int, np.unravel_index(place, errors.shape))
        pixels = int(errors[true, predicted])
        if not pixels:
            break
        share = pixels / confusion[true].sum()
        sentences.append(
            f"{100 * share:.1f} % of {names[true]} is predicted as {names[predicted]} "
            f"({pixels:,} pixels)"
        )
    return sentences or ["no pixel is wrong"]


def interval_text(interval: tuple[float, float], *, signed: bool = False) -> str:
    low, high = interval
    if np.isnan(low):
        return ""
    sign = "+" if signed else ""
    return f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"


def _interval_words(intervals: Intervals | None) -> str:
    if intervals is None or np.isnan(intervals.mean_iou.low):
        return ""
    level = f"{100 * bootstrap.LEVEL:.0f} %"
    return f" ({level} interval {interval_text(intervals.mean_iou)})"


def _curves(workdir: Path) -> str | None:
    """Draws the log of a run; None if the folder has no log."""
    entries = read_log(workdir / "log.jsonl")
    trained = [entry for entry in entries if entry["kind"] == "train"]
    evaluated = [entry for entry in entries if entry["kind"] == "eval"]
    if not trained:
        return None

    def curve(name: str, chosen: Sequence[Mapping[str, Any]], key: str) -> curves.Curve:
        return curves.Curve(name, [e["step"] for e in chosen], [e.get(key) for e in chosen])

    iou_key = next((key for key in (evaluated or [{}])[0] if key.startswith("mean_iou")), "")
    known = [entry for entry in evaluated if entry.get(iou_key) is not None]
    best = max(known, key=lambda entry: entry[iou_key])["step"] if known else None
    scores = [
        curve("mIoU", evaluated, iou_key),
        curve("pixel accuracy", evaluated, iou_key.replace("mean_iou", "pixel_accuracy")),
    ]
    return curves.curves_svg([curve("loss", trained, "loss")], scores if known else [], best)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Reads the entries of a run's log; lines that are no entries are left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and type(entry.get("step")) is int and "kind" in entry:
            # Earlier versions wrote mean_iu for mean_iou, as the paper does.
            entries.append(
                {re.sub(r"\bmean_iu(?=_|$)", "mean_iou", k): x for k, x in entry.items()}
            )
    return entries


def _classes(scored: MapEvaluation, intervals: Intervals | None) -> list[str]:
    scores, palette = scored.scores, palette_of(scored.colours)
    images = scored.counts.images_by_class
    heads = ["class", "IoU", "95 % interval", "Dice", "precision", "recall", "pixels", "images"]
    boundary = scores.per_class_boundary_iou
    if boundary is not None:
        heads.append("boundary IoU")
    rows = []
    for index, name in enumerate(scored.class_names):
        colour = palette[index]
        interval = intervals.per_class_iou[index] if intervals else bootstrap.NO_INTERVAL
        row = [
            Cell(name, colour=(int(colour[0]), int(colour[1]), int(colour[2]))),
            _percent_cell(scores.per_class_iou[index]),
            Cell(interval_text(interval), interval[0]),
            *(
                _percent_cell(values[index])
                for values in (
                    scores.per_class_dice,
                    scores.per_class_precision,
                    scores.per_class_recall,
                    scores.pixel_shares,
                )
            ),
            Cell(f"{images[index]:,}", float(images[index])),
        ]
        if boundary is not None:
            row.append(_percent_cell(boundary[index]))
        rows.append(row)
    parts = [html_page.table_html(heads, rows)]
    parts.append(html_page.paragraph_html("All in %; press a heading to sort.", faint=True))
    if rare := bootstrap.rare_classes(scored.counts, scored.class_names):
        parts.append(html_page.paragraph_html(rare, faint=True))
    return parts


def _percent_cell(share: float) -> Cell:
    return Cell(percent(share), float(share))


def _row(row: SheetRow, scored: MapEvaluation) -> str:
    image, truth, prediction, name = row
    palette = palette_with_grey_void(palette_of(scored.colours))
    small = layout.thumbnail(image, THUMBNAIL_PX)
    pictures = [html_page.photo_html(small, f"image {name}")]
    for kind, drawn in (
        ("truth", palette[truth]),
        ("prediction", palette[prediction]),
        ("error", error_map(truth, prediction)),
    ):
        thumbnail = layout.thumbnail(drawn, THUMBNAIL_PX)
        pictures.append(html_page.drawing_html(thumbnail, f"{kind} of {name}"))
    iou = scored.counts.mean_iou_by_image[scored.counts.names.index(name)]
    return html_page.figure_html(
        f'<div class="row">{"".join(pictures)}</div>', f"{name}: mIoU {percent(iou)} %"
    )


def _reproduce(provenance: Provenance, workdir: Path) -> list[str]:
    changed = [
        f"--config.{now.name}={format_value(now.value)}"
        for now, base in zip(settings(provenance.config), settings(Config()), strict=True)
        if now.value != base.value
    ]
    command = ["python -m fcn_jax.train", *map(shlex.quote, changed), f"--workdir={workdir}"]
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    devices = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    trained_on = f"; trained on {provenance.train_images}" if provenance.train_images else ""
    return [
        html_page.paragraph_html("The run's settings that differ from the defaults:"),
        html_page.code_html(" \\\n    ".join(command)),
        html_page.paragraph_html(f"Seed {provenance.config.seed}{trained_on}."),
        html_page.paragraph_html(
            f"Scored with {', '.join(versions)} on {devices}, {platform.platform()}.", faint=True
        ),
    ]
