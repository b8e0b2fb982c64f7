"""One of several processes that meet and then do as they are told: a program for test_hosts.py.

python tests/parallel/host_worker.py COUNT PROCESS PORT SCENARIO
"""

import os
import signal
import sys
import time

from fcn_jax.errors import UserError
from fcn_jax.parallel import agreement, hosts
from fcn_jax.terminal import cli, signals


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
    if process:
        if scenario == "raise":
            raise UserError("the disk is full")
        if scenario == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if scenario == "term":
            os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


if __name__ == "__main__":
    count, process, port = map(int, sys.argv[1:4])
    cli.error_line = str  # type: ignore[assignment] # this is no command
    with (
        signals.interruptions(),
        hosts.joined(f"127.0.0.1:{port}", count, process),
    ):
        act(sys.argv[4], process)
