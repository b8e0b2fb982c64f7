"""Progress bars for long loops, on a terminal or in a log, and lines of results.

    with progress_bar("training", total=40_000, unit="steps") as bar:
        for batch in batches:
            ...
            bar.advance(loss=loss)

On a terminal this is a live bar of rich; in a log (CI, Slurm, a pipe) a plain line every ten
seconds. Progress is printed to stderr, results to stdout.
"""

import math
import numbers
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from fcn_jax.errors import printable
from fcn_jax.terminal.output import is_muted

PLAIN_LINE_EVERY_SECONDS = 10.0

_open_displays: list[Progress] = []  # rich draws one live display at a time; inner bars share it


class Bar:
    """The progress of one loop: its count, its pace and the values that it last showed."""

    def __init__(self, display: Progress, description: str, total: int, unit: str, initial: int):
        self._display = display
        self._task_id = display.add_task(
            printable(description),
            total=total,
            completed=initial,
            unit=unit,
            values={},
            activity="",
        )
        self._task = display.tasks[-1]
        self._last_line = -math.inf

    @property
    def completed(self) -> int:
        """Number of items that are done, those of an earlier run included."""
        return int(self._task.completed)

    def advance(self, n: int = 1, **values: Any) -> None:
        """Counts n more items, and shows values (`loss=0.41`) until they are replaced.

        Values are numbers or strings on the host: a device array would block until it is computed.
        """
        # A new dictionary, because rich's thread may be reading the old one.
        values = {**self._task.fields["values"], **values}
        self._display.update(self._task_id, advance=n, values=values, activity="")
        if not self._display.live.is_started:
            self.print_line(every_seconds=PLAIN_LINE_EVERY_SECONDS)

    def show_activity(self, text: str) -> None:
        """Shows the reason of a long pause, such as "compiling the first step", until it ends."""
        self._display.update(self._task_id, activity=text)
        if not self._display.live.is_started:
            self.print_line()

    def status(self) -> str:
        """Returns the count, the pace, the time spent, the time left and the values, in a line."""
        return _status(self._task)

    def print_line(self, every_seconds: float = 0) -> None:
        """Prints the status to stderr, unless the last line is more recent than `every_seconds`."""
        if monotonic() - self._last_line >= every_seconds and not is_muted():
            self._last_line = monotonic()
            print(f"{self._task.description}: {self.status()}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Prints the last line, or removes the bar if another one is drawn above it."""
        if not self._display.live.is_started:
            self.print_line()
        elif len(self._display.tasks) > 1:
            self._display.remove_task(self._task_id)


def _status(task: Task) -> str:
    unit, pace = task.fields["unit"], task.speed
    parts = [f"{task.completed:.0f}/{task.total:.0f} {unit}"]
    # The pace counts from the end of the first item, because that one waits for compilation.
    if pace is not None:
        parts.append(f"{pace:.{1 if pace >= 10 else 2}f} {unit}/s")
    parts.append(format_duration(task.elapsed or 0))
    if pace is not None and task.remaining:
        parts.append(f"{format_duration(task.remaining / pace)} left")
    parts += [f"{name} {_format_value(value)}" for name, value in task.fields["values"].items()]
    if task.fields["activity"]:
        parts.append(task.fields["activity"])
    return printable(", ".join(parts))


@contextmanager
def progress_bar(
    description: str, total: int, unit: str = "images", initial: int = 0
) -> Iterator[Bar]:
    """Shows the progress of a loop while the `with` block runs.

    Bars may be nested: one for an evaluation inside one for training is drawn beneath it, and
    removed at its end.

    Args:
      description: what the loop does, in a word or two.
      total: the number of items at which the loop ends.
      unit: what is counted, in the plural.
      initial: items that the run that this one resumes has done.

    Yields:
      The `Bar`; call its `advance` after each item or batch.
    """
    with _display() as display:
        bar = Bar(display, description, total, unit, initial)
        if not display.live.is_started:
            bar.print_line()
        try:
            yield bar
        finally:
            bar.close()


def say(message: str) -> None:
    """Prints a line to stdout, above the progress bar if there is one."""
    if not is_muted():
        print(printable(message), flush=True)


def format_duration(seconds: float) -> str:
    """Formats a duration in its two largest units: "7 s", "4 min 05 s", "1 h 02 min", "2 d 03 h".

    A negative, infinite or undefined number of seconds is "–".
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
def _display() -> Iterator[Progress]:
    """Yields the display to add a bar to: live on a terminal, not started elsewhere."""
    if _open_displays:
        yield _open_displays[-1]
        return
    display = Progress(
        # If the terminal is narrow, the status wraps; the other columns keep their width.
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=12, table_column=Column(no_wrap=True)),
        _StatusColumn(Column(no_wrap=False)),
        console=Console(stderr=True),
        refresh_per_second=4,
        # Redirected results must reach their file; those for the screen are drawn above the bar.
        redirect_stdout=sys.stdout.isatty(),
        speed_estimate_period=3600,
        get_time=lambda: monotonic(),
    )
    is_plain = not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown")
    if is_plain or is_muted():
        yield display
        return
    _open_displays.append(display)
    try:
        with display:
            yield display
    finally:
        _open_displays.remove(display)


class _StatusColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_status(task))


def _format_value(value: Any) -> str:
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return f"{float(value):.4g}"
    return str(value)
