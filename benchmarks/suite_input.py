"""Suite `input`: a training iteration that reads its images, compared with the bare step.

The bare step finds the same batch on the device every time. All iterations run as in
`fcn_jax/train.py`: a step is dispatched before the metrics of the previous one are fetched.
"""

import contextlib
import itertools
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.measuring import Case, Contender, Contenders, NotMeasuredError
from benchmarks.settings import Settings, on_gpu
from benchmarks.workloads import Workload
from fcn_jax.data.canvases import one_canvas
from fcn_jax.data.datasets import Dataset
from fcn_jax.data.pipeline import training_batches
from fcn_jax.parallel import data_parallel
from fcn_jax.training.feed import Feed, Streamed, open_feed

SPLIT = "train"
READ_BATCH_SIZE = 8
STEPS = range(1_000_000)
"""More than are ever run."""


def cases(settings: Settings) -> Iterator[Case]:
    """Yields a case for each workload but those for a CPU alone, and one for reading alone."""
    for workload in settings.workloads:
        if workload.for_cpu:
            continue
        name = f"{workload.title}, {settings.images}: an iteration"
        yield Case(name, partial(iterations, workload, settings), warm_up_calls=1)
    name = f"reading alone, {settings.images}: a batch of {READ_BATCH_SIZE}"
    yield Case(name, partial(reading, settings))


class Loop:
    """Iterations of a training step; all feeds continue from the same state."""

    def __init__(self, state: Any):
        self.state = state

    def run(self, feed: Feed, count: int) -> None:
        """Runs `count` steps and waits until the last is done and all metrics are fetched."""
        pending: dict[str, jax.Array] = {}
        for _ in range(count // feed.steps_per_call):
            previous = pending
            self.state, pending = feed(self.state, feed.steps_per_call)
            jax.tree.map(np.asarray, previous)
        jax.tree.map(np.asarray, pending)
        jax.block_until_ready(self.state)


def iterations(workload: Workload, settings: Settings) -> Contenders:
    settings.check_runs(workload)
    count = 2 if settings.small else 20 if on_gpu() else 4
    dataset = settings.dataset
    loop = Loop(workload.state())
    train_step = workload.device_step()

    def contender(feed: Feed) -> Contender:
        run = partial(loop.run, feed, count)
        # The untimed run fills the prefetch buffers, as they are in a long run.
        images = workload.config.train.batch_size
        return Contender(run, prepare=run, iterations=count, images=images, close=feed.close)

    def fed(**changes: Any) -> Contender:
        config = workload.changed(**changes).config
        sizes = dataset.statistics(SPLIT).sizes
        with contextlib.redirect_stdout(sys.stderr):  # a feed prints which kind it is
            return contender(open_feed(train_step, dataset.split(SPLIT), sizes, config, STEPS))

    with contextlib.closing(streaming(dataset, workload.config.train.batch_size)) as batches:
        batch = data_parallel.shard_batch(next(batches))
    several: Contender | NotMeasuredError
    if settings.small or settings.gpu_cases:
        several = fed(data__cache="device", train__steps_per_dispatch=count)
    else:
        several = NotMeasuredError("XLA's CPU backend is many times slower in a loop of steps")
    return {
        "bare step": contender(Streamed(train_step, lambda steps: (batch for _ in steps), STEPS)),
        "streaming": fed(data__cache="none"),
        "on the device": fed(data__cache="device", train__steps_per_dispatch=1),
        f"on the device, {count} steps a call": several,
    }


def reading(settings: Settings) -> Contenders:
    records = settings.dataset.split(SPLIT)
    streamed = streaming(settings.dataset, READ_BATCH_SIZE)
    count = 2 if settings.small else 10
    indices = itertools.cycle(range(len(records)))

    def batches() -> None:
        for _ in range(count):
            next(streamed)

    def one_by_one() -> None:
        for _ in range(READ_BATCH_SIZE):
            records[next(indices)]

    images = READ_BATCH_SIZE
    return {
        "training_batches": Contender(
            batches, prepare=batches, iterations=count, images=images, close=streamed.close
        ),
        "records one by one": Contender(one_by_one, images=images),
    }


def streaming(dataset: Dataset, batch_size: int) -> Any:
    """Opens batches as `fcn_jax.train` streams them by default."""
    return training_batches(
        dataset.split(SPLIT),
        canvas_px=one_canvas(dataset.statistics(SPLIT).sizes),
        batch_size=batch_size,
        seed=0,
        workers=0,
        steps=STEPS,
    )
