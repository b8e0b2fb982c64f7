"""From records to batches of canvases, on the host.

A canvas is a record at the top left of an array of fixed size: `image` uint8 (H, W, c), `label`
uint8 (H, W), or (H, W, m) of several label maps, with 255 outside the image, `size` int32 (2,) its
true height and width.
"""

import contextlib
import dataclasses
from collections.abc import Generator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from fcn_jax.data.canvases import Bucket, Size
from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.data.order import PLACES, image_at

Batch = dict[str, np.ndarray]


THREADS = 16
"""That read and decode; where cores are fewer, they cost nothing."""


def training_batches(
    records: Any,
    *,
    canvas_px: Size,
    batch_size: int,
    seed: int,
    workers: int,
    steps: range,
) -> grain.DatasetIterator:
    """The batches of some steps, every image once an epoch, in the order of `data/order.py`.

    Args:
        records: a random-access source of records (`splits.Split`).
        canvas_px: height and width; of a larger image a random window is taken.
        batch_size: canvases of a whole batch, of which this host gives its share.
        seed: fixes the order and the windows.
        workers: processes that read and decode; 0: threads of this one.
        steps: numbered from 0.

    Returns:
        An iterator of numpy batches, with `close`.
    """
    share = batch_size // jax.process_count()
    first = jax.process_index() * share
    canvases = grain.MapDataset.source(
        _Sequence(records, canvas_px, batch_size, first, share, seed, steps)
    ).to_iter_dataset(
        grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=max(2 * share, THREADS))
    )
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain hands absl's flags on to its processes
            flags.FLAGS.mark_as_parsed()
        canvases = canvases.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(canvases.batch(share))


@dataclasses.dataclass(frozen=True)
class _Sequence:
    """The canvases of a host, one after the other: of each batch `share`, from the `first` on."""

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
        step, inside = divmod(index, self.share)
        place = self.steps[step] * self.batch_size + self.first + inside
        record = self.records[image_at(place, count=len(self.records), seed=self.seed)]
        random = np.random.default_rng((self.seed % PLACES, place))
        return ToCanvas(self.canvas_px)(_random_window(record, self.canvas_px, random))


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
) -> Generator[EvaluationBatch]:
    """Every image of the buckets once, a bucket after the other.

    The last batch of each is filled up with void canvases, which have no place in `images`; so
    every host yields equally many.

    Args:
        records: a random-access source of records (`splits.Split`).
        buckets: see `data/canvases.py`.
        batch_size: canvases of this host's batches; the hosts' shares together make up a batch.

    Where buckets have canvases of their own for labels, batches have `label_size` beside `size`.
    Records are read and decoded by threads, two batches ahead of what is asked for; `close` ends
    them.
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
    with contextlib.closing(reader):
        for (bucket, images), own in zip(batches, mine, strict=True):
            held = {index: next(reader) for index in own}
            to_canvas = ToCanvas(bucket.canvas_px, bucket.label_canvas_px)
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


def _random_window(
    record: dict[str, Any], canvas_px: Size, random: np.random.Generator
) -> dict[str, Any]:
    slack = np.maximum(np.subtract(record["label"].shape[:2], canvas_px), 0)
    if not slack.any():
        return record
    top, left = random.integers(0, slack + 1)
    window = slice(top, top + canvas_px[0]), slice(left, left + canvas_px[1])
    return {**record, "image": record["image"][window], "label": record["label"][window]}


class ToCanvas:
    """Puts records on canvases. label_canvas_px: of labels that have one of their own."""

    def __init__(self, canvas_px: Size, label_canvas_px: Size | None = None):
        self.canvas_px = canvas_px
        self.label_canvas_px = label_canvas_px

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
            "label": np.full((count, *label_px, *like["label"].shape[2:]), IGNORE_INDEX, np.uint8),
            "size": np.tile(np.asarray(self.canvas_px, np.int32), (count, 1)),
        }
        if self.label_canvas_px:
            canvases["label_size"] = np.tile(np.asarray(label_px, np.int32), (count, 1))
        return canvases
