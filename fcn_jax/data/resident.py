"""A training set that lies on the devices: a step then takes nothing from the host.

All canvases (`data/pipeline.py`), each once, are dealt to the devices. Every device works out which
images make up the whole batch (`data/order.py`) and gives those that it holds; what each gets of
the sum is its share. So the batches are the same for any number of devices, and of a single one
they are a gather.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fcn_jax.data.canvases import Size
from fcn_jax.data.order import images_at
from fcn_jax.data.pipeline import ToCanvas
from fcn_jax.parallel import data_parallel
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.terminal.progress import progress_bar

PIECE_BYTES = 64 << 20
"""What the host decodes before it is copied, or one canvas a device where these take more: the most
that it holds of the set."""

DeviceStep = Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]
"""A training step as `step.make_train_step` builds it: (state, batch) -> (state, metrics)."""


def load(records: Any, canvas_px: Size, use_mesh: bool = False) -> dict[str, jax.Array]:
    """The canvases of all records on this host's devices: `image`, `label`, `size`, (d, n, …).

    Device i of d holds the n records from i·n on; the last may hold void ones behind them. They are
    decoded by threads, and copied piece by piece.

    Args:
        records: a random-access source of records (`splits.Split`), none larger than the canvas.
        canvas_px: height and width.
        use_mesh: as of `parallel.parallelize`, here of one host's devices.
    """
    to_canvas, like = ToCanvas(canvas_px), records[0]
    devices = jax.local_device_count()
    share, length = shares(len(records), canvas_bytes(like, canvas_px))
    sharding = NamedSharding(data_parallel.data_mesh(use_mesh), P(DATA_AXIS))
    held = jax.jit(
        lambda: {
            name: jnp.zeros((devices, share, *values.shape[1:]), values.dtype)
            for name, values in to_canvas.empty(like, 1).items()
        },
        out_shardings=sharding,
    )()
    with (
        ThreadPoolExecutor(os.cpu_count(), "decode") as pool,
        progress_bar("loading the images", len(records)) as bar,
    ):
        for start in range(0, share, length):
            piece = {
                name: values.reshape(devices, length, *values.shape[1:])
                for name, values in to_canvas.empty(like, devices * length).items()
            }

            def fill(place: tuple[int, int], piece: Any = piece, start: int = start) -> None:
                device, inside = place
                record = records[device * share + start + inside]
                to_canvas.put(record, {name: values[place] for name, values in piece.items()})

            filled = [
                (device, inside)
                for device in range(devices)
                for inside in range(length)
                if device * share + start + inside < len(records)
            ]
            for _ in pool.map(fill, filled):
                bar.advance()
            held = _written(held, jax.device_put(piece, sharding), np.int32(start))
    return jax.block_until_ready(held)


def shares(count: int, canvas_bytes: int) -> tuple[int, int]:
    """Of so many canvases: how many each device holds, and how many of them come in a piece.

    Pieces are of equal length, so the last may hold void canvases: fewer than there are pieces.
    """
    devices = jax.local_device_count()
    share = -(-count // devices)
    most = max(1, PIECE_BYTES // (devices * canvas_bytes))
    pieces = -(-share // most)
    length = -(-share // pieces)
    return pieces * length, length


def canvas_bytes(like: dict[str, Any], canvas_px: Size) -> int:
    """Of one canvas with the channels and label maps of a record."""
    return sum(values.nbytes for values in ToCanvas(canvas_px).empty(like, 1).values())


@partial(jax.jit, donate_argnums=0)
def _written(held: Any, piece: Any, start: jax.Array) -> Any:
    return jax.tree.map(
        lambda all, some: lax.dynamic_update_slice_in_dim(all, some, start, axis=1), held, piece
    )


def on_resident(
    train_step: DeviceStep, *, count: int, batch_size: int, seed: int, steps: int = 1
) -> DeviceStep:
    """The training step that takes its batches from the set that `load` put on the devices.

    Args:
        train_step: of a state whose `step` counts the steps done.
        count: images in the set.
        batch_size: canvases of a whole batch.
        seed: fixes the order.
        steps: of training in one call; each metric is then (steps,) instead of a scalar.
    """

    def step(state, held):
        return train_step(state, batch_of(held, state.step, count, batch_size, seed))

    def several(state, held):
        return lax.scan(lambda state, _: step(state, held), state, length=steps)

    return step if steps == 1 else several


def batch_of(held: Any, step: jax.Array, count: int, batch_size: int, seed: int) -> Any:
    """A device's share of the batch of that step, from 0; for all devices to call together."""
    if held["size"].ndim == 3:  # a mesh leaves the axis of devices, of length 1
        held = jax.tree.map(lambda values: values[0], held)
    share = len(held["size"])
    place = step.astype(jnp.uint32) * batch_size + jnp.arange(batch_size, dtype=jnp.uint32)
    wanted = images_at(place, count=count, seed=seed).astype(jnp.int32)
    alone = lax.axis_size(DATA_AXIS) == 1
    inside = wanted - lax.axis_index(DATA_AXIS) * share
    is_here = (inside >= 0) & (inside < share)

    def dealt(values):
        picked = jnp.take(values, inside, axis=0, mode="clip")
        if alone:
            return picked
        own = jnp.where(is_here.reshape(-1, *[1] * (values.ndim - 1)), picked, 0)
        return lax.psum_scatter(own, DATA_AXIS, tiled=True)

    return jax.tree.map(dealt, held)
