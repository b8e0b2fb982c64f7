"""Scores a network on a split of a data set: for `fcn_jax.evaluate`, and during training."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from fcn_jax.config import EvalConfig
from fcn_jax.data.canvases import Size
from fcn_jax.data.datasets import Dataset
from fcn_jax.data.labels import by_map
from fcn_jax.data.palettes import Colour
from fcn_jax.data.shard import Shard
from fcn_jax.data.volumes import VolumeDataset
from fcn_jax.errors import ArgumentError, UserError, printable
from fcn_jax.evaluation import conventions, metrics
from fcn_jax.evaluation.boundary import boundary_counts
from fcn_jax.evaluation.calibration import BINS, Calibration
from fcn_jax.evaluation.case_scores import CaseScores, hausdorff95_of_classes
from fcn_jax.evaluation.conventions import Convention, EvaluationSplit
from fcn_jax.evaluation.image_counts import ImageCounts
from fcn_jax.evaluation.scorers import (
    BatchScorer,
    ScoredImages,
    Scorer,
    ViewScorer,
    VolumeScorer,
    images_of,
)
from fcn_jax.inference.options import WHOLE, Inference
from fcn_jax.models.pure_model import PureModel
from fcn_jax.parallel import hosts
from fcn_jax.pictures.orthogonal import orthogonal_views
from fcn_jax.pictures.sheets import SheetRow
from fcn_jax.terminal.console import rendered
from fcn_jax.terminal.progress import progress_bar

SHEET_ROWS = 6
WORST_SHOWN, MEDIAN_SHOWN = 6, 3
"""The number of images that a report shows."""


@dataclasses.dataclass(frozen=True)
class MapEvaluation:
    """The evaluation of one label map.

    Attributes:
        class_names: k names.
        confusion: of all images, int64 (k, k), true by predicted class.
        counts: the counts of each image.
        sheet_rows: image, truth and prediction of a few images, in the order of the split.
        mean_over: the classes that the means are taken over.
        boundary: int64 (2, k), see `metrics.scores`; None if it was not asked for.
        colours: the colours of the first classes in pictures; VOC's for the others.
        cases: the scores of each volume; None for images.
        calibration: counts of pixels by confidence; None if they were not asked for.
        worst, median: the images with the lowest and with the median mIoU of their own, in
            ascending order; empty if they were not asked for.
    """

    class_names: tuple[str, ...]
    confusion: np.ndarray
    counts: ImageCounts
    sheet_rows: Sequence[SheetRow]
    mean_over: metrics.MeanOver
    boundary: np.ndarray | None = None
    colours: Sequence[Colour] = ()
    cases: CaseScores | None = None
    calibration: Calibration | None = None
    worst: Sequence[SheetRow] = ()
    median: Sequence[SheetRow] = ()

    @property
    def scores(self) -> metrics.Scores:
        if self.mean_over == "cases":
            counts = self.counts
            return metrics.case_scores(counts.hits, counts.truth, counts.predicted, self.boundary)
        return metrics.scores(self.confusion, self.mean_over, self.boundary)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of a network on a split. Printed, it is the table of each label map.

    Attributes:
        by_map: the evaluation of each label map by its name; a single label map is called "".
        names: names of the images.
        image_count: number of images of the split that are scored, with those of other shards.
        canvases: heights and widths of the canvases that whole images were placed on.
        empty_share: share of the canvases' pixels that are outside the images.
        convention: the way of scoring.
        inference: the way of predicting.
    """

    by_map: Mapping[str, MapEvaluation]
    names: tuple[str, ...]
    image_count: int
    canvases: tuple[Size, ...]
    empty_share: float
    convention: Convention
    inference: Inference

    @property
    def scores(self) -> metrics.Scores:
        """The scores of the first label map."""
        return next(iter(self.by_map.values())).scores

    def __str__(self) -> str:
        lines = [
            f"{len(self.names)} images, {self.inference.description}, "
            f"convention {self.convention.name}"
        ]
        for label_map, scored in self.by_map.items():
            if label_map:
                lines.append(f"label map {printable(label_map)}")
            lines.append(rendered(metrics.scores_table(scored.scores, scored.class_names)))
            if scored.calibration is not None:
                lines.append(str(scored.calibration))
        return "\n".join(lines)

    def under(self, convention: Convention) -> Self:
        """Returns the scores of the same predictions under another convention.

        Raises:
            ValueError: the convention scores other predictions.
        """
        if not self.convention.sees_as(convention):
            raise ValueError(
                f"`convention` (={convention.name}) changes images or labels otherwise than "
                f"{self.convention.name}"
            )
        by_map = {
            name: dataclasses.replace(scored, mean_over=convention.mean_over)
            for name, scored in self.by_map.items()
        }
        return dataclasses.replace(self, by_map=by_map, convention=convention)


