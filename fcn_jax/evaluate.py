"""Scores a run on a split, every image once and, unless told otherwise, at its own size.

    python -m fcn_jax.evaluate --workdir=DIR [--split=NAME] [--checkpoint=latest|best|STEP]
                               [--convention=native|paper|torchvision|d2l|mmseg] [--boundary]
                               [--scales=0.75,1,1.25] [--flip] [--windows=average|gaussian]

DIR is the folder of a run, or of an exported one, or FILE.safetensors, a whole network that
`fcn_jax.pretrained` has converted; the latter two are told where the images are:

    python -m fcn_jax.evaluate --workdir=FILE.safetensors --data=voc --data_root=VOCdevkit

Prints the paper's four metrics and a table of classes. Writes to DIR/evaluation (FILE/evaluation)

    SPLIT.json            the numbers, and where they would lie for other images of the kind
    SPLIT_images.npz      pixels by image and class, for `python -m fcn_jax.compare`
    SPLIT_confusion.png   which class was taken for which
    SPLIT_sheet.png       image | truth | prediction | error of a few images

and with several label maps SPLIT_MAP.json and so on for each. By a convention other than native
it is SPLIT_mmseg.json and so on (`fcn_jax/conventions.py` says what each does), of windows, other
sizes and mirror images SPLIT_scales_0.75_1_1.25_flip.json and so on (`fcn_jax/inference.py`).
"""

from absl import flags

from fcn_jax.evaluation import conventions
from fcn_jax.terminal import cli
from fcn_jax.terminal.view_flags import define_view_flags, view_arguments

if __name__ == "__main__":  # --help and mistakes in flags do not wait for what is imported below
    flags.DEFINE_string("workdir", None, "folder of the run")
    flags.DEFINE_string("split", None, "split to score (default: the one that training scored)")
    flags.DEFINE_string("data", None, "data set to score on (default: the run's)")
    flags.DEFINE_string("data_root", None, "where its raw files are (default: where they were)")
    flags.DEFINE_enum(
        "convention",
        "native",
        list(conventions.CONVENTIONS),
        "whose way of scoring: "
        + "; ".join(f"{c.name}: {c.description}" for c in conventions.CONVENTIONS.values()),
    )
    flags.DEFINE_bool("boundary", False, "also score the contours: boundary IoU")
    define_view_flags()
    flags.DEFINE_string("checkpoint", "latest", "latest, best (by mIoU), or a step")
    cli.begin()

import json
import math
import re
from functools import partial
from pathlib import Path

import jax
import numpy as np

from fcn_jax.data.datasets import Dataset, open_dataset
from fcn_jax.errors import UserError
from fcn_jax.evaluation import bootstrap, metrics
from fcn_jax.evaluation.evaluator import Evaluation, evaluator
from fcn_jax.inference.options import WHOLE, Inference
from fcn_jax.inference.trained import load_run
from fcn_jax.models.fcn import suffix
from fcn_jax.pictures import plots, sheets
from fcn_jax.runs import evaluation_folder
from fcn_jax.terminal.atomic_files import write_whole
from fcn_jax.terminal.console import open_console
from fcn_jax.terminal.progress import say


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r} (see --help)")
    options = flags.FLAGS
    if not options.workdir:
        raise UserError("--workdir=DIR is needed: the folder of a run")
    workdir = Path(options.workdir)
    run = load_run(workdir, options.checkpoint)
    if workdir.is_file() and not options.data:
        raise UserError(
            "--data=NAME and --data_root=DIR are needed: converted weights name no data"
        )
    where = run.config.data
    where.name = options.data or where.name
    drawn = where.name == "shapes"  # the root of what was trained on is none of its
    where.root = options.data_root or (None if drawn else where.root)
    try:
        dataset = open_dataset(where)
    except UserError as error:
        here = re.sub(r"(--)?config\.data\.root", "--data_root", str(error))
        here = here.replace("--config.data.name", "--data")
        raise UserError(here) from error
    for name, trained in run.label_maps.items():
        now = dataset.label_maps.get(name, ())
        if now != trained:
            raise UserError(
                f"{workdir} was trained on the classes {', '.join(trained)}; the data set now has "
                f"{', '.join(now)}"
            )
    if dataset.channels != run.channels:
        raise UserError(
            f"{workdir} was trained on images of {run.channels} channels; those of the data set "
            f"now have {dataset.channels}"
        )
    split = options.split or run.config.data.eval_split
    convention = conventions.CONVENTIONS[options.convention]
    inference = Inference(**view_arguments())
    evaluate = evaluator(
        run.network,
        dataset,
        split,
        run.config.eval,
        convention,
        inference,
        boundary=options.boundary,
    )
    # Scores on other data, or taken otherwise, stand beside the run's own.
    scored = f"{options.data.replace('/', '_')}_{split}" if options.data else split
    if convention is not conventions.NATIVE:
        scored += f"_{convention.name}"
    if inference != WHOLE:
        scored += f"_{inference.tag}"
    report(evaluate(run.variables), workdir, scored, dataset, step=run.step)


def report(evaluation: Evaluation, workdir: Path, split: str, dataset: Dataset, step: int) -> None:
    """Prints the tables and writes the numbers and pictures to `workdir`/evaluation."""
    if jax.process_index():  # all hosts have the same scores; one writes them
        return
    folder = evaluation_folder(workdir)
    canvases = ", ".join(f"{height}×{width}" for height, width in evaluation.canvases)
    how = (
        f" on canvases of {canvases}, {evaluation.empty_share:.0%} of them empty"
        if canvases
        else ""
    )
    seen = f"{len(evaluation.names)} images, {evaluation.inference.description}"
    say(f"step {step} on {split}: {seen}{how}")
    say(f"convention {evaluation.convention.name}: {evaluation.convention.description}")
    for name, scored in evaluation.by_map.items():
        scores, names = scored.scores, dataset.label_maps[name]
        if name:
            say(f"label map {name}")
        open_console().print(metrics.scores_table(scores, names))
        intervals = None
        if scored.averaged_over == "truth":  # which is what the intervals are of
            intervals = bootstrap.intervals(scored.counts)
            images = len(evaluation.names)
            say(bootstrap.in_words("mIoU", scores.mean_iou, intervals.mean_iou, images))
            if rare := bootstrap.seldom_shown(scored.counts, names):
                say(rare)
        elif math.isnan(scores.mean_iou):
            absent = np.array(names)[np.isnan(scores.per_class_iou)]
            say(f"no mean over all classes: in neither truth nor prediction is {', '.join(absent)}")
        stem = f"{split}{suffix(name)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            numbers = {
                **metrics.to_json(scores, names, len(evaluation.names)),
                "step": step,
                "convention": evaluation.convention.name,
                "inference": evaluation.inference.description,
                "intervals": intervals and intervals.to_json(names),
            }
            scored.counts.save(folder / f"{stem}_images.npz")
            text = json.dumps(numbers, indent=2) + "\n"
            write_whole(folder / f"{stem}.json", partial(_write, text))
            plots.plot_confusion(scored.confusion, names, folder / f"{stem}_confusion.png")
            sheets.sheet(scored.sheet_rows, names).save(folder / f"{stem}_sheet.png")
        except OSError as error:
            raise UserError(f"cannot write to {folder} ({error.strerror or error})") from error
        say(f"pictures and numbers: {folder}/{stem}_sheet.png, _confusion.png, .json")


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
