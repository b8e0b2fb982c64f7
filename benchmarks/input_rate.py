"""Suite: a training iteration that takes its images from the set, beside the bare step.

The bare step finds the same batch on the device every time. All run as in `fcn_jax/train.py`: a
step is dispatched before the metrics of the one before are read.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.measuring import Case, Contender, NotMeasuredError
from benchmarks.settings import Settings, on_gpu
from benchmarks.workloads import Workload, random_variables, workloads
from fcn_jax.data.canvases import one_canvas
from fcn_jax.data.datasets import Dataset
from fcn_jax.data.pipeline import training_batches
from fcn_jax.parallel import data_parallel
from fcn_jax.training.feed import Feed, open_feed

SPLIT = "train"


def cases(settings: Settings) -> Iterator[Case]:
    for workload in workloads(settings.small):
        yield Case(
            f"{workload.title}, {settings.images}: an iteration",
            lambda w=workload: iterations(w, settings),  # type: ignore[misc]
            overhead=True,
            warm_up_calls=1,
        )
    yield Case(
        f"reading alone, {settings.images}: a batch of {READ_BATCH_SIZE}",
        lambda: reading(settings),
    )


READ_BATCH_SIZE = 8
MAX_STEPS = 1_000_000
"""More than are ever made."""


class Loop:
    """Iterations of a step: all feeds go on from one state."""

    def __init__(self, state: Any):
        self.state = state

    def run(self, feed: Feed, count: int) -> None:
        """Comes back when the last step is done, and the metrics of all are read."""
        pending: dict[str, jax.Array] = {}
        for _ in range(count // feed.at_once):
            before = pending
            self.state, pending = feed(self.state, feed.at_once)
            jax.tree.map(np.asarray, before)
        jax.tree.map(np.asarray, pending)
        jax.block_until_ready(self.state)


class Bare:
    """Finds one batch on the devices, again and again."""

    at_once = 1

    def __init__(self, train_step: Any, batch: Any):
        self._step = data_parallel.parallelize(train_step, donate_state=True)
        self._batch = data_parallel.shard_batch(batch)

    def __call__(self, state: Any, steps: int) -> tuple[Any, dict[str, jax.Array]]:
        return self._step(state, self._batch)

    def close(self) -> None:
        self._batch = {}


def iterations(workload: Workload, settings: Settings) -> dict[str, Contender | NotMeasuredError]:
    settings.check_runs(workload)
    count = 2 if settings.small else 20 if on_gpu() else 4
    dataset = settings.dataset()
    network = workload.network()
    loop = Loop(workload.state(network, random_variables(network)))
    train_step = workload.one_devices_step(network)

    def contender(feed: Feed) -> Contender:
        def run() -> None:
            loop.run(feed, count)

        # Before it is timed, what is read ahead settles to what a long run would find.
        return Contender(
            run,
            prepare=run,
            iterations=count,
            images=workload.config.train.batch_size,
            close=feed.close,
        )

    def fed(**changes: Any) -> Contender:
        with contextlib.redirect_stdout(sys.stderr):  # a feed says which it is
            return contender(
                open_feed(
                    train_step,
                    dataset.split(SPLIT),
                    dataset.statistics(SPLIT).sizes,
                    workload.changed(**changes).config,
                    range(MAX_STEPS),
                )
            )

    with contextlib.closing(streaming(dataset, workload.config.train.batch_size)) as batches:
        first = next(batches)
    several: Contender | NotMeasuredError
    if settings.small or settings.gpu_cases:
        several = fed(data__cache="device", train__steps_per_dispatch=count)
    else:
        several = NotMeasuredError("XLA's CPU convolves many times slower in a loop of steps")
    return {
        "bare step": contender(Bare(train_step, first)),
        "streaming": fed(data__cache="none"),
        "on the device": fed(data__cache="device", train__steps_per_dispatch=1),
        f"on the device, {count} steps a call": several,
    }


def reading(settings: Settings) -> dict[str, Contender]:
    dataset = settings.dataset()
    records = dataset.split(SPLIT)
    streamed = streaming(dataset, READ_BATCH_SIZE)
    count = 2 if settings.small else 10
    place = 0

    def batches() -> None:
        for _ in range(count):
            next(streamed)

    def one_by_one() -> None:
        nonlocal place
        for _ in range(READ_BATCH_SIZE):
            records[place % len(records)]
            place += 1

    return {
        "training_batches": Contender(
            batches,
            prepare=batches,
            iterations=count,
            images=READ_BATCH_SIZE,
            close=streamed.close,
        ),
        "records one by one": Contender(one_by_one, images=READ_BATCH_SIZE),
    }


def streaming(dataset: Dataset, batch_size: int) -> Any:
    """Batches as `fcn_jax.train` streams them by default."""
    return training_batches(
        dataset.split(SPLIT),
        canvas_px=one_canvas(dataset.statistics(SPLIT).sizes),
        batch_size=batch_size,
        seed=0,
        workers=0,
        steps=range(MAX_STEPS),
    )
