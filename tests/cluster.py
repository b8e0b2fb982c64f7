"""Runs commands in several processes on this machine, as `launch/cluster_cpu.sh` does."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.own_folder import ROOT, write_folder

TINY = ROOT / "tests/parallel/tiny.py"


def write_uneven_folder(root: Path) -> None:
    """Writes a folder data set of five training and three validation images."""
    names = [f"train_{n:03}" for n in range(8)]
    write_folder(root, names)
    (root / "train.txt").write_text("".join(f"{name}\n" for name in names[:5]))
    (root / "val.txt").write_text("".join(f"{name}\n" for name in names[5:]))


def settings(folder: Path, **changes: Any) -> list[str]:
    """Returns the flags of a run of the tiny network on a folder's `data`."""
    values = {
        "data.name": "folder",
        "data.root": folder / "data",
        "data.prepared_dir": folder / "prepared",
        "augment.crop_px": "64,64",
        "model.backbone": "tiny",
        "model.skips": 1,
        "optim.warmup_steps": 0,
        "train.batch_size": 4,
        "train.steps": 12,
        "train.eval_every_steps": 8,
        "train.checkpoint_every_steps": 4,
        "train.log_every_steps": 1,
        "eval.canvases": 1,
    } | {name.replace("__", "."): value for name, value in changes.items()}
    return [f"--import={TINY}", *(f"--config.{name}={value}" for name, value in values.items())]


def environment(devices: int = 1, fault: str = "") -> dict[str, str]:
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0",
        "PYTHONPATH": str(ROOT),
        "VIRTUAL_ENV": sys.prefix,
        "DEVICES": str(devices),
        "PYTHONFAULTHANDLER": "1",  # SIGABRT prints the stacks of a process that hangs
        **({"FAULT": fault} if fault else {}),
    }


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_each(count: int, *arguments: str | Path, **where: Any) -> list[subprocess.Popen[str]]:
    """Starts `python -m fcn_jax.train` in several processes."""
    port = free_port()
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "fcn_jax.train", *map(str, arguments)),
                *(f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"),
                f"--process_id={process}",
            ],
            cwd=ROOT,
            env=environment(**where),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(count)
    ]


def run(
    count: int, *arguments: str | Path, timeout: float = 200, **where: Any
) -> subprocess.CompletedProcess[str]:
    """Runs `launch/cluster_cpu.sh COUNT ARGUMENTS`, and kills all of it after the timeout."""
    started = subprocess.Popen(
        [ROOT / "launch/cluster_cpu.sh", str(count), *map(str, arguments)],
        cwd=ROOT,
        env=environment(**where),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        stdout, stderr = started.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        for _ in range(2):  # the second one ends at once
            started.send_signal(signal.SIGINT)
            time.sleep(1)
        started.communicate(timeout=timeout)
        raise
    return subprocess.CompletedProcess(started.args, started.returncode, stdout, stderr)
