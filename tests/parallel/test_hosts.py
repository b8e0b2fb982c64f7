"""Two real processes that train and evaluate together, and what happens if one is stopped."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from fcn_jax.config import import_code
from fcn_jax.errors import ArgumentError
from fcn_jax.evaluate import evaluate
from fcn_jax.evaluation.report import report
from fcn_jax.inference.options import Inference
from fcn_jax.inference.trained import load_run
from fcn_jax.parallel import hosts
from fcn_jax.training.checkpoint import CheckpointReader
from tests.cluster import TINY, environment, free_port, run, settings, write_uneven_folder
from tests.own_folder import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, and with the run `whole` of one process with two devices."""
    import_code(str(TINY))
    folder = tmp_path_factory.mktemp("hosts")
    write_uneven_folder(folder / "data")
    ended = run(1, *settings(folder), f"--workdir={folder}/whole", devices=2)
    assert ended.returncode == 0, ended.stderr
    assert "2 × cpu · 12 steps" in ended.stdout
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """A run of two processes of which one gets SIGTERM, and its continuation: `folder/two`."""
    command = [*settings(folder), f"--workdir={folder}/two"]
    return [run(2, *command, fault="5:TERM:1"), run(2, *command)]


def log(workdir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key != "images_per_second"} for line in lines
    ]


def test_a_signal_to_one_process_stops_both_after_the_same_step(folder, runs):
    stopped, resumed = runs
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    step = int(stopped.stdout.split("stopped and saved at step ")[1].split()[0])
    assert step in (5, 6)
    assert f"12 steps, resumed from step {step}" in resumed.stdout


def test_two_processes_end_in_the_bits_of_one_with_two_devices(folder, runs):
    assert runs[1].returncode == 0, runs[1].stderr
    assert log(folder / "two") == log(folder / "whole")
    assert CheckpointReader(folder / "two/checkpoints").steps == [8, 12]
    whole, two = (load_run(folder / name) for name in ("whole", "two"))
    jax.tree.map(np.testing.assert_array_equal, whole.variables, two.variables)


def test_process_0_alone_prints_and_writes(folder, runs):
    for ended in runs:
        assert ended.stdout.count("2 hosts × 1 devices (cpu) · 12 steps") == 1
    assert runs[1].stdout.count("step 12: mIoU") == 1
    assert runs[1].stderr.count("training: 12/12 steps") == 1


def test_two_processes_evaluate_as_one(folder, runs, tmp_path):
    """Whole images, which training has scored, and views with boundaries: to the last digit."""
    workdir = folder / "two"
    ended = run(
        2, "evaluate", f"--import={TINY}", f"--workdir={workdir}", "--boundary", "--scales=0.5"
    )
    assert ended.returncode == 0, ended.stderr
    scaled = Inference(scales=(0.5,))
    for stem, evaluation in (
        ("val", evaluate(workdir, examples=True)),
        ("val_scales_0.5", evaluate(workdir, inference=scaled, boundary=True, examples=True)),
    ):
        report(evaluation, tmp_path, stem, step=12)
        (numbers, *others), (of_two, *same) = results(tmp_path, stem), results(workdir, stem)
        assert others == same
        one, two = numbers.pop("calibration"), of_two.pop("calibration")
        assert numbers == of_two
        # A whole number of pixels in each bin; float32 rounds confidences by the batch's size.
        assert sum(two["pixels"]) == sum(one["pixels"])
        assert two["pixels"] == pytest.approx(one["pixels"], abs=3)
        assert two["ece"] == pytest.approx(one["ece"], abs=1e-6)


def results(
    workdir: Path, stem: str
) -> tuple[dict[str, Any], bytes, dict[str, list[Any]], list[str]]:
    """Returns what an evaluation wrote: numbers, sheet, counts of images, pictures of the page."""
    folder = workdir / "evaluation"
    with np.load(folder / f"{stem}_images.npz") as counts:
        arrays = {name: counts[name].tolist() for name in counts}
    numbers = json.loads((folder / f"{stem}.json").read_text())
    page = (folder / f"{stem}_report.html").read_text(encoding="utf-8")
    pictures = re.findall('(?:<figcaption>|src=")[^<"]+', page)
    return numbers, (folder / f"{stem}_sheet.png").read_bytes(), arrays, pictures


def together(scenario: str) -> list[tuple[int, list[str], str]]:
    """Runs two workers; returns of each its status, the lines it printed, and its errors."""
    port = str(free_port())
    program = str(ROOT / "tests/parallel/host_worker.py")
    started = [
        subprocess.Popen(
            [sys.executable, program, "2", str(process), port, scenario],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in started]
    return [
        (process.returncode, [line for line in output.splitlines() if "[Gloo]" not in line], errors)
        for process, (output, errors) in zip(started, outputs, strict=True)
    ]


def test_processes_meet_agree_and_wait_for_each_other():
    (first, lines, _), (second, other_lines, _) = together("meet")
    assert (first, second) == (0, 0)
    assert lines[0] == other_lines[0] == "[0, 10] 2 hosts × 1 devices (cpu)"
    assert float(lines[1]) < float(other_lines[1])
    assert lines[2] == other_lines[2] == "[0, 0, 0, 15, 15]"


@pytest.mark.parametrize(
    ("scenario", "statuses", "line"),
    [
        ("differ", (1, 1), "seed is 1 in process 1 and 0 in process 0: start the same command"),
        ("raise", (1, 1), "process 1: the disk is full"),
        ("full 0", (1, 1), "could not save a checkpoint in"),
        ("full 1", (1, 1), "process 1: could not save a checkpoint in"),
        ("kill", (1, -signal.SIGKILL), "process 1 has ended without a reason"),
        ("term", (143, 143), "process 1: stopped by SIGTERM"),
    ],
)
def test_if_one_fails_all_end_with_one_line(scenario, statuses, line):
    ended = together(scenario)
    assert tuple(status for status, _, _ in ended) == statuses
    for status, _, errors in ended:
        if status != -signal.SIGKILL:
            assert errors.count(line) == 1
            assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"coordinator": "a:1"},
            r"num_processes \(=None\) must be given together with coordinator",
        ),
        (
            {"coordinator": "a", "num_processes": 2, "process_id": 0},
            r"coordinator \(=a\) must be HOST:PORT",
        ),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            r"process_id \(=2\) must be in 0…1",
        ),
    ],
)
def test_contradictory_arguments_are_refused(given, message):
    with pytest.raises(ArgumentError, match=message), hosts.joined(**given):
        pass


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, ""),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "2"}, ""),
        ({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_NUM_TASKS": "2"}, "Slurm"),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "1"}, ""),
        (
            {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "4"},
            "Open MPI",
        ),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "Cloud TPU"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ""),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, "Kubernetes"),
    ],
)
def test_one_task_alone_is_not_joined(variables, found, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hosts.surroundings() == found
