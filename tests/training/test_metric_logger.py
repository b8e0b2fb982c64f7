"""Means and pace of each window of steps, worked out by hand on a fake clock."""

from typing import Any

import numpy as np
import pytest

from fcn_jax.config import default_config
from fcn_jax.errors import UserError
from fcn_jax.training import metric_logger
from fcn_jax.training.metric_logger import MetricLogger


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Log:
    """Stands for the run's log, the progress bar and the checkpoints."""

    latest = 4

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []

    def write(self, kind: str, step: int, numbers: dict[str, float]) -> None:
        assert kind == "train"
        self.lines.append((step, numbers))

    def advance(self, count: int, **shown: Any) -> None: ...

    def wait(self) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metric_logger, "time", clock)
    return clock


def logger_of(log: Any, total_steps: int = 100, every: int = 2) -> MetricLogger:
    config = default_config()
    config.train.log_every_steps = every
    config.train.batch_size = 8
    return MetricLogger(config, total_steps, log, log, log, lambda step: 0.1 * (step + 1))


def test_images_per_second_leaves_out_evaluation_and_saving(clock: Clock) -> None:
    log = Log()
    logger = logger_of(log)
    for step in range(1, 6):
        logger.dispatched([step], {"loss": np.float32(step), "gradient_norm": np.float32(1)})
        clock.now += 0.5  # of a step, until its metrics are fetched
        if step == 3:  # amid a window
            with logger.paused():
                clock.now += 1000
        if step == 4:  # between two
            with logger.paused():
                clock.now += 2000
    with logger.paused():
        pass
    assert [step for step, _ in log.lines] == [2, 4]
    for _, numbers in log.lines:
        assert numbers["images_per_second"] == pytest.approx(2 * 8 / 1.0)
    assert [numbers["loss"] for _, numbers in log.lines] == [1.5, 3.5]
    assert [numbers["learning_rate"] for _, numbers in log.lines] == pytest.approx([0.2, 0.4])


def test_the_last_window_is_logged_though_it_is_shorter(clock: Clock) -> None:
    """Seven steps in two calls, whose time falls to their steps alike."""
    log = Log()
    logger = logger_of(log, total_steps=7, every=3)
    logger.dispatched([1, 2, 3, 4], {"loss": np.array([1, 2, 3, 4], np.float32)})
    clock.now += 4 * 0.5
    logger.dispatched([5, 6, 7], {"loss": np.array([5, 6, 7], np.float32)})
    clock.now += 3 * 2.0
    with logger.paused():
        clock.now += 1000
    assert [(step, numbers["loss"]) for step, numbers in log.lines] == [(3, 2), (6, 5), (7, 7)]
    pace = [numbers["images_per_second"] for _, numbers in log.lines]
    assert pace == pytest.approx([3 * 8 / 1.5, 3 * 8 / 4.5, 8 / 2.0])


@pytest.mark.parametrize("name", ["loss", "gradient_norm", "pixel_accuracy"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_stops_the_run(name: str, value: float, clock: Clock) -> None:
    logger = logger_of(Log())
    numbers = {"loss": 1.0, "gradient_norm": 1.0, "pixel_accuracy": 0.5}
    logger.dispatched([5], {key: np.float32(number) for key, number in numbers.items()})
    logger.dispatched([6], {key: np.float32(n) for key, n in (numbers | {name: value}).items()})
    with (
        pytest.raises(
            UserError,
            match=rf"the {name.replace('_', ' ')} is {value} at step 6: try a lower "
            r"optim\.learning_rate .* the last checkpoint is that of step 4",
        ),
        logger.paused(),
    ):
        pass


def test_the_learning_rate_is_not_blamed_before_it_has_changed_a_weight(clock: Clock) -> None:
    logger = logger_of(Log())
    logger.dispatched([1], {"loss": np.float32(np.nan), "gradient_norm": np.float32(1)})
    with pytest.raises(UserError, match=r"nan at step 1, before any weight .* check loss\.options"):
        logger.dispatched([2], {"loss": np.float32(1), "gradient_norm": np.float32(1)})
