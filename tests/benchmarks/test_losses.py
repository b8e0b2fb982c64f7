"""The table of losses: its runs' settings, and its numbers by hand."""

import json
from pathlib import Path

import pytest

from benchmarks.losses import LOSSES, table
from fcn_jax.config import Config, override
from fcn_jax.training.losses import build_losses


@pytest.mark.parametrize("name", LOSSES)
def test_the_settings_of_each_loss_can_be_used(name: str) -> None:
    config = Config()
    for key, value in LOSSES[name].items():
        override(config, f"loss.{key}", value.format(fifth=100))
    build_losses(config.loss, ("",), {})


def test_the_table_by_hand(tmp_path: Path) -> None:
    runs = {
        "cross_entropy-0": (0.14, 0.80, 0.2, 100),
        "dice-0": (0.10, 0.70, 0.3, 130),
        "dice-1": (0.12, 0.74, 0.5, 150),
        "dice_per_image-0": (0.2, 0.5, 1.0, 90),
    }
    for run, (mean_iou, accuracy, seconds, mib) in runs.items():
        (tmp_path / run).mkdir()
        scores = {"kind": "eval", "mean_iou": mean_iou, "pixel_accuracy": accuracy}
        (tmp_path / run / "log.jsonl").write_text("{}\n" + json.dumps(scores) + "\n")
        cost = {"cpu_seconds_per_step": seconds, "peak_bytes": mib << 20}
        (tmp_path / run / "cost.json").write_text(json.dumps(cost))
    (tmp_path / "focal-0").mkdir()  # not finished
    _, _, *rows = table(tmp_path).splitlines()
    assert rows == [
        "| cross_entropy | 14.0 % | 80.0 % | 0.20 | 100 MiB (+0) |",
        "| dice | 11.0 % (10.0 to 12.0) | 72.0 % (70.0 to 74.0) | 0.40 | 140 MiB (+40) |",
        "| dice_per_image | 20.0 % | 50.0 % | 1.00 | 90 MiB (-10) |",
    ]
