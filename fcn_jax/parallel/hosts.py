"""Several processes, on one host or many, that train or evaluate together.

All run the same program in the same order. A command joins them, compares what they were started
with, and lets process 0 alone print and write:

    with hosts.joined(coordinator, num_processes, process_id):
        hosts.check_same({"seed": config.seed})
        with hosts.first_process_first():
            dataset = open_dataset(config.data)

With a single process, every function here returns at once and sends nothing. This is the one module
that speaks to `jax.distributed` and `multihost_utils`.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fcn_jax.errors import ArgumentError, UserError, format_value
from fcn_jax.terminal import cli, output, signals

if TYPE_CHECKING:
    from fcn_jax.parallel.lifeline import Lifeline

SILENCE_SECONDS = 30.0
"""Default time after which a process that does not answer counts as dead."""

CONNECT_SECONDS = 60.0
"""Limit for connecting processes and devices that have all come."""


class AgreedExit(SystemExit):
    """The end of all processes, by a decision that each of them has reached."""


@contextlib.contextmanager
def joined(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    silence_seconds: float = SILENCE_SECONDS,
) -> Iterator[None]:
    """A context in which this process is one of several, if it was started as such.

    Without arguments, the surroundings say so: Slurm, Open MPI, Kubernetes or Cloud TPU. At the end
    all processes wait for each other. If one fails, all end.

    Args:
        coordinator: HOST:PORT of process 0.
        num_processes: number of processes; 1 joins none.
        process_id: the number of this one, from 0.
        silence_seconds: a process that does not answer for this long counts as dead. The others are
            awaited ten times as long at the start.

    Raises:
        ArgumentError: the arguments contradict each other.
        UserError: not all processes have come in time, or they cannot reach each other.
    """
    if not _join(coordinator, num_processes, process_id, silence_seconds):
        yield
        return
    try:
        lifeline = channel()
        assert lifeline is not None
    except (UserError, TimeoutError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or ["no answer"])[0]
        output.print_error(f"process {jax.process_index()} cannot be connected: {reason}")
        os._exit(1)  # past the barrier at which JAX would wait for the others
    lifeline.silence_seconds = silence_seconds
    try:
        yield
        _leave(lifeline)
    except AgreedExit:
        _leave(lifeline)
        raise
    except (UserError, OSError) as error:
        lifeline.fail(1, cli.error_line(error))
    except KeyboardInterrupt:
        lifeline.fail(130, "stopped by Ctrl-C")
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else 1
        name = signal.Signals(status - 128).name if status > 128 else f"status {status}"
        lifeline.fail(status, f"stopped by {name}")
    except BaseException as error:
        # A collective fails if another process has ended, whose reason arrives soon.
        if not lifeline.await_failure():
            traceback.print_exc()
        first_line = (str(error).splitlines() or [""])[0]
        lifeline.fail(1, f"{type(error).__name__}: {format_value(first_line)}")


def _leave(lifeline: "Lifeline") -> None:
    """Waits for all processes and ends their connections.

    A signal is ignored meanwhile: it would end this process while another one waits for it in JAX.
    """
    with signals.ignored():
        lifeline.finish()
        jax.distributed.shutdown()


def count() -> int:
    """Returns the number of processes."""
    return jax.process_count()


def is_first() -> bool:
    """Returns whether this is process 0, which prints and writes."""
    return jax.process_index() == 0


def description() -> str:
    """Describes the devices: "2 hosts × 4 devices (cpu)", or "4 × cpu" for a single process."""
    kind = jax.devices()[0].device_kind
    if jax.process_count() == 1:
        return f"{jax.device_count()} × {kind}"
    return f"{jax.process_count()} hosts × {jax.local_device_count()} devices ({kind})"


def gather(value: Any) -> list[Any]:
    """Returns the values of all processes, by process; of JSON's types. All must call it."""
    lifeline = channel()
    if lifeline is None:
        return [value]
    return [json.loads(packet) for packet in lifeline.gather(json.dumps(value).encode())]


