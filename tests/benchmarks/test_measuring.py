"""Rows, ratios and failures of contenders."""

from typing import Any

import pytest

from benchmarks.cost import Cost
from benchmarks.measuring import Case, Contender, NotMeasuredError, Row, run_case, summarize
from fcn_jax.errors import UserError


def rows_of(unit: str = "bytes", **numbers: list[float] | NotMeasuredError) -> list[Row]:
    """Measures contenders that return these numbers in turn."""

    def contender(values: list[float]) -> Contender:
        left = iter(values)
        return Contender(lambda: next(left))

    contenders = {
        name: made if isinstance(made, NotMeasuredError) else contender(made)
        for name, made in numbers.items()
    }
    case = Case("case", lambda: contenders, unit=unit, timed=False, warm_up_calls=0)
    return run_case("suite", case, repeats=5)


def test_ratios_are_of_medians() -> None:
    ours, theirs = rows_of(ours=[2, 1, 3, 100, 2], theirs=[5, 6, 7, 8, 0])
    assert ours.median == 2
    assert (ours.lower_quartile, ours.upper_quartile) == (2, 3)
    assert ours.ratio == 1
    assert theirs.median == 6
    assert theirs.ratio == 3
    assert (theirs.suite, theirs.case, theirs.contender) == ("suite", "case", "theirs")
    assert (theirs.repeats, theirs.note) == (5, "")


def test_more_images_are_better() -> None:
    ours, theirs = rows_of("images", ours=[24] * 5, theirs=[16] * 5)
    assert (ours.ratio, theirs.ratio) == (1, 1.5)


def test_a_single_contender_has_no_ratio() -> None:
    (row,) = rows_of(ours=[3] * 5)
    assert (row.median, row.ratio) == (3, None)


def test_there_are_no_ratios_if_the_first_is_not_measured() -> None:
    ours, theirs = rows_of(ours=NotMeasuredError("no GPU"), theirs=[1.0] * 5)
    assert (ours.ratio, theirs.ratio) == (None, None)
    assert theirs.median == 1


def test_the_faster_of_two_layouts_is_reported() -> None:
    numbers = {"ours": 2.0, "peer (a)": 8.0, "peer (b)": 5.0, "peer (c)": 6.0}
    contenders = {name: Contender(lambda n=n: n) for name, n in numbers.items()}  # type: ignore[misc]
    contenders["peer (d)"] = NotMeasuredError("no")  # type: ignore[assignment]
    case = Case("c", lambda: contenders, timed=False, warm_up_calls=0, max_repeats=1)
    rows = run_case("s", case, repeats=9)
    assert [(row.contender, row.ratio) for row in rows] == [("ours", 1), ("peer (b)", 2.5)]


def test_contenders_take_turns_after_a_warm_up_and_are_prepared_and_closed() -> None:
    calls: list[str] = []

    def contender(name: str) -> Contender:
        return Contender(
            lambda: calls.append(name),
            prepare=lambda: calls.append("p"),
            close=lambda: calls.append("c"),
        )

    case = Case("case", lambda: {name: contender(name) for name in "ab"})
    rows = run_case("suite", case, repeats=3)
    assert "".join(calls) == "ab" * 2 + "papb" * 3 + "cc"
    assert [row.repeats for row in rows] == [3, 3]


def test_numbers_are_of_one_iteration_and_speeds_of_the_median() -> None:
    contender = Contender(lambda: 12.0, iterations=4, note=lambda result: f"returned {result}")
    (row,) = run_case("s", Case("c", lambda: {"ours": contender}, timed=False), 2)
    assert (row.median, row.repeats, row.note) == (3, 2, "returned 12.0")
    row = Row("s", "c", "ours", "s")
    summarize(row, [0.5, 0.25, 1.0], Contender(lambda: None, images=8, cost=lambda: Cost(6e9, 0)))
    assert (row.images_per_second, row.flops, row.flops_per_second) == (16, 6e9, 12e9)
    assert row.share_of_peak is None  # of a CPU


def failing(error: Exception, *, peer: bool = False) -> Contender:
    def call() -> None:
        raise error

    return Contender(call, peer=peer)


def test_what_is_not_measured_has_its_reason_and_the_rest_is_measured() -> None:
    class OutOfMemoryError(RuntimeError):  # as PyTorch's is called
        pass

    contenders = {
        "ours": Contender(lambda: 1.0),
        "short": failing(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")),
        "theirs": failing(OutOfMemoryError("CUDA out of memory")),
        "other": NotMeasuredError("torchvision is not installed"),
    }
    rows = run_case("suite", Case("case", lambda: contenders, timed=False), repeats=1)
    assert [(row.contender, row.median, row.ratio, row.note) for row in rows] == [
        ("ours", 1.0, 1.0, ""),
        ("short", None, None, "not measured: out of memory"),
        ("theirs", None, None, "not measured: out of memory"),
        ("other", None, None, "not measured: torchvision is not installed"),
    ]


def test_every_error_of_a_peer_is_reported_in_its_row() -> None:
    contenders = {
        "ours": Contender(lambda: 1.0),
        "theirs": failing(AssertionError("no such layout\n\nand much more"), peer=True),
        "silent": failing(KeyError(), peer=True),
    }
    rows = run_case("suite", Case("case", lambda: contenders, timed=False), repeats=1)
    assert [(row.median, row.note) for row in rows] == [
        (1.0, ""),
        (None, "not measured: AssertionError: no such layout"),
        (None, "not measured: KeyError"),
    ]


def test_a_case_that_cannot_be_built_is_one_row() -> None:
    def build() -> Any:
        raise NotMeasuredError("no GPU")

    (row,) = run_case("suite", Case("case", build), repeats=1)
    assert (row.case, row.contender, row.note) == ("case", "", "not measured: no GPU")


@pytest.mark.parametrize("error", [UserError("no such file"), ValueError("a mistake")])
def test_other_errors_are_raised_after_all_are_closed(error: Exception) -> None:
    closed: list[str] = []
    contenders = {
        "ours": failing(error),
        "theirs": Contender(lambda: None, close=lambda: closed.append("theirs")),
    }
    with pytest.raises(type(error), match=str(error)):
        run_case("suite", Case("case", lambda: contenders), repeats=1)
    assert closed == ["theirs"]
