"""The shell blocks of the README and of docs/ run.

Those that need a trained network and seconds run always, on the tiny run of all tests: bash runs
the block, and its `python` hands the arguments to this process, which saves starting JAX each time.
COMMANDS=all runs the slow ones too, on real data where ../shared/data has it, with fewer steps:

    COMMANDS=all python -m pytest tests/test_commands.py
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data import shapes
from tests.in_process import run_command
from tests.own_folder import ROOT, write_folder
from tests.test_docs import PAGES, blocks

SHARED = ROOT.parent / "shared" / "data"

NOT_RUN = {
    "launch/local.sh": "installs into .venv; the checks run the second line",
    "python -m fcn_jax.serve": "serves until it is stopped; tests/serve starts it",
    "pip install -e '.[serve]'": "serves until it is stopped; tests/serve starts it",
    "pip install -e '.[compile]'": "needs libtpu; tests/test_compile.py",
    "python -m fcn_jax.serve --demo=digits": "serves until it is stopped; "
    "tests/serve/test_digits.py",
    "python -m fcn_jax.predict --workdir=runs/a,runs/b,runs/c": "needs a network with dropout; "
    "tests/inference/test_uncertainty.py",
    "sbatch": "needs Slurm; tests/test_launch.py",
    "docker build": "needs Docker and a cluster",
    "DRY_RUN=1 ZONE=": "needs Google Cloud; tests/test_launch.py",
    "cd images; find": "needs Ray; tests/test_launch.py",
    "launch/cluster_cpu.sh": "starts several processes; tests/parallel/test_hosts.py",
    'python -m pytest -m ""': "the tests themselves",
    "FAULTS=30": "takes many minutes; tests/faults",
    "python -m benchmarks --against": "takes many minutes; tests/benchmarks",
    "python -m benchmarks.losses": "trains for half an hour",
    "python -m benchmarks.load_serve": "starts a server; tests/serve",
    "python -m fcn_jax.pretrained fcn_resnet50_coco.pth": "needs weights of 135 MB",
    "python -m fcn_jax.predict --workdir=runs/voc --output=submission": "needs VOC's test images; "
    "tests/inference/test_voc_server.py",
    "curl -L -o resnet18.pth": "downloads weights",
    "curl --data-binary": "needs a server; tests/serve/test_app.py",
    "python -m fcn_jax.train --config=configs/folder.py --config.data.root=mine --config.init": (
        "needs downloaded weights"
    ),
    "python -m fcn_jax.train --config=configs/folder.py --config.data.name=oxford_iiit_pet": (
        "downloads 800 MB"
    ),
    "python -m fcn_jax.train --config=my_config.py": "the page's other blocks are my_config.py; "
    "tests/test_registry.py",
    "python -m fcn_jax.doctor --config=configs/folder.py --config.data.root=mine\ncurl": (
        "downloads weights"
    ),
}
"""Beginnings of blocks, and why they are not run."""

SLOW = (
    "python -m fcn_jax.train",
    "VOC=",
    "python -m fcn_jax.doctor --config=configs/folder.py --config.data.root=export",
    "python -m fcn_jax.doctor  --config.data.name=volumes",
    "python -m examples.upsampling_start",
)
"""Beginnings of the blocks that train."""

SHARD = "python -m fcn_jax.evaluate --workdir=runs/voc --shard="

BEFORE = {f"{SHARD}0/8": f"for i in {{1..7}}; do {SHARD}$i/8; done"}
"""Beginnings of blocks, and what their comments leave to the reader to run first."""

RUNS = ("voc", "mine", "shapes", "fcn32s", "fcn8s", "a", "b", "c")
"""Names of the runs in the blocks."""

SHORT = (
    "--config.train.steps=2",
    "--config.train.batch_size=2",
    "--config.train.eval_every_steps=2",
    "--config.eval.canvases=1",
)
"""Settings that are added to every training."""

CLIENT = """#!{python} -SEs
import json, socket, sys
with socket.create_connection(("127.0.0.1", {port})) as connection:
    with connection.makefile("rw") as file:
        file.write(json.dumps(sys.argv[1:]) + chr(10))
        file.flush()
        answer = json.loads(file.readline())
