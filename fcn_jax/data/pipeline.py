"""From records to batches of canvases, on the host.

A canvas is a record at the top left of an array of fixed size: `image` uint8 (H, W, c), `label`
uint8 (H, W), or (H, W, m) of several label maps, with 255 outside the image, `size` int32 (2,) its
true height and width.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from fcn_jax.data.canvases import Bucket, Size
from fcn_jax.data.labels import VOID_LABEL

Batch = dict[str, np.ndarray]


MOST_EPOCHS = 2**30
"""Without end, for any run; Grain's own endless data set is too long for batches of one."""


def training_batches(
    records: Any, *, canvas_px: tuple[int, int], batch_size: int, seed: int, workers: int
) -> grain.DatasetIterator:
    """Endless batches, every image once an epoch, in an order that the seed fixes.

    Args:
        records: a random-access source of records (`splits.Split`).
        canvas_px: height and width; of a larger image a random window is taken.
        batch_size: canvases of this host's batches.
        workers: processes that read and decode; 0: threads of this one.

    Returns:
        An iterator of numpy batches with `get_state` and `set_state`.
    """
    canvases = (
        grain.MapDataset.source(records)
        .seed(seed)
        .shuffle()
        .repeat(MOST_EPOCHS)[jax.process_index() :: jax.process_count()]
        .random_map(_RandomWindow(canvas_px))
        .map(_ToCanvas(canvas_px))
        .batch(batch_size)
        .to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=4))
    )
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain hands absl's flags on to its processes
            flags.FLAGS.mark_as_parsed()
        canvases = canvases.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(canvases)


READING_THREADS = 8
"""Of evaluation. They wait for each other where there are fewer cores, and lose nothing by it."""


@dataclasses.dataclass(frozen=True)
class EvaluationBatch:
    """canvases: this host's share. images: the index of each image of the whole batch, in order.

    records: of this host's images, by index.
    """

    canvases: Batch
    images: tuple[int, ...]
    records: dict[int, dict[str, Any]]


def evaluation_batches(
    records: Any, buckets: Sequence[Bucket], *, batch_size: int
) -> Iterator[EvaluationBatch]:
    """Every image of the buckets once, a bucket after the other.

    The last batch of each is filled up with void canvases, which have no place in `images`; so
    every host yields equally many.

    Args:
        records: a random-access source of records (`splits.Split`).
        buckets: see `data/canvases.py`.
        batch_size: canvases of this host's batches; the hosts' shares together make up a batch.

    Where buckets have canvases of their own for labels, batches have `label_size` beside `size`.
    Records are read and decoded by threads, two batches ahead of what is asked for.
    """
    whole = batch_size * jax.process_count()
    first = batch_size * jax.process_index()
    batches = [
        (bucket, bucket.images[start : start + whole])
        for bucket in buckets
        for start in range(0, len(bucket.images), whole)
    ]
    mine = [images[first : first + batch_size] for _, images in batches]
    picked = _Picked(records, [index for images in mine for index in images])
    ahead = max(READING_THREADS, 2 * batch_size)
    reader = iter(
        grain.MapDataset.source(picked).to_iter_dataset(grain.ReadOptions(READING_THREADS, ahead))
    )
    like = records[0]  # a host may have no record of its own in a batch
    for (bucket, images), own in zip(batches, mine, strict=True):
        held = {index: next(reader) for index in own}
        to_canvas = _ToCanvas(bucket.canvas_px, bucket.label_canvas_px)
        canvases = to_canvas.empty(like, batch_size)
        for place, record in enumerate(held.values()):
            to_canvas.put(record, {key: values[place] for key, values in canvases.items()})
        yield EvaluationBatch(canvases, images, held)


class _Picked:
    def __init__(self, records: Any, indices: Sequence[int]):
        self.records, self.indices = records, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.records[self.indices[place]]


class _RandomWindow(grain.transforms.RandomMap):
    def __init__(self, canvas_px: tuple[int, int]):
        self.canvas_px = canvas_px

    def random_map(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        slack = np.maximum(np.subtract(record["label"].shape[:2], self.canvas_px), 0)
        if not slack.any():
            return record
        top, left = rng.integers(0, slack + 1)
        rows = slice(top, top + self.canvas_px[0])
        columns = slice(left, left + self.canvas_px[1])
        return {
            **record,
            "image": record["image"][rows, columns],
            "label": record["label"][rows, columns],
        }


class _ToCanvas(grain.transforms.Map):
    def __init__(self, canvas_px: Size, label_canvas_px: Size | None = None):
        self.canvas_px = canvas_px
        self.label_canvas_px = label_canvas_px

    def map(self, record: dict[str, Any]) -> dict[str, np.ndarray]:
        return self(record)

    def __call__(self, record: dict[str, Any]) -> dict[str, np.ndarray]:
        canvas = {key: values[0] for key, values in self.empty(record, 1).items()}
        self.put(record, canvas)
        return canvas

    def put(self, record: dict[str, Any], canvas: dict[str, np.ndarray]) -> None:
        """Fills an empty canvas."""
        for key, size in (("image", "size"), ("label", "label_size")):
            height, width = record[key].shape[:2]
            canvas[key][:height, :width] = record[key]
            if size in canvas:
                canvas[size][...] = height, width

    def empty(self, like: dict[str, Any], count: int) -> dict[str, np.ndarray]:
        """So many canvases that count for nothing, of the channels and label maps of a record."""
        label_px = self.label_canvas_px or self.canvas_px
        canvases = {
            "image": np.zeros((count, *self.canvas_px, like["image"].shape[-1]), np.uint8),
            "label": np.full((count, *label_px, *like["label"].shape[2:]), VOID_LABEL, np.uint8),
            "size": np.tile(np.asarray(self.canvas_px, np.int32), (count, 1)),
        }
        if self.label_canvas_px:
            canvases["label_size"] = np.tile(np.asarray(label_px, np.int32), (count, 1))
        return canvases
