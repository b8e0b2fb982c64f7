"""How training gets its images: out of the devices' memory where the set fits there, or streamed.

Both ways give the same batches (`data/order.py`), so a run may change between them.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import grain
import jax
import numpy as np

from fcn_jax.config import Config
from fcn_jax.data import resident
from fcn_jax.data.canvases import Size, one_canvas, round_up
from fcn_jax.data.pipeline import training_batches
from fcn_jax.data.resident import DeviceStep
from fcn_jax.errors import UserError
from fcn_jax.parallel import data_parallel
from fcn_jax.parallel.memory import free_bytes
from fcn_jax.terminal.progress import say

SHARE_OF_MEMORY = 0.25
"""Of what is free when training begins: how much of it `auto` gives to the images."""


class Feed(Protocol):
    """Runs training steps on the batches that are theirs.

    at_once: how many steps one call can make, beside a single one.
    """

    at_once: int

    def __call__(self, state: Any, steps: int) -> tuple[Any, dict[str, jax.Array]]:
        """The next state, and the metrics of each step, (steps,), or of a single one scalars."""
        ...

    def close(self) -> None: ...


def open_feed(
    train_step: DeviceStep, records: Any, sizes: np.ndarray, config: Config, steps: range
) -> Feed:
    """The feed that `config.data.cache` asks for, or that suits the sizes; says which.

    Args:
        train_step: one device's, see `make_train_step`.
        records: a random-access source of records (`splits.Split`).
        sizes: of the images, int (n, 2).
        steps: that are to be made, numbered from 0; for none it reads nothing.

    Raises:
        UserError: a record that is damaged, or a set that cannot be kept on the device.
    """
    canvas_px = config.data.canvas_px or one_canvas(sizes)
    if steps:
        canvas_bytes = resident.canvas_bytes(records[0], canvas_px)
        needed = resident.shard_lengths(len(sizes), canvas_bytes)[0] * canvas_bytes
        seen = len(steps) * config.train.batch_size
        reason = reason_to_stream(config.data.cache, sizes, canvas_px, needed, seen)
        images = f"{len(sizes):,} images"
        if not reason:
            several = "s" if jax.device_count() > 1 else ""
            say(f"{images} lie on the device{several}, {_on_each(needed)}")
            return Resident(train_step, records, canvas_px, config)
        if config.data.cache == "device":
            raise UserError(
                f"config.data.cache=device cannot keep {images} on the device: {reason}; "
                "with config.data.cache=auto they are streamed"
            )
        say(f"{images} are streamed: {reason}")
        if config.train.steps_per_dispatch > 1:
            say(
                f"note: config.train.steps_per_dispatch (={config.train.steps_per_dispatch}) is "
                "for images on the device: of streamed ones each step is a call of its own"
            )
    batches = training_batches(
        records,
        canvas_px=canvas_px,
        batch_size=config.train.batch_size,
        seed=config.seed,
        workers=config.data.workers,
        steps=steps,
    )
    return Streamed(train_step, batches)


class Resident:
    """From a set that lies on the devices: nothing is taken from the host."""

    def __init__(self, train_step: DeviceStep, records: Any, canvas_px: Size, config: Config):
        self.at_once = config.train.steps_per_dispatch
        if self.at_once > 1 and jax.default_backend() == "cpu":
            say(
                "note: XLA's CPU convolves many times slower in a loop of steps: leave "
                "config.train.steps_per_dispatch at 1"
            )
        on_resident = partial(
            resident.resident_step,
            train_step,
            count=len(records),
            batch_size=config.train.batch_size,
            seed=config.seed,
        )
        # Each is compiled when it is first called.
        self._steps = {
            count: data_parallel.parallelize(on_resident(steps=count), donate_state=True)
            for count in {1, self.at_once}
        }
        self._held = resident.load(records, canvas_px)

    def __call__(self, state: Any, steps: int) -> tuple[Any, dict[str, jax.Array]]:
        return self._steps[steps](state, self._held)

    def close(self) -> None:
        self._held = {}


class Streamed:
    """From batches of the host: while a step runs, the next one's are read and copied."""

    at_once = 1

    def __init__(self, train_step: DeviceStep, batches: grain.DatasetIterator):
        self._step = data_parallel.parallelize(train_step, donate_state=True)
        self._batches = batches
        self._next: Any = None
        self._read_next()

    def __call__(self, state: Any, steps: int) -> tuple[Any, dict[str, jax.Array]]:
        assert steps == 1
        results = self._step(state, self._next)
        self._read_next()
        return results

    def _read_next(self) -> None:
        batch = next(self._batches, None)
        self._next = None if batch is None else data_parallel.shard_batch(batch)

    def close(self) -> None:
        self._batches.close()


def step_chunks(done: int, total: int, at_once: int, every: Sequence[int]) -> Iterator[range]:
    """The steps after `done`, numbered from 1, `at_once` together or singly.

    None that is a multiple of one of `every`, where something is due, lies inside of a stretch: it
    ends with it.
    """
    while done < total:
        due = min(total, *(round_up(done + 1, multiple) for multiple in every))
        count = at_once if done + at_once <= due else 1
        yield range(done + 1, done + count + 1)
        done += count


def reason_to_stream(cache: str, sizes: np.ndarray, canvas_px: Size, needed: int, seen: int) -> str:
    """Why the set is not to lie on the devices; empty where it is.

    cache: `config.data.cache`. needed: bytes on each device. seen: images that training takes, in
    all.
    """
    if cache == "none":
        return "config.data.cache=none asks for it"
    if jax.process_count() > 1:
        return "several hosts train together"
    if (np.asarray(sizes) > canvas_px).any():
        return "of those larger than config.data.canvas_px another part is seen each time"
    free = free_bytes()
    if cache == "device":
        if free is None or needed <= free:
            return ""
        return f"they take {_on_each(needed)}, where {_in_bytes(free)} are free"
    if seen < len(sizes):
        return f"training sees no more than {seen:,} of them"
    if free is None:
        return "the device does not tell how much memory it has"
    if needed <= free * SHARE_OF_MEMORY:
        return ""
    return (
        f"they would take {_on_each(needed)}, and may take a quarter of {_in_bytes(free)} "
        "that are free"
    )


def _on_each(count: int) -> str:
    devices = jax.device_count()
    return _in_bytes(count) + (f" on each of {devices} devices" if devices > 1 else "")


def _in_bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
