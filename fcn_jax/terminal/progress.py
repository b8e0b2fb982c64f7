"""Show how far a long loop has come, on a terminal or in a log.

    with progress_bar("training", total=40_000, unit="steps") as bar:
        for batch in batches:
            ...
            bar.advance(loss=loss)

On a terminal this is a live bar; in a log (CI, Slurm, a pipe) a plain line every ten seconds.
Everything goes to stderr, so that stdout holds results only.
"""

import math
import numbers
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

PLAIN_LINE_EVERY_SECONDS = 10.0

_open_displays: list[Progress] = []  # rich draws one live display at a time; inner bars share it


class Bar:
    """A loop's count, its pace and whatever the loop last said of itself."""

    def __init__(
        self, description: str, total: int, unit: str, initial: int, redraw: Callable[[], None]
    ):
        self.description = description
        self.total = total
        self.unit = unit
        self.completed = initial
        self._redraw = redraw
        self._shown: dict[str, Any] = {}
        self._started = monotonic()
        # The pace is taken from the end of the first item on, because that item pays for
        # compilation; what a resumed run had done before does not count either.
        self._first: tuple[int, float] | None = None
        self._last_advance = self._started

    def advance(self, n: int = 1, **shown: Any) -> None:
        """Count n more items, and show values (`loss=0.41`) until they are replaced.

        Values are numbers or strings of the host: showing a device's array would wait for it.
        """
        self.completed += n
        # A new dictionary, because rich's thread may be reading the old one.
        self._shown = {**self._shown, **shown}
        self._last_advance = monotonic()
        if self._first is None:
            self._first = (self.completed, self._last_advance)
        self._redraw()

    def items_per_second(self) -> float | None:
        """The mean pace since the first item was done; None before the second one."""
        if self._first is None:
            return None
        completed, time = self._first
        if self.completed == completed or self._last_advance <= time:
            return None
        return (self.completed - completed) / (self._last_advance - time)

    def status(self) -> str:
        """Count, pace, time spent, time left and the values shown, on one line."""
        parts = [f"{self.completed}/{self.total} {self.unit}"]
        pace = self.items_per_second()
        if pace is not None:
            parts.append(f"{pace:.{1 if pace >= 10 else 2}f} {self.unit}/s")
        parts.append(format_duration(monotonic() - self._started))
        if pace is not None and self.completed < self.total:
            parts.append(f"{format_duration((self.total - self.completed) / pace)} left")
        parts += [f"{name} {_format_value(value)}" for name, value in self._shown.items()]
        return ", ".join(parts)


@contextmanager
def progress_bar(
    description: str, total: int, unit: str = "images", initial: int = 0
) -> Iterator[Bar]:
    """Show the progress of a loop while the `with` block runs.

    Bars may be nested: one for an evaluation inside one for training is drawn beneath it, and
    taken away when it is done.

    Args:
      description: what is going on, in a word or two.
      total: the number of items at which the loop ends.
      unit: what is counted, in the plural.
      initial: items done before, by the run that this one resumes.

    Yields:
      The `Bar`; call its `advance` after each item or batch.
    """
    on_terminal = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    show = _draw if on_terminal else _print_lines
    with show(description, total, unit, initial) as bar:
        yield bar


def say(message: str) -> None:
    """Print a line to stdout at once; above the bar if one is being drawn."""
    print(message, flush=True)


def format_duration(seconds: float) -> str:
    """A duration in its two largest units: '7 s', '4 min 05 s', '1 h 02 min', '2 d 03 h'.

    A duration that is not a finite number of seconds, or is negative, is '–'.
    """
    if not math.isfinite(seconds) or seconds < 0:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02} h"


@contextmanager
def _print_lines(description: str, total: int, unit: str, initial: int) -> Iterator[Bar]:
    last_line = -math.inf

    def print_line() -> None:
        nonlocal last_line
        last_line = monotonic()
        print(f"{description}: {bar.status()}", file=sys.stderr, flush=True)

    def print_line_if_due() -> None:
        if monotonic() - last_line >= PLAIN_LINE_EVERY_SECONDS:
            print_line()

    bar = Bar(description, total, unit, initial, print_line_if_due)
    print_line()
    try:
        yield bar
    finally:
        print_line()


@contextmanager
def _draw(description: str, total: int, unit: str, initial: int) -> Iterator[Bar]:
    with _shared_display() as display:
        bar = Bar(
            description,
            total,
            unit,
            initial,
            lambda: display.update(task, completed=bar.completed),
        )
        task = display.add_task(description, total=total, completed=initial, bar=bar)
        try:
            yield bar
        finally:
            if len(display.tasks) > 1:
                display.remove_task(task)


@contextmanager
def _shared_display() -> Iterator[Progress]:
    if _open_displays:
        yield _open_displays[-1]
        return
    display = Progress(
        # Where the terminal is narrow, the status wraps; the other columns keep their width.
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=12, table_column=Column(no_wrap=True)),
        _StatusColumn(Column(no_wrap=False)),
        console=Console(stderr=True),
        refresh_per_second=4,
        # Results that go to a file must reach it; those for the screen go above the bar.
        redirect_stdout=sys.stdout.isatty(),
    )
    _open_displays.append(display)
    try:
        with display:
            yield display
    finally:
        _open_displays.remove(display)


class _StatusColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["bar"].status())


def _format_value(value: Any) -> str:
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return f"{float(value):.4g}"
    return str(value)
