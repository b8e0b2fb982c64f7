"""Suite: a training iteration that reads its images, beside the bare step.

The bare step finds the same batch on the device every time. Both run as the loop of
`fcn_jax/train.py` does, a step dispatched before the metrics of the one before are read.
"""

from collections.abc import Iterator
from typing import Any

import jax

from fcn_jax.benchmark.measuring import Case, Contender
from fcn_jax.benchmark.settings import Settings, on_gpu
from fcn_jax.benchmark.workloads import Workload, random_variables, workloads
from fcn_jax.data.canvases import Size, one_canvas
from fcn_jax.data.datasets import Dataset
from fcn_jax.data.pipeline import training_batches
from fcn_jax.parallel import OnDevices

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


class Loop:
    """Iterations of a step, from batch to batch."""

    def __init__(self, step: OnDevices, state: Any):
        self.step, self.state = step, state

    def run(self, batches: Iterator[Any], count: int) -> None:
        """Comes back when the last step is done, and the metrics of all are read."""
        pending: dict[str, jax.Array] = {}
        for _ in range(count):
            before = pending
            self.state, pending = self.step(self.state, next(batches))
            jax.tree.map(float, before)
        jax.tree.map(float, pending)
        jax.block_until_ready(self.state)


def iterations(workload: Workload, settings: Settings) -> dict[str, Contender]:
    settings.check_runs(workload)
    dataset = settings.dataset()
    batch_size = workload.config.train.batch_size
    network = workload.network()
    loop = Loop(workload.step(network), workload.state(network, random_variables(network)))
    streamed = streaming(dataset, batch_size)
    count = 2 if settings.small else 20 if on_gpu() else 4
    on_device = jax.device_put(next(streamed))

    def contender(batches: Iterator[Any], close: Any = lambda: None) -> Contender:
        def run() -> None:
            loop.run(batches, count)

        # Before it is timed, what is read ahead settles to what a long run would find.
        return Contender(run, prepare=run, iterations=count, images=batch_size, close=close)

    return {
        "bare step": contender(_repeated(on_device)),
        "streaming": contender(streamed, close=streamed.close),
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
    """Batches as `fcn_jax.train` reads them by default."""
    return training_batches(
        dataset.split(SPLIT),
        canvas_px=canvas_of(dataset),
        batch_size=batch_size,
        seed=0,
        workers=0,
    )


def canvas_of(dataset: Dataset) -> Size:
    return one_canvas(dataset.statistics(SPLIT).sizes)


def _repeated(batch: Any) -> Iterator[Any]:
    while True:
        yield batch
