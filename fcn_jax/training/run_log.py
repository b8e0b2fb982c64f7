"""The numbers of a run as it goes: JSON lines and TensorBoard curves."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from fcn_jax.errors import UserError
from fcn_jax.terminal.atomic_files import write_whole


class RunLog:
    """Writes `log.jsonl` and `tensorboard/` of a run's folder, on the first host alone.

    What an interrupted run wrote after `start_step`, where it now goes on, is taken back.
    """

    def __init__(self, workdir: Path, start_step: int):
        self._enabled = jax.process_index() == 0
        if not self._enabled:
            return
        from tensorboardX import SummaryWriter

        path = workdir / "log.jsonl"
        try:
            kept = _lines_up_to(path, start_step)
            write_whole(path, lambda part: part.write_text("".join(kept)))
            self._lines = path.open("a")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        # Nothing is purged where nothing was written: TensorBoard would hide step 0.
        purge_step = start_step + 1 if start_step else None
        self._curves = SummaryWriter(str(workdir / "tensorboard"), purge_step=purge_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            self._lines.close()
            self._curves.close()

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """One line `{"kind": …, "step": …, …numbers}`, and a curve kind/name for each number."""
        if not self._enabled:
            return
        finite = {name: _number(value) for name, value in numbers.items()}
        self._lines.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")
        self._lines.flush()
        for name, value in finite.items():
            if value is not None:
                self._curves.add_scalar(f"{kind}/{name}", value, step)

    def picture(self, name: str, step: int, image: np.ndarray) -> None:
        """Shows uint8 (h, w, 3) in TensorBoard."""
        if self._enabled:
            self._curves.add_image(name, image, step, dataformats="HWC")
            self._curves.flush()


def _number(value: Any) -> float | None:
    value = float(value)
    return value if np.isfinite(value) else None


def _lines_up_to(path: Path, step: int) -> list[str]:
    if not path.exists():
        return []
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:  # The line that an interruption cut.
            continue
    return kept
