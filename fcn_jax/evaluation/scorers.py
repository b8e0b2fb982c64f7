"""Two ways of predicting and counting a split: in batches on all devices, or one by one in views.

`evaluator.py` adds up their results.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Container, Generator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, Self

import jax
import numpy as np

from fcn_jax.config import EvalConfig
from fcn_jax.data.canvases import Size, empty_share, fill_buckets, round_up
from fcn_jax.data.labels import by_map
from fcn_jax.data.pipeline import EvaluationBatch, evaluation_batches
from fcn_jax.data.resample import resample_label
from fcn_jax.data.shard import Shard
from fcn_jax.data.volumes import VolumeDataset, VolumeSplit
from fcn_jax.errors import ArgumentError, width_by_height
from fcn_jax.evaluation.calibration import count_calibration, from_digits
from fcn_jax.evaluation.confusion import class_counts, count_confusion
from fcn_jax.evaluation.conventions import EvaluationSplit
from fcn_jax.evaluation.eval_step import make_calibration_step, make_eval_step
from fcn_jax.inference.options import Inference
from fcn_jax.inference.views import ViewPredictor
from fcn_jax.inference.volumes import VolumePredictor
from fcn_jax.models.confidence import classes_of
from fcn_jax.models.pure_model import PureModel, predict
from fcn_jax.parallel import data_parallel
from fcn_jax.parallel.memory import free_bytes
from fcn_jax.parallel.memory_estimate import estimated_bytes

SURELY_FITS_PX = 2_000_000
"""Batches with fewer pixels on each device are scored without an estimate of the memory."""


@dataclasses.dataclass(frozen=True)
class ScoredImages:
    """Some images of a split, predicted and counted.

    Attributes:
        indices: the images' indices in the split.
        confusion: of all of these images, int (k, k), by label map.
        counts: hits, truth and predicted of each image, int (n, k), by label map.
        calibration: of all of these images, int64 (15, 3), see `Calibration`, by label map; empty
            if it was not asked for.
        names: names of the images that this host has read, by index.
        predictions: of those of them that were asked for, by index: the record, and the predicted
            classes by label map, uint8 (h, w) or larger.
    """

    indices: tuple[int, ...]
    confusion: Mapping[str, np.ndarray]
    counts: Mapping[str, tuple[np.ndarray, ...]]
    calibration: Mapping[str, np.ndarray]
    names: Mapping[int, str]
    predictions: Mapping[int, tuple[dict[str, Any], Mapping[str, np.ndarray]]]


class Scorer(Protocol):
    """Predicts and counts all images of a split.

    Attributes:
        canvases: heights and widths of the canvases that the images are placed on.
        empty_share: share of the canvases' pixels that are outside the images.
        is_partial: whether the counts that a host yields are of its own images only.
    """

    canvases: tuple[Size, ...]
    empty_share: float
    is_partial: bool

    def __call__(
        self, variables: Any, only: Container[int] | None = None
    ) -> Generator[ScoredImages]:
        """Yields the images of the split, predicted with (params, batch_stats).

        Args:
            variables: (params, batch_stats).
            only: indices of the images to score, all of whose predictions are yielded; None for
                all images.
        """
        ...


class BatchScorer:
    """Scores whole images, several at a time, on canvases; every host yields the counts of all.

    While the devices compute a batch, the host reads the next one and fetches the results of the
    previous one. The step compiles once for each canvas, when it is first used.

    Args:
        network: the network.
        num_classes: k by label map.
        records: the images.
        settings: batch size, and the maximum number of canvases.
        wanted: indices of the images whose predictions are yielded.
        shard: the share of the images to score; None for all. Each is on the canvas that it has
            among all images.
        temperatures: by label map, to count by confidence as well; None for no such counts.

    Raises:
        ArgumentError: the batch does not divide over the devices.
    """

    is_partial = False

    def __init__(
        self,
        network: PureModel,
        num_classes: Mapping[str, int],
        records: EvaluationSplit,
        settings: EvalConfig,
        wanted: Container[int],
        shard: Shard | None = None,
        temperatures: Mapping[str, float] | None = None,
    ):
        self._records, self._wanted = records, wanted
        self._batch_size = batch_size(settings, len(records))
        buckets = fill_buckets(
            records.sizes,
            max_canvases=settings.canvases,
            batch_size=self._batch_size,
            label_sizes=records.label_sizes if records.convention.resizes_logits else None,
        )
        _check_memory(network, buckets[-1].canvas_px, self._batch_size)
        self._temperatures = None
        step: Callable[..., Any] = make_eval_step(network, num_classes)
        split_results: tuple[bool, ...] = (False, False, True)
        if temperatures is not None:
            step, split_results = (
                make_calibration_step(network, num_classes),
                (*split_results, False),
            )
            values = {name: np.float32(temperatures.get(name, 1)) for name in network.label_maps}
            self._temperatures = data_parallel.replicate(values)
        self._step = data_parallel.parallelize(
            step, donate_state=False, split_results=split_results
        )
        self.canvases = tuple(bucket.canvas_px for bucket in buckets)
        self.empty_share = empty_share(records.sizes, buckets)
        scored = images_of(shard, len(records))
        self._buckets = [
            dataclasses.replace(bucket, images=tuple(i for i in bucket.images if i in scored))
            for bucket in buckets
        ]

    def __call__(
        self, variables: Any, only: Container[int] | None = None
    ) -> Generator[ScoredImages]:
        constants = data_parallel.replicate(variables)
        if self._temperatures is not None:
            constants = constants, self._temperatures
        share = self._batch_size // jax.process_count()
        buckets, wanted = self._buckets, self._wanted
        if only is not None:
            kept = (tuple(index for index in bucket.images if index in only) for bucket in buckets)
            buckets = [
                dataclasses.replace(bucket, images=images)
                for bucket, images in zip(buckets, kept, strict=True)
            ]
            wanted = only
        batches = evaluation_batches(self._records, buckets, batch_size=share)
        pending: _Dispatched | None = None
        with contextlib.closing(batches):  # also if scoring fails or is interrupted
            for batch in batches:
                results = self._step((), batch.canvases, constants)
                dispatched = _Dispatched.select(batch, results, wanted)
                if pending is not None:
                    yield pending.fetch()
                pending = dispatched
        if pending is not None:
            yield pending.fetch()


def _check_memory(network: PureModel, canvas_px: Size, batch_size: int) -> None:
    """Raises ArgumentError if a batch on the largest canvases does not fit in a device's memory."""
    shard = batch_size // jax.device_count()
    free = free_bytes()
    if free is None or shard * math.prod(canvas_px) < SURELY_FITS_PX:
        return
    image = jax.ShapeDtypeStruct((shard, *canvas_px, network.preprocessing.channels), np.uint8)
    size = jax.ShapeDtypeStruct((shard, 2), np.int32)
    needed = estimated_bytes(partial(predict, network), network.variables, image, size)
    if needed > free:
        fewer = "give a smaller batch" if shard > 1 else "cut the largest images into pieces"
        raise ArgumentError(
            "eval.batch_size",
            batch_size,
            f"needs about {needed / 1e9:.1f} GB on each device for images of up to "
            f"{width_by_height(canvas_px)} pixels, and {free / 1e9:.1f} GB are free: {fewer}",
        )


