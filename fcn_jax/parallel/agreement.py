"""Comparisons between several processes, and the decisions that they take together.

With a single process, every function here returns at once.
"""

import contextlib
import faulthandler
import importlib.metadata
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import jax

from fcn_jax.errors import UserError, format_value
from fcn_jax.parallel import hosts

STEP_FACTOR = 10
"""A step is stuck if it takes this many times as long as the longest one before it."""

PAUSE_FACTOR = 20
"""What is between steps, such as a batch of an evaluation with its compilation, or a save, may take
this many times as long as a step."""

VISIBLE_SECONDS = 5.0
"""Time in which a network file system shows a new file to all hosts."""

VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def check_same(facts: Mapping[str, Any], remedy: str) -> None:
    """Checks that all processes have the same values; all must call it.

    Raises:
        UserError: they differ; names the first difference, and its process. All processes raise it.
    """
    texts = hosts.gather({name: format_value(value) for name, value in facts.items()})
    for process, held in enumerate(texts):
        for name, text in texts[0].items():
            if held.get(name) != text:
                raise UserError(
                    f"{name} is {held.get(name, 'missing')} in process {process} and {text} in "
                    f"process 0: {remedy}"
                )


def check_same_start(facts: Mapping[str, Any]) -> None:
    """Checks that all processes have the same facts, versions and devices; see `check_same`."""
    if hosts.count() > 1:
        devices = f"{jax.local_device_count()} × {jax.local_devices()[0].device_kind}"
        remedy = "start the same command in all processes, with the same versions"
        check_same({**facts, **_versions(), "the number of devices": devices}, remedy)


def check_shared(path: Path, content: str) -> None:
    """Checks that all processes see a file that process 0 has written; all must call it.

    Raises:
        UserError: one does not; all processes raise it.
    """
    if hosts.count() == 1:
        return
    expected = hosts.from_first(content)
    end = monotonic() + VISIBLE_SECONDS
    while not (seen := _read(path) == expected) and monotonic() < end:
        sleep(0.2)
    blind = [process for process, sees in enumerate(hosts.gather(seen)) if not sees]
    if blind:
        raise UserError(
            f"process {blind[0]} does not see {path} of process 0: give a workdir on a file system "
            "that all hosts share"
        )


class Lockstep:
    """Keeps the loops of all processes in step, and notices if one is stuck.

    A signal to one process is for all: `agreed` returns the same number everywhere in the same
    round. It is an all-reduced maximum that is read one round late, so no device waits for it.

    Attributes:
        number: the number of the signal that came to any process, or 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._lifeline = hosts.channel()
        self._longest = 0.0
        self._steps = 0
        self._limit = 0.0
        if self._lifeline is not None:
            self._pending = hosts.maximum(0)

    def agreed(self, number: int) -> int:
        """Returns the number of a signal that any process had in the round before, or 0.

        Args:
            number: the number of the signal that came to this process, or 0.
        """
        if self._lifeline is None:
            self.number = number
        elif not self.number:
            self.number, self._pending = int(self._pending), hosts.maximum(number)
            self._allow(PAUSE_FACTOR, "what follows")
        return self.number

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """A context in which a training step is dispatched and the one before it is awaited.

        If it takes too long, a line names the step, all threads are printed, and all processes end.
        The first two steps, which compile, have no limit.
        """
        if self._lifeline is None:
            yield
            return
        started = monotonic()
        if self._steps > 1:
            self._limit = max(2 * self._lifeline.silence_seconds, STEP_FACTOR * self._longest)
            self._allow(1, "step", step)
        yield
        if self._steps:
            self._longest = max(self._longest, monotonic() - started)
        self._steps += 1
        self._allow(PAUSE_FACTOR, "what follows step", step)

    def close(self) -> None:
        """Ends the watch."""
        self._limit = 0.0
        if self._lifeline is not None:
            self._lifeline.set_deadline(None)
            faulthandler.cancel_dump_traceback_later()

    def _allow(self, factor: int, work: str, step: int | None = None) -> None:
        if not self._limit:
            return
        assert self._lifeline is not None
        seconds = factor * self._limit
        name = f"{work} {step}" if step is not None else work
        self._lifeline.set_deadline(
            seconds, f"{name} takes more than {seconds:g} s: stuck (see the threads above)"
        )
        # For a process that never lets a Python thread run.
        faulthandler.dump_traceback_later(seconds + 15, exit=True, file=2)


def _versions() -> dict[str, str]:
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    digest = zlib.crc32(b"".join(source.read_bytes() for source in sources))
    found = {
        "the version of Python": sys.version.split()[0],
        "the code of fcn_jax": f"{digest:08x}",
    }
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[f"the version of {name}"] = importlib.metadata.version(name)
    return found


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
