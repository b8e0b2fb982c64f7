"""From records to batches of canvases, on the host.

A canvas is a record at the top left of an array of fixed size: `image` uint8 (H, W, c), `label`
uint8 (H, W), or (H, W, m) of several label maps, with 255 outside the image, `size` int32 (2,) its
true height and width.
"""

from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

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


def evaluation_batches(
    records: Any, *, canvas_px: tuple[int, int], batch_size: int
) -> Iterator[tuple[Batch, list[dict[str, Any]]]]:
    """Every image once, in order: batches of canvases, and the records that they hold.

    The last batches are filled up with void canvases, so that every host yields equally many.
    `canvas_px` must hold the largest image.
    """
    hosts = jax.process_count()
    mine = range(jax.process_index(), len(records), hosts)
    batches = -(-len(records) // (hosts * batch_size))
    to_canvas = _ToCanvas(canvas_px)
    like = to_canvas(records[0])  # a host may have no record of its own
    void = {
        "image": np.zeros_like(like["image"]),
        "label": np.full_like(like["label"], VOID_LABEL),
        "size": np.asarray(canvas_px, np.int32),
    }
    reader = iter(
        grain.MapDataset.source(records)[jax.process_index() :: hosts].to_iter_dataset(
            grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 * batch_size)
        )
    )
    for start in range(0, batches * batch_size, batch_size):
        held = [next(reader) for _ in mine[start : start + batch_size]]
        canvases = [to_canvas(record) for record in held]
        canvases += [void] * (batch_size - len(canvases))
        yield {key: np.stack([c[key] for c in canvases]) for key in void}, held


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
    def __init__(self, canvas_px: tuple[int, int]):
        self.canvas_px = canvas_px

    def map(self, record: dict[str, Any]) -> dict[str, np.ndarray]:
        return self(record)

    def __call__(self, record: dict[str, Any]) -> dict[str, np.ndarray]:
        height, width, *label_maps = record["label"].shape
        image = np.zeros((*self.canvas_px, record["image"].shape[-1]), np.uint8)
        label = np.full((*self.canvas_px, *label_maps), VOID_LABEL, np.uint8)
        image[:height, :width] = record["image"]
        label[:height, :width] = record["label"]
        return {"image": image, "label": label, "size": np.asarray([height, width], np.int32)}
