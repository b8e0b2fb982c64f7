"""Scores a network on a split of a data set: what `fcn_jax.evaluate` and training call."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

import jax
import numpy as np

from fcn_jax import conventions, metrics, parallel, visualize
from fcn_jax.boundary import boundary_counts
from fcn_jax.config import EvalConfig
from fcn_jax.conventions import Convention, ScoredSplit
from fcn_jax.data.canvases import Size, empty_share, fill_buckets, round_up
from fcn_jax.data.datasets import Dataset
from fcn_jax.data.labels import by_map
from fcn_jax.data.pipeline import evaluation_batches
from fcn_jax.errors import UserError
from fcn_jax.image_counts import ImageCounts
from fcn_jax.inference import WHOLE, Inference
from fcn_jax.labeller import Labeller
from fcn_jax.progress import progress_bar
from fcn_jax.step import Network, make_eval_step

SHEET_ROWS = 6


@dataclasses.dataclass(frozen=True)
class MapEvaluation:
    """confusion: of all images, int64 (k, k), true class by predicted class. counts: of each image.
    samples: of a few images, by index, for a sheet. boundary: see `metrics.scores`; None where not
    asked for.
    """

    confusion: np.ndarray
    counts: ImageCounts
    samples: dict[int, visualize.SheetRow]
    averaged_over: metrics.Averaged
    boundary: np.ndarray | None = None

    @property
    def sheet_rows(self) -> list[visualize.SheetRow]:
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


@dataclasses.dataclass(frozen=True)
class ScoredImages:
    """Some images of a split, labelled.

    images: their indices. confusions: by label map, int (n, k, k). records: of those that this host
    has read, by index. labels: gives theirs by label map, uint8 (h, w) or larger, in that order.
    """

    images: tuple[int, ...]
    confusions: Mapping[str, np.ndarray]
    records: Mapping[int, dict[str, Any]]
    labels: Callable[[], Mapping[str, Any]]


def evaluator(
    network: Network,
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
            f"{convention.says}"
        )
    several_hosts = jax.process_count() > 1
    if several_hosts and (boundary or inference != WHOLE):
        raise UserError(
            "--boundary, --windows, --scales and --flip score on one host: start it on one alone"
        )
    if inference == WHOLE:
        scorer = _in_batches(network, dataset.num_classes, records, settings)
    else:
        scorer = _one_by_one(network, dataset.num_classes, records, settings, inference)
    score, canvases, empty = scorer
    sampled = set(np.linspace(0, len(records) - 1, SHEET_ROWS).round().astype(int).tolist())

    def evaluate(variables: Any) -> Evaluation:
        tallies = {
            name: _Tally.of(len(records), count, boundary)
            for name, count in dataset.num_classes.items()
        }
        # Of several hosts each has read its own images alone.
        names = [records.name(index) if several_hosts else "" for index in range(len(records))]
        with progress_bar(f"scoring {split}", len(records)) as bar:
            for scored in score(variables):
                for index, record in scored.records.items():
                    names[index] = record["name"]
                wanted = scored.records.keys() if boundary else scored.records.keys() & sampled
                labels = scored.labels() if wanted else {}
                for name, tally in tallies.items():
                    tally.count(scored.images, scored.confusions[name])
                    for (index, record), label in zip(
                        scored.records.items(), labels.get(name, ()), strict=False
                    ):
                        truth = by_map(record["label"], network.label_maps)[name]
                        height, width = truth.shape
                        predicted = label[:height, :width]
                        if index in sampled:
                            tally.samples[index] = _row(record, truth, predicted)
                        if tally.boundary is not None:
                            tally.boundary += boundary_counts(
                                truth, predicted, len(tally.confusion)
                            )
                bar.advance(len(scored.images))
        evaluated = {
            name: tally.evaluation(names, convention.averaged_over)
            for name, tally in tallies.items()
        }
        return Evaluation(evaluated, tuple(names), canvases, empty, convention, inference)

    return evaluate


@dataclasses.dataclass
class _Tally:
    """What is counted of a label map: per image three numbers a class, and k² in all."""

    confusion: np.ndarray
    hits: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    samples: dict[int, visualize.SheetRow]
    boundary: np.ndarray | None

    @classmethod
    def of(cls, images: int, num_classes: int, boundary: bool) -> Self:
        k = num_classes
        hits, truth, predicted = np.zeros((3, images, k), np.int64)
        zones = np.zeros((2, k), np.int64) if boundary else None
        return cls(np.zeros((k, k), np.int64), hits, truth, predicted, {}, zones)

    def count(self, images: Sequence[int], confusions: np.ndarray) -> None:
        """confusions: of these images, int (n, k, k)."""
        places = list(images)
        confusions = confusions.astype(np.int64)
        self.confusion += confusions.sum(axis=0)
        self.hits[places] = np.diagonal(confusions, axis1=1, axis2=2)
        self.truth[places] = confusions.sum(axis=2)
        self.predicted[places] = confusions.sum(axis=1)

    def evaluation(self, names: Sequence[str], averaged_over: metrics.Averaged) -> MapEvaluation:
        counts = ImageCounts(tuple(names), self.hits, self.truth, self.predicted)
        return MapEvaluation(self.confusion, counts, self.samples, averaged_over, self.boundary)


_Scorer = tuple[Callable[[Any], Iterator[ScoredImages]], tuple[Size, ...], float]
"""The function that labels and counts, the canvases it uses, and how much of them is empty."""


def _in_batches(
    network: Network,
    num_classes: Mapping[str, int],
    records: ScoredSplit,
    settings: EvalConfig,
) -> _Scorer:
    # A batch of at most one image a device more than there are images.
    devices = jax.device_count()
    batch_size = min(settings.batch_size, round_up(len(records), devices))
    parallel.check_divides(batch_size, "config.eval.batch_size")
    buckets = fill_buckets(
        records.sizes,
        most=settings.canvases,
        batch_size=batch_size,
        label_sizes=records.label_sizes if records.convention.brings_back else None,
    )
    step = parallel.on_all_devices(
        make_eval_step(network, num_classes), donate_state=False, split_results=(False, True)
    )

    def score(variables: Any) -> Iterator[ScoredImages]:
        share = batch_size // jax.process_count()
        for batch in evaluation_batches(records, buckets, batch_size=share):
            counted, predictions = step(variables, batch.canvases)
            yield ScoredImages(
                batch.images,
                {name: np.asarray(n)[: len(batch.images)] for name, n in counted.items()},
                batch.records,
                partial(_fetched, predictions),
            )

    canvases = tuple(bucket.canvas_px for bucket in buckets)
    return score, canvases, empty_share(records.sizes, buckets)


def _fetched(predictions: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    return {name: parallel.own_share(labels, ndim=3) for name, labels in predictions.items()}


def _one_by_one(
    network: Network,
    num_classes: Mapping[str, int],
    records: ScoredSplit,
    settings: EvalConfig,
    inference: Inference,
) -> _Scorer:
    if records.convention.brings_back:
        raise UserError(
            f"--convention={records.convention.name} resizes images and brings their logits back: "
            "it does not go with --windows, --scales and --flip"
        )
    buckets = fill_buckets(records.sizes, most=settings.canvases)
    canvases = tuple(bucket.canvas_px for bucket in buckets)
    labeller = Labeller(network, inference, canvases)

    def score(variables: Any) -> Iterator[ScoredImages]:
        for index in range(len(records)):
            record = records[index]
            labels = labeller.labels(variables, record["image"])
            truth = by_map(record["label"], network.label_maps)
            confusions = {
                name: metrics.count_confusion(truth[name], label, num_classes[name])[None]
                for name, label in labels.items()
            }
            of_batch = {name: label[None] for name, label in labels.items()}
            yield ScoredImages((index,), confusions, {index: record}, partial(dict, of_batch))

    return score, canvases, empty_share(records.sizes, buckets)


def _row(record: dict[str, Any], truth: np.ndarray, predicted: np.ndarray) -> visualize.SheetRow:
    image = record["image"][..., :3]
    if image.shape[:2] != truth.shape:
        height, width = truth.shape
        image = conventions.resize_smooth(image, (height, width))
    return image, truth, predicted, record["name"]
