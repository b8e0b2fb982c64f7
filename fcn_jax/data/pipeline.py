"""Batches of canvases from records, on the host.

A canvas has a fixed size, and a record in its top left corner. It is a dictionary of `image`, uint8
(H, W, c); `label`, uint8 (H, W), or (H, W, m) for several label maps, with 255 outside the image;
and `size`, int32 (2,), the height and width of the image.

Volumes have one axis more, and their images are float32.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Generator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from fcn_jax.data.canvases import Bucket, Size
from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.data.order import PERIOD, image_at

Batch = dict[str, np.ndarray]


FOREGROUND_SHARE = 0.5
"""Share of the windows of a large volume that have a foreground voxel in their middle."""

TRAINING_THREADS = 16
"""Threads that read and decode images for training; they may outnumber the cores."""


def training_batches(
    records: Any,
    *,
    canvas_px: Size,
    batch_size: int,
    seed: int,
    workers: int,
    steps: range,
) -> grain.DatasetIterator:
    """Streams the training batches of a range of steps, in the order of `data/order.py`.

    Args:
        records: a random-access source of records (`splits.Split`).
        canvas_px: height and width; a random window is cut from a larger image.
        batch_size: number of canvases in a global batch; each host yields its share.
        seed: determines the order and the windows.
        workers: processes that read and decode; 0 for threads of this process.
        steps: numbers of the steps, from 0.

    Returns:
        An iterator of NumPy batches; its `close` ends the threads or processes.
    """
    share = batch_size // jax.process_count()
    first = jax.process_index() * share
    buffer_size = max(TRAINING_THREADS, 2 * share)
    canvases = grain.MapDataset.source(
        _TrainingCanvases(records, canvas_px, batch_size, first, share, seed, steps)
    ).to_iter_dataset(grain.ReadOptions(TRAINING_THREADS, buffer_size))
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain sends absl's parsed flags to its processes
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers)
        canvases = canvases.mp_prefetch(options, _end_with_parent)
    return iter(canvases.batch(share))


def _end_with_parent(worker: int, workers: int) -> None:
    """Ends this worker process when its parent ends, even if that is killed (`kill -9`)."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, name="parent", daemon=True).start()


@dataclasses.dataclass(frozen=True)
class _TrainingCanvases:
    """One host's canvases of all steps: `share` from each batch, beginning at its index `first`."""

    records: Any
    canvas_px: Size
    batch_size: int
    first: int
    share: int
    seed: int
    steps: range

    def __len__(self) -> int:
        return len(self.steps) * self.share

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        step, offset = divmod(index, self.share)
        position = self.steps[step] * self.batch_size + self.first + offset
        record = self.records[image_at(position, count=len(self.records), seed=self.seed)]
        random = np.random.default_rng((self.seed % PERIOD, position))
        return ToCanvas(self.canvas_px)(_random_window(record, self.canvas_px, random))


EVALUATION_THREADS = 8
"""Threads that read and decode images for evaluation; they may outnumber the cores."""


@dataclasses.dataclass(frozen=True)
class EvaluationBatch:
    """A batch for evaluation.

    Attributes:
      canvases: this host's share of the batch.
      images: indices of the images in the global batch, in order.
      records: image index -> record, for the images in this host's share.
    """

    canvases: Batch
    images: tuple[int, ...]
    records: dict[int, dict[str, Any]]


