"""What training tells of its steps as they are made."""

import math
import time
from collections.abc import Sequence

import jax
import numpy as np
import optax

from fcn_jax.config import Config
from fcn_jax.errors import UserError
from fcn_jax.terminal.progress import Bar
from fcn_jax.training.checkpoint import Checkpoints
from fcn_jax.training.run_log import RunLog


class MetricLogger:
    """Reads the numbers of steps when the next are under way, so that no device waits for the host.

    Raises UserError at a loss that is not finite.
    """

    def __init__(
        self,
        config: Config,
        log: RunLog,
        bar: Bar,
        checkpoints: Checkpoints,
        learning_rate: optax.Schedule,
    ):
        self._every = config.train.log_every_steps
        self._batch_size = config.train.batch_size
        self._log, self._bar, self._checkpoints = log, bar, checkpoints
        self._learning_rate = learning_rate
        self._pending: tuple[Sequence[int], dict[str, jax.Array]] | None = None
        self._since_log: list[dict[str, float]] = []
        self._last_time = time.monotonic()

    def dispatched(self, steps: Sequence[int], metrics: dict[str, jax.Array]) -> None:
        """Their metrics: each (steps,), or of a single step a scalar."""
        before, self._pending = self._pending, (steps, metrics)
        if before is not None:
            self._read(*before)

    def catch_up(self) -> None:
        if self._pending is not None:
            self._read(*self._pending)
            self._pending = None

    def _read(self, steps: Sequence[int], metrics: dict[str, jax.Array]) -> None:
        columns = {name: np.atleast_1d(np.asarray(values)) for name, values in metrics.items()}
        for index, step in enumerate(steps):
            self._note(step, {name: float(values[index]) for name, values in columns.items()})

    def _note(self, step: int, numbers: dict[str, float]) -> None:
        if not math.isfinite(numbers["loss"]):
            saved = self._checkpoints.latest
            raise UserError(
                f"the loss is {numbers['loss']} at step {step}: try a lower "
                "config.optim.learning_rate or a longer config.optim.warmup_steps; the last "
                f"checkpoint is of {'no step' if saved is None else f'step {saved}'}"
            )
        self._since_log.append(numbers)
        self._bar.advance(1, loss=f"{numbers['loss']:.3f}")
        if step % self._every == 0:
            now = time.monotonic()
            means = {
                name: float(np.mean([logged[name] for logged in self._since_log]))
                for name in numbers
            }
            means["learning_rate"] = float(self._learning_rate(step - 1))
            seconds = now - self._last_time
            means["images_per_second"] = len(self._since_log) * self._batch_size / seconds
            self._log.write("train", step, means)
            self._since_log, self._last_time = [], now
