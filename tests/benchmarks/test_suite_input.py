"""Iterations that read their images, and the loop that runs them."""

from typing import Any

import numpy as np
import pytest

from benchmarks import suite_input
from benchmarks.measuring import run_case
from benchmarks.settings import Settings


def test_iterations_are_compared_with_the_bare_step(settings: Settings) -> None:
    cases = suite_input.cases(settings)
    rows = [row for case in cases for row in run_case("input", case, 1)]
    bare, *fed, large, batches, one_by_one = rows
    assert [row.contender for row in (bare, *fed)] == [
        "bare step",
        "streaming",
        "on the device",
        "on the device, 2 steps a call",
    ]
    assert bare.median
    for row in fed:
        assert row.median
        assert row.ratio == row.median / bare.median
    assert bare.case == "tiny 32×32 batch 2 float32, FOLDER: an iteration"
    assert large.note == "not measured: no GPU (--all runs it nevertheless)"
    assert batches.images_per_second == pytest.approx(8 / batches.median)
    assert one_by_one.images_per_second


@pytest.mark.parametrize("at_once", [1, 2])
def test_the_loop_runs_every_step_and_waits_for_the_last(at_once: int) -> None:
    class Counting:
        def __init__(self) -> None:
            self.steps_per_call = at_once

        def __call__(self, state: int, steps: int) -> tuple[int, dict[str, Any]]:
            return state + steps, {"loss": np.float32(state)}

        def close(self) -> None: ...

    loop = suite_input.Loop(0)
    loop.run(Counting(), 4)
    loop.run(Counting(), 2)
    assert loop.state == 6
