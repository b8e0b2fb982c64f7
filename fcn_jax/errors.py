"""Errors that the user can correct, and the formats that their messages share."""

import difflib
from collections.abc import Sequence
from typing import Any


class UserError(Exception):
    """A mistake that the user can correct. The message names the file or setting and the remedy.

    The commands print the message as one line, without a traceback, and exit with status 1.
    """


class ArgumentError(UserError, ValueError):
    """An argument or setting whose value cannot be used.

    The message uses the names of the API: "model.skips (=5) must be in 0…2". The commands print it
    with the name of the flag: "config.model.skips (=5) must be in 0…2".

    Args:
        argument: its name; for a setting the dotted name without "config", such as "model.skips".
        value: the value that was given.
        problem: what is allowed, as the rest of a sentence: "must be in 0…2".
    """

    def __init__(self, argument: str, value: Any, problem: str):
        super().__init__(f"{argument} (={format_value(value)}) {problem}")
        self.argument = argument
        self.value = value
        self.problem = problem

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.argument, self.value, self.problem)  # from a worker process


def format_value(value: Any) -> str:
    """Formats a value as it is given on the command line, in about 200 characters at most."""
    if isinstance(value, tuple):
        if not value:
            return "()"
        more = ",…" if len(value) > 16 else ""
        return ",".join(map(format_value, value[:16])) + more
    if isinstance(value, int) and abs(value) > 10**40:  # Python refuses to print 10**5000
        return f"a whole number of {value.bit_length()} bits"
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def suggestion(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Returns "; did you mean PREFIXNAME?" for the known name that is nearest to one, or ""."""
    last = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    near = last or difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def listed(things: Sequence[object], most: int) -> str:
    """Lists the first `most` things and counts the others: "a, b, c and 4 more"."""
    first = ", ".join(map(str, things[:most]))
    return f"{first} and {len(things) - most:,} more" if len(things) > most else first


def width_by_height(size: Sequence[int]) -> str:
    """Formats (height, width, …) as "WIDTH × HEIGHT"."""
    return f"{size[1]} × {size[0]}"


def printable(text: str) -> str:
    """Replaces characters that cannot be printed by their escapes in Python, such as "\\n".

    Names of files and classes may come from strangers: printed as they are, line breaks, escape
    sequences and changes of direction could move the cursor or forge a line. File names that are
    not UTF-8 hold characters that no encoding has.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
