"""Scores a run on a split, every image once and, unless told otherwise, at its own size.

    python -m fcn_jax.evaluate --workdir=DIR [--split=NAME] [--checkpoint=latest|best|STEP]
                               [--convention=native|paper|torchvision|d2l|mmseg] [--boundary]

DIR is the folder of a run, or of an exported one, or FILE.safetensors, a whole network that
`fcn_jax.pretrained` has converted; the latter two are told where the images are:

    python -m fcn_jax.evaluate --workdir=FILE.safetensors --data=voc --data_root=VOCdevkit

Prints the paper's four metrics and a table of classes. Writes to DIR/evaluation (FILE/evaluation)

    SPLIT.json            the numbers, and where they would lie for other images of the kind
    SPLIT_images.npz      pixels by image and class, for `python -m fcn_jax.compare`
    SPLIT_confusion.png   which class was taken for which
    SPLIT_sheet.png       image | truth | prediction | error of a few images

and with several label maps SPLIT_MAP.json and so on for each. By a convention other than native,
SPLIT_mmseg.json and so on: `fcn_jax/conventions.py` says what each does.
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

from fcn_jax import bootstrap, cli, conventions, metrics, parallel, visualize
from fcn_jax.boundary import boundary_counts
from fcn_jax.comparison import evaluation_folder
from fcn_jax.config import EvalConfig
from fcn_jax.conventions import Convention, ScoredSplit
from fcn_jax.data.canvases import Size, empty_share, fill_buckets
from fcn_jax.data.datasets import Dataset, open_dataset
from fcn_jax.data.labels import by_map
from fcn_jax.data.pipeline import evaluation_batches
from fcn_jax.errors import UserError
from fcn_jax.image_counts import ImageCounts
from fcn_jax.models.fcn import suffix
from fcn_jax.progress import progress_bar, say
from fcn_jax.runs import load_run
from fcn_jax.step import Network, make_eval_step

SHEET_ROWS = 6


@dataclasses.dataclass(frozen=True)
class MapEvaluation:
    """confusions: of each image, int64 (n, k, k), true class by predicted class. samples: rows of
    the sheet. boundary: see `metrics.scores`; None where it was not asked for.
    """

    confusions: np.ndarray
    samples: list[visualize.SheetRow]
    averaged_over: metrics.Averaged
    boundary: np.ndarray | None = None

    @property
    def confusion(self) -> np.ndarray:
        """Of all images: int64 (k, k)."""
        return self.confusions.sum(axis=0)

    @property
    def scores(self) -> metrics.Scores:
        return metrics.scores(self.confusion, self.averaged_over, self.boundary)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a split was scored.

    by_map: of each label map, the one that a run is judged by first. names: of the images.
    canvases: heights and widths that they were put on, and the share of them that was empty.
    """

    by_map: Mapping[str, MapEvaluation]
    names: tuple[str, ...]
    canvases: tuple[Size, ...]
    empty_share: float
    convention: Convention

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
    convention = conventions.BY_NAME[options.convention]
    evaluate = evaluator(
        run.network, dataset, split, run.config.eval, convention, boundary=options.boundary
    )
    # Scores on other data, or by another convention, stand beside the run's own.
    scored = f"{options.data.replace('/', '_')}_{split}" if options.data else split
    if convention is not conventions.NATIVE:
        scored += f"_{convention.name}"
    report(evaluate(run.variables), workdir, scored, dataset, step=run.step)


