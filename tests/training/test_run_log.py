"""The log of a run: what a resumed run keeps of it, and lines that are no entries."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fcn_jax.training.run_log import RunLog
from tests.full_disk import files_of_at_most


def entry(step: int) -> str:
    return json.dumps({"kind": "train", "step": step, "loss": 0.5}) + "\n"


FOREIGN = {
    "cut": b'{"kind": "train", "st\n',
    "no step": b'{"kind": "train"}\n',
    "text step": b'{"step": "3"}\n',
    "number": b"5\n",
    "list": b"[1, 2]\n",
    "remark": "# lowered the learning rate, Jürgen\n".encode("latin-1"),
    "zeros": b"\0" * 40 + b"\n",
    "nested": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_line_that_is_no_entry_is_moved_with_a_note(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(entry(1).encode() + FOREIGN[kind] + entry(2).encode() + entry(3).encode())
    with RunLog(tmp_path, 2) as log:
        log.write("train", 3, {"loss": 0.25})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.5), (2, 0.5), (3, 0.25)]
    assert (tmp_path / "log.jsonl.damaged").read_bytes() == FOREIGN[kind]
    assert capsys.readouterr().out == (
        f"note: 1 lines of {path} cannot be read: moved to {path}.damaged\n"
    )
    with RunLog(tmp_path, 3):
        pass
    assert capsys.readouterr().out == ""


def test_a_last_line_without_its_end_is_completed(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(entry(1) + entry(2).rstrip())
    with RunLog(tmp_path, 2) as log:
        log.write("train", 3, {"loss": 0.5})
    assert (tmp_path / "log.jsonl").read_text() == entry(1) + entry(2) + entry(3)


def test_the_log_knows_whether_the_step_was_evaluated(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        assert not log.has_evaluation
        log.write("train", 3, {"loss": 0.5})
        log.write("eval", 3, {"mean_iou": 0.5})
        log.write("train", 4, {"loss": 0.5})
    with RunLog(tmp_path, 4) as log:
        assert not log.has_evaluation
    with RunLog(tmp_path, 3) as log:
        assert log.has_evaluation


def test_pytorch_is_not_imported_by_the_way(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    code = (
        "import pathlib, sys; from fcn_jax.training.run_log import RunLog\n"
        f"RunLog(pathlib.Path({str(tmp_path)!r}), 0)\n"
        "assert 'tensorboardX' in sys.modules and 'torch' not in sys.modules\n"
        "import torch\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_curves_on_a_full_disk_end_the_training(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    log = RunLog(tmp_path, 0)
    with files_of_at_most(10_000), pytest.raises(OSError, match="File too large"):
        log.picture("predictions", 1, image)
    with log:
        pass


def test_the_curves_of_a_resumed_run_hide_later_points(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    with RunLog(tmp_path, 7) as log:
        log.write("train", 8, {"loss": 0.5, "infinite": float("inf")})
    content = next((tmp_path / "tensorboard").iterdir()).read_bytes()
    events = []
    while content:  # length, its checksum, event, its checksum
        length = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    version, restart, point = events
    assert version.file_version == "brain.Event:2"
    assert (restart.step, restart.session_log.status) == (8, SessionLog.START)
    (value,) = point.summary.value
    assert (point.step, value.tag, value.simple_value) == (8, "train/loss", 0.5)