@dataclasses.dataclass(frozen=True)
class _Dispatched:
    """A batch whose results have not been fetched yet; only the wanted records are kept.

    wanted: slot in this host's share, and record, by index.
    """

    indices: tuple[int, ...]
    names: dict[int, str]
    wanted: dict[int, tuple[int, dict[str, Any]]]
    results: Any

    @classmethod
    def select(cls, batch: EvaluationBatch, results: Any, wanted: Container[int]) -> Self:
        records = {
            index: (slot, record)
            for slot, (index, record) in enumerate(batch.records.items())
            if index in wanted
        }
        names = {index: record["name"] for index, record in batch.records.items()}
        return cls(batch.images, names, records, results)

    def fetch(self) -> ScoredImages:
        """Waits for the results."""
        confusion, counts, classes, *others = self.results
        calibration = others[0] if others else {}
        maps = {}
        if self.wanted:
            maps = {name: data_parallel.local_shards(c, ndim=3) for name, c in classes.items()}
        return ScoredImages(
            self.indices,
            {name: np.asarray(matrix) for name, matrix in confusion.items()},
            {
                name: tuple(np.asarray(count)[: len(self.indices)] for count in by_class)
                for name, by_class in counts.items()
            },
            {name: from_digits(np.asarray(digits)) for name, digits in calibration.items()},
            self.names,
            {
                index: (record, {name: shards[slot] for name, shards in maps.items()})
                for index, (slot, record) in self.wanted.items()
            },
        )


def images_of(shard: Shard | None, count: int) -> Sequence[int]:
    """Returns the indices of a shard's images in a split of `count`; all without a shard."""
    return range(count) if shard is None else shard.of(range(count))


def batch_size(settings: EvalConfig, num_images: int) -> int:
    """Returns the number of images that are scored at once, on all devices together.

    Raises:
        ArgumentError: it does not divide over the devices.
    """
    devices = jax.device_count()
    # On a CPU, the activations of a single image stay in the cache: FCN-8s on SqueezeNet took 57 ms
    # for an image of 500×375 alone, 77 ms for each of eight.
    default = devices * (1 if jax.default_backend() == "cpu" else 8)
    # At most one canvas of each device stays empty.
    size = min(settings.batch_size or default, round_up(num_images, devices))
    data_parallel.check_batch_divides(size, "eval.batch_size")
    return size


