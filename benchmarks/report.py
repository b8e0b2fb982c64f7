"""The tables that are printed; the JSON file holds the same numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.measuring import Row

CAPTION = """\
Medians; ± is half the distance between the quartiles. ratio: time or memory divided by that of the
first contender of the case, ours; for images, the first's number divided by this one. Above 1 means
that ours is ahead."""


def heading(report: Mapping[str, Any]) -> str:
    """Describes the machine, the versions and the date of a report."""
    machine = report["hardware"]
    parts = [machine["cpu"], f"{machine['cores_used']} of {machine['cores']} cores"]
    if machine["memory_bytes"]:
        parts.append(f"{machine['memory_bytes'] / 2**30:.0f} GiB")
    devices = ", ".join(machine["devices"])
    if machine["device_memory_bytes"]:
        devices += f" with {machine['device_memory_bytes'] / 2**30:.0f} GiB"
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return f"{', '.join(parts)}; {devices}\n{versions}\n{report['date']}"


def suite_table(suite: str, rows: Sequence[Row]) -> str:
    """Lays out the rows of a suite; cases and notes have lines of their own.

    Columns without a single entry are left out.
    """
    cells = {title: [cell(row) for row in rows] for title, cell in COLUMNS.items()}
    cells = {title: column for title, column in cells.items() if any(column)}
    widths = [max(map(len, [title, *column])) for title, column in cells.items()]
    width = max(len(suite), *(len(row.contender) + 2 for row in rows))

    def line(name: str, values: Sequence[str]) -> str:
        aligned = (value.rjust(size) for value, size in zip(values, widths, strict=True))
        return "  ".join([name.ljust(width), *aligned]).rstrip()

    head = line(suite, list(cells))
    lines = [head, "─" * len(head)]
    case = None
    for index, row in enumerate(rows):
        if row.case != case:
            case = row.case
            lines.append(case)
        if row.contender:
            lines.append(line(f"  {row.contender}", [column[index] for column in cells.values()]))
        if row.note:
            lines.append(f"    {row.note}")
    return "\n".join(lines)


def _median(row: Row) -> str:
    """The median with its unit, and with its spread if it was measured more than once."""
    if row.median is None or row.lower_quartile is None or row.upper_quartile is None:
        return ""
    factor, digits, unit = display_unit(row.unit, row.median)
    half = factor * (row.upper_quartile - row.lower_quartile) / 2
    spread = f" ±{half:.{digits}f}" if row.repeats > 1 else ""
    return f"{factor * row.median:.{digits}f}{spread} {unit}"


def display_unit(unit: str, value: float) -> tuple[float, int, str]:
    """Returns the factor, the decimals and the name of the unit that a number is shown in."""
    match unit:
        case "s" if value < 10:
            return 1e3, 1, "ms"
        case "s":
            return 1, 1, "s"
        case "bytes":
            return 1e-6, 1, "MB"
        case _:
            return 1, 0, unit


def _peak(row: Row) -> str:
    if row.share_of_peak is None:
        return "–" if row.flops else ""
    return f"{row.share_of_peak:.1%}"


def _limit(row: Row) -> str:
    """The least possible time, and its share of the median."""
    if row.limit is None or row.median is None:
        return ""
    factor, digits, unit = display_unit("s", row.limit)
    return f"{factor * row.limit:.{digits}f} {unit} ({row.limit / row.median:.0%})"


def _number(name: str, factor: float, digits: int) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        value = getattr(row, name)
        return "" if value is None else f"{factor * value:.{digits}f}"

    return cell


COLUMNS: dict[str, Callable[[Row], str]] = {
    "median": _median,
    "ratio": _number("ratio", 1, 3),
    "images/s": _number("images_per_second", 1, 1),
    "GFLOP": _number("flops", 1e-9, 2),
    "GFLOP/s": _number("flops_per_second", 1e-9, 0),
    "of peak": _peak,
    "MB in and out": _number("bytes", 1e-6, 1),
    "limit": _limit,
}
"""The text of each column's cell for a row; empty if it does not apply."""
