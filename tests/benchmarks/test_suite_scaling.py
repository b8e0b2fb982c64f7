"""Growth with sizes: the exponents, and what the cases run."""

from benchmarks import suite_scaling
from benchmarks.measuring import Row, run_case
from benchmarks.settings import Settings


def rows(times: dict[int, float]) -> list[Row]:
    return [Row("scaling", "case", str(n), "s", median=t) for n, t in times.items()]


def test_the_exponent_is_that_of_a_power() -> None:
    remark = suite_scaling.growth(rows({10: 3 * 10**1.5, 100: 3 * 100**1.5, 1000: 3 * 1000**1.5}))
    assert remark == "grows with the power 1.50; between the two largest 1.50"
    assert suite_scaling.growth(rows({10: 1.0})) == ""


def test_every_size_is_run_and_the_case_ends_with_its_growth(settings: Settings) -> None:
    cases = {case.name: case for case in suite_scaling.cases(settings)}
    assert len(cases) == 7
    found = run_case("scaling", cases["training step, classes: memory"], 1)
    assert [row.contender for row in found] == ["2", "21", ""]
    assert found[1].median > found[0].median > 0  # type: ignore[operator]
    assert found[2].note.startswith("grows with the power 0.")
    small, large, last = run_case("scaling", cases["the order of an epoch, images"], 2)
    assert (small.contender, large.contender) == ("100", "1000")
    assert last.note.startswith("grows with the power ")
