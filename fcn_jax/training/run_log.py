"""The log of a run: JSON lines and TensorBoard curves."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from fcn_jax.errors import UserError
from fcn_jax.terminal.atomic_files import write_whole
from fcn_jax.terminal.progress import say

FLUSH_SECONDS = 30.0
"""Interval at which new points of the curves become visible to TensorBoard."""


class RunLog:
    """Writes `log.jsonl` and `tensorboard/` in the folder of a run, on the first host only.

    Args:
        workdir: the folder of the run.
        start_step: the step from which the run is resumed, or 0; later entries are removed.
            Lines that are no entries are moved to `log.jsonl.damaged`, with a note.

    Attributes:
        has_evaluation: whether the log holds the evaluation of `start_step`, on the first host.

    Raises:
        UserError: `log.jsonl` cannot be written.
    """

    def __init__(self, workdir: Path, start_step: int):
        self._enabled = jax.process_index() == 0
        self.has_evaluation = False
        if not self._enabled:
            return
        # SummaryWriter writes in a thread. On a full disk that ends, and the next call never does.
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import SessionLog

        path = workdir / "log.jsonl"
        try:
            entries, damaged = _read_entries(path, start_step)
            if damaged:
                with path.with_name("log.jsonl.damaged").open("ab") as file:
                    file.writelines(damaged)
                say(f"note: {len(damaged)} lines of {path} cannot be read: moved to {file.name}")
            write_whole(path, lambda part: part.write_bytes(b"".join(entries)))
            last = json.loads(entries[-1]) if entries else {}
            self.has_evaluation = last.get("kind") == "eval" and last["step"] == start_step
            self._lines = path.open("a")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        curves = workdir / "tensorboard"
        curves.mkdir(exist_ok=True)
        self._curves = EventsWriter(str(curves / "events"))
        self._flushed = time.monotonic()
        if start_step:  # TensorBoard hides what is after it in earlier files
            self._write_event(start_step + 1, session_log=SessionLog(status=SessionLog.START))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            self._lines.close()
            self._curves.close()

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """Writes a line {"kind": …, "step": …, **numbers}, and a point of each curve kind/name."""
        if not self._enabled:
            return
        from tensorboardX import summary

        finite = {name: _number(value) for name, value in numbers.items()}
        self._lines.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")
        self._lines.flush()
        for name, value in finite.items():
            if value is not None:
                self._write_event(step, summary=summary.scalar(f"{kind}/{name}", value))
        if time.monotonic() > self._flushed + FLUSH_SECONDS:
            self._flush_curves()

    def picture(self, name: str, step: int, image: np.ndarray) -> None:
        """Writes an RGB image, uint8 (h, w, 3), to TensorBoard."""
        if not self._enabled:
            return
        from tensorboardX import summary

        self._write_event(step, summary=summary.image(name, image, dataformats="HWC"))
        self._flush_curves()

    def _write_event(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._curves.write_event(Event(wall_time=time.time(), step=step, **content))

    def _flush_curves(self) -> None:
        self._curves.flush()
        self._flushed = time.monotonic()


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Hides PyTorch, if it is installed: tensorboardX imports it to see tensors, in 1.2 s.

    A process that has imported PyTorch keeps it.
    """
    hidden = sys.modules.setdefault("torch", None) is None  # type: ignore[arg-type]
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]


def _number(value: Any) -> float | None:
    value = float(value)
    return value if np.isfinite(value) else None  # JSON has no NaN


def _read_entries(path: Path, step: int) -> tuple[list[bytes], list[bytes]]:
    """Returns the lines of entries up to a step, and the lines that are no entries."""
    entries, damaged = [], []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                entries.append(line.rstrip() + b"\n")
        except (ValueError, LookupError, TypeError, RecursionError):
            damaged.append(line.rstrip() + b"\n")
    return entries, damaged
