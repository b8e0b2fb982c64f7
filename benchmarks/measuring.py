"""Cases, contenders and rows: what the suites describe, and how it is measured.

A suite yields cases, a case has contenders that do the same thing in different ways, and each
contender becomes a row of the report. The contenders of a case run in turn in one process, so that
other load on the machine slows all of them alike.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.cost import Cost, share_of_peak
from fcn_jax.errors import UserError


class NotMeasuredError(Exception):
    """The reason, in a few words, why something cannot be measured here: "no GPU"."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way of doing what a case is about.

    Attributes:
        call: does it and waits for the result. In a case that is not `timed` it returns the number.
        prepare: called before each call that is measured; its own time does not count.
        iterations: how often one call does it; the row reports a single iteration.
        images: images in an iteration, for the images per second; 0 if there are none.
        cost: computes what an iteration costs on one device; called after `call`.
        dtype: the type of those operations, float32 or bfloat16.
        note: makes the row's note from the last result of `call`.
        peer: whether this is another project's code, whose every error becomes a note in its row.
        close: called when all contenders of the case are measured.
    """

    call: Callable[[], Any]
    prepare: Callable[[], object] = lambda: None
    iterations: int = 1
    images: int = 0
    cost: Callable[[], Cost] | None = None
    dtype: str = "float32"
    note: Callable[[Any], str] = lambda _: ""
    peer: bool = False
    close: Callable[[], object] = lambda: None


Contenders = Mapping[str, Contender | NotMeasuredError]
"""By name, ours first; an error gives the reason why a contender is not measured."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to do.

    Attributes:
        name: what it is, with its sizes.
        build: makes the contenders. Raises NotMeasuredError if none of them can be measured.
        unit: unit of the numbers: s, bytes, programs or images; more images are better.
        timed: whether the number is the duration of a call, not its result.
        warm_up_calls: calls of each contender before the first that is measured.
        max_repeats: limits the repeats if a call takes a minute or always gives the same number.
        remark: makes a row's note about the whole case from its rows.
    """

    name: str
    build: Callable[[], Contenders]
    unit: str = "s"
    timed: bool = True
    warm_up_calls: int = 2
    max_repeats: int = sys.maxsize
    remark: "Callable[[Sequence[Row]], str] | None" = None


@dataclasses.dataclass
class Row:
    """A row of the report: numbers of one iteration, and of one device; None if not measured.

    `ratio` is the median divided by that of the case's first contender; of images its inverse.
    `bytes` are those of the program's arguments and results, `limit` is the least possible number
    of seconds (`cost.Cost`). `note` is a remark, or the reason why there is no median.
    """

    suite: str
    case: str
    contender: str
    unit: str
    median: float | None = None
    lower_quartile: float | None = None
    upper_quartile: float | None = None
    repeats: int = 0
    ratio: float | None = None
    images_per_second: float | None = None
    flops: float | None = None
    flops_per_second: float | None = None
    share_of_peak: float | None = None
    bytes: float | None = None
    limit: float | None = None
    note: str = ""


def run_case(suite: str, case: Case, repeats: int) -> list[Row]:
    """Measures the contenders of a case in turn, each `repeats` times.

    Of contenders whose names differ only in what is in brackets, the fastest is reported.

    Raises:
        UserError: images that cannot be read.
        Exception: an error in our own code, other than one for lack of memory.
    """
    try:
        contenders = case.build()
    except NotMeasuredError as error:
        return [Row(suite, case.name, "", case.unit, note=f"not measured: {error}")]
    rows = {name: Row(suite, case.name, name, case.unit) for name in contenders}
    numbers: dict[str, list[float]] = {name: [] for name in contenders}
    results: dict[str, Any] = {}
    failed: set[str] = set()
    try:
        for turn in range(-case.warm_up_calls, min(repeats, case.max_repeats)):
            for name, contender in contenders.items():
                if name in failed:
                    continue
                try:
                    if isinstance(contender, NotMeasuredError):
                        raise contender
                    if turn >= 0:
                        contender.prepare()
                    start = time.perf_counter()
                    results[name] = contender.call()
                    seconds = time.perf_counter() - start
                    if turn >= 0:
                        number = seconds if case.timed else results[name]
                        numbers[name].append(number / contender.iterations)
                except Exception as error:
                    rows[name].note = f"not measured: {_reason(error, contender)}"
                    failed.add(name)
        for name, contender in contenders.items():
            if isinstance(contender, Contender) and name not in failed:
                summarize(rows[name], numbers[name], contender)
                rows[name].note = contender.note(results[name])
    finally:
        for contender in contenders.values():
            if isinstance(contender, Contender):
                contender.close()
    found = with_ratios(_fastest(rows.values()))
    if case.remark:
        found.append(Row(suite, case.name, "", case.unit, note=case.remark(found)))
    return found


def _reason(error: Exception, contender: Contender | NotMeasuredError) -> str:
    """Returns why a contender is not measured; raises errors that are to end the benchmark."""
    if isinstance(error, NotMeasuredError):
        return str(error)
    if is_out_of_memory(error):
        return "out of memory"
    if isinstance(error, UserError) or not (isinstance(contender, Contender) and contender.peer):
        raise error
    first_line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first_line}".removesuffix(": ")


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether this is XLA's RESOURCE_EXHAUSTED or PyTorch's OutOfMemoryError."""
    return "RESOURCE_EXHAUSTED" in str(error) or type(error).__name__ == "OutOfMemoryError"


def summarize(row: Row, numbers: list[float], contender: Contender) -> None:
    """Fills a row with the median and quartiles of the numbers, and with the speed they mean."""
    row.lower_quartile, row.median, row.upper_quartile = np.percentile(
        numbers, [25, 50, 75]
    ).tolist()
    row.repeats = len(numbers)
    if row.unit != "s":
        return
    if contender.images:
        row.images_per_second = contender.images / row.median
    if contender.cost is not None:
        cost = contender.cost()
        row.flops, row.bytes, row.limit = cost.flops, cost.bytes, cost.limit(contender.dtype)
        row.flops_per_second = row.flops / row.median
        row.share_of_peak = share_of_peak(row.flops_per_second, contender.dtype)


def _fastest(rows: Any) -> list[Row]:
    best: dict[str, Row] = {}
    for row in rows:
        name = row.contender.partition(" (")[0]
        rival = best.setdefault(name, row)
        if row.median is not None and (rival.median is None or row.median < rival.median):
            best[name] = row
    return list(best.values())


def with_ratios(rows: list[Row]) -> list[Row]:
    """Adds to each row its ratio to the first, if there are several."""
    first = rows[0].median if len(rows) > 1 else None
    for row in rows:
        if first and row.median:
            row.ratio = first / row.median if row.unit == "images" else row.median / first
    return rows
