"""What a suite is made of, and how it is measured.

A suite yields cases, a case has contenders that do the same thing in different ways, and each
contender becomes a row of the report. All contenders of a case run in turn, in one process, so that
whatever else the machine does hits them alike.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from benchmarks.cost import Cost, share_of_peak
from fcn_jax.errors import UserError

WARM_UP_CALLS = 2


class NotMeasuredError(Exception):
    """Why something cannot be measured here, in a few words: 'no GPU'."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way of doing what a case is about.

    call: does it and waits for it. In a case that is not `timed` it returns the number.
    prepare: called before each call, untimed.
    iterations: how often a call does it; what is reported is of one.
    images: of one iteration, where images per second mean something.
    cost: what the devices compute in one iteration; asked for after the calls, when the program is
        compiled already.
    note: makes a remark of what the last call returned.
    peer: whether it is others' work, whose every error is told in its row.
    close: called when all is measured.
    """

    call: Callable[[], Any]
    prepare: Callable[[], object] = lambda: None
    iterations: int = 1
    images: int = 0
    cost: Callable[[], Cost] | None = None
    note: Callable[[Any], str] = lambda _: ""
    peer: bool = False
    close: Callable[[], object] = lambda: None


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to do.

    Attributes:
        name: of the case, with its sizes.
        build: makes its contenders by name, ours first; one of them may instead be the error that
            says why it is not measured. It raises NotMeasuredError where all of it cannot be.
        unit: of the numbers: s, bytes, programs, or images, of which more is better.
        timed: whether the number is how long a call takes, not what it returns.
        overhead: whether the ratio is to be shown as what is added to the first contender.
        warm_up_calls: of each contender, before any is measured.
        most_repeats: where one call takes a minute, or gives the same number every time.
    """

    name: str
    build: Callable[[], Mapping[str, Contender | NotMeasuredError]]
    unit: str = "s"
    timed: bool = True
    overhead: bool = False
    warm_up_calls: int = WARM_UP_CALLS
    most_repeats: int | None = None


class Row(TypedDict):
    """A row of the report. What does not apply is None; `note` says why where `median` is.

    median, lower_quartile, upper_quartile: in `unit`, of one iteration. ratio: how many times what
    the case's first contender takes this one takes; of images, the other way round. flops and the
    two after it are of one device.
    """

    suite: str
    case: str
    contender: str
    unit: str
    median: float | None
    lower_quartile: float | None
    upper_quartile: float | None
    repeats: int
    ratio: float | None
    overhead: bool
    images_per_second: float | None
    flops: float | None
    flops_per_second: float | None
    share_of_peak: float | None
    note: str


def run_case(suite: str, case: Case, repeats: int) -> list[Row]:
    """The rows of a case: of contenders whose names differ in brackets only, the faster."""
    try:
        built = case.build()
    except NotMeasuredError as error:
        return [_not_measured(suite, case, "", error)]
    contenders = {name: made for name, made in built.items() if isinstance(made, Contender)}
    failures = {name: made for name, made in built.items() if isinstance(made, NotMeasuredError)}
    repeats = min(repeats, case.most_repeats or repeats)
    try:
        numbers, results, broken = measure(
            contenders, repeats, timed=case.timed, warm_up_calls=case.warm_up_calls
        )
        failures |= broken
        rows: dict[str, Row] = {}
        for name in built:
            if name in failures:
                rows[name] = _not_measured(suite, case, name, failures[name])
                continue
            row = rows[name] = summarize(suite, case, name, numbers[name])
            row["note"] = contenders[name].note(results[name])
            add_pace(row, contenders[name])
    finally:
        for contender in contenders.values():
            contender.close()
    return with_ratios(_best(rows))