def evaluation_batches(
    records: Any, buckets: Sequence[Bucket], *, batch_size: int
) -> Generator[EvaluationBatch]:
    """Yields every image of the buckets once, bucket by bucket.

    The last batch of a bucket is padded with empty canvases, which are not in `images`, so that all
    hosts yield the same number of batches. If a bucket has a `label_canvas_px`, its batches have
    `label_size` in addition to `size`. Threads read and decode two batches ahead; `close` ends
    them.

    Args:
        records: a random-access source of records (`splits.Split`).
        buckets: see `data/canvases.py`.
        batch_size: number of canvases per host; a global batch has one such share from each host.
    """
    global_batch_size = batch_size * jax.process_count()
    first = batch_size * jax.process_index()
    batches = [
        (bucket, bucket.images[start : start + global_batch_size])
        for bucket in buckets
        for start in range(0, len(bucket.images), global_batch_size)
    ]
    local_images = [images[first : first + batch_size] for _, images in batches]
    subset = _Subset(records, [index for images in local_images for index in images])
    buffer_size = max(EVALUATION_THREADS, 2 * batch_size)
    reader = iter(
        grain.MapDataset.source(subset).to_iter_dataset(
            grain.ReadOptions(EVALUATION_THREADS, buffer_size)
        )
    )
    example = records[0]  # for batches in which this host has no image
    with contextlib.closing(reader):
        for (bucket, images), local in zip(batches, local_images, strict=True):
            local_records = {index: next(reader) for index in local}
            to_canvas = ToCanvas(bucket.canvas_px, bucket.label_canvas_px)
            canvases = to_canvas.empty(example, batch_size)
            for slot, record in enumerate(local_records.values()):
                to_canvas.put(record, {key: values[slot] for key, values in canvases.items()})
            yield EvaluationBatch(canvases, images, local_records)


class _Subset:
    def __init__(self, records: Any, indices: Sequence[int]):
        self.records, self.indices = records, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.records[self.indices[index]]


def _random_window(
    record: dict[str, Any], canvas_px: Size, random: np.random.Generator
) -> dict[str, Any]:
    slack = np.maximum(np.subtract(record["label"].shape[: len(canvas_px)], canvas_px), 0)
    if not slack.any():
        return record
    starts = random.integers(0, slack + 1)
    places = record.get("foreground", ())
    if len(places) and random.random() < FOREGROUND_SHARE:
        middle = places[random.integers(len(places))]
        starts = np.clip(middle - np.asarray(canvas_px) // 2, 0, slack)
    window = tuple(
        slice(start, start + side) for start, side in zip(starts, canvas_px, strict=True)
    )
    return {**record, "image": record["image"][window], "label": record["label"][window]}


class ToCanvas:
    """Copies records onto canvases.

    Args:
      canvas_px: height and width of a canvas.
      label_canvas_px: height and width of the label's canvas if it differs.
    """

    def __init__(self, canvas_px: Size, label_canvas_px: Size | None = None):
        self.canvas_px = canvas_px
        self.label_canvas_px = label_canvas_px

    def __call__(self, record: dict[str, Any]) -> dict[str, np.ndarray]:
        canvas = {key: values[0] for key, values in self.empty(record, 1).items()}
        self.put(record, canvas)
        return canvas

    def put(self, record: dict[str, Any], canvas: dict[str, np.ndarray]) -> None:
        """Copies a record onto an empty canvas."""
        for key, size in (("image", "size"), ("label", "label_size")):
            shape = record[key].shape[: len(self.canvas_px)]
            canvas[key][tuple(slice(side) for side in shape)] = record[key]
            if size in canvas:
                canvas[size][...] = shape

    def empty(self, example: dict[str, Any], count: int) -> dict[str, np.ndarray]:
        """Makes `count` empty canvases with the channels and label maps of an example record."""
        label_px = self.label_canvas_px or self.canvas_px
        image = example["image"]
        maps = example["label"].shape[len(self.canvas_px) :]
        canvases = {
            "image": np.zeros((count, *self.canvas_px, image.shape[-1]), image.dtype),
            "label": np.full((count, *label_px, *maps), IGNORE_INDEX, np.uint8),
            "size": np.tile(np.asarray(self.canvas_px, np.int32), (count, 1)),
        }
        if self.label_canvas_px:
            canvases["label_size"] = np.tile(np.asarray(label_px, np.int32), (count, 1))
        return canvases
