"""Ctrl-C and SIGTERM: noted until what is at hand is done, or raised at once; lost never.

Python runs a signal's handler between two instructions of the main thread, wherever that is. What
the handler raises in a callback of the garbage collector or in a destructor is dropped there, and
the program goes on as if nothing had been: JAX has such callbacks, and runs into them often.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN_AFTER_SECONDS = 0.05
"""Until an interruption that was dropped is raised again: the callback is over by then."""


class StopSignal:
    """Notes Ctrl-C and SIGTERM, so that what is at hand ends and is kept; a second one kills.

    requested: the signal's number, or 0. at_hand: what is finished first, in a word.
    """

    def __init__(self, at_hand: str):
        self.requested = 0
        self._at_hand = at_hand

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def end_if_requested(self) -> None:
        """Raises SystemExit, with the status of a process that the signal has ended."""
        if self.requested:
            sys.exit(128 + self.requested)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.requested = number
        # Of a pipe whose reader Ctrl-C has ended too, or amid a line that is being printed.
        with contextlib.suppress(OSError, RuntimeError):
            print(
                f"stopping after this {self._at_hand} (again: at once, without saving)", flush=True
            )


@contextlib.contextmanager
def interruptions() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt and SIGTERM SystemExit, again where Python drops them."""

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
        # To the main thread, so that whatever it waits for is interrupted.
        main = threading.main_thread().ident
        again = threading.Timer(AGAIN_AFTER_SECONDS, signal.pthread_kill, [main, number])
        again.daemon = True
        again.start()

    hook_before, sys.unraisablehook = sys.unraisablehook, raise_again
    handlers = signal.default_int_handler, terminate
    before = [signal.signal(*pair) for pair in zip(SIGNALS, handlers, strict=True)]
    try:
        yield
    finally:
        for pair in zip(SIGNALS, before, strict=True):
            signal.signal(*pair)
        sys.unraisablehook = hook_before
