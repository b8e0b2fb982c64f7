"""Checks before training that a step, and the batches on the host, fit in memory.

The check refuses settings that cannot work, such as a batch size with three zeros too many. It does
not find the largest batch: XLA allocates more or less than the estimate.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fcn_jax.config import Config
from fcn_jax.data.canvases import Size, training_canvas
from fcn_jax.data.pipeline import ToCanvas
from fcn_jax.errors import ArgumentError
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.parallel.memory import available_bytes, free_bytes
from fcn_jax.parallel.memory_estimate import estimated_bytes

BYTES_PER_PIXEL = 1000
"""Of a crop, roughly, in a training step of a small network. Smaller batches are not traced, which
takes a second or two."""

SURE_SHARE = 0.1
"""A step that needs this share of the free memory by that rule is not traced."""


def check_memory(
    train_step: Callable[..., Any],
    state: Any,
    example: dict[str, Any],
    sizes: np.ndarray,
    config: Config,
) -> None:
    """Checks that a training step fits in the memory of a device, and its batches in the host's.

    Args:
        train_step: the step of one device, see `make_train_step`.
        state: shapes and dtypes of its state.
        example: a record of the training split.
        sizes: height and width of each image, int (n, 2).
        config: the settings.

    Raises:
        ArgumentError: it does not fit; names the setting to change.
    """
    canvas_px = training_canvas(config, sizes)
    crop_px = (
        config.volumes.patch if config.data.ndim == 3 else config.augment.crop_px
    ) or canvas_px
    shard = config.train.batch_size // jax.device_count()
    # Shapes from a canvas of one pixel: one of this size may not fit.
    canvas = {
        name: jax.ShapeDtypeStruct(
            values.shape[1:]
            if name == "size"
            else (*canvas_px, *values.shape[1 + len(canvas_px) :]),
            values.dtype,
        )
        for name, values in ToCanvas((1,) * len(canvas_px)).empty(example, 1).items()
    }
    canvas_bytes = sum(shape.size * shape.dtype.itemsize for shape in canvas.values())
    host_bytes = canvas_bytes * config.train.batch_size // jax.process_count()
    if host_bytes > available_bytes():
        raise _refusal(config, canvas_px, crop_px, host_bytes, "", available_bytes())
    free = free_bytes()
    crops_px = math.prod(crop_px) * shard // config.train.accumulation_steps
    rough_bytes = crops_px * BYTES_PER_PIXEL + canvas_bytes * shard
    if free is None or rough_bytes < SURE_SHARE * free:
        return
    batch = {
        name: jax.ShapeDtypeStruct((shard, *shape.shape), shape.dtype)
        for name, shape in canvas.items()
    }
    needed = estimated_bytes(train_step, state, batch, axis=(DATA_AXIS, jax.device_count()))
    if needed > free:
        raise _refusal(config, canvas_px, crop_px, needed, " on each device", free)


def _refusal(
    config: Config,
    canvas_px: Size,
    crop_px: Size,
    needed: int,
    where: str,
    free: int,
) -> ArgumentError:
    """Blames the setting that differs most from what is usual."""
    amounts = f"needs about {needed / 1e9:.1f} GB{where}, and {free / 1e9:.1f} GB are free"
    if config.data.ndim == 3:
        return ArgumentError(
            "train.batch_size",
            config.train.batch_size,
            f"with patches of {' × '.join(map(str, crop_px))} voxels {amounts}: give a smaller "
            "batch, or smaller patches (volumes.patch)",
        )
    canvas, crop = ("{} × {}".format(*reversed(sides)) for sides in (canvas_px, crop_px))
    few = config.train.batch_size <= 8 * jax.device_count()
    if config.augment.crop_px is None and few:
        problem = f"trains on whole images, here of up to {canvas} pixels, and a step {amounts}"
        return ArgumentError("augment.crop_px", None, f"{problem}: give a height and a width")
    if config.data.canvas_px is None and few and math.prod(canvas_px) > 4 * math.prod(crop_px):
        return ArgumentError(
            "data.canvas_px",
            None,
            f"gives every image a canvas of {canvas} pixels, and a batch {amounts}: give a height "
            "and a width, to which larger images are cut",
        )
    return ArgumentError(
        "train.batch_size",
        config.train.batch_size,
        f"with crops of {crop} pixels {amounts}: give a smaller batch, smaller crops "
        "(augment.crop_px) or more train.accumulation_steps",
    )