def gather_arrays(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Returns the arrays of all processes, by process. All must call it."""
    lifeline = channel()
    if lifeline is None:
        return [arrays]
    from fcn_jax.parallel.lifeline import pack_arrays, unpack_arrays

    return [unpack_arrays(packet) for packet in lifeline.gather(pack_arrays(arrays))]


def from_first(value: Any) -> Any:
    """Returns the value of process 0. All processes must call it."""
    return gather(value)[0]


def barrier() -> None:
    """Waits until all processes are here."""
    gather(None)


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """A context that process 0 passes alone, before all others enter it together.

    If it prepares files there, the others find them on a shared file system, and on a local one
    each prepares its own.
    """
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()


def _join(
    coordinator: str | None, num_processes: int | None, process_id: int | None, silence: float
) -> bool:
    """Connects JAX to the other processes; returns whether there are any."""
    given = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    if num_processes == 1 or jax.distributed.is_initialized():
        return jax.distributed.is_initialized() and jax.process_count() > 1
    explicit = any(value is not None for value in given.values())
    if explicit:
        _check_explicit(given)
        arguments: dict[str, Any] = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
            # Inside a Slurm step, JAX would otherwise take one GPU alone.
            "cluster_detection_method": "deactivate",
        }
    elif not (cluster := surroundings()):
        return False
    else:
        arguments = {}
    # Its handler of SIGTERM, in C, would replace ours.
    jax.config.update("jax_enable_preemption_service", False)
    patience = 10 * silence

    def initialize() -> None:
        jax.distributed.initialize(
            **arguments,
            # The lifeline knows earlier, and says it in a line.
            initialization_timeout=int(2 * patience),
            heartbeat_timeout_seconds=int(2 * silence) + 10,
        )

    place = f"at {coordinator}" if explicit else f"as {cluster} describes them"
    try:
        _in_thread(initialize, patience)
    except (KeyboardInterrupt, SystemExit) as exit:  # the thread could not be ended otherwise
        os._exit(exit.code if isinstance(exit, SystemExit) and isinstance(exit.code, int) else 130)
    except TimeoutError:
        role = "" if process_id is None else f"process {process_id}: "
        wanted = "all" if num_processes is None else f"all {num_processes}"
        output.print_error(
            f"{role}not {wanted} processes have come within {patience:g} s {place}: see why the "
            "others did not start"
        )
        os._exit(1)
    except (RuntimeError, ValueError, OSError) as error:
        if not explicit and cluster == "Cloud TPU":
            return False  # a machine that looks like one, alone
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"the processes cannot be joined {place} ({reason}): give coordinator, num_processes "
            "and process_id, or num_processes=1 to run alone"
        ) from error
    return jax.process_count() > 1


def _check_explicit(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if value is None:
            others = " and ".join(other for other in given if given[other] is not None)
            raise ArgumentError(name, value, f"must be given together with {others}")
    host, _, port = given["coordinator"].rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ArgumentError("coordinator", given["coordinator"], "must be HOST:PORT")
    if given["num_processes"] < 1:
        raise ArgumentError("num_processes", given["num_processes"], "must be at least 1")
    if not 0 <= given["process_id"] < given["num_processes"]:
        last = given["num_processes"] - 1
        raise ArgumentError("process_id", given["process_id"], f"must be in 0…{last}")


def surroundings() -> str:
    """Returns what has started this process as one of several; "" if it is alone.

    One task alone is not joined. JAX then finds the details by itself.
    """
    tasks = os.environ.get
    if "OMPI_MCA_orte_hnp_uri" in os.environ and int(tasks("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return "Open MPI"
    # A batch script and an interactive shell have one task, even if the job has several.
    if "SLURM_STEP_NODELIST" in os.environ and int(tasks("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return "Slurm"
    if "," in tasks("TPU_WORKER_HOSTNAMES", "") or int(tasks("MEGASCALE_NUM_SLICES", "1")) > 1:
        return "Cloud TPU"
    has_chips = Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()
    if (
        has_chips
        and importlib.util.find_spec("libtpu")
        and not ({"TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES"} & os.environ.keys())
        and tasks("JAX_PLATFORMS", "tpu").startswith("tpu")
    ):
        return "Cloud TPU"
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys():
        return "Kubernetes"
    return ""


def channel() -> "Lifeline | None":
    """Returns the connections to the other processes; None if there are none."""
    return _connect() if jax.process_count() > 1 else None


@functools.cache
def _connect() -> "Lifeline":
    """Connects this process to the others, and their devices to each other.

    Gloo, which CPUs use, needs all processes within 30 s when it first connects devices; later it
    waits. Therefore this comes before data and compilation.
    """
    from jax.experimental import multihost_utils

    from fcn_jax.parallel.lifeline import Lifeline, Meeting, accept_invitation

    process = jax.process_index()
    meeting = None if process else Meeting()
    letter = np.zeros(4096, np.uint8)
    if meeting is not None:
        letter[: len(meeting.invitation)] = np.frombuffer(meeting.invitation, np.uint8)
    letter = _in_thread(lambda: multihost_utils.broadcast_one_to_all(letter), CONNECT_SECONDS)
    if meeting is not None:
        others = _in_thread(lambda: meeting.await_others(jax.process_count()), CONNECT_SECONDS)
    else:
        output.mute()
        invitation = np.asarray(letter, np.uint8).tobytes().rstrip(b"\0")
        others = {0: accept_invitation(invitation, process)}
    lifeline = Lifeline(process, others, SILENCE_SECONDS)
    int(maximum(0))
    return lifeline


def maximum(number: int) -> jax.Array:
    """Dispatches the maximum of a number over all processes."""
    mesh = Mesh(np.asarray(jax.devices()), ("devices",))
    own = np.full(jax.local_device_count(), number, np.int32)
    numbers = jax.make_array_from_process_local_data(NamedSharding(mesh, P("devices")), own)
    return _maximum_program(mesh)(numbers)


@functools.cache
def _maximum_program(mesh: Mesh) -> Any:
    return jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))


def _in_thread(function: Any, seconds: float) -> Any:
    """Calls a function that no signal interrupts, and waits in a way that one does.

    Raises:
        TimeoutError: it takes longer.
    """
    result: dict[str, Any] = {}
    done = threading.Event()

    def call() -> None:
        try:
            result["value"] = function()
        except BaseException as error:
            result["error"] = error
        done.set()

    threading.Thread(target=call, daemon=True).start()
    if not done.wait(seconds):
        raise TimeoutError
    if "error" in result:
        raise result["error"]
    return result["value"]
