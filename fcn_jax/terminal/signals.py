"""Interruptions: Ctrl-C, SIGTERM and SIGHUP end a program, after its current work if it asks.

Python runs a signal's handler between two instructions of the main thread. An exception that the
handler raises inside a callback of the garbage collector or a destructor is dropped there, and the
program goes on: JAX has such callbacks, and they run often.

No handler runs while the main thread is in a long call into C++, such as the compilation of a
program by XLA. A thread therefore learns of each signal too, and ends the process if the main
thread does not.
"""

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, Self

from fcn_jax.terminal import output

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""A closed terminal sends SIGHUP, Slurm's `--signal=USR1@60` SIGUSR1. A signal that the caller
ignores (`nohup`) stays ignored."""

AGAIN_AFTER_SECONDS = 0.05
"""Delay after which a dropped interruption is raised again: the callback has ended by then."""

PATIENCE_SECONDS = 4.0
"""Time that the main thread gets to react to a signal, before another thread ends the process."""


class StopSignal:
    """A context in which an interruption is noted, so that the current work ends and is saved.

    A second signal kills the process.

    Args:
        work: what is finished first, in a word: "stopping after this WORK".

    Attributes:
        requested: the number of the signal that came, or 0.
    """

    def __init__(self, work: str):
        self.requested = 0
        self._work = work
        self._abandoning = threading.RLock()
        self._save: Callable[[], object] | None = None
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        before = _handle({number: self._note for number in SIGNALS})
        self._closing.callback(_handle, before)
        self._closing.enter_context(_watched(self._abandon))
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def end_if_requested(self) -> None:
        """Raises SystemExit, with the status of a process that the signal has ended."""
        if self.requested:
            sys.exit(128 + self.requested)

    @contextlib.contextmanager
    def abandoned(self, save: Callable[[], object] | None) -> Iterator[None]:
        """A context whose work need not be finished, such as a compilation.

        If a signal comes, and the work still goes on `PATIENCE_SECONDS` later, another thread calls
        `save` and ends the process. Until then the main thread does not leave the context.

        Args:
            save: saves what would be lost. It must not use what the work changes. None if the work
                must be finished.
        """
        self._save = save
        try:
            yield
        finally:
            with self._abandoning:
                self._save = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        with self._abandoning:  # waits for a `save` that has begun
            if self.requested:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self.requested = number
        # The signal may have come while another line was being printed.
        if not output.is_muted():
            with contextlib.suppress(OSError, RuntimeError):
                print(
                    f"stopping after this {self._work} (again: at once, without saving)", flush=True
                )

    def _abandon(self, number: int, since: float) -> None:
        with self._abandoning:
            save, self._save = self._save, None
            if save is not None:
                with contextlib.suppress(Exception):  # the main thread tries it again, and reports
                    save()
                    _end(number)


@contextlib.contextmanager
def interruptions() -> Iterator[None]:
    """A context in which Ctrl-C raises KeyboardInterrupt and the other signals SystemExit.

    Where Python drops the exception, it is raised again. If the main thread is in a long call into
    C++, the process ends without it.
    """
    handled = -math.inf

    def end_process(number: int, frame: FrameType | None) -> None:
        nonlocal handled
        handled = time.monotonic()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    def end_if_blocked(number: int, since: float) -> None:
        if handled < since - PATIENCE_SECONDS / 2:
            _end(number)

    def raise_again(dropped: Any) -> None:
        if isinstance(dropped.exc_value, KeyboardInterrupt):
            number = signal.SIGINT
        elif isinstance(dropped.exc_value, SystemExit):
            number = signal.SIGTERM
        else:
            hook_before(dropped)
            return
        # To the main thread, so that a blocking call in it is interrupted.
        main = threading.main_thread().ident
        again = threading.Timer(AGAIN_AFTER_SECONDS, signal.pthread_kill, [main, number])
        again.daemon = True
        again.start()

    hook_before, sys.unraisablehook = sys.unraisablehook, raise_again
    before = _handle(dict.fromkeys(SIGNALS, end_process))
    try:
        with _watched(end_if_blocked):
            yield
    finally:
        _handle(before)
        sys.unraisablehook = hook_before


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """A context in which interruptions have no effect."""
    before = _handle(dict.fromkeys(SIGNALS, signal.SIG_IGN))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(handlers: Mapping[int, Any]) -> dict[int, Any]:
    """Installs handlers by signal number, except of ignored signals; returns those before."""
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if before[number] != signal.SIG_IGN:
            signal.signal(number, handler)
    return before


@contextlib.contextmanager
def _watched(react: Callable[[int, float], None]) -> Iterator[None]:
    """A context in which a thread learns of signals that the main thread cannot handle yet.

    Args:
        react: called in the thread with a signal's number and time, `PATIENCE_SECONDS` after the
            signal and then repeatedly.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        number, since = 0, 0.0
        while True:
            if select.select([reading], [], [], 0.2 if number else None)[0]:
                received = os.read(reading, 1)
                if not received:
                    return
                if received[0] in SIGNALS:
                    number, since = received[0], time.monotonic()
            elif number and time.monotonic() > since + PATIENCE_SECONDS:
                react(number, since)

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)
        thread.join()
        os.close(reading)


def _end(number: int) -> None:
    """Ends the process and its reading processes at once, from any thread."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    processes: Any = sys.modules.get("multiprocessing")  # slow to import, and not needed by all
    for child in processes.active_children() if processes else ():
        child.kill()
    os._exit(128 + number)
