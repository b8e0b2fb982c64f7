"""The report of an evaluation: what is printed, and the files in a run's folder."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from fcn_jax.errors import UserError
from fcn_jax.evaluation import bootstrap, metrics
from fcn_jax.evaluation.evaluator import Evaluation, MapEvaluation
from fcn_jax.evaluation.report_page import report_page
from fcn_jax.models.fcn import suffix
from fcn_jax.parallel import hosts
from fcn_jax.pictures import plots, sheets
from fcn_jax.pictures.colours import palette_of
from fcn_jax.pretrained import Provenance
from fcn_jax.runs import evaluation_folder
from fcn_jax.terminal.atomic_files import write_text
from fcn_jax.terminal.console import open_console
from fcn_jax.terminal.progress import say


def report(
    evaluation: Evaluation,
    workdir: Path,
    name: str,
    step: int,
    provenance: Provenance | None = None,
) -> None:
    """Prints the scores, and writes them with pictures to the folder of a run.

    Args:
        evaluation: the scores.
        workdir: the folder; the files are written to its sub-folder `evaluation`.
        name: beginning of the files' names, such as the split.
        step: training step of the weights.
        provenance: settings of the run, for the page; None leaves them out.

    Raises:
        UserError: a file cannot be written.
    """
    if not hosts.is_first():  # all hosts have the same scores; one of them writes
        return
    canvases = ", ".join("×".join(map(str, canvas)) for canvas in evaluation.canvases)
    empty = f"{evaluation.empty_share:.0%} of them empty"
    if any(scored.cases for scored in evaluation.by_map.values()):
        say(
            f"step {step} on {name}: {len(evaluation.names)} volumes, in tiles of {canvases} "
            "voxels that overlap by half, with Gaussian weights"
        )
    else:
        say(
            f"step {step} on {name}: {len(evaluation.names)} images, "
            f"{evaluation.inference.description} on canvases of {canvases}, {empty}"
        )
    say(f"convention {evaluation.convention.name}: {evaluation.convention.description}")
    for label_map, scored in evaluation.by_map.items():
        if label_map:
            say(f"label map {label_map}")
        intervals = _print_scores(scored)
        numbers = {
            **metrics.to_json(scored.scores, scored.class_names, len(evaluation.names)),
            "step": step,
            "convention": evaluation.convention.name,
            "inference": evaluation.inference.description,
            "intervals": intervals and intervals.to_json(scored.class_names),
        }
        if scored.calibration is not None:
            say(str(scored.calibration))
            numbers["calibration"] = scored.calibration.to_json()
        if scored.cases is not None:
            numbers["by_case"] = scored.cases.to_json(scored.class_names)
        stem = evaluation_folder(workdir) / f"{name}{suffix(label_map)}"
        _write(scored, numbers, stem)
        page = report_page(
            evaluation,
            scored,
            intervals,
            stem,
            title=f"{workdir} on {name}{suffix(label_map)}",
            workdir=workdir,
            step=step,
            provenance=provenance,
        )
        page_path = stem.with_name(f"{stem.name}_report.html")
        write_text(page_path, page)
        reliability = "" if scored.calibration is None else " _reliability.png,"
        say(f"pictures and numbers: {stem}_sheet.png, _confusion.png,{reliability} .json")
        say(f"page: {page_path}")


def report_conventions(
    evaluations: Mapping[str, Evaluation], workdir: Path, name: str, step: int
) -> None:
    """Prints the scores under several conventions, and writes them to conventions/NAME.json.

    The arguments are those of `report`, with the evaluations by convention.
    """
    if not hosts.is_first():
        return
    first = next(iter(evaluations.values()))
    folder = evaluation_folder(workdir) / "conventions"
    overall = ("mean_iou", "pixel_accuracy", "mean_accuracy", "mean_dice")
    for label_map in first.by_map:
        say(f"step {step} on {name}{f', label map {label_map}' if label_map else ''}")
        table = Table("convention", "images", *(score.replace("_", " ") for score in overall))
        numbers = {}
        for convention, evaluation in evaluations.items():
            scored, images = evaluation.by_map[label_map], len(evaluation.names)
            values = [getattr(scored.scores, score) for score in overall]
            table.add_row(convention, str(images), *map(metrics.percent, values))
            numbers[convention] = {
                **metrics.to_json(scored.scores, scored.class_names, images),
                "step": step,
                "inference": evaluation.inference.description,
            }
        open_console().print(table)
        path = folder / f"{name}{suffix(label_map)}.json"
        text = json.dumps(numbers, indent=2) + "\n"
        write_text(path, text)
        say(f"numbers: {path}")


def _print_scores(scored: MapEvaluation) -> bootstrap.Intervals | None:
    """Prints the table; returns the intervals if the means are those of the intervals."""
    scores, class_names = scored.scores, scored.class_names
    open_console().print(metrics.scores_table(scores, class_names))
    if scored.cases is not None:
        open_console().print(scored.cases.table(class_names))
    if scored.mean_over == "truth":
        intervals = bootstrap.intervals(scored.counts)
        images = len(scored.counts.names)
        say(bootstrap.describe("mIoU", scores.mean_iou, intervals.mean_iou, images))
        if rare := bootstrap.rare_classes(scored.counts, class_names):
            say(rare)
        return intervals
    if math.isnan(scores.mean_iou):
        absent = np.array(class_names)[np.isnan(scores.per_class_iou)]
        say(f"no mean over all classes: in neither truth nor prediction is {', '.join(absent)}")
    return None


def _write(scored: MapEvaluation, numbers: dict[str, Any], stem: Path) -> None:
    """Writes the files of a label map, whose names begin with `stem`."""
    try:
        scored.counts.save(stem.with_name(f"{stem.name}_images.npz"))
        text = json.dumps(numbers, indent=2) + "\n"
        write_text(stem.with_name(f"{stem.name}.json"), text)
        confusion_path = stem.with_name(f"{stem.name}_confusion.png")
        plots.plot_confusion(scored.confusion, scored.class_names, confusion_path)
        if (calibration := scored.calibration) is not None:
            plots.plot_reliability(
                calibration.counts[:, 0],
                calibration.accuracies,
                calibration.confidences,
                str(calibration).replace(" (", "\n("),
                stem.with_name(f"{stem.name}_reliability.png"),
            )
        sheet = sheets.sheet(scored.sheet_rows, scored.class_names, palette_of(scored.colours))
        sheet.save(stem.with_name(f"{stem.name}_sheet.png"))
    except OSError as error:
        raise UserError(f"cannot write to {stem.parent} ({error.strerror or error})") from error
