"""A server in a process of its own."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Server(NamedTuple):
    process: subprocess.Popen[str]
    port: int


@contextlib.contextmanager
def running_server(*flags: str, folder: Path = ROOT) -> Iterator[Server]:
    """Starts `python -m fcn_jax.serve` in a folder on a free port, and ends it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fcn_jax.serve", "--port=0", *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    ends = time.monotonic() + 120
    try:
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                port = int(found[1])
                break
            assert time.monotonic() < ends, lines
        else:
            raise AssertionError(f"the server ended: {lines}")
        yield Server(process, port)
    finally:
        process.terminate()
        print(process.communicate(timeout=30)[0])  # pytest shows it if the test has failed
