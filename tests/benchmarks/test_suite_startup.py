"""Starts of programs; the training is a stand-in that caches programs and logs steps."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import suite_startup
from benchmarks.measuring import run_case
from benchmarks.settings import Settings

TRAINING = """
import os, pathlib, signal, sys, time
home = pathlib.Path(os.environ["HOME"])
workdir = pathlib.Path(sys.argv[1].removeprefix("--workdir="))
begun = workdir.exists()
assert begun == (workdir / "checkpoint").exists()
def save(*_):
    (workdir / "checkpoint").touch()
    sys.exit()
signal.signal(signal.SIGTERM, save)
cache = home / ".cache/fcn_jax/compiled/this-machine"
cache.mkdir(parents=True, exist_ok=True)
for program in ["step", "evaluation", "init", *(["restore"] if begun else [])]:
    (cache / f"{program}-cache").touch()
workdir.mkdir(exist_ok=True)
with (workdir / "log.jsonl").open("a") as log:
    log.write('{"kind": "train"}\\n')
time.sleep(60)
"""


def test_imports_and_help_are_started(settings_with_torch: Settings) -> None:
    imports, helps, *_ = suite_startup.cases(settings_with_torch)
    assert list(imports.build()) == ["fcn_jax", "jax", "torch"]
    rows = run_case("startup", helps, 1)
    assert [(row.unit, row.median is not None) for row in rows] == [("s", True)]


def test_a_second_start_finds_its_programs_and_a_resumed_one_continues(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite_startup, "TRAIN", (sys.executable, "-c", TRAINING))
    monkeypatch.setattr(suite_startup, "open_dataset", lambda data: None)
    *_, seconds, compiled = suite_startup.cases(settings)
    rows = run_case("startup", seconds, 2)
    assert [(row.contender, row.repeats) for row in rows] == [
        ("first start", 2),
        ("second start", 2),
        ("resumed", 2),
    ]
    assert all(0 < row.median < 60 for row in rows)  # type: ignore[operator]
    rows = run_case("startup", compiled, 1)
    assert [(row.unit, row.median) for row in rows] == [
        ("programs", 3),
        ("programs", 0),
        ("programs", 1),
    ]


def test_a_training_that_ends_at_once_is_reported(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite_startup, "TRAIN", ("false",))
    monkeypatch.setattr(suite_startup, "open_dataset", lambda data: None)
    *_, training, _ = suite_startup.cases(settings)
    rows = run_case("startup", training, 1)
    assert [row.note for row in rows] == ["not measured: training ended with 1: "] * 3


def test_training_knows_the_flags_that_it_is_started_with(tmp_path: Path) -> None:
    flags = [f"--workdir={tmp_path}", *suite_startup.flags_of_training(), "--help"]
    ended = subprocess.run([*suite_startup.TRAIN, *flags], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
