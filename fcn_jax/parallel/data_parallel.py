"""Data parallelism: runs a step on all devices, with `pmap` on one host or a mesh across hosts.

A step is a function `(state, batch, *constants) -> results`. It sees one device's shard of the
batch, and sums over the axis `DATA_AXIS` every result that concerns the whole batch. The state and
the constants, which are arrays that the step does not change, are replicated: equal on all devices.
`pmap` and the mesh give the same numbers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fcn_jax.errors import ArgumentError
from fcn_jax.parallel import hosts

DATA_AXIS = "data"
"""Name of the axis of devices over which the batch is sharded."""


def check_batch_divides(batch_size: int, argument: str, parts: int = 1) -> None:
    """Checks that a batch divides evenly over the devices and the accumulation steps.

    Args:
        batch_size: images per batch, over all hosts.
        argument: name of the setting that holds the batch size, for the error.
        parts: number of accumulation steps.

    Raises:
        ArgumentError: the batch does not divide evenly. The message suggests the next smaller size
            that does, or the smallest one if there is no smaller size.
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
    """A step that runs on all devices.

    Called as `step(state, batch, *constants)` with this host's part of the batch.

    Attributes:
        run: the function that the call forwards to.
        lower: lowers the program of a step without constants, given its state and batch or their
            `ShapeDtypeStruct`s. The lowered program can be compiled for its memory and FLOPs.
    """

    run: Callable[..., Any]
    lower: Callable[[Any, Any], jax.stages.Lowered]

    def __call__(self, state: Any, batch: Any, *constants: Any) -> Any:
        return self.run(state, batch, *constants)


def parallelize(
    step: Callable[..., Any],
    *,
    donate_state: bool,
    split_results: Any = False,
    use_mesh: bool | None = None,
) -> ParallelStep:
    """Compiles a step of one device to run on all devices.

    The compiled step takes the state, this host's part of the batch and the constants. The batch
    may hold NumPy arrays, or arrays that `shard_batch` or `data/resident.py` placed on the devices.

    Args:
        step: `(state, one device's shard of the batch, *constants) -> results`. Pass the constants
            through `replicate` first: the compiled step does not check where they are.
        donate_state: whether the results may reuse the state's memory.
        split_results: a prefix of the tree of results: True if a result has one row per image (read
            it with `local_shards`), False if it is equal on all devices.
        use_mesh: True for `jit(shard_map)` over the devices of all hosts, whose parts together make
            one batch; False for `pmap` over this host's devices; None for the mesh if there are
            several hosts.

    Returns:
        The step on all devices.
    """
    if use_mesh is None:
        use_mesh = _spans_hosts()
    donated = (0,) if donate_state else ()
    mesh = data_mesh(use_mesh)

    replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(DATA_AXIS))

    def placed(state):
        # A step returns its state with this sharding. If the first call's state had another, the
        # second call would compile again. To place what is in place already would take JAX 14 ms
        # for the 450 arrays of an FCN-ResNet-50, about a quarter of its step on an H100.
        shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(state))
        in_place = all(sharding == replicated for sharding in shardings)
        return state if in_place else replicate(state, use_mesh=use_mesh)

    # The batch and the constants are one argument, a pair. If `in_axes` were a flat tuple with as
    # many entries as the arguments have arrays, pmap would match the entries to the arrays.
    def step_of_two(state, batch_and_constants):
        batch, constants = batch_and_constants
        return step(state, batch, *constants)

    def state_shapes(state):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), state
        )

    def global_shape(local):
        shape = (local.shape[0] * jax.process_count(), *local.shape[1:])
        return jax.ShapeDtypeStruct(shape, local.dtype, sharding=split)

    def stacked_shape(local):
        devices = jax.local_device_count()
        shape = (devices, local.shape[0] // devices, *local.shape[1:])
        return jax.ShapeDtypeStruct(shape, local.dtype, sharding=split)

    if use_mesh:
        compiled = on_mesh(step_of_two, mesh, split_results=split_results, donated=donated)
        executables: dict[Any, Any] = {}

        def run_on_mesh(state, batch, *constants):
            batch = shard_batch(batch, use_mesh)
            arguments = placed(state), (batch, constants)
            if not _spans_hosts():
                return compiled(*arguments)
            shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
            if shapes not in executables:
                executables[shapes] = compiled.lower(*arguments).compile()
                # On CPUs a collective fails if a host still compiles after 30 s.
                hosts.barrier()
            return executables[shapes](*arguments)

        def lower_on_mesh(state, batch):
            return compiled.lower(state_shapes(state), (jax.tree.map(global_shape, batch), ()))

        return ParallelStep(run_on_mesh, lower_on_mesh)

    mapped = jax.pmap(
        step_of_two,
        axis_name=DATA_AXIS,
        in_axes=(None, (0, None)),
        out_axes=jax.tree.map(lambda is_split: 0 if is_split else None, split_results),
        donate_argnums=donated,
    )

    def run_on_host(state, batch, *constants):
        return mapped(placed(state), (shard_batch(batch, use_mesh), constants))

    def lower_on_host(state, batch):
        return mapped.lower(state_shapes(state), (jax.tree.map(stacked_shape, batch), ()))

    return ParallelStep(run_on_host, lower_on_host)


def on_mesh(
    step: Callable[[Any, Any], Any],
    mesh: Mesh,
    *,
    split_results: Any = False,
    donated: tuple[int, ...] = (),
) -> Any:
    """Maps (state, (batch, constants)) over a mesh; compiled by the first call.

    If devices of the mesh are absent, the program can be lowered and compiled, and not called.
    """
    return jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(P(), (P(DATA_AXIS), P())),
            out_specs=jax.tree.map(
                lambda is_split: P(DATA_AXIS) if is_split else P(), split_results
            ),
            check_vma=False,
        ),
        donate_argnums=donated,
    )


