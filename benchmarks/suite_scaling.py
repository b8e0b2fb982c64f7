"""Suite `scaling`: how time and memory grow with the sizes that people choose.

Each case varies one size and ends with the exponent p of the fit c·nᵖ, by least squares of the
logarithms. The network is FCN-8s on SqueezeNet. Memory is that of the compiled program's
intermediate arrays.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measuring import Case, Contender, Contenders, Row
from benchmarks.settings import Settings
from benchmarks.workloads import Workload, random_variables
from fcn_jax.data.order import image_at
from fcn_jax.models.pure_model import predict

SIDES_PX = (128, 256, 512, 1024, 2048)
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
CLASSES = (2, 21, 151)
"""151 are ADE20K's classes and the background."""

IMAGES = (100, 1_000, 10_000, 100_000)
CROP_PX = (128, 128)
BATCH_SIZE = 8


def cases(settings: Settings) -> Iterator[Case]:
    """Yields a case for the time and one for the memory of each size, and one for the order."""

    def chosen(values: tuple[int, ...]) -> tuple[int, ...]:
        return values[:2] if settings.small else values

    base = settings.workloads[0]
    if not settings.small:
        base = base.changed(augment__crop_px=CROP_PX, train__batch_size=BATCH_SIZE)

    def step_of_batch(size: int) -> Program:
        return training_step(base.changed(train__batch_size=size * jax.device_count()))

    def step_of_classes(count: int) -> Program:
        return training_step(dataclasses.replace(base, num_classes=count))

    sizes: tuple[tuple[str, Sequence[int], Callable[[int], Program]], ...] = (
        ("an image labelled, side", chosen(SIDES_PX), partial(prediction, base)),
        ("training step, batch", chosen(BATCH_SIZES), step_of_batch),
        ("training step, classes", chosen(CLASSES), step_of_classes),
    )
    for name, values, program in sizes:
        yield Case(f"{name}: time", partial(times, values, program), max_repeats=5, remark=growth)
        yield Case(
            f"{name}: memory",
            partial(memories, values, program),
            unit="bytes",
            timed=False,
            warm_up_calls=0,
            max_repeats=1,
            remark=growth,
        )
    yield Case("the order of an epoch, images", partial(orders, chosen(IMAGES)), remark=growth)


@dataclasses.dataclass
class Program:
    """A compiled function and its arguments.

    Attributes:
        run: the function.
        lower: traces it for the same arguments.
        arguments: of the next call.
        carries: whether the first result is the next call's first argument.
    """

    run: Callable[..., Any]
    lower: Callable[..., jax.stages.Lowered]
    arguments: tuple[Any, ...]
    carries: bool

    def __call__(self) -> None:
        result = jax.block_until_ready(self.run(*self.arguments))
        if self.carries:
            self.arguments = (result[0], *self.arguments[1:])


def prediction(workload: Workload, side: int) -> Program:
    """Labels a square image."""
    variables = jax.tree.map(jnp.asarray, random_variables(workload.network))
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    run = jax.jit(partial(predict, workload.network))
    return Program(run, run.lower, (variables, jnp.asarray(image), None), carries=False)


def training_step(workload: Workload) -> Program:
    """Trains on a batch that comes from the host."""
    step = workload.step()
    return Program(step, step.lower, (workload.state(), workload.batch()), carries=True)


def times(values: Sequence[int], program: Callable[[int], Program]) -> Contenders:
    """Contenders that run the program of each value; the first call compiles."""

    def contender(value: int) -> Contender:
        made = functools.cache(partial(program, value))
        return Contender(lambda: made()(), close=made.cache_clear)

    return {str(value): contender(value) for value in values}


def memories(values: Sequence[int], program: Callable[[int], Program]) -> Contenders:
    """Contenders that compile the program of each value and return the bytes that it needs."""

    def needed(value: int) -> float:
        made = program(value)
        analysis: Any = made.lower(*made.arguments).compile().memory_analysis()
        return float(analysis.temp_size_in_bytes)

    return {str(value): Contender(partial(needed, value)) for value in values}


def orders(values: Sequence[int]) -> Contenders:
    """Contenders that compute the order of a whole epoch on the host."""

    def order(count: int) -> None:
        for position in range(count):
            image_at(position, count=count, seed=0)

    return {str(value): Contender(partial(order, value)) for value in values}


def growth(rows: Sequence[Row]) -> str:
    """Returns the exponent of the fit, and that between the two largest sizes."""
    points = [(math.log(int(row.contender)), math.log(row.median)) for row in rows if row.median]
    if len(points) < 2:
        return ""
    x, y = np.array(points).T
    slope = np.polyfit(x, y, 1)[0]
    last = (y[-1] - y[-2]) / (x[-1] - x[-2])
    return f"grows with the power {slope:.2f}; between the two largest {last:.2f}"
