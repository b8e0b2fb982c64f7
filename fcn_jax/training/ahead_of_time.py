"""Compiles the training step for devices that are absent, and asks how large a batch would fit."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fcn_jax.config import Config
from fcn_jax.data.canvases import Size
from fcn_jax.errors import UserError
from fcn_jax.models.build import abstract_model
from fcn_jax.models.ensemble import of_members
from fcn_jax.models.pure_model import PureModel
from fcn_jax.parallel.data_parallel import DATA_AXIS, on_mesh
from fcn_jax.parallel.target import tracing_for
from fcn_jax.training import optim
from fcn_jax.training.train_step import create_train_state, make_train_step


class DoesNotFitError(UserError):
    """The step needs more memory than a device has; the message is the compiler's."""


@dataclasses.dataclass(frozen=True)
class DataShape:
    """The properties of a data set that the training step depends on.

    Attributes:
        num_classes: k by label map.
        channels: channels of the images.
        canvas_px: height and width of the canvases.
        class_weights: float32 (k,) by label map, see `class_weights.class_weights`.
        total_steps: steps of the run, for the learning rate.
    """

    num_classes: Mapping[str, int]
    channels: int
    canvas_px: Size
    class_weights: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    total_steps: int = 1000


def lower_train_step(
    config: Config, data: DataShape, mesh: Mesh, batch_size: int, platform: str = "tpu"
) -> jax.stages.Lowered:
    """Traces the step that `fcn_jax.train` runs on images that the host streams.

    Args:
        config: the settings; `batch_size` replaces theirs.
        data: the data set.
        mesh: the devices, which need not be there.
        batch_size: images per step, over all devices.
        platform: of the devices.

    Raises:
        ArgumentError: the settings cannot be used.
    """
    replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(DATA_AXIS))

    def canvases(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=split)

    maps = (len(data.num_classes),) if len(data.num_classes) > 1 else ()
    batch = {
        "image": canvases(jnp.uint8, *data.canvas_px, data.channels),
        "label": canvases(jnp.uint8, *data.canvas_px, *maps),
        "size": canvases(jnp.int32, 2),
    }
    with tracing_for(platform):
        network = PureModel(
            abstract_model(
                config.model, data.num_classes, channels=data.channels, axis_name=DATA_AXIS
            )
        )
        optimizer = optim.build_optimizer(config.optim, network.decay_mask, data.total_steps)
        members = config.train.members
        train_step = make_train_step(network, optimizer, config, data.class_weights)
        state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
            jax.eval_shape(
                partial(create_train_state, optimizer=optimizer, members=members),
                of_members(network, members).variables,
            ),
        )
        program = on_mesh(lambda state, given: train_step(state, given[0]), mesh, donated=(0,))
        return program.lower(state, (batch, ()))


def compile_lowered(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a program, which takes minutes for deep networks.

    Raises:
        DoesNotFitError: it needs more memory than a device has.
    """
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        lines = str(error).splitlines()
        if "RESOURCE_EXHAUSTED" not in lines[0]:
            raise
        raise DoesNotFitError(re.sub(r"^.*RESOURCE_EXHAUSTED: ", "", lines[0])) from error


def largest_batch(
    memory_bytes: Callable[[int], int], images: int, measured: int, limit: float
) -> tuple[int, float, int]:
    """Estimates the most images on a device from the memory of two numbers of images.

    The memory is nearly linear in the images: the line through the two is extended to the limit.

    Args:
        memory_bytes: memory that the step needs with a number of images; compiles it.
        images: a number of images that fits.
        measured: the memory of that number, in bytes.
        limit: memory of a device, in bytes.

    Returns:
        The largest number, the bytes of each image, and the other number that was compiled: one
        that takes about half of the memory, or fewer images if the given ones take more.

    Raises:
        DoesNotFitError: `images` is 1, and 2 do not fit.
    """
    other = int(images * limit / (2 * measured))
    if other <= images:
        other = images // 2 or 2
    each = (memory_bytes(other) - measured) / (other - images)
    fixed = measured - each * images
    most = math.floor((limit - fixed) / each) if each > 0 else other
    return max(images, most), each, other
