"""Suite `memory`: the largest batch that runs, the activations saved per image for the backward
pass, and the peak memory of a training step.

XLA reports the peak of a compiled program on each device: arguments, results and temporaries, less
the arguments whose memory the results take over. PyTorch reports such a number only on GPUs, and
only after the step has run.

    python -m benchmarks.suite_memory "fcn_jax|fcn_jax with remat|PyTorch" SMALL

is the program that the suite starts to find the largest batch, with the device to itself. SMALL is
1 for tiny sizes and batches of at most two images.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.measuring import Case, Contender, Contenders, NotMeasuredError, is_out_of_memory
from benchmarks.settings import Settings, on_gpu
from benchmarks.workloads import Workload, workloads
from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.parallel.memory import device_bytes
from fcn_jax.training.losses import CrossEntropy

SIDE_PX = 512
MAX_BATCH_SIZE = 1024

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
    yield number(title, partial(largest_batches, settings), unit="images")
    for workload in settings.workloads:
        title = f"{workload.title}: activations saved per image"
        yield number(title, partial(saved, workload, settings), unit="bytes")
        batch_size = workload.config.train.batch_size
        # On a GPU each program takes half a minute to compile.
        once = settings.small or on_gpu()
        for size in (batch_size,) if once else (batch_size, 2 * batch_size):
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
        name: Contender(partial(compiled_peak, variant))
        for name, variant in variants(workload)
        if name == "fcn_jax" or not on_gpu()
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


def largest_batches(settings: Settings) -> Contenders:
    if device_bytes() is None:
        raise NotMeasuredError("no GPU")
    names = ["fcn_jax", "fcn_jax with remat", *(["PyTorch"] if settings.peer else [])]
    return {name: Contender(partial(largest_batch, name, settings.small)) for name in names}


def largest_batch(contender: str, small: bool) -> int:
    """Returns the largest batch that runs, found by a process that has the device to itself."""
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.suite_memory", contender, str(int(small))],
        env=os.environ
        | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95", "TF_CPP_MIN_LOG_LEVEL": "3"}
        # The fastest of several kernels, which takes longest to find, matters to the time alone.
        | {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"}
        # PyTorch's process asks JAX for its device as well, and needs the memory for PyTorch.
        | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false" if contender == "PyTorch" else "true"},
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        lines = finished.stderr.strip().splitlines() or [f"status {finished.returncode}"]
        raise NotMeasuredError(lines[-1])
    return json.loads(finished.stdout.splitlines()[-1])


def find_largest_batch(contender: str, small: bool) -> None:
    """Prints the largest batch of a contender, to within a thirty-second part, see `largest`."""
    (workload,) = (w for w in workloads(small) if w.name == "FCN-ResNet-50")
    if not small:
        workload = workload.changed(augment__crop_px=(SIDE_PX, SIDE_PX))
    if contender == "fcn_jax with remat":
        workload = workload.changed(model__remat=True)
    run, saved_bytes = two_steps, saved_bytes_per_image
    if contender == "PyTorch":
        from benchmarks import torch_networks

        run, saved_bytes = torch_steps, torch_networks.saved_bytes_per_image
    try:
        guess = round(0.9 * (device_bytes() or 0) / saved_bytes(workload))
        maximum = 2 if small else MAX_BATCH_SIZE
        start = min(max(1, guess), maximum)
        print(largest(lambda size: fits(run, workload, size), start, maximum))
    except NotMeasuredError as error:
        sys.exit(str(error))


def largest(fits: Callable[[int], bool], start: int, maximum: int) -> int:
    """Returns a size that fits, of which 33/32 (and at least 1 more) does not fit; 0 if none does.

    Each size that is tried is a program to compile, so few are: from `start` up or down by eighths,
    and then by halves of what is between.

    Args:
        fits: whether a size fits; if one does, all smaller ones must too.
        start: the size that is tried first, near the result if possible.
        maximum: the largest size to try.
    """
    low, high = 0, maximum + 1
    size = start
    while low < size < high:
        if fits(size):
            low, size = size, min(size + max(1, size // 8), maximum)
        else:
            high, size = size, size - max(1, size // 8)
    while high - low > max(1, low // 32):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fits(run: Callable[[Workload], None], workload: Workload, batch_size: int) -> bool:
    """Returns whether the memory suffices to run a workload with a batch size on each device."""
    try:
        run(workload.changed(train__batch_size=batch_size * jax.device_count()))
    except Exception as error:
        if is_out_of_memory(error):
            return False
        raise
    return True


def two_steps(workload: Workload) -> None:
    step = workload.step()
    state = workload.state()
    for _ in range(2):
        state, _ = step(state, workload.batch())
    jax.block_until_ready(state)


def torch_steps(workload: Workload) -> None:
    from benchmarks.torch_peer import Peer

    peer = Peer()
    try:
        peer.two_steps(workload)
    finally:
        peer.release()


if __name__ == "__main__":
    find_largest_batch(sys.argv[1], sys.argv[2] == "1")
