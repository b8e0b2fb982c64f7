"""Interruptions: Ctrl-C, SIGTERM and SIGHUP end a program, after its current work if it asks.

Python runs a signal's handler between two instructions of the main thread. An exception that the
handler raises inside a callback of the garbage collector or a destructor is dropped there, and the
program goes on: JAX has such callbacks, and they run often.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""A closed terminal sends SIGHUP. A signal that the caller ignores (`nohup`) stays ignored."""

AGAIN_AFTER_SECONDS = 0.05
"""Delay after which a dropped interruption is raised again: the callback has ended by then."""


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

    def __enter__(self) -> Self:
        self._before = _handle({number: self._note for number in SIGNALS})
        return self

    def __exit__(self, *_: object) -> None:
        _handle(self._before)

    def end_if_requested(self) -> None:
        """Raises SystemExit, with the status of a process that the signal has ended."""
        if self.requested:
            sys.exit(128 + self.requested)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.requested = number
        # The signal may have come while another line was being printed.
        with contextlib.suppress(OSError, RuntimeError):
            print(f"stopping after this {self._work} (again: at once, without saving)", flush=True)


@contextlib.contextmanager
def interruptions() -> Iterator[None]:
    """A context in which Ctrl-C raises KeyboardInterrupt and the other signals SystemExit.

    Where Python drops the exception, it is raised again.
    """

    def terminate(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

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
    handlers: dict[int, Any] = dict.fromkeys(SIGNALS, terminate)
    before = _handle(handlers | {signal.SIGINT: signal.default_int_handler})
    try:
        yield
    finally:
        _handle(before)
        sys.unraisablehook = hook_before


def _handle(handlers: Mapping[int, Any]) -> dict[int, Any]:
    """Installs handlers by signal number, except of ignored signals; returns those before."""
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if before[number] != signal.SIG_IGN:
            signal.signal(number, handler)
    return before
