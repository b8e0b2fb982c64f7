"""The scripts and manifests in launch/, as far as they can be tested without their clusters."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fcn_jax.data import shapes
from tests.own_folder import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = [*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"]

FAKE_GCLOUD = r"""#!/usr/bin/env bash
# Records its calls. The connection of the first slice is lost, and the slice is then suspended.
printf '%s\n' "$*" >> "$FAKE/calls"
made=$(grep -c 'queued-resources create' "$FAKE/calls")
case "$*" in
    *describe*) [ "$made" -eq 1 ] && [ -e "$FAKE/lost" ] && echo SUSPENDED || echo ACTIVE;;
    *cat\ status*) if [ "$made" -eq 1 ]; then touch "$FAKE/lost"; exit 255; fi; exit "$STATUS";;
esac
"""


def tpu_vm(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {"ZONE": "us-west4-a", "BUCKET": "mine", **environment}
    return subprocess.run(
        ["bash", LAUNCH / "tpu_vm.sh", *arguments],
        env={**os.environ, **variables, "PATH": f"{folder}:{os.environ['PATH']}"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls_of(folder: Path, status: int) -> tuple[int, list[str]]:
    """Runs tpu_vm.sh against a fake gcloud whose second slice ends the training with a status."""
    (folder / "gcloud").write_text(FAKE_GCLOUD)
    (folder / "sleep").write_text("#!/bin/sh\n")
    for name in ("gcloud", "sleep"):
        (folder / name).chmod(0o755)
    ended = tpu_vm(folder, "slice", "v5litepod-16", FAKE=str(folder), STATUS=str(status))
    calls = (folder / "calls").read_text().splitlines()
    steps = [re.search(r"create|delete|scp|fcn_jax\.train|cat status", call) for call in calls]
    return ended.returncode, [step[0] for step in steps if step]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_bash_and_shellcheck_finds_nothing(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    if shutil.which("shellcheck") and script.name != "install.sh":  # which has no shell of its own
        checked = subprocess.run(
            ["shellcheck", "--exclude=SC1091", script], capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stdout


def test_a_launcher_is_short_and_begins_with_its_usage() -> None:
    for path in LAUNCH.iterdir():
        if path.is_file():
            lines = path.read_text().splitlines()
            assert len(lines) <= 40, path.name
            assert any(path.stem in line for line in lines[:7]) or len(lines) < 15, path.name


def test_a_dry_run_prints_every_command_and_runs_none(tmp_path: Path) -> None:
    ended = tpu_vm(
        tmp_path, "slice", "v5litepod-16", "--workdir=/gcs/it's mine", DRY_RUN="1", VERSION="image"
    )
    assert ended.returncode == 0, ended.stderr
    commands = ended.stderr.splitlines()
    assert all(command.startswith("gcloud compute tpus ") for command in commands)
    assert [command.split()[3:5] for command in commands] == [
        ["queued-resources", "create"],
        ["tpu-vm", "ssh"],
        ["tpu-vm", "scp"],
        ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"],
        ["queued-resources", "delete"],
    ]
    assert "--spot --runtime-version=image --zone=us-west4-a" in commands[0]


def test_the_host_gets_the_arguments_as_they_were_given(tmp_path: Path) -> None:
    given = ["--workdir=/gcs/it's mine", "--config.init=a $HOME \\ b"]
    ended = tpu_vm(tmp_path, "slice", "v5litepod-16", *given, DRY_RUN="1")
    (line,) = (line for line in ended.stderr.splitlines() if "fcn_jax.train" in line)
    command = subprocess.run(
        ["bash", "-c", f'arguments=({line}); printf %s "${{arguments[7]}}"'],
        capture_output=True,
        text=True,
    ).stdout
    assert command.startswith("--command=")
    (tmp_path / "fcn_jax").mkdir()
    (tmp_path / "python3").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 7\n')
    (tmp_path / "python3").chmod(0o755)
    host = command.removeprefix("--command=").replace("2>&1 &)", "2>&1)")  # in the foreground
    subprocess.run(
        ["bash", "-c", host],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert (tmp_path / "fcn_jax/log").read_text().splitlines() == ["-m", "fcn_jax.train", *given]
    assert (tmp_path / "fcn_jax/status").read_text() == "7\n"


def test_a_preempted_slice_is_queued_again_and_the_training_resumed(tmp_path: Path) -> None:
    each = ["create", "scp", "fcn_jax.train", "cat status"]
    assert calls_of(tmp_path, status=0) == (0, [*each, "delete", *each, "delete"])


def test_a_slice_whose_training_failed_is_kept(tmp_path: Path) -> None:
    each = ["create", "scp", "fcn_jax.train", "cat status"]
    assert calls_of(tmp_path, status=1) == (1, [*each, "delete", *each])


def test_the_manifests_are_complete() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    jobset, predict = yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (hosts,) = jobset["spec"]["replicatedJobs"]
    job: Any = hosts["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    # JobSet's names of pods: JOBSET-JOB-index of the job-index of the pod.JOBSET
    coordinator = f"{jobset['metadata']['name']}-{hosts['name']}-0-0.{jobset['metadata']['name']}"
    assert f"--coordinator={coordinator}:" in container["args"][0]
    assert f"--num_processes={job['completions']} " in container["args"][0]
    spec = predict["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert f"--shard=$JOB_COMPLETION_INDEX/{spec['completions']} " in container["args"][0]
    for each in (job, spec):
        assert each["completionMode"] == "Indexed"
        assert each["parallelism"] == each["completions"]
        pod = each["template"]["spec"]
        assert pod["restartPolicy"] == "Never"
        mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_image_is_built_from_what_is_there() -> None:
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY")]
    sent = (LAUNCH / "Dockerfile.dockerignore").read_text()
    for name in (name for names in copied for name in names):
        assert (ROOT / name).exists()
        assert f"\n!{name}\n" in sent
    for extra, expected in (("", "."), ("cuda", ".[cuda]")):
        command = 'printf %s ".${EXTRA:+[$EXTRA]}"'
        assert command.split()[-1] in "\n".join(lines)
        shown = subprocess.run(["sh", "-c", command], env={"EXTRA": extra}, capture_output=True)
        assert shown.stdout.decode() == expected
    extras = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", extras, re.MULTILINE) for extra in ("cuda", "tpu"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_ray_killed_in_the_middle_predicts_only_what_is_missing(
    trained_run: Path, tmp_path: Path
) -> None:
    names = [f"{'sub/' if index % 2 else ''}x{index:02}.png" for index in range(24)]
    for index, name in enumerate(names):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        image, _ = shapes.draw(f"val_{index:03}")
        Image.fromarray(image).save(tmp_path / "images" / name)
    (tmp_path / "images/cut.jpg").write_bytes(b"no image")

    def start() -> subprocess.Popen[str]:
        command = [
            sys.executable,
            LAUNCH / "ray_predict.py",
            trained_run,
            tmp_path / "out",
            "2",
            "0",
        ]
        process = subprocess.Popen(
            command,
            cwd=tmp_path / "images",
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write("\n".join([*names, "cut.jpg"]))
        process.stdin.close()
        return process

    def written() -> dict[str, int]:
        paths = (tmp_path / "out").rglob("*.png")
        return {str(x.relative_to(tmp_path / "out")): x.stat().st_mtime_ns for x in paths}

    killed = start()
    deadline = time.monotonic() + 120
    while len(written()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    time.sleep(3)  # the actors notice that their driver is gone
    before = written()
    assert 3 <= len(before) < len(names)
    again = start()
    assert again.stdout is not None
    shown = again.stdout.read()
    assert again.wait() == 1, shown  # one image is damaged
    after = written()
    assert sorted(after) == sorted(names)
    assert {name: after[name] for name in before} == before
    assert "24 up to date" in shown
    assert "1 failed: " in shown
