"""A training set in device memory, so that a training step copies nothing from the host.

The canvases (`data/pipeline.py`) are sharded over the devices. Every device computes the indices of
the global batch (`data/order.py`) and contributes the images that it holds; a reduce-scatter gives
each device its share of the batch. The batches are the same for any number of devices; a single
device needs only a gather.
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
"""Bytes of canvases that the host decodes before it copies them to the devices: its largest use of
memory, unless one canvas per device is more."""

DeviceStep = Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]
"""A training step that `make_train_step` returns: (state, batch) -> (state, metrics)."""


def load(records: Any, canvas_px: Size, use_mesh: bool | None = None) -> dict[str, jax.Array]:
    """Loads the canvases of all records onto the devices; each host decodes those of its own.

    Threads decode the records; pieces of `PIECE_BYTES` are copied to the devices.

    Args:
        records: a random-access source of records (`splits.Split`), none larger than the canvas.
        canvas_px: height and width; of volumes, three sizes.
        use_mesh: see `data_parallel.parallelize`.

    Returns:
        `image`, `label` and `size`, each (d, n, …) and sharded over its first axis: device i of d
        holds records i·n to (i+1)·n − 1. The last devices may hold empty canvases after their
        records.
    """
    to_canvas, example = ToCanvas(canvas_px), records[0]
    if use_mesh is None:
        use_mesh = jax.process_count() > 1
    devices, local_devices = jax.device_count(), jax.local_device_count()
    first = jax.process_index() * local_devices
    shard, length = shard_lengths(len(records), canvas_bytes(example, canvas_px))
    sharding = NamedSharding(data_parallel.data_mesh(use_mesh), P(DATA_AXIS))
    resident = jax.jit(
        lambda: {
            name: jnp.zeros((devices, shard, *values.shape[1:]), values.dtype)
            for name, values in to_canvas.empty(example, 1).items()
        },
        out_shardings=sharding,
    )()
    with (
        ThreadPoolExecutor(os.cpu_count(), "decode") as pool,
        progress_bar("loading the images", -(-len(records) // jax.process_count())) as bar,
    ):
        for start in range(0, shard, length):
            piece = {
                name: values.reshape(local_devices, length, *values.shape[1:])
                for name, values in to_canvas.empty(example, local_devices * length).items()
            }

            def fill(slot: tuple[int, int], piece: Any = piece, start: int = start) -> None:
                device, inside = slot
                record = records[(first + device) * shard + start + inside]
                to_canvas.put(record, {name: values[slot] for name, values in piece.items()})

            slots = [
                (device, inside)
                for device in range(local_devices)
                for inside in range(length)
                if (first + device) * shard + start + inside < len(records)
            ]
            for _ in pool.map(fill, slots):
                bar.advance()
            placed = {
                name: jax.make_array_from_process_local_data(sharding, values)
                for name, values in piece.items()
            }
            resident = _write_piece(resident, placed, np.int32(start))
    return jax.block_until_ready(resident)


def shard_lengths(count: int, canvas_bytes: int) -> tuple[int, int]:
    """Returns the number of canvases per device, and the number per device and piece.

    All pieces have the same length, so the first number is a multiple of the second. This rounding
    adds fewer canvases per device than there are pieces; the added canvases are empty.
    """
    shard = -(-count // jax.device_count())
    max_length = max(1, PIECE_BYTES // (jax.local_device_count() * canvas_bytes))
    pieces = -(-shard // max_length)
    length = -(-shard // pieces)
    return pieces * length, length


def canvas_bytes(example: dict[str, Any], canvas_px: Size) -> int:
    """Returns the bytes of a canvas with the channels and label maps of an example record."""
    return sum(values.nbytes for values in ToCanvas(canvas_px).empty(example, 1).values())


@partial(jax.jit, donate_argnums=0)
def _write_piece(resident: Any, piece: Any, start: jax.Array) -> Any:
    return jax.tree.map(
        lambda values, part: lax.dynamic_update_slice_in_dim(values, part, start, axis=1),
        resident,
        piece,
    )


def resident_step(
    train_step: DeviceStep, *, count: int, batch_size: int, seed: int, steps: int = 1
) -> DeviceStep:
    """Makes a training step that takes the data set from `load` instead of a batch.

    Args:
        train_step: the step to run; the `step` of its state is the number of finished steps.
        count: number of images in the data set.
        batch_size: number of canvases in a global batch.
        seed: determines the order.
        steps: training steps per call; above 1, each metric is (steps,) instead of a scalar.
    """

    def step(state, resident):
        return train_step(state, select_batch(resident, state.step, count, batch_size, seed))

    def several_steps(state, resident):
        return lax.scan(lambda state, _: step(state, resident), state, length=steps)

    return step if steps == 1 else several_steps


def select_batch(resident: Any, step: jax.Array, count: int, batch_size: int, seed: int) -> Any:
    """Selects a device's share of a step's batch. A collective: all devices must call it."""
    if resident["size"].ndim == 3:  # with a mesh, the axis of devices remains, with length 1
        resident = jax.tree.map(lambda values: values[0], resident)
    shard = len(resident["size"])
    position = step.astype(jnp.uint32) * batch_size + jnp.arange(batch_size, dtype=jnp.uint32)
    image = images_at(position, count=count, seed=seed).astype(jnp.int32)
    is_single = lax.axis_size(DATA_AXIS) == 1
    inside = image - lax.axis_index(DATA_AXIS) * shard
    is_local = (inside >= 0) & (inside < shard)

    def select(values):
        picked = jnp.take(values, inside, axis=0, mode="clip")
        if is_single:
            return picked
        local = jnp.where(is_local.reshape(-1, *[1] * (values.ndim - 1)), picked, 0)
        return lax.psum_scatter(local, DATA_AXIS, tiled=True)

    return jax.tree.map(select, resident)
