"""The tables of what was measured; JSON holds the same."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from benchmarks.measuring import Row


class Report(TypedDict):
    """Written as JSON as it is."""

    date: str
    hardware: dict[str, Any]
    versions: dict[str, str]
    repeats: int
    small: bool
    results: list[Row]


COLUMNS_MEAN = """\
Medians; ± is half the distance between the quartiles. ratio: the time or the memory beside that of
the first of the case, ours, or the first's images beside these: above 1 ours is ahead. With a sign:
what is added to the first."""


def heading(report: Report) -> str:
    """What was measured on, and with what."""
    machine = report["hardware"]
    cores = f"{machine['cores_used']} of {machine['cores']} cores"
    parts = [machine["cpu"], cores]
    if machine["memory_bytes"]:
        parts.append(f"{machine['memory_bytes'] / 2**30:.0f} GiB")
    devices = ", ".join(machine["devices"])
    if machine["device_memory_bytes"]:
        devices += f" with {machine['device_memory_bytes'] / 2**30:.0f} GiB"
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return f"{', '.join(parts)}; {devices}\n{versions}\n{report['date']}"


def caption(report: Report) -> str:
    """What the columns mean."""
    return COLUMNS_MEAN + ("\n\nSmall sizes: the times mean nothing." if report["small"] else "")


def suite_table(suite: str, rows: Sequence[Row]) -> str:
    """Cases and remarks stand on lines of their own; a column that has nothing is left out."""
    columns = [name for name in COLUMNS if any(COLUMNS[name](row) for row in rows)]
    names = [f"  {row['contender']}" for row in rows]
    cells = [[COLUMNS[name](row) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    width = max(map(len, [suite, *names]))

    def line(name: str, values: Sequence[str]) -> str:
        aligned = (value.rjust(size) for value, size in zip(values, widths, strict=True))
        return "  ".join([name.ljust(width), *aligned]).rstrip()

    head = line(suite, columns)
    lines = [head, "─" * len(head)]
    case = None
    for row, name, values in zip(rows, names, cells, strict=True):
        if row["case"] != case:
            case = row["case"]
            lines.append(case)
        if row["contender"]:
            lines.append(line(name, values))
        if row["note"]:
            lines.append(f"    {row['note']}")
    return "\n".join(lines)


def shown_median(row: Row) -> str:
    """With its spread, where it was measured more than once."""
    lower, median, upper = row["lower_quartile"], row["median"], row["upper_quartile"]
    if median is None or lower is None or upper is None:
        return ""
    factor, digits, unit = multiple(row["unit"], median)
    spread = f" ±{factor * (upper - lower) / 2:.{digits}f}" if row["repeats"] > 1 else ""
    return f"{factor * median:.{digits}f}{spread} {unit}"


def multiple(unit: str, size: float) -> tuple[float, int, str]:
    """Factor, digits and name of the unit that something of that size is shown in."""
    match unit:
        case "s" if size < 10:
            return 1e3, 1, "ms"
        case "s":
            return 1, 1, "s"
        case "bytes":
            return 1e-6, 1, "MB"
        case _:
            return 1, 0, unit


def shown_ratio(row: Row) -> str:
    if row["ratio"] is None:
        return ""
    if row["overhead"]:
        return f"{row['ratio'] - 1:+.1%}" if row["ratio"] != 1 else "–"
    return f"{row['ratio']:.2f}"


def shown_peak(row: Row) -> str:
    if row["share_of_peak"] is None:
        return "–" if row["flops"] else ""
    return f"{row['share_of_peak']:.1%}"


def _scaled(name: str, factor: float, digits: int) -> Any:
    def shown(row: Mapping[str, Any]) -> str:
        return "" if row[name] is None else f"{factor * row[name]:.{digits}f}"

    return shown


COLUMNS = {
    "median": shown_median,
    "ratio": shown_ratio,
    "images/s": _scaled("images_per_second", 1, 1),
    "GFLOP": _scaled("flops", 1e-9, 2),
    "GFLOP/s": _scaled("flops_per_second", 1e-9, 0),
    "of peak": shown_peak,
}
"""Each makes a cell of a row: what it shows, or nothing."""
