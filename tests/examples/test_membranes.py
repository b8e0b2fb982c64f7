"""The scores of `examples/membranes.py`, worked out by hand for a network that sees no membrane."""

import re
import runpy
from pathlib import Path

import pytest

from fcn_jax.config import load
from fcn_jax.data.datasets import open_dataset
from fcn_jax.inference.trained import Predictor
from fcn_jax.models.build import init_model
from tests.data.test_isbi import settings, write_slices
from tests.fake_devices import ROOT


def pairs(*cells: int) -> int:
    """Pairs of pixels that share a cell, of cells with so many pixels."""
    return sum(count * (count - 1) // 2 for count in cells)


def test_it_scores_pixels_and_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slices(tmp_path / "raw")
    config = load(ROOT / "configs/isbi_unet.py")
    config.data = settings(tmp_path / "raw", tmp_path)
    config.model.features = (2, 3)
    dataset = open_dataset(config.data)
    # Score layers start at zero, so every pixel is of the first class, a cell.
    model = init_model(config.model, dataset.num_classes, seed=0)
    predictor = Predictor.from_model(model, config=config, label_maps=dataset.label_maps)
    predictor.save(tmp_path / "untrained.safetensors")
    arguments = [tmp_path / "untrained.safetensors", tmp_path / "raw"]
    monkeypatch.setattr("sys.argv", ["membranes.py", *map(str, arguments)])
    monkeypatch.setenv("FCN_JAX_DATA", str(tmp_path / "prepared"))
    runpy.run_path(str(ROOT / "examples/membranes.py"))
    numbers = [float(n) for n in re.findall(r"[ (](\d\.\d{4})", capsys.readouterr().out)]
    # Slices of 16×20 pixels. In slice n the membrane is column n, between cells of n and 19 − n
    # columns, which the network merges.
    merged = [
        2 * pairs(16 * n, 16 * (19 - n)) / (pairs(16 * n, 16 * (19 - n)) + pairs(16 * 19))
        for n in range(6, 12)
    ]
    rand = sum(merged) / len(merged)
    assert numbers == pytest.approx([1 / 20, 0, 0, rand, rand], abs=1e-4)
