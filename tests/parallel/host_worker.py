"""One of several processes that meet and then do as they are told: a program for test_hosts.py.

python tests/parallel/host_worker.py COUNT PROCESS PORT SCENARIO
"""

import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fcn_jax.errors import UserError
from fcn_jax.parallel import agreement, data_parallel, hosts
from fcn_jax.terminal import cli, signals
from fcn_jax.training.checkpoint import CheckpointWriter
from fcn_jax.training.train_step import TrainState


def act(scenario: str, process: int) -> None:
    if scenario == "meet":
        print(hosts.gather(10 * process), hosts.description(), flush=True)
        with hosts.first_process_first():
            print(time.monotonic(), flush=True)
        lockstep = agreement.Lockstep()
        # Signal 15 comes to process 1 in the third round.
        print([lockstep.agreed(15 * (process and n > 1)) for n in range(5)], flush=True)
        time.sleep(0.5 * (1 - process))  # the others wait at the end
        return
    if scenario == "differ":
        agreement.check_same({"steps": 7, "seed": process}, "start the same command")
    if scenario.startswith("full"):
        save_on_full_disk(process == int(scenario[-1]))
    if process:
        if scenario == "raise":
            raise UserError("the disk is full")
        if scenario == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if scenario == "term":
            os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def save_on_full_disk(is_full: bool) -> None:
    """Saves a checkpoint, of which this process may not be able to write its part."""
    folder = hosts.from_first(tempfile.mkdtemp())
    kernel = np.arange(2000, dtype=np.float32)
    state = TrainState(np.int32(1), {"kernel": kernel}, {"mean": kernel}, {"trace": kernel})
    with CheckpointWriter(Path(folder)) as writer:
        if is_full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        writer.save(data_parallel.replicate(state), None)
        writer.wait()


if __name__ == "__main__":
    count, process, port = map(int, sys.argv[1:4])
    cli.silence_libraries()
    cli.error_line = str  # type: ignore[assignment] # this is no command
    with (
        signals.interruptions(),
        hosts.joined(f"127.0.0.1:{port}", count, process),
    ):
        act(sys.argv[4], process)