def replicate(values: Any, *, use_mesh: bool | None = None) -> Any:
    """Copies arrays to all devices, as the state or a constant of a step of `parallelize`.

    Args:
        values: a tree of arrays.
        use_mesh: as in `parallelize`.

    Returns:
        The tree with replicated arrays.
    """
    if use_mesh is None:
        use_mesh = _spans_hosts()
    sharding = replicated_sharding(use_mesh)
    if not _spans_hosts():
        return jax.device_put(values, sharding)

    def place(value):
        if isinstance(value, jax.Array) and value.sharding.is_equivalent_to(sharding, value.ndim):
            return value
        # device_put would compare the values of all hosts, one collective for each array.
        return jax.make_array_from_process_local_data(sharding, np.asarray(value), np.shape(value))

    return jax.tree.map(place, values)


def replicated_sharding(use_mesh: bool | None = None) -> NamedSharding:
    """Returns the sharding of arrays that `replicate` places. use_mesh: as in `parallelize`."""
    return NamedSharding(data_mesh(_spans_hosts() if use_mesh is None else use_mesh), P())


def shard_batch(batch: Any, use_mesh: bool | None = None) -> Any:
    """Shards this host's part of a batch over the devices; the copies are asynchronous.

    Args:
        batch: a tree of arrays, (b, …). Arrays that are on the devices already are left unchanged.
        use_mesh: as in `parallelize`.

    Returns:
        The tree with sharded arrays: (b of all hosts, …) on a mesh, else (devices, b / devices, …).
    """
    if use_mesh is None:
        use_mesh = _spans_hosts()
    sharding = NamedSharding(data_mesh(use_mesh), P(DATA_AXIS))
    devices = jax.local_device_count()

    def place(local):
        if isinstance(local, jax.Array):
            return local
        if use_mesh:
            return jax.make_array_from_process_local_data(sharding, local)
        stacked = local.reshape(devices, local.shape[0] // devices, *local.shape[1:])
        return jax.device_put(stacked, sharding)

    return jax.tree.map(place, batch)


def data_mesh(use_mesh: bool) -> Mesh:
    """Returns a mesh of the devices, in the order in which they take the shards of a batch.

    Args:
        use_mesh: True for the devices of all hosts, False for those of this host.
    """
    # The devices of one host are consecutive, because its part of the batch is contiguous.
    all_devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(all_devices if use_mesh else jax.local_devices()), (DATA_AXIS,))


def _spans_hosts() -> bool:
    return jax.process_count() > 1


def local_shards(result: jax.Array, ndim: int) -> np.ndarray:
    """Fetches the rows of a result that belong to this host's images, in the images' order.

    Args:
        result: a result that `split_results` marks True: (b, …) on a mesh, (devices, b / devices,
            …) from pmap.
        ndim: the number of axes of (b, …).

    Returns:
        The rows of this host's images, (b of this host, …).
    """
    shards = sorted(result.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    rows = np.concatenate([np.asarray(shard.data) for shard in shards])
    return rows.reshape(-1, *result.shape[result.ndim - ndim + 1 :])
