import math
import os
import re
import subprocess
import sys

import fcn_jax
from tests.fake_devices import ROOT


def test_it_learns_and_predicts_an_image_of_an_odd_size(tmp_path):
    program = ROOT / "examples" / "own_loop.py"
    assert len(program.read_text().splitlines()) < 60
    run = subprocess.run(
        [sys.executable, str(program), "20"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    step, result = run.stdout.splitlines()
    loss = float(step.removeprefix("step 20: loss "))
    assert loss < math.log(6)  # the loss of zero score layers, with six classes
    assert re.fullmatch(r"val_000: 137 × 131 pixels, accuracy \d+\.\d%", result)
    saved = fcn_jax.load_run(tmp_path / "runs/own_loop.safetensors")
    record = fcn_jax.open_dataset("shapes").split("val")[0]
    accuracy = (saved(record["image"]) == record["label"])[record["label"] != 255].mean()
    assert result.endswith(f"accuracy {accuracy:.1%}")
    assert saved.step == 20
