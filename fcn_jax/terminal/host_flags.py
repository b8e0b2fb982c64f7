"""The flags that join several processes, shared by `train` and `evaluate`."""

from typing import Any

from absl import flags

NAMES = ("coordinator", "num_processes", "process_id", "silence_seconds")


def define_host_flags() -> None:
    """Defines `--coordinator`, `--num_processes`, `--process_id` and `--silence_seconds`."""
    flags.disclaim_key_flags()  # absl lists them as the command's own
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0 (None: as Slurm, Open MPI, … say)"
    )
    flags.DEFINE_integer("num_processes", None, "number of processes (1: alone)")
    flags.DEFINE_integer("process_id", None, "number of this process, from 0")
    flags.DEFINE_float(
        "silence_seconds",
        30.0,
        "several processes: one that does not answer for this long counts as dead",
        lower_bound=5.0,
    )


def host_arguments() -> dict[str, Any]:
    """Returns the arguments of `hosts.joined` that the flags give."""
    return {name: flags.FLAGS[name].value for name in NAMES}
