"""Suite: what a training step takes of memory at its peak, what its forward pass keeps of an image
for the backward pass, and the largest batch that runs.

Of a compiled program XLA tells what it holds at its peak on each device: arguments, results and
what lies in between, less what of the arguments becomes results. PyTorch has such a number of GPUs
alone, and only when the step has run.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.kept import kept_of_an_image
from benchmarks.largest_batch import SIDE_PX
from benchmarks.measuring import Case, Contender, NotMeasuredError
from benchmarks.settings import Settings, on_gpu
from benchmarks.workloads import Workload, random_canvases, random_variables, workloads
from fcn_jax.parallel.memory import device_bytes

CONTENDERS: dict[str, dict[str, Any]] = {
    "fcn_jax": {},
    "fcn_jax in float32": {"model__compute_dtype": "float32"},
    "fcn_jax in bfloat16": {"model__compute_dtype": "bfloat16"},
    "fcn_jax in 2 parts": {"train__accumulation_steps": 2},
    "fcn_jax with remat": {"model__remat": True},
}
"""Changes to the workload's settings. Those that change nothing are left out."""


def cases(settings: Settings) -> Iterator[Case]:
    # First, while nothing else has memory of the device.
    yield _numbers(
        f"FCN-ResNet-50 {SIDE_PX}×{SIDE_PX} bfloat16: largest batch",
        "images",
        lambda: largest(settings),
    )
    for workload in workloads(settings.small):
        crop = "×".join(map(str, workload.crop_px))
        yield _numbers(
            f"{workload.name} {crop} {workload.dtype}: kept of an image for the backward pass",
            "bytes",
            lambda w=workload: kept(w, settings),  # type: ignore[misc]
        )
        usual = workload.config.train.batch_size
        for batch_size in (usual,) if settings.small else (usual, 2 * usual):
            changed = workload.changed(train__batch_size=batch_size)
            yield _numbers(
                f"{changed.title}: a training step",
                "bytes",
                lambda w=changed: peaks(w, settings),  # type: ignore[misc]
            )


def _numbers(
    name: str, unit: str, build: Callable[[], dict[str, Contender | NotMeasuredError]]
) -> Case:
    """A case whose contenders tell a number, the same each time."""
    return Case(name, build, unit=unit, timed=False, warm_up_calls=0, most_repeats=1)


def kept(workload: Workload, settings: Settings) -> dict[str, Contender | NotMeasuredError]:
    made: dict[str, Contender | NotMeasuredError] = {
        name: Contender(lambda w=changed: kept_of_an_image(w))  # type: ignore[misc]
        for name, changed in contenders(workload)
        if changed.config.train.accumulation_steps == 1
    }
    if settings.peer is not None:
        from benchmarks import torch_kept

        made["PyTorch"] = Contender(lambda: torch_kept.kept_of_an_image(workload), peer=True)
    return made


def peaks(workload: Workload, settings: Settings) -> dict[str, Contender | NotMeasuredError]:
    settings.check_runs(workload)
    made: dict[str, Contender | NotMeasuredError] = {
        name: Contender(lambda w=changed: compiled_peak(w))  # type: ignore[misc]
        for name, changed in contenders(workload)
    }
    if settings.peer is not None:
        made["PyTorch"] = peer_peak(workload, settings.peer)
    return made


def contenders(workload: Workload) -> Iterator[tuple[str, Workload]]:
    """The workload, and as it is with each of the settings that change it."""
    for name, changes in CONTENDERS.items():
        changed = workload.changed(**changes)
        if name == "fcn_jax" or changed.config != workload.config:
            yield name, changed


def compiled_peak(workload: Workload) -> int:
    """Bytes of one device that the compiled training step holds at its peak."""
    network = workload.network()
    step = workload.step(network)
    lowered = step.lower(workload.abstract_state(network), workload.abstract_batch())
    memory: Any = lowered.compile().memory_analysis()
    if memory is None:
        raise NotMeasuredError("XLA does not tell of this device")
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def peer_peak(workload: Workload, peer: Any) -> Contender | NotMeasuredError:
    if not on_gpu():
        return NotMeasuredError("PyTorch does not tell it of a CPU")
    network = workload.network()
    batch = random_canvases(workload.config.train.batch_size, workload.canvas_px)
    return Contender(lambda: peer.peak_bytes(workload, random_variables(network), batch), peer=True)


def largest(settings: Settings) -> dict[str, Contender | NotMeasuredError]:
    """Each in a process of its own, which has the whole device."""
    if device_bytes() is None:
        raise NotMeasuredError("no GPU")
    made: dict[str, Contender | NotMeasuredError] = {
        "fcn_jax": Contender(lambda: largest_of("fcn_jax", settings.small)),
        "fcn_jax with remat": Contender(lambda: largest_of("fcn_jax_remat", settings.small)),
    }
    if settings.peer is not None:
        made["PyTorch"] = Contender(lambda: largest_of("torch", settings.small))
    return made


def largest_of(contender: str, small: bool) -> int:
    """The largest batch that runs, found by a program of its own."""
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.largest_batch", contender, str(int(small))],
        # PyTorch's child asks JAX on what it runs, and leaves the memory to PyTorch.
        env=os.environ
        | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
        | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false" if contender == "torch" else "true"},
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        last = (finished.stderr.strip().splitlines() or [f"status {finished.returncode}"])[-1]
        raise NotMeasuredError(last)
    return json.loads(finished.stdout.splitlines()[-1])