class ViewScorer:
    """Scores images one by one in windows, at several scales or mirrored; counts on the host.

    The predictions of all images are yielded. Of several hosts, each takes every n-th image.

    Args:
        network: the network.
        num_classes: k by label map.
        records: the images.
        settings: the maximum number of canvases.
        inference: the views.
        shard, temperatures: as for `BatchScorer`.

    Raises:
        ArgumentError: the convention resizes logits, or the network cannot be used with the views.
    """

    is_partial = True

    def __init__(
        self,
        network: PureModel,
        num_classes: Mapping[str, int],
        records: EvaluationSplit,
        settings: EvalConfig,
        inference: Inference,
        shard: Shard | None = None,
        temperatures: Mapping[str, float] | None = None,
    ):
        if records.convention.resizes_logits:
            raise ArgumentError(
                "convention",
                records.convention.name,
                "resizes images and their logits: it cannot be combined with windows, scales or "
                "flip",
            )
        self._network, self._num_classes, self._records = network, num_classes, records
        self._temperatures = temperatures
        self._images = images_of(shard, len(records))
        buckets = fill_buckets(records.sizes, max_canvases=settings.canvases)
        self.canvases = tuple(bucket.canvas_px for bucket in buckets)
        self.empty_share = empty_share(records.sizes, buckets)
        self._predictor = ViewPredictor(network, inference, self.canvases)

    def __call__(
        self, variables: Any, only: Container[int] | None = None
    ) -> Generator[ScoredImages]:
        for index in self._images[jax.process_index() :: jax.process_count()]:
            if only is not None and index not in only:
                continue
            record = self._records[index]
            labels = by_map(record["label"], self._network.label_maps)
            calibration = {}
            if self._temperatures is None:
                classes = self._predictor.predict_maps(variables, record["image"])
            else:
                packed = self._predictor.packed(variables, record["image"], self._temperatures)
                classes = {name: classes_of(of_map) for name, of_map in packed.items()}
                calibration = {
                    name: count_calibration(labels[name], of_map, self._num_classes[name])
                    for name, of_map in packed.items()
                }
            confusion = {
                name: count_confusion(labels[name], classes[name], self._num_classes[name])
                for name in classes
            }
            counts = {name: class_counts(matrix[None]) for name, matrix in confusion.items()}
            names = {index: record["name"]}
            predictions = {index: (record, classes)}
            yield ScoredImages((index,), confusion, counts, calibration, names, predictions)


class VolumeScorer:
    """Scores volumes one by one, in tiles, at the spacing of their files.

    The predictions of all volumes are yielded.

    Args:
        network: the network.
        dataset: its plan gives the size of the tiles.
        records: the volumes.
        shard, temperatures: as for `BatchScorer`.
        mirror_axes: see `VolumePredictor`.
    """

    empty_share = 0.0
    is_partial = False

    def __init__(
        self,
        network: PureModel,
        dataset: VolumeDataset,
        records: VolumeSplit,
        shard: Shard | None = None,
        mirror_axes: Sequence[int] = (),
        temperatures: Mapping[str, float] | None = None,
    ):
        self._temperatures = temperatures
        self._records, self._classes = records, dataset.num_classes[""]
        self._images = images_of(shard, len(records))
        self._predictor = VolumePredictor(network, dataset.plan.patch, mirror_axes)
        self.canvases: tuple[Size, ...] = (dataset.plan.patch,)

    def __call__(
        self, variables: Any, only: Container[int] | None = None
    ) -> Generator[ScoredImages]:
        for index in self._images:
            if only is not None and index not in only:
                continue
            record = self._records[index]
            truth = self._records.native_label(index)
            calibration = {}
            if self._temperatures is None:
                predicted = resample_label(self._predictor(variables, record["image"]), truth.shape)
            else:
                temperature = self._temperatures.get("", 1.0)
                packed = self._predictor.packed(variables, record["image"], temperature)
                packed = resample_label(packed, truth.shape)
                calibration = {"": count_calibration(truth, packed, self._classes)}
                predicted = classes_of(packed)
            matrix = count_confusion(truth, predicted, self._classes)
            counts = {"": class_counts(matrix[None])}
            spacing_mm = self._records.spacing_mm(index)
            scored = {**record, "label": truth, "spacing_mm": spacing_mm}
            yield ScoredImages(
                (index,),
                {"": matrix},
                counts,
                calibration,
                {index: record["name"]},
                {index: (scored, {"": predicted})},
            )
