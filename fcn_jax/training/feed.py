"""Training input: resident in device memory if the data set fits, streamed from the host otherwise.

Both give the same batches (`data/order.py`), so a resumed run may change from one to the other.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import grain
import jax
import numpy as np

from fcn_jax.config import Config
from fcn_jax.data import resident
from fcn_jax.data.canvases import PATCHES_ON_CANVAS, Size, round_up, training_canvas
from fcn_jax.data.pipeline import training_batches
from fcn_jax.data.resident import DeviceStep
from fcn_jax.errors import ArgumentError, UserError
from fcn_jax.parallel import data_parallel, hosts
from fcn_jax.parallel.memory import free_bytes
from fcn_jax.terminal.progress import say

RESIDENT_SHARE = 0.25
"""Share of the free device memory that `data.cache=auto` gives to the images."""


class Feed(Protocol):
    """Runs training steps, each on the batch of its number.

    steps_per_call: how many steps one call can run, apart from a single one.
    """

    steps_per_call: int

    def __call__(self, state: Any, steps: int) -> tuple[Any, dict[str, jax.Array]]:
        """Runs 1 or `steps_per_call` steps.

        Returns:
            The next state, and the metrics of each step: (steps,), or scalars of a single step.
        """
        ...

    def close(self) -> None: ...


def open_feed(
    train_step: DeviceStep, records: Any, sizes: np.ndarray, config: Config, steps: range
) -> Feed:
    """Opens the feed that `data.cache` asks for, or that suits the size of the set; prints which.

    Args:
        train_step: the step of one device, see `make_train_step`.
        records: a random-access source of records (`splits.Split`).
        sizes: height and width of each image, int (n, 2).
        config: the settings.
        steps: numbers of the steps to run, from 0; an empty range reads nothing.

    Raises:
        UserError: a record is damaged.
        ArgumentError: `data.cache=device`, and the set cannot be resident.
    """
    canvas_px = training_canvas(config, sizes)
    if steps:
        canvas_bytes = resident.canvas_bytes(records[0], canvas_px)
        needed = resident.shard_lengths(len(sizes), canvas_bytes)[0] * canvas_bytes
        drawn = len(steps) * config.train.batch_size
        reasons = hosts.gather(reason_to_stream(config.data.cache, sizes, canvas_px, needed, drawn))
        reason = next(filter(None, reasons), "")  # a host may have less memory than others
        images = f"{len(sizes):,} images"
        if not reason:
            say(f"{images} are kept in device memory, {_per_device(needed)}")
            return Resident(train_step, records, canvas_px, config)
        if config.data.cache == "device":
            raise ArgumentError(
                "data.cache",
                "device",
                f"cannot keep {images} in device memory: {reason}; data.cache=auto streams them",
            )
        say(f"{images} are streamed: {reason}")
        if config.train.steps_per_dispatch > 1:
            say(
                f"note: train.steps_per_dispatch (={config.train.steps_per_dispatch}) applies to "
                "images in device memory; each step on streamed images is a call of its own"
            )
    batches_of = partial(
        training_batches,
        records,
        canvas_px=canvas_px,
        batch_size=config.train.batch_size,
        seed=config.seed_of_order,
        workers=config.data.workers,
    )
    return Streamed(train_step, batches_of, steps)


class Resident:
    """A `Feed` from a data set in device memory: a step takes nothing from the host."""

    def __init__(self, train_step: DeviceStep, records: Any, canvas_px: Size, config: Config):
        self.steps_per_call = config.train.steps_per_dispatch
        if self.steps_per_call > 1 and jax.default_backend() == "cpu":
            say(
                "note: XLA's CPU backend runs convolutions many times slower in a loop of steps: "
                "leave train.steps_per_dispatch at 1"
            )
        on_resident = partial(
            resident.resident_step,
            train_step,
            count=len(records),
            batch_size=config.train.batch_size,
            seed=config.seed_of_order,
        )
        # Each is compiled when it is first called.
        self._steps = {
            count: data_parallel.parallelize(on_resident(steps=count), donate_state=True)
            for count in {1, self.steps_per_call}
        }
        self._images = resident.load(records, canvas_px)

    def __call__(self, state: Any, steps: int) -> tuple[Any, dict[str, jax.Array]]:
        return self._steps[steps](state, self._images)

    def close(self) -> None:
        self._images = {}


class Streamed:
    """A `Feed` from the host: the next batch is read and copied while a step runs.

    If a process that reads images is killed, as the system does when memory is short, the processes
    are started again, with the same batches.

    Args:
        train_step: the step of one device.
        batches_of: opens the batches of the steps that its argument `steps` gives.
        steps: numbers of the steps to run, from 0.

    Raises:
        UserError: the processes are killed again before they have read a batch.
    """

    steps_per_call = 1

    def __init__(
        self,
        train_step: DeviceStep,
        batches_of: Callable[..., grain.DatasetIterator],
        steps: range,
    ):
        self._step = data_parallel.parallelize(train_step, donate_state=True)
        self._batches_of, self._steps = batches_of, steps
        self._batches = batches_of(steps=steps)
        self._next: Any = None
        self._read_next()

    def __call__(self, state: Any, steps: int) -> tuple[Any, dict[str, jax.Array]]:
        assert steps == 1
        results = self._step(state, self._next)
        self._read_next()
        return results

    def _read_next(self) -> None:
        try:
            batch = next(self._batches, None)
        except RuntimeError as error:
            batch = self._read_again(error)
        self._steps = self._steps[1:]
        self._next = None if batch is None else data_parallel.shard_batch(batch)

    def _read_again(self, error: RuntimeError) -> Any:
        if "Worker process" not in str(error):  # Grain has no narrower class
            raise error
        reason, *_ = str(error).partition(". ")
        say(f"note: data.workers are started again ({reason}); if memory is short, give fewer")
        self._batches.close()
        self._batches = self._batches_of(steps=self._steps)
        try:
            return next(self._batches, None)
        except RuntimeError as again:
            raise UserError(
                f"the processes of data.workers end again and again ({reason}): if memory is "
                "short, give fewer workers, 0 for none, or smaller images"
            ) from again

    def close(self) -> None:
        self._batches.close()


def step_chunks(
    done: int, total: int, steps_per_call: int, every: Sequence[int]
) -> Iterator[range]:
    """Yields the steps after `done`, numbered from 1, in chunks of one call each.

    A chunk has `steps_per_call` steps or one. Multiples of a number in `every`, after which
    something is due, are last in their chunk.
    """
    if steps_per_call > min(every):
        say(
            f"note: train.steps_per_dispatch (={steps_per_call}) is more than the {min(every)} "
            "steps between evaluations or checkpoints: each step is a call of its own"
        )
    while done < total:
        due = min(total, *(round_up(done + 1, multiple) for multiple in every))
        count = steps_per_call if done + steps_per_call <= due else 1
        yield range(done + 1, done + count + 1)
        done += count


def reason_to_stream(
    cache: str, sizes: np.ndarray, canvas_px: Size, needed: int, drawn: int
) -> str:
    """Returns why a data set is streamed; empty if it is to be resident in device memory.

    Args:
        cache: the setting `data.cache`.
        sizes: height and width of each image, int (n, 2).
        canvas_px: height and width of the canvas.
        needed: bytes of the canvases on each device.
        drawn: images that training draws, repeated ones included.
    """
    if cache == "none":
        return "data.cache=none asks for it"
    if (np.asarray(sizes) > canvas_px).any():
        canvas = "data.canvas_px" if len(canvas_px) == 2 else f"{PATCHES_ON_CANVAS} patches"
        return f"some are larger than {canvas}, of which another part is drawn each time"
    free = free_bytes()
    if cache == "device":
        if free is None or needed <= free:
            return ""
        return f"they take {_per_device(needed)}, and {_in_bytes(free)} are free"
    if drawn < len(sizes):
        return f"training draws no more than {drawn:,} of them"
    if free is None:
        return "the device does not report its memory"
    if needed <= free * RESIDENT_SHARE:
        return ""
    return (
        f"they would take {_per_device(needed)}, more than a quarter of the {_in_bytes(free)} free"
    )


def _per_device(count: int) -> str:
    devices = jax.device_count()
    return _in_bytes(count) + (f" on each of {devices} devices" if devices > 1 else "")


def _in_bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
