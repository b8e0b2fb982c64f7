"""Two ways of labelling and counting a split: in batches on all devices, or one by one.

`scoring.py` makes an evaluation of what they hand it.
"""

import dataclasses
from collections.abc import Callable, Container, Mapping
from typing import Any, Self

import jax
import numpy as np

from fcn_jax import parallel
from fcn_jax.config import EvalConfig
from fcn_jax.confusion import class_counts, count_confusion
from fcn_jax.conventions import ScoredSplit
from fcn_jax.data.canvases import Size, empty_share, fill_buckets, round_up
from fcn_jax.data.labels import by_map
from fcn_jax.data.pipeline import EvaluationBatch, evaluation_batches
from fcn_jax.errors import UserError
from fcn_jax.inference import Inference
from fcn_jax.labeller import Labeller
from fcn_jax.step import Network, make_eval_step, no_confusion


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
    network: Network,
    num_classes: Mapping[str, int],
    records: ScoredSplit,
    settings: EvalConfig,
    shown: Container[int],
) -> Scorer:
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
        make_eval_step(network, num_classes),
        donate_state=True,
        split_results=(False, False, True),
    )

    def score(variables: Any, receive: Callable[[ScoredImages], None]) -> Mapping[str, np.ndarray]:
        variables = parallel.everywhere(variables)
        confusions = no_confusion(num_classes)
        share = batch_size // jax.process_count()
        before: _Dispatched | None = None
        for batch in evaluation_batches(records, buckets, batch_size=share):
            confusions, counts, predictions = step(confusions, batch.canvases, variables)
            dispatched = _Dispatched.of(batch, counts, predictions, shown)
            # Read while the devices are at this batch, so that they never wait for the host.
            if before is not None:
                receive(before.read())
            before = dispatched
        if before is not None:
            receive(before.read())
        return {name: confusion.total() for name, confusion in confusions.items()}

    canvases = tuple(bucket.canvas_px for bucket in buckets)
    return score, canvases, empty_share(records.sizes, buckets)


@dataclasses.dataclass(frozen=True)
class _Dispatched:
    """A batch that the devices are at, and of the host's images no more than is still needed.

    predictions: None where none of its own is to be looked at. places: in them, by index.
    """

    images: tuple[int, ...]
    names: dict[int, str]
    records: dict[int, dict[str, Any]]
    places: dict[int, int]
    counts: Mapping[str, tuple[jax.Array, ...]]
    predictions: Mapping[str, jax.Array] | None

    @classmethod
    def of(
        cls,
        batch: EvaluationBatch,
        counts: Mapping[str, tuple[jax.Array, ...]],
        predictions: Mapping[str, jax.Array],
        shown: Container[int],
    ) -> Self:
        kept = {index: record for index, record in batch.records.items() if index in shown}
        return cls(
            batch.images,
            {index: record["name"] for index, record in batch.records.items()},
            kept,
            {index: place for place, index in enumerate(batch.records)},
            counts,
            predictions if kept else None,
        )

    def read(self) -> ScoredImages:
        """Waits for it."""
        labels = {
            name: parallel.own_share(of_map, ndim=3)
            for name, of_map in (self.predictions or {}).items()
        }
        shown = {
            index: (record, {name: of_map[self.places[index]] for name, of_map in labels.items()})
            for index, record in self.records.items()
        }
        counts = {
            name: tuple(np.asarray(count)[: len(self.images)] for count in of_map)
            for name, of_map in self.counts.items()
        }
        return ScoredImages(self.images, counts, self.names, shown)


def one_by_one(
    network: Network,
    num_classes: Mapping[str, int],
    records: ScoredSplit,
    settings: EvalConfig,
    inference: Inference,
) -> Scorer:
    if records.convention.brings_back:
        raise UserError(
            f"--convention={records.convention.name} resizes images and brings their logits back: "
            "it does not go with --windows, --scales and --flip"
        )
    buckets = fill_buckets(records.sizes, most=settings.canvases)
    canvases = tuple(bucket.canvas_px for bucket in buckets)
    labeller = Labeller(network, inference, canvases)

    def score(variables: Any, receive: Callable[[ScoredImages], None]) -> Mapping[str, np.ndarray]:
        confusions = {name: np.zeros((k, k), np.int64) for name, k in num_classes.items()}
        for index in range(len(records)):
            record = records[index]
            labels = labeller.labels(variables, record["image"])
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