def measure(
    contenders: Mapping[str, Contender],
    repeats: int,
    *,
    timed: bool = True,
    warm_up_calls: int = WARM_UP_CALLS,
) -> tuple[dict[str, list[float]], dict[str, Any], dict[str, NotMeasuredError]]:
    """The numbers of each contender, all of them in turn; the last results; and those that failed.

    A contender fails where memory is short, and where a peer fails in any way.
    """
    failures: dict[str, NotMeasuredError] = {}
    for name, contender in contenders.items():
        with _failing_into(failures, name, contender):
            for _ in range(warm_up_calls):
                contender.call()
    numbers: dict[str, list[float]] = {name: [] for name in contenders}
    results: dict[str, Any] = {}
    for _ in range(repeats):
        for name, contender in contenders.items():
            if name in failures:
                continue
            with _failing_into(failures, name, contender):
                contender.prepare()
                start = time.perf_counter()
                results[name] = contender.call()
                seconds = time.perf_counter() - start
                number = seconds if timed else results[name]
                numbers[name].append(number / contender.iterations)
    return numbers, results, failures


@contextlib.contextmanager
def _failing_into(
    failures: dict[str, NotMeasuredError], name: str, contender: Contender
) -> Iterator[None]:
    try:
        yield
    except NotMeasuredError as error:
        failures[name] = error
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            failures[name] = NotMeasuredError("out of memory")
        elif contender.peer:
            said = next(iter(str(error).strip().splitlines()), "")
            failures[name] = NotMeasuredError(f"{type(error).__name__}: {said}".removesuffix(": "))
        else:
            raise


def is_out_of_memory(error: Exception) -> bool:
    """XLA's RESOURCE_EXHAUSTED, PyTorch's OutOfMemoryError."""
    return "RESOURCE_EXHAUSTED" in str(error) or type(error).__name__ == "OutOfMemoryError"


def summarize(suite: str, case: Case, contender: str, numbers: Sequence[float]) -> Row:
    """Median and quartiles of the numbers of one contender."""
    lower, median, upper = (float(q) for q in np.percentile(numbers, [25, 50, 75]))
    return {
        **_empty(suite, case, contender),
        "median": median,
        "lower_quartile": lower,
        "upper_quartile": upper,
        "repeats": len(numbers),
    }


def _not_measured(suite: str, case: Case, contender: str, why: NotMeasuredError) -> Row:
    return {**_empty(suite, case, contender), "note": f"not measured: {why}"}


def _empty(suite: str, case: Case, contender: str) -> Row:
    return {
        "suite": suite,
        "case": case.name,
        "contender": contender,
        "unit": case.unit,
        "median": None,
        "lower_quartile": None,
        "upper_quartile": None,
        "repeats": 0,
        "ratio": None,
        "overhead": case.overhead,
        "images_per_second": None,
        "flops": None,
        "flops_per_second": None,
        "share_of_peak": None,
        "note": "",
    }


def add_pace(row: Row, contender: Contender) -> None:
    """What is done in a second, of the median."""
    median = row["median"]
    if row["unit"] != "s" or not median:
        return
    if contender.images:
        row["images_per_second"] = contender.images / median
    if contender.cost is not None:
        cost = contender.cost()
        row["flops"] = cost.flops
        row["flops_per_second"] = cost.flops / median
        row["share_of_peak"] = share_of_peak(cost.flops / median, cost.dtype)


def _best(rows: Mapping[str, Row]) -> list[Row]:
    """Of rows whose names differ in brackets only, the one with the lowest median."""
    kept: dict[str, Row] = {}
    for name, row in rows.items():
        stem = name.partition(" (")[0]
        if stem not in kept or _order(row) < _order(kept[stem]):
            kept[stem] = row
    return list(kept.values())


def _order(row: Row) -> float:
    return float("inf") if row["median"] is None else row["median"]


def with_ratios(rows: Iterable[Row]) -> list[Row]:
    """The rows of a case, each with its ratio to the first, where there are several numbers."""
    rows = list(rows)
    first = rows[0]["median"] if len(rows) > 1 else None
    for row in rows:
        if first and row["median"]:
            more_is_better = row["unit"] == "images"
            row["ratio"] = first / row["median"] if more_is_better else row["median"] / first
    return rows