def evaluator(
    network: Network,
    dataset: Dataset,
    split: str,
    settings: EvalConfig,
    convention: Convention = conventions.NATIVE,
    *,
    boundary: bool = False,
) -> Callable[[Any], Evaluation]:
    """Builds the function that scores (params, batch_stats) on a split.

    It compiles once for each canvas that the images are put on, when first called. With `boundary`
    it scores the contours as well, which takes the host a while.

    Raises UserError where the split is empty, the convention takes none of its images, or the batch
    does not divide over the devices.
    """
    native = dataset.split(split)
    if not len(native):
        raise UserError(f"split {split} of {dataset.name} has no images")
    records = ScoredSplit(native, dataset.statistics(split).sizes, convention)
    if not len(records):
        raise UserError(
            f"--convention={convention.name} takes none of the {len(native)} images of {split}: "
            f"{convention.says}"
        )
    # A batch of at most one image a device more than there are images.
    devices = jax.device_count()
    batch_size = min(settings.batch_size, -(-len(records) // devices) * devices)
    parallel.check_divides(batch_size, "config.eval.batch_size")
    buckets = fill_buckets(
        records.sizes,
        most=settings.canvases,
        batch_size=batch_size,
        label_sizes=records.label_sizes if convention.brings_back else None,
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
        names = [f"{split}[{index}]" for index in range(len(records))]  # of other hosts' images
        samples: dict[str, dict[int, visualize.SheetRow]] = {name: {} for name in confusions}
        boundaries = {
            name: np.zeros((2, count), np.int64) for name, count in dataset.num_classes.items()
        }
        share = batch_size // jax.process_count()
        with progress_bar(f"scoring {split}", len(records)) as bar:
            for batch in evaluation_batches(records, buckets, batch_size=share):
                counted, predictions = step(variables, batch.canvases)
                for name, of_images in counted.items():
                    confusions[name][list(batch.images)] = np.asarray(of_images)[
                        : len(batch.images)
                    ]
                for index, record in batch.records.items():
                    names[index] = record["name"]
                for name, labels in predictions.items():
                    if not boundary and not sampled & batch.records.keys():
                        continue
                    of_share = parallel.own_share(labels, ndim=3)
                    for (index, record), on_canvas in zip(
                        batch.records.items(), of_share, strict=False
                    ):
                        row = _row(record, name, network, on_canvas)
                        if index in sampled:
                            samples[name][index] = row
                        if boundary:
                            boundaries[name] += boundary_counts(
                                row[1], row[2], dataset.num_classes[name]
                            )
                bar.advance(len(batch.images))
        return Evaluation(
            {
                name: MapEvaluation(
                    confusions[name],
                    [rows[index] for index in sorted(rows)],
                    convention.averaged_over,
                    boundaries[name] if boundary else None,
                )
                for name, rows in samples.items()
            },
            tuple(names),
            tuple(bucket.canvas_px for bucket in buckets),
            empty_share(records.sizes, buckets),
            convention,
        )

    return evaluate


def _row(
    record: dict[str, Any], label_map: str, network: Network, predicted: np.ndarray
) -> visualize.SheetRow:
    truth = by_map(record["label"], network.label_maps)[label_map]
    height, width = truth.shape
    image = record["image"][..., :3]
    if image.shape[:2] != truth.shape:
        image = conventions.resize_smooth(image, (height, width))
    return image, truth, predicted[:height, :width], record["name"]


def report(evaluation: Evaluation, workdir: Path, split: str, dataset: Dataset, step: int) -> None:
    """Prints the tables and writes the numbers and pictures to `workdir`/evaluation."""
    folder = evaluation_folder(workdir)
    canvases = ", ".join(f"{height}×{width}" for height, width in evaluation.canvases)
    say(
        f"step {step} on {split}: {len(evaluation.names)} images on canvases of {canvases}, "
        f"{evaluation.empty_share:.0%} of them empty"
    )
    say(f"convention {evaluation.convention.name}: {evaluation.convention.says}")
    for name, scored in evaluation.by_map.items():
        scores, names = scored.scores, dataset.label_maps[name]
        counts = ImageCounts.of(evaluation.names, scored.confusions)
        if name:
            say(f"label map {name}")
        Console().print(metrics.scores_table(scores, names))
        intervals = bootstrap.intervals(counts)
        by_truth = scored.averaged_over == "truth"  # which is what the intervals are of
        if by_truth:
            say(bootstrap.in_words("mean IU", scores.mean_iu, intervals.mean_iu, len(counts.names)))
            if rare := bootstrap.seldom_shown(counts, names):
                say(rare)
        stem = f"{split}{suffix(name)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            numbers = {
                **metrics.to_json(scores, names, len(evaluation.names)),
                "step": step,
                "convention": evaluation.convention.name,
                "intervals": intervals.to_json(names) if by_truth else None,
            }
            (folder / f"{stem}.json").write_text(json.dumps(numbers, indent=2) + "\n")
            counts.save(folder / f"{stem}_images.npz")
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
    flags.DEFINE_enum(
        "convention",
        "native",
        list(conventions.BY_NAME),
        "whose way of scoring: "
        + "; ".join(f"{c.name}: {c.says}" for c in conventions.BY_NAME.values()),
    )
    flags.DEFINE_bool("boundary", False, "also score the contours: boundary IU")
    flags.DEFINE_string("checkpoint", "latest", "latest, best (by mean IU), or a step")
    cli.run(main, sys.modules[__name__])
