"""What people at the terminal see: the one exception, and words of which messages are made."""

from collections.abc import Sequence


class UserError(Exception):
    """A mistake that the person can mend: names the file or setting, the value and the remedy.

    The commands print it as one line, without a traceback, and exit with status 1.
    """


def listed(things: Sequence[object], most: int) -> str:
    """The first of them, and how many there are besides: 'a, b, c and 4 more'."""
    shown = ", ".join(map(str, things[:most]))
    return f"{shown} and {len(things) - most:,} more" if len(things) > most else shown


def width_by_height(size: Sequence[int]) -> str:
    """A size, height first as in a shape, as people say it: '500 × 375' of (375, 500)."""
    return f"{size[1]} × {size[0]}"
