"""Errors that a person can mend, and the words that their messages share."""

from collections.abc import Sequence
from typing import Any


class UserError(Exception):
    """A mistake that the person can mend: names the file or setting, the value and the remedy.

    The commands print it as one line, without a traceback, and exit with status 1.
    """


class ArgumentError(UserError, ValueError):
    """An argument or setting whose value cannot be used.

    The message speaks of the API: "model.skips (=5) must be in 0…2". The commands print the same
    with the name of the flag: "config.model.skips (=5) must be in 0…2".

    Args:
        argument: its name; for a setting the dotted name without "config", such as "model.skips".
        value: what was given.
        problem: what is allowed, as the rest of a sentence: "must be in 0…2".
    """

    def __init__(self, argument: str, value: Any, problem: str):
        super().__init__(f"{argument} (={shown(value)}) {problem}")
        self.argument = argument
        self.value = value
        self.problem = problem


def shown(value: Any) -> str:
    """Returns a value as it is given on the command line, at most about 200 characters of it."""
    if isinstance(value, tuple):
        return ",".join(map(shown, value))
    if isinstance(value, int) and abs(value) > 10**40:  # Python refuses to print 10**5000
        return f"a whole number of {value.bit_length()} bits"
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def listed(things: Sequence[object], most: int) -> str:
    """The first of them, and how many there are besides: 'a, b, c and 4 more'."""
    shown = ", ".join(map(str, things[:most]))
    return f"{shown} and {len(things) - most:,} more" if len(things) > most else shown


def width_by_height(size: Sequence[int]) -> str:
    """A size, height first as in a shape, as people say it: '500 × 375' of (375, 500)."""
    return f"{size[1]} × {size[0]}"
