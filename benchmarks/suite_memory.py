"""Suite `memory`: the largest batch that runs, the activations saved per image for the backward
pass, and the peak memory of a training step.

XLA reports the peak of a compiled program on each device: arguments, results and temporaries, less
the arguments whose memory the results take over. PyTorch reports such a number only on GPUs, and
only after the step has run.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.largest_batch import SIDE_PX
from benchmarks.measuring import Case, Contender, Contenders, NotMeasuredError
from benchmarks.settings import Settings, on_gpu
from benchmarks.workloads import Workload
from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.parallel.memory import device_bytes
from fcn_jax.training.losses import CrossEntropy

VARIANTS: dict[str, dict[str, Any]] = {
    "fcn_jax": {},
    "fcn_jax in float32": {"model__compute_dtype": "float32"},
    "fcn_jax in bfloat16": {"model__compute_dtype": "bfloat16"},
    "fcn_jax in 2 parts": {"train__accumulation_steps": 2},
    "fcn_jax with remat": {"model__remat": True},
}
"""Changes to a workload's settings."""


def cases(settings: Settings) -> Iterator[Case]:
    """Yields the largest batch first, while nothing else uses the device's memory."""
    number = partial(Case, timed=False, warm_up_calls=0, max_repeats=1)
    title = f"FCN-ResNet-50 {SIDE_PX}×{SIDE_PX} bfloat16: largest batch"
    yield number(title, partial(largest, settings), unit="images")
    for workload in settings.workloads:
        title = f"{workload.title}: activations saved per image"
        yield number(title, partial(saved, workload, settings), unit="bytes")
        batch_size = workload.config.train.batch_size
        for size in (batch_size,) if settings.small else (batch_size, 2 * batch_size):
            larger = workload.changed(train__batch_size=size)
            title = f"{larger.title}: a training step"
            yield number(title, partial(peaks, larger, settings), unit="bytes")


def variants(workload: Workload) -> Iterator[tuple[str, Workload]]:
    """Yields the workload, and it with each of `VARIANTS` that changes a setting."""
    for name, changes in VARIANTS.items():
        changed = workload.changed(**changes)
        if not changes or changed.config != workload.config:
            yield name, changed


def saved(workload: Workload, settings: Settings) -> Contenders:
    made = {
        name: Contender(partial(saved_bytes_per_image, variant))
        for name, variant in variants(workload)
        if variant.config.train.accumulation_steps == 1
    }
    if settings.peer:
        from benchmarks import torch_networks

        call = partial(torch_networks.saved_bytes_per_image, workload)
        made["PyTorch"] = Contender(call, peer=True)
    return made


def saved_bytes_per_image(workload: Workload) -> int:
    """Returns the bytes that the forward pass saves of an image for the backward pass.

    They limit the batch size, and need no device to be known: the network and the loss of its heads
    are traced, not run. What XLA makes of the program may take less. Parameters do not count.
    """
    network = workload.network

    def losses(params: Any, batch_stats: Any, image: jax.Array, label: jax.Array) -> jax.Array:
        heads, _ = network.logits_in_blocks((params, batch_stats), image, train=True)
        totals = [
            head.total(CrossEntropy().sums, head.layout.to_blocks(label, IGNORE_INDEX))[0]
            for head in heads.values()
        ]
        return jnp.sum(jnp.stack(totals))

    def residuals(params: Any, *inputs: Any) -> Any:
        return jax.vjp(lambda params: losses(params, *inputs), params)[1]

    def saved_bytes(batch_size: int) -> int:
        crop = (batch_size, *workload.crop_px)
        image = jax.ShapeDtypeStruct((*crop, 3), jnp.float32)
        label = jax.ShapeDtypeStruct(crop, jnp.int32)
        trace = jax.make_jaxpr(residuals, axis_env=[(DATA_AXIS, 1)])
        outputs = trace(*network.variables, image, label).jaxpr.outvars
        shapes = {id(variable): variable.aval for variable in outputs}
        return sum(shape.size * shape.dtype.itemsize for shape in shapes.values())

    return saved_bytes(2) - saved_bytes(1)


def peaks(workload: Workload, settings: Settings) -> Contenders:
    settings.check_runs(workload)
    made: dict[str, Contender | NotMeasuredError] = {
        name: Contender(partial(compiled_peak, variant)) for name, variant in variants(workload)
    }
    if settings.peer and on_gpu():
        made["PyTorch"] = Contender(partial(settings.peer.peak_bytes, workload), peer=True)
    elif settings.peer:
        made["PyTorch"] = NotMeasuredError("PyTorch does not report it on a CPU")
    return made


def compiled_peak(workload: Workload) -> int:
    """Returns the bytes that the compiled training step takes at its peak on each device."""
    memory: Any = workload.lowered(workload.step()).compile().memory_analysis()
    if memory is None:
        raise NotMeasuredError("XLA does not report it on this device")
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def largest(settings: Settings) -> Contenders:
    if device_bytes() is None:
        raise NotMeasuredError("no GPU")
    names = ["fcn_jax", "fcn_jax with remat", *(["PyTorch"] if settings.peer else [])]
    return {name: Contender(partial(largest_of, name, settings.small)) for name in names}


def largest_of(contender: str, small: bool) -> int:
    """Returns the largest batch that runs, found by a process that has the device to itself."""
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.largest_batch", contender, str(int(small))],
        # PyTorch's process asks JAX for its device as well, and needs the memory for PyTorch.
        env=os.environ
        | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
        | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false" if contender == "PyTorch" else "true"},
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        lines = finished.stderr.strip().splitlines() or [f"status {finished.returncode}"]
        raise NotMeasuredError(lines[-1])
    return json.loads(finished.stdout.splitlines()[-1])