class EvaluationStopped(Exception):
    """An evaluation was abandoned because its `should_stop` returned True."""


class Evaluator:
    """Scores (params, batch_stats) of a network on a split.

    Whole images are predicted in batches; the program is compiled for each canvas by the first
    call. With another `inference`, images are predicted one by one.

    Args:
        network: the network.
        dataset: its classes are those of the network.
        split: name of the split.
        settings: batch size, and the maximum number of canvases.
        convention: the way of scoring.
        inference: windows, scales and mirror images to average over.
        boundary: whether to compute boundary IoU, which takes the host a while.
        shard: the share of the images to score, in the order of the split; None for all.
        mirror_axes: of volumes, the axes of the mirror images that `inference` averages over.
        temperatures: by label map (1 for those that it lacks), to count pixels by confidence as
            well; None for no such counts.

    Raises:
        ArgumentError: the split is empty, the convention includes none of its images or cannot be
            combined with the inference, the network cannot be used with the inference, or the batch
            does not divide over the devices.
    """

    def __init__(
        self,
        network: PureModel,
        dataset: Dataset,
        split: str,
        settings: EvalConfig,
        convention: Convention = conventions.NATIVE,
        inference: Inference = WHOLE,
        *,
        boundary: bool = False,
        shard: Shard | None = None,
        mirror_axes: Sequence[int] = (),
        temperatures: Mapping[str, float] | None = None,
    ):
        images = dataset.split(split)
        if not len(images):
            raise ArgumentError("split", split, f"of {dataset.name} has no images")
        records: Any = images
        if isinstance(dataset, VolumeDataset):
            _check_volumes(convention, inference, boundary=boundary)
        else:
            records = EvaluationSplit(images, dataset.statistics(split).sizes, convention)
        if not len(records):
            raise ArgumentError(
                "convention",
                convention.name,
                f"includes none of the {len(images)} images of {split}: {convention.description}",
            )
        several_hosts = hosts.count() > 1
        self._label_maps, self._colours = dataset.label_maps, dataset.colours
        self._split, self._convention, self._inference = split, convention, inference
        self._boundary, self._temperatures = boundary, temperatures
        count = self._image_count = len(records)
        self._images = images_of(shard, count)
        self._sampled = set(sheet_images(count))
        self._scorer: Scorer
        if isinstance(dataset, VolumeDataset):
            axes = mirror_axes if inference.flip else ()
            if inference.flip and not axes:
                raise ArgumentError(
                    "flip", True, "needs a network of volumes trained with volumes.flip_axes"
                )
            self._scorer = VolumeScorer(network, dataset, images, shard, axes, temperatures)
        elif inference == WHOLE:
            wanted = range(count) if boundary else self._sampled
            self._scorer = BatchScorer(
                network, dataset.num_classes, records, settings, wanted, shard, temperatures
            )
        else:
            self._scorer = ViewScorer(
                network, dataset.num_classes, records, settings, inference, shard, temperatures
            )
        # A host reads, and learns the names of, its own images only.
        self._names = [records.name(index) if several_hosts else "" for index in range(count)]

    def __call__(
        self,
        variables: Any,
        should_stop: Callable[[], bool] = lambda: False,
        *,
        examples: bool = False,
    ) -> Evaluation:
        """Scores (params, batch_stats).

        Args:
            variables: (params, batch_stats).
            should_stop: is called after each batch.
            examples: also return the worst and the median images, which are predicted twice; for a
                shard, its worst images alone.

        Raises:
            EvaluationStopped: `should_stop` returned True.
        """
        names = list(self._names)
        totals = {
            label_map: _Totals(
                len(names), len(class_names), self._boundary, self._temperature(label_map)
            )
            for label_map, class_names in self._label_maps.items()
        }
        scored_images = self._scorer(variables)
        with (
            progress_bar(f"scoring {self._split}", self._own_count) as bar,
            contextlib.closing(scored_images),
        ):
            for scored in scored_images:
                if should_stop():
                    raise EvaluationStopped
                for index, name in scored.names.items():
                    names[index] = name
                for label_map, total in totals.items():
                    total.add(label_map, scored)
                self._look_at(scored, totals)
                bar.advance(len(scored.indices))
        for total in totals.values():
            total.add_other_hosts(self._scorer.is_partial)
        names, images = [names[index] for index in self._images], list(self._images)
        evaluation = Evaluation(
            {
                label_map: MapEvaluation(
                    class_names=self._label_maps[label_map],
                    confusion=total.confusion,
                    counts=ImageCounts(
                        tuple(names),
                        total.hits[images],
                        total.truth[images],
                        total.predicted[images],
                    ),
                    sheet_rows=[row for _, row in sorted(total.sheet_rows.items())],
                    mean_over=self._convention.mean_over,
                    boundary=total.boundary,
                    colours=self._colours,
                    cases=total.case_scores(tuple(names), images),
                    calibration=total.calibration_result,
                )
                for label_map, total in totals.items()
            },
            tuple(names),
            self._image_count,
            self._scorer.canvases,
            self._scorer.empty_share,
            self._convention,
            self._inference,
        )
        return self._with_examples(evaluation, variables) if examples else evaluation

    def _with_examples(self, evaluation: Evaluation, variables: Any) -> Evaluation:
        """Predicts the worst and the median images of each label map again, for pictures."""
        images = list(self._images)
        chosen = {
            name: tuple([images[n] for n in group] for group in _worst_and_median(scored))
            for name, scored in evaluation.by_map.items()
        }
        if len(images) < self._image_count:  # the median of a shard is not that of the split
            chosen = {name: (worst, []) for name, (worst, _) in chosen.items()}
        only = {index for groups in chosen.values() for group in groups for index in group}
        rows: dict[str, dict[int, SheetRow]] = {name: {} for name in chosen}
        scored_images = self._scorer(variables, only)
        with contextlib.closing(scored_images):
            for scored in scored_images:
                for index, (record, predictions) in scored.predictions.items():
                    for name, truth in by_map(record["label"], tuple(rows)).items():
                        predicted = predictions[name][tuple(slice(side) for side in truth.shape)]
                        rows[name][index] = _sheet_row(record, truth, predicted)
        rows = {name: _rows_of_all_hosts(part) for name, part in rows.items()}
        by_name = {
            name: dataclasses.replace(
                scored,
                worst=[rows[name][index] for index in chosen[name][0]],
                median=[rows[name][index] for index in chosen[name][1]],
            )
            for name, scored in evaluation.by_map.items()
        }
        return dataclasses.replace(evaluation, by_map=by_name)

    def _temperature(self, label_map: str) -> float | None:
        return None if self._temperatures is None else self._temperatures.get(label_map, 1.0)

    @property
    def _own_count(self) -> int:
        """Number of images whose counts this host adds up."""
        hosts_at_work = hosts.count() if self._scorer.is_partial else 1
        return -(-len(self._images) // hosts_at_work)

    def _look_at(self, scored: ScoredImages, totals: "Mapping[str, _Totals]") -> None:
        """Adds what needs whole predictions: rows of the sheet, and boundaries."""
        for index, (record, predictions) in scored.predictions.items():
            for label_map, truth in by_map(record["label"], tuple(totals)).items():
                total = totals[label_map]
                predicted = predictions[label_map][tuple(slice(side) for side in truth.shape)]
                if index in self._sampled:
                    total.sheet_rows[index] = _sheet_row(record, truth, predicted)
                if truth.ndim == 3:
                    total.hd95_mm[index] = hausdorff95_of_classes(
                        truth, predicted, len(total.confusion), record["spacing_mm"]
                    )
                if total.boundary is not None:
                    total.boundary += boundary_counts(truth, predicted, len(total.confusion))


def sheet_images(count: int) -> list[int]:
    """Returns the indices, in ascending order, of the images that a sheet of `count` shows."""
    rows = np.linspace(0, count - 1, SHEET_ROWS).round().astype(int)
    return sorted(set(rows.tolist()))


class _Totals:
    """The counts of a label map while a split is scored."""

    def __init__(self, images: int, num_classes: int, boundary: bool, temperature: float | None):
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        self.hits, self.truth, self.predicted = np.zeros((3, images, num_classes), np.int64)
        self.boundary = np.zeros((2, num_classes), np.int64) if boundary else None
        self.sheet_rows: dict[int, SheetRow] = {}
        self.hd95_mm: dict[int, np.ndarray] = {}
        self.temperature = temperature
        self.calibration = np.zeros((BINS, 3), np.int64)

    @property
    def calibration_result(self) -> Calibration | None:
        if self.temperature is None:
            return None
        return Calibration(self.calibration, self.temperature)

    def case_scores(self, names: tuple[str, ...], images: list[int]) -> CaseScores | None:
        if not self.hd95_mm:
            return None
        counts = (self.hits[images], self.truth[images], self.predicted[images])
        distances = np.stack([self.hd95_mm[index] for index in images])
        return CaseScores.of(ImageCounts(names, *counts), distances)

    def add(self, label_map: str, scored: ScoredImages) -> None:
        self.confusion += scored.confusion[label_map]
        if self.temperature is not None:
            self.calibration += scored.calibration[label_map]
        indices = list(scored.indices)
        hits, truth, predicted = scored.counts[label_map]
        self.hits[indices], self.truth[indices], self.predicted[indices] = hits, truth, predicted

    def add_other_hosts(self, is_partial: bool) -> None:
        """Adds what the other hosts have counted, and their rows of the sheet."""
        if hosts.count() == 1:
            return
        sums = ["boundary"] if self.boundary is not None else []
        if is_partial:
            sums += ["confusion", "hits", "truth", "predicted", "calibration"]
        gathered = hosts.gather_arrays({name: getattr(self, name) for name in sums})
        for name in sums:
            setattr(self, name, sum(part[name] for part in gathered))
        self.sheet_rows = _rows_of_all_hosts(self.sheet_rows)


def _rows_of_all_hosts(rows: dict[int, SheetRow]) -> dict[int, SheetRow]:
    """Gathers rows of a sheet, by the image's index, from the hosts that predicted them."""
    if hosts.count() == 1:
        return rows
    values = {
        f"{index} {n}": np.asarray(value)
        for index, row in rows.items()
        for n, value in enumerate(row)
    }
    gathered: dict[int, SheetRow] = {}
    for part in hosts.gather_arrays(values):
        for index in {int(key.split()[0]) for key in part}:
            image, truth, predicted, title = (part[f"{index} {n}"] for n in range(4))
            gathered[index] = image, truth, predicted, str(title)
    return gathered


def _check_volumes(convention: Convention, inference: Inference, *, boundary: bool) -> None:
    """Raises UserError for several hosts, and for ways of scoring that apply to images only."""
    if hosts.count() > 1:
        raise UserError("volumes are trained on and scored by one host: start a single process")
    if convention.name not in ("native", "paper", "nnunet"):  # they leave images as they are
        raise ArgumentError(
            "convention", convention.name, "must be native, paper or nnunet for volumes"
        )
    if inference not in (WHOLE, Inference(flip=True)):
        raise ArgumentError(
            "inference", inference.description, "is for images: volumes are predicted in tiles"
        )
    if boundary:
        raise ArgumentError("boundary", True, "is for images")


def _worst_and_median(scored: MapEvaluation) -> tuple[list[int], list[int]]:
    """Returns indices of images by the mIoU of their own; images that are all void have none."""
    own = scored.counts.mean_iou_by_image
    order = [int(index) for index in np.argsort(own, kind="stable") if not np.isnan(own[index])]
    worst, others = order[:WORST_SHOWN], order[WORST_SHOWN:]
    first = max(0, len(order) // 2 - WORST_SHOWN - MEDIAN_SHOWN // 2)
    return worst, others[first : first + MEDIAN_SHOWN]


def _sheet_row(record: dict[str, Any], truth: np.ndarray, predicted: np.ndarray) -> SheetRow:
    if truth.ndim == 3:
        return (*orthogonal_views(record["image"], truth, predicted), record["name"])
    image = record["image"][..., :3]
    if image.shape[:2] != truth.shape:
        height, width = truth.shape
        image = conventions.resize_smooth(image, (height, width))
    return image, truth, predicted, record["name"]
