"""Logs training metrics to the progress bar, `log.jsonl` and TensorBoard."""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import optax

from fcn_jax.config import Config
from fcn_jax.errors import UserError
from fcn_jax.terminal.progress import Bar
from fcn_jax.training.checkpoint import CheckpointWriter
from fcn_jax.training.run_log import RunLog


class MetricLogger:
    """Averages the metrics of `log_every_steps` steps and logs them.

    Fetches the metrics of each step after the next one is dispatched, so the host never blocks the
    devices. The last line is that of `total_steps`, also if it averages fewer steps.
    `images_per_second` counts the time of the steps alone: see `paused`.
    """

    def __init__(
        self,
        config: Config,
        total_steps: int,
        log: RunLog,
        bar: Bar,
        checkpoints: CheckpointWriter,
        learning_rate: optax.Schedule,
    ):
        self._every = config.train.log_every_steps
        self._total_steps = total_steps
        self._batch_size = config.train.batch_size
        self._log, self._bar, self._checkpoints = log, bar, checkpoints
        self._learning_rate = learning_rate
        self._pending: tuple[Sequence[int], dict[str, jax.Array]] | None = None
        self._window: list[dict[str, float]] = []
        self._window_seconds = 0.0
        self._fetched = time.monotonic()

    def dispatched(self, steps: Sequence[int], metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of steps that were dispatched, and logs those of the steps before.

        Args:
            steps: their numbers, from 1.
            metrics: float32 (steps,), or scalars for a single step.

        Raises:
            UserError: a metric of the steps before is not finite.
        """
        before, self._pending = self._pending, (steps, metrics)
        if before is not None:
            self._fetch(*before)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Waits for the dispatched steps, then leaves the time of the block out of the pace."""
        if self._pending is not None:
            self._fetch(*self._pending)
            self._pending = None
        paused = time.monotonic()
        yield
        self._fetched += time.monotonic() - paused

    def _fetch(self, steps: Sequence[int], metrics: dict[str, jax.Array]) -> None:
        columns = {name: np.atleast_1d(np.asarray(values)) for name, values in metrics.items()}
        now = time.monotonic()
        seconds, self._fetched = (now - self._fetched) / len(steps), now
        for index, step in enumerate(steps):
            numbers = {name: float(values[index]) for name, values in columns.items()}
            self._check_finite(step, numbers)
            self._window.append(numbers)
            self._window_seconds += seconds
            self._bar.advance(1, loss=f"{numbers['loss']:.3f}")
            if step % self._every == 0 or step == self._total_steps:
                self._write_window(step)

    def _write_window(self, step: int) -> None:
        means = {
            name: float(np.mean([numbers[name] for numbers in self._window]))
            for name in self._window[0]
        }
        means["learning_rate"] = float(self._learning_rate(step - 1))
        images = len(self._window) * self._batch_size
        means["images_per_second"] = images / self._window_seconds
        self._log.write("train", step, means)
        self._window, self._window_seconds = [], 0.0

    def _check_finite(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            if not math.isfinite(value):
                if step == 1:
                    raise UserError(
                        f"the {name.replace('_', ' ')} is {value} at step 1, before any weight has "
                        "changed: check loss.options, loss.class_weights and the weights of init"
                    )
                self._checkpoints.wait()
                saved = self._checkpoints.latest
                raise UserError(
                    f"the {name.replace('_', ' ')} is {value} at step {step}: try a lower "
                    "optim.learning_rate or a longer optim.warmup_steps; the last checkpoint is "
                    f"that of {'no step' if saved is None else f'step {saved}'}"
                )
