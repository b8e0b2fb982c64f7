"""Scores a network on a split of a data set: what `fcn_jax.evaluate` and training call."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np

from fcn_jax.config import EvalConfig
from fcn_jax.data.canvases import Size
from fcn_jax.data.datasets import Dataset
from fcn_jax.data.labels import by_map
from fcn_jax.errors import UserError
from fcn_jax.evaluation import conventions, metrics
from fcn_jax.evaluation.boundary import boundary_counts
from fcn_jax.evaluation.conventions import Convention, ScoredSplit
from fcn_jax.evaluation.image_counts import ImageCounts
from fcn_jax.evaluation.scorers import ScoredImages, in_batches, one_by_one
from fcn_jax.inference.options import WHOLE, Inference
from fcn_jax.models.pure_model import PureModel
from fcn_jax.pictures import sheets
from fcn_jax.terminal.progress import progress_bar

SHEET_ROWS = 6


@dataclasses.dataclass(frozen=True)
class MapEvaluation:
    """confusion: of all images, int64 (k, k), true class by predicted class. counts: of each image.
    samples: of a few images, by index, for a sheet. boundary: see `metrics.scores`; None where not
    asked for.
    """

    confusion: np.ndarray
    counts: ImageCounts
    samples: dict[int, sheets.SheetRow]
    averaged_over: metrics.Averaged
    boundary: np.ndarray | None = None

    @property
    def sheet_rows(self) -> list[sheets.SheetRow]:
        """The samples in the order of the split."""
        return [self.samples[index] for index in sorted(self.samples)]

    @property
    def scores(self) -> metrics.Scores:
        return metrics.scores(self.confusion, self.averaged_over, self.boundary)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a split was scored.

    by_map: of each label map, the one that a run is judged by first. names: of the images.
    canvases: heights and widths that whole images were put on; empty_share: how much of these was
    empty.
    """

    by_map: Mapping[str, MapEvaluation]
    names: tuple[str, ...]
    canvases: tuple[Size, ...]
    empty_share: float
    convention: Convention
    inference: Inference

    @property
    def scores(self) -> metrics.Scores:
        """Of the first label map."""
        return next(iter(self.by_map.values())).scores


def evaluator(
    network: PureModel,
    dataset: Dataset,
    split: str,
    settings: EvalConfig,
    convention: Convention = conventions.NATIVE,
    inference: Inference = WHOLE,
    *,
    boundary: bool = False,
) -> Callable[[Any], Evaluation]:
    """Builds the function that scores (params, batch_stats) on a split.

    Whole images are scored in batches, and it compiles once for each canvas that they are put on,
    when first called; by another `inference` they are labelled one by one. With `boundary` it
    scores the contours as well, which takes the host a while.

    Raises UserError where the split is empty, the convention takes none of its images or does not
    go with the inference, or the batch does not divide over the devices.
    """
    native = dataset.split(split)
    if not len(native):
        raise UserError(f"split {split} of {dataset.name} has no images")
    records = ScoredSplit(native, dataset.statistics(split).sizes, convention)
    if not len(records):
        raise UserError(
            f"--convention={convention.name} takes none of the {len(native)} images of {split}: "
            f"{convention.description}"
        )
    several_hosts = jax.process_count() > 1
    if several_hosts and (boundary or inference != WHOLE):
        raise UserError(
            "--boundary, --windows, --scales and --flip score on one host: start it on one alone"
        )
    sampled = set(np.linspace(0, len(records) - 1, SHEET_ROWS).round().astype(int).tolist())
    shown = range(len(records)) if boundary else sampled
    if inference == WHOLE:
        scorer = in_batches(network, dataset.num_classes, records, settings, shown)
    else:
        scorer = one_by_one(network, dataset.num_classes, records, settings, inference)
    score, canvases, empty = scorer
    # Of several hosts each comes to know the names of its own images alone.
    known = [records.name(index) if several_hosts else "" for index in range(len(records))]

    def evaluate(variables: Any) -> Evaluation:
        tallies = {
            name: _Tally.of(len(records), count, boundary)
            for name, count in dataset.num_classes.items()
        }
        names = list(known)

        def receive(scored: ScoredImages) -> None:
            for index, name in scored.names.items():
                names[index] = name
            for name, tally in tallies.items():
                tally.count(scored.images, scored.counts[name])
            for index, (record, labels) in scored.shown.items():
                for name, truth in by_map(record["label"], network.label_maps).items():
                    height, width = truth.shape
                    predicted = labels[name][:height, :width]
                    if index in sampled:
                        tallies[name].samples[index] = _row(record, truth, predicted)
                    if (zones := tallies[name].boundary) is not None:
                        zones += boundary_counts(truth, predicted, len(zones[0]))
            bar.advance(len(scored.images))

        with progress_bar(f"scoring {split}", len(records)) as bar:
            confusions = score(variables, receive)
        evaluated = {
            name: tally.evaluation(names, confusions[name], convention.averaged_over)
            for name, tally in tallies.items()
        }
        return Evaluation(evaluated, tuple(names), canvases, empty, convention, inference)

    return evaluate


@dataclasses.dataclass
class _Tally:
    """What is counted of a label map's images: three numbers a class."""

    hits: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    samples: dict[int, sheets.SheetRow]
    boundary: np.ndarray | None

    @classmethod
    def of(cls, images: int, num_classes: int, boundary: bool) -> Self:
        hits, truth, predicted = np.zeros((3, images, num_classes), np.int64)
        zones = np.zeros((2, num_classes), np.int64) if boundary else None
        return cls(hits, truth, predicted, {}, zones)

    def count(self, images: Sequence[int], counts: tuple[np.ndarray, ...]) -> None:
        """counts: hits, truth and predicted of these images, int (n, k)."""
        for every, some in zip((self.hits, self.truth, self.predicted), counts, strict=True):
            every[list(images)] = some

    def evaluation(
        self, names: Sequence[str], confusion: np.ndarray, averaged_over: metrics.Averaged
    ) -> MapEvaluation:
        counts = ImageCounts(tuple(names), self.hits, self.truth, self.predicted)
        return MapEvaluation(confusion, counts, self.samples, averaged_over, self.boundary)


def _row(record: dict[str, Any], truth: np.ndarray, predicted: np.ndarray) -> sheets.SheetRow:
    image = record["image"][..., :3]
    if image.shape[:2] != truth.shape:
        height, width = truth.shape
        image = conventions.resize_smooth(image, (height, width))
    return image, truth, predicted, record["name"]
