"""Faults of a run in two processes: after each, the same command ends in the same bits.

    FAULTS=30 python -m pytest tests/faults -s

$FAULTS is the number of kills at random moments. 30 of them take about ten minutes on two cores, so
they are not run by default. All processes must have the same number of cores throughout (no
`taskset` for some): XLA sums in another order with another number of threads.
"""

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from fcn_jax.config import import_code
from fcn_jax.inference.trained import load_run
from fcn_jax.training.checkpoint import CheckpointReader
from tests.cluster import TINY, run, settings, start_each, write_uneven_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "FAULTS" not in os.environ, reason="asked for by FAULTS=30 python -m pytest tests/faults"
    ),
]

STEPS = 150
SECONDS = 240
"""No process takes longer to end, even on a busy machine."""

SILENCE = "--silence_seconds=5"
KINDS = [
    (number, which)
    for number in (signal.SIGTERM, signal.SIGKILL)
    for which in ("process 0", "process 1", "all")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import_code(str(TINY))
    folder = tmp_path_factory.mktemp("faults")
    write_uneven_folder(folder / "data")
    return folder


def command(folder: Path, name: str) -> list[str]:
    own = settings(
        folder, train__steps=STEPS, train__eval_every_steps=50, train__checkpoint_every_steps=15
    )
    return [*own, SILENCE, f"--workdir={folder / name}"]


@pytest.fixture(scope="module")
def seconds(folder: Path) -> float:
    """Time of the uninterrupted run in `folder/whole` from its lock to its end."""
    started = start_each(2, *command(folder, "whole"))
    locked = await_lock(folder / "whole")
    for process in started:
        process.communicate()
        assert process.returncode == 0
    return time.monotonic() - locked


def await_lock(workdir: Path) -> float:
    while not (workdir / "train.lock").exists():
        time.sleep(0.01)
    return time.monotonic()


def ends(started: list[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    """Returns what processes have printed; if they hang, fails with the stacks of their threads."""
    try:
        return [process.communicate(timeout=SECONDS) for process in started]
    except subprocess.TimeoutExpired:
        for process in started:
            process.send_signal(signal.SIGABRT)
        pytest.fail("\n".join("\n".join(process.communicate()) for process in started))


def check_same(folder: Path, name: str) -> None:
    once, again = load_run(folder / "whole"), load_run(folder / name)
    assert once.step == again.step == STEPS
    jax.tree.map(np.testing.assert_array_equal, once.variables, again.variables)
    assert log(folder / "whole") == log(folder / name)


def log(workdir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key != "images_per_second"} for line in lines
    ]


def test_kills_at_random_moments(folder: Path, seconds: float) -> None:
    chance = random.Random(0)
    kinds = itertools.cycle(KINDS)
    runs = itertools.count()
    name, kills, slowest, saved = f"run {next(runs)}", 0, 0.0, 0
    while kills < int(os.environ["FAULTS"]):
        number, which = next(kinds)
        (folder / name / "train.lock").unlink(missing_ok=True)
        started = start_each(2, *command(folder, name))
        locked = await_lock(folder / name)
        time.sleep(chance.uniform(0, seconds))
        moment = time.monotonic()
        struck = started if which == "all" else [started[int(which[-1])]]
        before = CheckpointReader(folder / name / "checkpoints").latest or 0
        for process in struck:
            process.send_signal(number)
        outputs = ends(started)
        slowest = max(slowest, time.monotonic() - moment)
        statuses = [process.returncode for process in started]
        resumed = re.search(r"resumed from step (\d+)", outputs[0][0])
        has_begun = (
            f"· {STEPS} steps" in outputs[0][0]
        )  # otherwise it was struck before it could say
        since = int(resumed[1]) if resumed else 0 if has_begun else saved
        latest = CheckpointReader(folder / name / "checkpoints").latest or 0
        print(
            f"{kills + 1}: {number.name} to {which} after {moment - locked:.1f} s: {statuses}, "
            f"from step {since}, saved {latest}, ended in {time.monotonic() - moment:.1f} s"
        )
        assert since >= saved, "an older checkpoint was used"
        assert latest >= before
        if latest < STEPS and number == signal.SIGTERM:
            assert set(statuses) == {128 + signal.SIGTERM}, outputs
        if latest == STEPS:  # the signal came in the last evaluation, or later
            if any(statuses):
                finish(folder, name)
            check_same(folder, name)
            name, saved = f"run {next(runs)}", 0
        else:
            assert 0 not in statuses, outputs
            saved = latest
            kills += 1
    finish(folder, name)
    print(f"{kills} kills, the slowest end took {slowest:.1f} s")


def struck(folder: Path, name: str, fault: str) -> tuple[list[int], list[str], float]:
    """Runs with a fault; returns the statuses, what was printed as errors, and the time."""
    started = start_each(2, *command(folder, name), fault=fault)
    begin = time.monotonic()
    errors = [output[1] for output in ends(started)]
    return [process.returncode for process in started], errors, time.monotonic() - begin


def finish(folder: Path, name: str) -> str:
    ended = run(2, *command(folder, name))
    assert ended.returncode == 0, ended.stderr
    check_same(folder, name)
    return ended.stdout


@pytest.mark.parametrize("process", ["0", "1", "all"])
def test_a_full_disk(process: str, folder: Path, seconds: float) -> None:
    name = f"full {process}"
    statuses, errors, _ = struck(folder, name, f"70:FULL:{process}")
    print(statuses, errors)
    assert statuses == [1, 1]
    finish(folder, name)


def test_a_stuck_process(folder: Path, seconds: float) -> None:
    statuses, errors, _ = struck(folder, "stuck", "70:STUCK:1")
    print(statuses, errors)
    assert statuses == [1, 1]
    assert "takes more than 10 s: stuck" in errors[0]
    assert "tiny.py" in errors[1]  # where it stood
    finish(folder, "stuck")


def test_a_frozen_process(folder: Path, seconds: float) -> None:
    started = start_each(2, *command(folder, "frozen"), fault="70:STOP:1")
    begin = time.monotonic()
    _, errors = started[0].communicate(timeout=120)
    print(f"{time.monotonic() - begin:.1f} s", errors)
    assert started[0].returncode == 1
    assert "process 1 has not answered for 5 s" in errors
    started[1].kill()
    started[1].communicate()
    finish(folder, "frozen")


def test_a_host_that_never_comes(folder: Path) -> None:
    arguments = [*command(folder, "alone"), "--num_processes=2", "--process_id=0"]
    begin = time.monotonic()
    ended = run(1, *arguments, timeout=90)
    print(f"{time.monotonic() - begin:.1f} s", ended.stderr)
    assert ended.returncode == 1
    assert "process 0: not all 2 processes have come within 50 s" in ended.stderr


def truncate(newest: Path) -> None:
    largest = max(newest.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    os.truncate(largest, largest.stat().st_size // 2)


def take_away(newest: Path) -> None:
    """The rights of a folder do not bind root, so its place is taken by a file."""
    shutil.rmtree(newest / "model")
    (newest / "model").touch()


@pytest.mark.parametrize("damage", [truncate, take_away])
def test_a_damaged_checkpoint(damage: Any, folder: Path, seconds: float) -> None:
    name = damage.__name__
    statuses, _, _ = struck(folder, name, "70:TERM:1")
    assert statuses == [143, 143]
    checkpoints = CheckpointReader(folder / name / "checkpoints")
    newest, older = checkpoints.steps[-1], checkpoints.steps[-2]
    damage(folder / name / f"checkpoints/{newest}")
    said = finish(folder, name)
    assert f"training continues from step {older}: steps {older + 1} to {newest} are lost" in said
