"""How training gets its images: out of the devices' memory where the set fits there, or streamed.

Both ways give the same batches (`data/order.py`), so a run may change between them.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import grain
import jax
import numpy as np

from fcn_jax import parallel
from fcn_jax.config import Config
from fcn_jax.data import resident
from fcn_jax.data.canvases import Size, one_canvas, round_up
from fcn_jax.data.pipeline import training_batches
from fcn_jax.data.resident import Step
from fcn_jax.errors import UserError
from fcn_jax.progress import say

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
    train_step: Step, records: Any, sizes: np.ndarray, config: Config, steps: range
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
    canvas_px = config.data.canvas_px if all(config.data.canvas_px) else one_canvas(sizes)
    share = math.ceil(len(sizes) / jax.device_count())
    needed = share * resident.canvas_bytes(records[0], canvas_px)
    seen = len(steps) * config.train.batch_size
    if steps and _fits(config.data.cache, sizes, canvas_px, needed, seen):
        return Resident(train_step, records, canvas_px, config)
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

    def __init__(self, train_step: Step, records: Any, canvas_px: Size, config: Config):
        self.at_once = config.train.steps_per_dispatch
        if self.at_once > 1 and jax.default_backend() == "cpu":
            say(
                "note: XLA's CPU convolves many times slower in a loop of steps: leave "
                "config.train.steps_per_dispatch at 1"
            )
        on_resident = partial(
            resident.on_resident,
            train_step,
            count=len(records),
            batch_size=config.train.batch_size,
            seed=config.seed,
        )
        # Each is compiled when it is first called.
        self._steps = {
            count: parallel.on_all_devices(on_resident(steps=count), donate_state=True)
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

    def __init__(self, train_step: Step, batches: grain.DatasetIterator):
        self._step = parallel.on_all_devices(train_step, donate_state=True)
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
        self._next = None if batch is None else parallel.on_devices(batch)

    def close(self) -> None:
        self._batches.close()


def stretches(done: int, total: int, at_once: int, every: Sequence[int]) -> Iterator[range]:
    """The steps after `done`, numbered from 1, `at_once` together or singly.

    None that is a multiple of one of `every`, where something is due, lies inside of a stretch: it
    ends with it.
    """
    while done < total:
        due = min(total, *(round_up(done + 1, multiple) for multiple in every))
        count = at_once if done + at_once <= due else 1
        yield range(done + 1, done + count + 1)
        done += count


def _fits(cache: str, sizes: np.ndarray, canvas_px: Size, needed: int, seen: int) -> bool:
    """Whether the set is to lie on the devices. needed: bytes on each. seen: images, in all."""
    images = f"{len(sizes):,} images"
    devices = jax.device_count()
    of_each = "" if devices == 1 else f" on each of {devices} devices"
    free = _free_bytes()
    reason = ""
    if jax.process_count() > 1:
        reason = "several hosts train together"
    elif (np.asarray(sizes) > canvas_px).any():
        reason = "of those larger than config.data.canvas_px another part is seen each time"
    elif cache == "auto" and seen < len(sizes):
        reason = f"training sees no more than {seen:,} of them"
    elif free is None:
        reason = "" if cache == "device" else "the device does not tell how much memory it has"
    elif cache == "device" and needed > free:
        reason = f"they take {_in_bytes(needed)}{of_each}, where {_in_bytes(free)} are free"
    elif cache == "auto" and needed > free * SHARE_OF_MEMORY:
        reason = (
            f"they would take {_in_bytes(needed)}{of_each}, and may take a quarter of "
            f"{_in_bytes(free)} that are free"
        )
    if cache == "none":
        say(f"{images} are streamed, as config.data.cache=none asks")
        return False
    if cache == "device" and reason:
        raise UserError(
            f"config.data.cache=device cannot keep {images} on the device: {reason}; "
            "with config.data.cache=auto they are streamed"
        )
    if reason:
        say(f"{images} are streamed: {reason}")
        return False
    say(f"{images} lie on the device{'' if devices == 1 else 's'}, {_in_bytes(needed)}{of_each}")
    return True


def _free_bytes() -> int | None:
    """Of each device's memory; of CPUs, an equal part of the machine's. None: it does not tell."""
    device, *_ = jax.local_devices()
    if device.platform == "cpu":
        return _available_bytes() // jax.local_device_count()
    told = device.memory_stats() or {}
    if "bytes_limit" not in told:
        return None
    return told["bytes_limit"] - told.get("bytes_in_use", 0)


def _available_bytes(root: Path = Path("/")) -> int:
    """What the machine can still give, and a container's limit lets it; else half of all it has."""
    with contextlib.suppress(OSError, KeyError, ValueError):
        lines = (root / "proc/meminfo").read_text().splitlines()
        told = dict(line.split(":", 1) for line in lines)
        available = int(told["MemAvailable"].split()[0]) * 1024
        with contextlib.suppress(OSError, ValueError):  # no limit is written as "max"
            limit, used = (
                int((root / "sys/fs/cgroup" / name).read_text())
                for name in ("memory.max", "memory.current")
            )
            available = min(available, max(limit - used, 0))
        return available
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not on Windows
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 4 << 30


def _in_bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
