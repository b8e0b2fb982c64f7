"""Scores a run on a split, every image once and at its own size.

    python -m fcn_jax.evaluate --workdir=DIR [--split=NAME] [--checkpoint=latest|best|STEP]

DIR is the folder of a run, or of an exported one, or FILE.safetensors, a whole network that
`fcn_jax.pretrained` has converted; the latter two are told where the images are:

    python -m fcn_jax.evaluate --workdir=FILE.safetensors --data=voc --data_root=VOCdevkit

Prints the paper's four metrics and a table of classes. Writes to DIR/evaluation (FILE/evaluation)

    SPLIT.json            the numbers
    SPLIT_confusion.png   which class was taken for which
    SPLIT_sheet.png       image | truth | prediction | error of a few images

and with several label maps SPLIT_MAP.json and so on for each.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console

from fcn_jax import cli, metrics, parallel, visualize
from fcn_jax.config import EvalConfig
from fcn_jax.data.canvases import fill_buckets
from fcn_jax.data.datasets import Dataset, open_dataset
from fcn_jax.data.labels import by_map
from fcn_jax.data.pipeline import evaluation_batches
from fcn_jax.errors import UserError
from fcn_jax.models.fcn import suffix
from fcn_jax.progress import progress_bar, say
from fcn_jax.runs import load_run
from fcn_jax.step import Network, make_eval_step

SHEET_ROWS = 6


@dataclasses.dataclass(frozen=True)
class MapEvaluation:
    """confusions: of each image, int64 (n, k, k), true class by predicted class. samples: rows of
    the sheet.
    """

    confusions: np.ndarray
    samples: list[visualize.SheetRow]

    @property
    def confusion(self) -> np.ndarray:
        """Of all images: int64 (k, k)."""
        return self.confusions.sum(axis=0)

    @property
    def scores(self) -> metrics.Scores:
        return metrics.scores(self.confusion)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """by_map: of each label map, the one that a run is judged by first."""

    by_map: Mapping[str, MapEvaluation]
    images: int

    @property
    def scores(self) -> metrics.Scores:
        """Of the first label map."""
        return next(iter(self.by_map.values())).scores


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
    where.root = options.data_root or where.root
    try:
        dataset = open_dataset(where)
    except UserError as error:
        here = str(error).replace("--config.data.root", "--data_root")
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
    evaluation = evaluator(run.network, dataset, split, run.config.eval)(run.variables)
    # Scores on other data stand beside the run's own.
    scored = f"{options.data.replace('/', '_')}_{split}" if options.data else split
    report(evaluation, workdir, scored, dataset, step=run.step)


def evaluator(
    network: Network, dataset: Dataset, split: str, settings: EvalConfig
) -> Callable[[Any], Evaluation]:
    """Builds the function that scores (params, batch_stats) on a split.

    It compiles once for each canvas that the images are put on, when first called.

    Raises UserError where the split is empty or the batch does not divide over the devices.
    """
    records = dataset.split(split)
    if not len(records):
        raise UserError(f"split {split} of {dataset.name} has no images")
    # A batch of at most one image a device more than there are images.
    devices = jax.device_count()
    batch_size = min(settings.batch_size, -(-len(records) // devices) * devices)
    parallel.check_divides(batch_size, "config.eval.batch_size")
    buckets = fill_buckets(
        dataset.statistics(split).sizes, most=settings.canvases, batch_size=batch_size
    )
    step = parallel.on_all_devices(
        make_eval_step(network, dataset.num_classes),
        donate_state=False,
        split_results=(False, True),
    )
    sampled = set(np.linspace(0, len(records) - 1, SHEET_ROWS).round().astype(int).tolist())

    def evaluate(variables: Any) -> Evaluation:
        confusions = {
            name: np.zeros((len(records), count, count), np.int64)
            for name, count in dataset.num_classes.items()
        }
        samples: dict[str, dict[int, visualize.SheetRow]] = {name: {} for name in confusions}
        share = batch_size // jax.process_count()
        with progress_bar(f"scoring {split}", len(records)) as bar:
            for batch in evaluation_batches(records, buckets, batch_size=share):
                counted, predictions = step(variables, batch.canvases)
                for name, of_images in counted.items():
                    confusions[name][list(batch.images)] = of_images[: len(batch.images)]
                if sampled & batch.records.keys():
                    for name, labels in predictions.items():
                        predicted = parallel.own_share(labels, ndim=3)
                        for (index, record), label in zip(
                            batch.records.items(), predicted, strict=False
                        ):
                            if index in sampled:
                                samples[name][index] = _row(record, name, network, label)
                bar.advance(len(batch.images))
        return Evaluation(
            {
                name: MapEvaluation(confusions[name], [rows[index] for index in sorted(rows)])
                for name, rows in samples.items()
            },
            len(records),
        )

    return evaluate


def _row(
    record: dict[str, Any], label_map: str, network: Network, predicted: np.ndarray
) -> visualize.SheetRow:
    truth = by_map(record["label"], network.label_maps)[label_map]
    height, width = truth.shape
    return record["image"][..., :3], truth, predicted[:height, :width], record["name"]


def report(evaluation: Evaluation, workdir: Path, split: str, dataset: Dataset, step: int) -> None:
    """Prints the tables and writes the numbers and pictures to `workdir`/evaluation."""
    folder = (workdir if workdir.is_dir() else workdir.with_suffix("")) / "evaluation"
    say(f"step {step} on {split}, {evaluation.images} images at native size")
    for name, scored in evaluation.by_map.items():
        scores, names = scored.scores, dataset.label_maps[name]
        counts = scored.confusion.sum(axis=1)
        if name:
            say(f"label map {name}")
        Console().print(metrics.scores_table(scores, names, counts / max(counts.sum(), 1)))
        stem = f"{split}{suffix(name)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            numbers = {**metrics.to_json(scores, names, evaluation.images), "step": step}
            (folder / f"{stem}.json").write_text(json.dumps(numbers, indent=2) + "\n")
            visualize.plot_confusion(scored.confusion, names, folder / f"{stem}_confusion.png")
            visualize.sheet(scored.samples, names).save(folder / f"{stem}_sheet.png")
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}") from error
        say(f"pictures and numbers: {folder}/{stem}_sheet.png, _confusion.png, .json")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the run")
    flags.DEFINE_string("split", None, "split to score (default: the one that training scored)")
    flags.DEFINE_string("data", None, "data set to score on (default: the run's)")
    flags.DEFINE_string("data_root", None, "where its raw files are (default: where they were)")
    flags.DEFINE_string("checkpoint", "latest", "latest, best (by mean IU), or a step")
    cli.run(main, sys.modules[__name__])