sys.stdout.write(answer["stdout"])
sys.stderr.write(answer["stderr"])
sys.exit(answer["status"])
"""

SHORTENED = """#!/bin/bash
case "$2" in fcn_jax.train) exec {python} "$@" {short};; *) exec {python} "$@";; esac
"""


def begins(block: str, beginnings: Iterable[str]) -> str | None:
    """Returns the longest beginning of a block among some, whatever the spaces; None without."""
    joined = " ".join(block.replace("\\\n", " ").split())
    found = [one for one in beginnings if joined.startswith(" ".join(one.split()))]
    return max(found, key=len, default=None)


BLOCKS = {
    f"{page.name}: {block.partition(' #')[0].splitlines()[0].rstrip()}": block
    for page in PAGES
    for block in blocks(page, "bash")
}


def is_slow(block: str) -> bool:
    return begins(block, SLOW) is not None


RUN = {name: block for name, block in BLOCKS.items() if begins(block, NOT_RUN) is None}
FAST_NAMES = [name for name, block in RUN.items() if not is_slow(block)]
SLOW_NAMES = [name for name, block in RUN.items() if is_slow(block)]


@pytest.fixture
def folder(tmp_path: Path, trained_run: Path) -> Path:
    """A folder with what the blocks name: runs, photos, a scene, images of one's own."""
    for name in ("configs", "examples", "launch", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in RUNS:
        shutil.copytree(trained_run, tmp_path / "runs" / name)
    write_folder(tmp_path / "mine", [f"train_{number:03}" for number in range(12)])
    photo = Image.fromarray(shapes.draw("val_000")[0]).resize((160, 120))
    for name in ("photo.jpg", "photos/a.jpg", "photos/b.png", "more/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo.save(tmp_path / name)
    Image.fromarray(np.asarray(photo)).save(tmp_path / "scene.tif")
    (tmp_path / "bin").mkdir()
    return tmp_path


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def requests(listening: socket.socket, shell: subprocess.Popen[bytes]) -> Iterator[socket.socket]:
    """Yields the connections of `CLIENT` until the shell has ended."""
    listening.settimeout(0.05)
    while shell.poll() is None:
        try:
            yield listening.accept()[0]
        except TimeoutError:
            continue


def run_in_bash(block: str, folder: Path, output: Path) -> int:
    """Runs a block; each `python -m fcn_jax.NAME` runs in this process. Returns the status."""
    with socket.create_server(("127.0.0.1", 0)) as listening, output.open("wb") as file:
        port = listening.getsockname()[1]
        write_program(folder / "bin/python", CLIENT.format(python=sys.executable, port=port))
        path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        shell = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=folder,
            env={**os.environ, "PATH": path},
            stdout=file,
            stderr=file,
        )
        for connection in requests(listening, shell):
            with connection, connection.makefile("rw") as stream:
                flag, module, *arguments = json.loads(stream.readline())
                assert flag == "-m"
                ended = run_command(module.removeprefix("fcn_jax."), *arguments)
                answer = {
                    "status": ended.returncode,
                    "stdout": ended.stdout,
                    "stderr": ended.stderr,
                }
                stream.write(json.dumps(answer) + "\n")
        return shell.wait()


@pytest.mark.parametrize("name", FAST_NAMES, ids=FAST_NAMES)
def test_a_block_runs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    block = BLOCKS[name]
    if (first := begins(block, BEFORE)) is not None:
        block = f"{BEFORE[first]}\n{block}"
    if "--tile" in block:
        pytest.importorskip("rasterio", reason="rasterio is not installed")
    output = folder / "output.txt"
    status = run_in_bash(block, folder, output)
    assert status == 0, f"{output.read_text()}\n(what cannot run here is listed in NOT_RUN)"


@pytest.mark.skipif(os.environ.get("COMMANDS") != "all", reason="COMMANDS=all runs slow blocks")
@pytest.mark.parametrize("name", SLOW_NAMES, ids=SLOW_NAMES)
def test_a_slow_block_runs(name: str, folder: Path) -> None:
    """Each command is a process of its own; training is shortened to two steps."""
    block = BLOCKS[name]
    for link, place in (
        ("VOCdevkit", "VOCdevkit"),
        ("isbi2012", "isbi2012"),
        ("squeezenet1_1.npz", "weights/squeezenet1_1_imagenet.npz"),
        ("DIR", "hippocampus"),
        ("FOLDER_OF_IMAGES", "hippocampus/images"),
    ):
        if link in block:
            if not (SHARED / place).exists():
                pytest.skip(f"there is no {SHARED / place}")
            (folder / link).symlink_to(SHARED / place)
    if "root=export" in block:
        (folder / "mine").rename(folder / "export")
    shutil.rmtree(folder / "runs")  # which the block trains
    program = SHORTENED.format(python=sys.executable, short=" ".join(SHORT))
    write_program(folder / "bin/python", program)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]


def test_every_reason_is_of_a_block() -> None:
    for reasons in (NOT_RUN, SLOW, BEFORE):
        for beginning in reasons:
            assert any(begins(block, (beginning,)) for block in BLOCKS.values()), beginning
