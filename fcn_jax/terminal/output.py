"""Output to streams that may be closed."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator

from fcn_jax.errors import printable

_is_muted = False


def mute() -> None:
    """Ends the output of results and progress, of which one of several processes is enough.

    Errors are still printed.
    """
    global _is_muted
    _is_muted = True


def is_muted() -> bool:
    """Returns whether `mute` was called."""
    return _is_muted


def protect_streams() -> None:
    """Replaces stdout and stderr by streams on which printing never fails.

    A reader that goes away (`train | head -1`), a full disk or an encoding that lacks a character
    must not end a training. A stream that the caller has closed (`2>&-`) is opened on /dev/null:
    the next file that is opened would get its number, and with it the messages of other libraries.
    """
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            _open_null(number)
            null = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, _Stream(null, is_lost=True))
        elif isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _Stream(stream))


def print_error(line: str) -> None:
    """Prints a line to stderr; to stdout if stderr was closed or its reader is gone."""
    is_lost = getattr(sys.stderr, "is_lost", False)
    print(printable(line), file=sys.stdout if is_lost else sys.stderr, flush=True)


class _Stream(io.TextIOWrapper):
    def __init__(self, stream: io.TextIOWrapper, is_lost: bool = False):
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self.is_lost = is_lost
        self._replaced = stream  # closes the buffer when it is deleted

    def write(self, text: str) -> int:
        with self._survive():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._survive():
            super().flush()

    @contextlib.contextmanager
    def _survive(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            _open_null(self.fileno())
            self.is_lost = True
        except OSError:  # a full disk: the next line may fit
            pass


def _open_null(number: int) -> None:
    """Makes a file descriptor one of /dev/null."""
    null = os.open(os.devnull, os.O_WRONLY)
    if null != number:
        os.dup2(null, number)
        os.close(null)
