"""Two ways of labelling and counting a split: in batches on all devices, or one by one.

`scoring.py` makes an evaluation of what they hand it.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Container, Mapping
from typing import Any, Self

import jax
import numpy as np

from fcn_jax.config import EvalConfig
from fcn_jax.data.canvases import Size, empty_share, fill_buckets, round_up
from fcn_jax.data.labels import by_map
from fcn_jax.data.pipeline import EvaluationBatch, evaluation_batches
from fcn_jax.errors import UserError
from fcn_jax.evaluation.confusion import class_counts, count_confusion
from fcn_jax.evaluation.conventions import ScoredSplit
from fcn_jax.evaluation.eval_step import make_eval_step, no_confusion
from fcn_jax.inference.options import Inference
from fcn_jax.inference.views import ViewPredictor
from fcn_jax.models.pure_model import PureModel
from fcn_jax.parallel import data_parallel


@dataclasses.dataclass(frozen=True)
class ScoredImages:
    """Some images of a split, labelled.

    images: their indices. counts: by label map, hits, truth and predicted of each, int (n, k).
    names: of those that this host has read, by index. shown: of those of them that are to be looked
    at, the record, and labels by label map, uint8 (h, w) or larger.
    """

    images: tuple[int, ...]
    counts: Mapping[str, tuple[np.ndarray, ...]]
    names: Mapping[int, str]
    shown: Mapping[int, tuple[dict[str, Any], Mapping[str, np.ndarray]]]


Score = Callable[[Any, Callable[[ScoredImages], None]], Mapping[str, np.ndarray]]
"""Labels all images with (params, batch_stats), hands some at a time to a function, and returns the
confusion matrix of all, int64 (k, k), by label map."""

Scorer = tuple[Score, tuple[Size, ...], float]
"""With the canvases it uses, and how much of them is empty."""


def in_batches(
    network: PureModel,
    num_classes: Mapping[str, int],
    records: ScoredSplit,
    settings: EvalConfig,
    shown: Container[int],
) -> Scorer:
    """Every image on a canvas, several at once; `shown` are the indices of those to be shown.

    While the devices are at a batch, the host reads the next one, and what came of the one before.
    """
    batch_size = batch_size_of(settings, len(records))
    buckets = fill_buckets(
        records.sizes,
        max_canvases=settings.canvases,
        batch_size=batch_size,
        label_sizes=records.label_sizes if records.convention.brings_back else None,
    )
    step = data_parallel.parallelize(
        make_eval_step(network, num_classes),
        donate_state=True,
        split_results=(False, False, True),
    )

    def score(variables: Any, receive: Callable[[ScoredImages], None]) -> Mapping[str, np.ndarray]:
        variables = data_parallel.replicate(variables)
        confusions = no_confusion(num_classes)
        share = batch_size // jax.process_count()
        before: _Dispatched | None = None
        batches = evaluation_batches(records, buckets, batch_size=share)
        with contextlib.closing(batches):  # also where scoring fails or is interrupted
            for batch in batches:
                confusions, counts, predictions = step(confusions, batch.canvases, variables)
                dispatched = _Dispatched.of(batch, counts, predictions, shown)
                if before is not None:
                    receive(before.read())
                before = dispatched
        if before is not None:
            receive(before.read())
        return {name: confusion.total() for name, confusion in confusions.items()}

    canvases = tuple(bucket.canvas_px for bucket in buckets)
    return score, canvases, empty_share(records.sizes, buckets)


def batch_size_of(settings: EvalConfig, images: int) -> int:
    """Images scored at once, on all devices, of so many.

    Raises UserError where that does not divide over the devices.
    """
    devices = jax.device_count()
    # On a CPU, what layers hand on of one image stays in its cache: FCN-8s on SqueezeNet took 57 ms
    # for an image of 500×375 alone, 77 ms for each of eight.
    usual = devices * (1 if jax.default_backend() == "cpu" else 8)
    # At most one image a device more than there are.
    batch_size = min(settings.batch_size or usual, round_up(images, devices))
    data_parallel.check_batch_divides(batch_size, "eval.batch_size")
    return batch_size


@dataclasses.dataclass(frozen=True)
class _Dispatched:
    """A batch that the devices are at, and of this host's images no more than is still needed.

    shown: place in this host's share, and record, by index. predictions: none where none is shown.
    """

    images: tuple[int, ...]
    names: dict[int, str]
    shown: dict[int, tuple[int, dict[str, Any]]]
    counts: Mapping[str, tuple[jax.Array, ...]]
    predictions: Mapping[str, jax.Array]

    @classmethod
    def of(
        cls,
        batch: EvaluationBatch,
        counts: Mapping[str, tuple[jax.Array, ...]],
        predictions: Mapping[str, jax.Array],
        shown: Container[int],
    ) -> Self:
        names = {index: record["name"] for index, record in batch.records.items()}
        kept = {
            index: (place, record)
            for place, (index, record) in enumerate(batch.records.items())
            if index in shown
        }
        return cls(batch.images, names, kept, counts, predictions if kept else {})

    def read(self) -> ScoredImages:
        """Waits for it."""
        labels = {
            name: data_parallel.local_shards(of_map, ndim=3)
            for name, of_map in self.predictions.items()
        }
        shown = {
            index: (record, {name: of_map[place] for name, of_map in labels.items()})
            for index, (place, record) in self.shown.items()
        }
        counts = {
            name: tuple(np.asarray(count)[: len(self.images)] for count in of_map)
            for name, of_map in self.counts.items()
        }
        return ScoredImages(self.images, counts, self.names, shown)


def one_by_one(
    network: PureModel,
    num_classes: Mapping[str, int],
    records: ScoredSplit,
    settings: EvalConfig,
    inference: Inference,
) -> Scorer:
    """Image by image, as an inference says, and counted on the host; each is shown."""
    if records.convention.brings_back:
        raise UserError(
            f"--convention={records.convention.name} resizes images and brings their logits back: "
            "it does not go with --windows, --scales and --flip"
        )
    buckets = fill_buckets(records.sizes, max_canvases=settings.canvases)
    canvases = tuple(bucket.canvas_px for bucket in buckets)
    predictor = ViewPredictor(network, inference, canvases)

    def score(variables: Any, receive: Callable[[ScoredImages], None]) -> Mapping[str, np.ndarray]:
        confusions = {name: np.zeros((k, k), np.int64) for name, k in num_classes.items()}
        for index in range(len(records)):
            record = records[index]
            labels = predictor.predict_maps(variables, record["image"])
            truth = by_map(record["label"], network.label_maps)
            counts = {}
            for name, label in labels.items():
                confusion = count_confusion(truth[name], label, num_classes[name])
                confusions[name] += confusion
                counts[name] = class_counts(confusion[None])
            shown = {index: (record, labels)}
            receive(ScoredImages((index,), counts, {index: record["name"]}, shown))
        return confusions

    return score, canvases, empty_share(records.sizes, buckets)
