"""Runs one device's step on all devices: `pmap` on one host, a mesh across hosts.

A step is a function (state, batch, *kept) -> results of one device's share of the batch, that sums
over the axis `DATA_AXIS` whatever concerns the whole batch. The state, and what is kept as it is,
are the same everywhere. Both ways give the same numbers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fcn_jax.errors import ArgumentError

DATA_AXIS = "data"
"""Name of the mapped axis over which the batch is sharded: the devices."""


def check_batch_divides(batch_size: int, argument: str, parts: int = 1) -> None:
    """Checks that every device gets the same number of images in every accumulation part.

    Raises:
        ArgumentError: it does not; names the `argument` and the next smaller size that would do.
    """
    devices = jax.device_count()
    if batch_size % (devices * parts):
        suggestion = batch_size // (devices * parts) * devices * parts or devices * parts
        steps = f" × {parts} accumulation steps" if parts > 1 else ""
        raise ArgumentError(
            argument,
            batch_size,
            f"does not divide over {devices} devices{steps}; {suggestion} would",
        )


@dataclasses.dataclass(frozen=True)
class ParallelStep:
    """A step on all devices: called with the state, this host's share of the batch, what is kept.

    lower: from the state and batch of a step that is given no more, or their shapes and types, the
    program that is run, for what it takes.
    """

    run: Callable[..., Any]
    lower: Callable[[Any, Any], jax.stages.Lowered]

    def __call__(self, state: Any, batch: Any, *kept: Any) -> Any:
        return self.run(state, batch, *kept)


def parallelize(
    step: Callable[..., Any],
    *,
    donate_state: bool,
    split_results: Any = False,
    use_mesh: bool | None = None,
) -> ParallelStep:
    """Compiles `step` to take the state, this host's share of the batch, and more.

    The batch: numpy arrays, or what `shard_batch` or `data/resident.py` made of them.

    Args:
        step: (state, one device's share of the batch, *kept) -> results; what is kept is given as
            `replicate` places it, so that not every call has to look whether it is.
        split_results: a prefix of the tree of results: True where a result has one row per image
            (read it with `local_shards`), False where it is equal on all devices.
        donate_state: whether the state's memory is given to the results.
        use_mesh: `jit(shard_map)` over all hosts' devices instead of `pmap` over this host's;
            None: where there are several hosts, whose batches then make up one.
    """
    if use_mesh is None:
        use_mesh = _spans_hosts()
    donated = (0,) if donate_state else ()
    mesh = data_mesh(use_mesh)

    replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(DATA_AXIS))

    def placed(state):
        # As a step returns it; from a state placed otherwise the second call would compile again.
        return replicate(state, use_mesh=use_mesh)

    # Of two arguments, the second a pair: were `in_axes` plain numbers, and as many as there are
    # arrays, pmap would take each for that of an array, whichever argument it belongs to.
    def step_of(state, given):
        batch, kept = given
        return step(state, batch, *kept)

    def shapes(state):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), state
        )

    def whole(share):
        shape = (share.shape[0] * jax.process_count(), *share.shape[1:])
        return jax.ShapeDtypeStruct(shape, share.dtype, sharding=split)

    def dealt(share):
        devices = jax.local_device_count()
        shape = (devices, share.shape[0] // devices, *share.shape[1:])
        return jax.ShapeDtypeStruct(shape, share.dtype, sharding=split)

    if use_mesh:
        compiled = jax.jit(
            jax.shard_map(
                step_of,
                mesh=mesh,
                in_specs=(P(), (P(DATA_AXIS), P())),
                out_specs=jax.tree.map(
                    lambda is_split: P(DATA_AXIS) if is_split else P(), split_results
                ),
                check_vma=False,
            ),
            donate_argnums=donated,
        )

        def run_on_mesh(state, batch, *kept):
            return compiled(placed(state), (shard_batch(batch, use_mesh), kept))

        def lower_on_mesh(state, batch):
            return compiled.lower(shapes(state), (jax.tree.map(whole, batch), ()))

        return ParallelStep(run_on_mesh, lower_on_mesh)

    mapped = jax.pmap(
        step_of,
        axis_name=DATA_AXIS,
        in_axes=(None, (0, None)),
        out_axes=jax.tree.map(lambda is_split: 0 if is_split else None, split_results),
        donate_argnums=donated,
    )

    def run_on_host(state, batch, *kept):
        return mapped(placed(state), (shard_batch(batch, use_mesh), kept))

    def lower(state, batch):
        return mapped.lower(shapes(state), (jax.tree.map(dealt, batch), ()))

    return ParallelStep(run_on_host, lower)


def replicate(values: Any, *, use_mesh: bool | None = None) -> Any:
    """The same arrays on all devices, for a step of `parallelize`, which is not to donate them.

    use_mesh: as of `parallelize`.
    """
    if use_mesh is None:
        use_mesh = _spans_hosts()
    return jax.device_put(values, NamedSharding(data_mesh(use_mesh), P()))


def shard_batch(batch: Any, use_mesh: bool | None = None) -> Any:
    """This host's share of a batch, numpy arrays, dealt to the devices; copied in their own time.

    Arrays that lie there already stay as they are. use_mesh: as of `parallelize`.
    """
    if use_mesh is None:
        use_mesh = _spans_hosts()
    sharding = NamedSharding(data_mesh(use_mesh), P(DATA_AXIS))
    devices = jax.local_device_count()

    def place(share):
        if isinstance(share, jax.Array):
            return share
        if use_mesh:
            return jax.make_array_from_process_local_data(sharding, share)
        dealt = share.reshape(devices, share.shape[0] // devices, *share.shape[1:])
        return jax.device_put(dealt, sharding)

    return jax.tree.map(place, batch)


def data_mesh(use_mesh: bool) -> Mesh:
    """The devices of all hosts, or of this one, in the order in which they share a batch."""
    # Each host's together: its share of the batch is one piece.
    of_all = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(of_all if use_mesh else jax.local_devices()), (DATA_AXIS,))


def _spans_hosts() -> bool:
    return jax.process_count() > 1


def local_shards(result: jax.Array, ndim: int) -> np.ndarray:
    """What a step gave for each of this host's images, in their order, on the host.

    Args:
        result: one that `split_results` marks; (b, …), to which pmap adds an axis of devices.
        ndim: axes of (b, …).
    """
    shards = sorted(result.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    together = np.concatenate([np.asarray(shard.data) for shard in shards])
    return together.reshape(-1, *result.shape[result.ndim - ndim + 1 :])
