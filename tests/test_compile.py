"""The command `fcn_jax.compile`."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from fcn_jax.data import shapes
from tests.in_process import run_command
from tests.own_folder import ROOT

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU's compiler, is not installed",
)


@needs_libtpu
def test_the_default_network_is_compiled_for_four_absent_chips() -> None:
    # A process of its own: libtpu starts threads, and the cache of compiled programs is off.
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "fcn_jax.compile", "--topology=v5e:2x2"),
            *("--config.augment.crop_px=64,64", "--config.model.skips=0", "--nolargest_batch"),
            *(f"--num_classes={len(shapes.CLASSES)}", "--config.train.batch_size=8"),
        ],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    shown = ended.stdout
    assert "64×64 px, 2 images a chip · 4 × v5e" in shown
    assert re.search(r"together, of 16\.9 +0\.\d\d", shown)
    # Gradients and BatchNorm's sums are exchanged: the parameters' bytes, at least.
    number, megabytes = re.search(r"all-reduce +(\d+) +\d+ +([\d.]+)", shown).groups()
    assert int(number) > 1
    assert float(megabytes) > 1
    assert "by the peaks of v5e, a step takes at least" in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "compile: --topology is needed, such as --topology=v5e:2x4"),
        (["--topology=v7:2x2"], "compile: --topology (=v7:2x2) must be CHIP:AxB"),
        (["--topology=v5e:2x2", "x"], "compile: unexpected argument 'x'"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JAX_PLATFORMS", "JAX_ENABLE_COMPILATION_CACHE"):  # which the command sets
        monkeypatch.setenv(name, os.environ.get(name, ""))
    ended = run_command("compile", *flags)
    assert ended.returncode == 1
    assert ended.stderr.startswith(message)
    assert len(ended.stderr.splitlines()) == 1


@needs_libtpu
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v5e:9x9"], "--topology (=v5e:9x9) cannot be used: INVALID_ARGUMENT"),
        (
            ["--topology=v5e:2x2", "--config.train.batch_size=10"],
            "config.train.batch_size (=10) does not divide over 4 chips; 8 would",
        ),
        (
            ["--topology=v5e:2x2", "--config.data.name=folder"],
            "(or --num_classes=N, to compile without the data set)",
        ),
    ],
)
def test_mistakes_that_need_the_compiler(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JAX_PLATFORMS", "JAX_ENABLE_COMPILATION_CACHE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    ended = run_command("compile", *flags)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
