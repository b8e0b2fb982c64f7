"""The scores of `examples/membranes.py` are those of `evaluate`, and of the Rand F-score."""

import re
import runpy
from pathlib import Path

import pytest

from fcn_jax.config import load
from fcn_jax.train import train
from tests.data.test_isbi import settings, write_slices
from tests.fake_devices import ROOT


def test_it_scores_a_run_of_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slices(tmp_path / "raw")
    config = load(ROOT / "configs/isbi_unet.py")
    config.data = settings(tmp_path / "raw", tmp_path)
    config.augment.crop_px = (16, 16)
    config.model.features = (2, 3)
    config.train.steps = 2
    config.train.eval_every_steps = None
    scores = train(config, tmp_path / "run").scores
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["membranes.py", str(tmp_path / "run")])
    runpy.run_path(str(ROOT / "examples/membranes.py"))
    printed = capsys.readouterr().out
    numbers = [float(number) for number in re.findall(r" (0\.\d+|1\.0+)", printed)]
    assert len(numbers) == 5
    assert all(0 <= number <= 1 for number in numbers)
    assert numbers[0] == pytest.approx(1 - scores.pixel_accuracy, abs=1e-4)
    assert numbers[1] == pytest.approx(float(scores.per_class_iou[1]), abs=1e-4)
