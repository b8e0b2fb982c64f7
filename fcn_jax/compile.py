"""Compiles the training step for a TPU that is absent, and reports what it takes there.

    python -m fcn_jax.compile --topology=v5e:2x4 [--config=FILE] [--config.section.key=value ...]

Chips are v5e, v5p and v6e; v5e:2x4 are 8 chips, v5p:2x2x2 as well. The step is that of
`fcn_jax.train` with the same config, compiled by the TPU's own compiler (pip install
'.[compile]'); no TPU is needed. `config.train.batch_size` counts the images on all chips together.
Deep networks take 3 to 5 minutes on two cores, and as long again for the largest batch.

Prints for each chip

    memory        by kind, and what the chip has
    operations    FLOPs and bytes, and the least time that the chip's published peaks allow
    collectives   by kind, with their sizes
    batch         the most images that fit, extrapolated from two batch sizes

Number of classes, size of the images and class weights are those of the data set. If it is not on
this machine, --num_classes=21 replaces it: RGB images on canvases of `config.data.canvas_px`, or of
the crop's size.
"""

import os

from absl import flags

from fcn_jax.terminal import cli

if __name__ == "__main__":  # --help and mistakes in flags do not wait for the imports below
    flags.DEFINE_string("topology", None, "chip and arrangement, such as v5e:2x4")
    flags.DEFINE_integer(
        "num_classes", None, "compile without the data set, for this many classes", lower_bound=1
    )
    flags.DEFINE_bool("largest_batch", True, "compile twice, and estimate the largest batch")
    # The devices are absent: nothing runs, and nothing can be loaded from the cache.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    cli.begin(with_config=True)

import time
from collections.abc import Callable

import numpy as np
from rich import box
from rich.table import Table

from fcn_jax.config import Config
from fcn_jax.data.canvases import one_canvas
from fcn_jax.data.datasets import open_dataset
from fcn_jax.errors import ArgumentError, UserError
from fcn_jax.parallel.program_cost import ProgramCost, program_cost, roofline
from fcn_jax.parallel.tpu import TpuChip, topology_mesh
from fcn_jax.terminal.console import open_console
from fcn_jax.terminal.progress import format_duration, say
from fcn_jax.training.ahead_of_time import (
    DataShape,
    DoesNotFitError,
    compile_lowered,
    largest_batch,
    lower_train_step,
)
from fcn_jax.training.class_weights import class_weights


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r} (see --help)")
    options = flags.FLAGS
    if not options.topology:
        raise UserError("--topology is needed, such as --topology=v5e:2x4 (see --help)")
    config: Config = options.config
    chip, mesh = topology_mesh(options.topology)
    chips = mesh.size
    images, rest = divmod(config.train.batch_size, chips)
    parts = config.train.accumulation_steps
    if rest or images % parts:
        suggestion = max(1, config.train.batch_size // (chips * parts)) * chips * parts
        raise ArgumentError(
            "train.batch_size",
            config.train.batch_size,
            f"does not divide over {chips} chips{f' × {parts} parts' if parts > 1 else ''}; "
            f"{suggestion} would",
        )
    data = _data_shape(config, options.num_classes)

    def compile_with(images: int) -> ProgramCost:
        say(f"compiling for {images} images a chip ...")
        started = time.monotonic()
        lowered = lower_train_step(config, data, mesh, images * chips)
        cost = program_cost(compile_lowered(lowered))
        say(f"compiled in {format_duration(time.monotonic() - started)}")
        return cost

    say(_headline(config, data, chip, chips, images))
    try:
        cost = compile_with(images)
    except DoesNotFitError as error:
        raise UserError(
            f"{images} images a chip do not fit a {chip.name} ({error}): give a smaller "
            "config.train.batch_size, more config.train.accumulation_steps, "
            "config.model.compute_dtype=bfloat16 or config.model.remat"
        ) from error
    _report(cost, chip, images, chips)
    if options.largest_batch:
        _report_largest(lambda n: compile_with(n).memory_bytes, cost, chip, images, chips)


def _data_shape(config: Config, num_classes: int | None) -> DataShape:
    """Reads what the step depends on from the data set, or takes it from the flag."""
    if config.data.ndim == 3:
        raise UserError("config.data.name=volumes cannot be compiled ahead of time, images can")
    if num_classes is not None:
        canvas = config.data.canvas_px or config.augment.crop_px
        if canvas is None:
            raise UserError(
                "--num_classes needs --config.data.canvas_px if config.augment.crop_px is None"
            )
        counts = {name: num_classes for name in config.data.label_map_names()}
        weights = class_weights(
            config.loss.class_weights, counts, {name: np.ones(num_classes) for name in counts}
        )
        channels = 3 + len(config.data.extra_channels)
        steps = config.train.steps or 1000
        return DataShape(counts, channels, one_canvas(np.array([canvas])), weights, steps)
    try:
        dataset = open_dataset(config.data)
    except UserError as error:
        raise UserError(f"{error} (or --num_classes=N, to compile without the data set)") from error
    statistics = dataset.statistics(config.data.train_split)
    return DataShape(
        dataset.num_classes,
        dataset.channels,
        config.data.canvas_px or one_canvas(statistics.sizes),
        class_weights(config.loss.class_weights, dataset.num_classes, statistics.label_counts),
        config.train.total_steps(len(statistics.sizes)),
    )


def _headline(config: Config, data: DataShape, chip: TpuChip, chips: int, images: int) -> str:
    height, width = config.augment.crop_px or data.canvas_px
    classes = " and ".join(map(str, data.num_classes.values()))
    return (
        f"training step of {config.model.backbone}, {config.model.skips} skips, {classes} classes, "
        f"{config.model.compute_dtype} · {height}×{width} px, {images} images a chip · "
        f"{chips} × {chip.name}"
    )


def _report(cost: ProgramCost, chip: TpuChip, images: int, chips: int) -> None:
    memory = _table("memory of a chip", "GB")
    for name, count in {
        "state and batch": cost.argument_bytes,
        "temporary: activations, gradients": cost.temporary_bytes,
        "results": cost.output_bytes,
        "program": cost.code_bytes,
    }.items():
        memory.add_row(name, f"{count / 1e9:.2f}")
    memory.add_section()
    memory.add_row(f"together, of {chip.hbm_bytes / 1e9:.1f}", f"{cost.memory_bytes / 1e9:.2f}")
    least = roofline(cost, chip)
    work = _table("work of a chip in a step", "amount", "peak", "least time, ms")
    for name, amount, peak, seconds in (
        (
            "arithmetic",
            f"{_short(cost.flops)}FLOP",
            f"{chip.flops / 1e12:.0f} TFLOP/s",
            least.arithmetic,
        ),
        (
            "memory traffic",
            f"{_short(cost.traffic_bytes)}B",
            f"{chip.hbm_bandwidth / 1e9:.0f} GB/s",
            least.memory,
        ),
        (
            "interconnect",
            f"{_short(sum(found.total_bytes for found in cost.collectives))}B",
            f"{chip.ici_bandwidth / 1e9:.0f} GB/s",
            least.interconnect,
        ),
    ):
        work.add_row(name, amount, peak, f"{1e3 * seconds:.2f}")
    operations = _table("operations", "number", "arrays", "MB", "largest, MB")
    for found in (*cost.collectives, cost.copies):
        if found.sizes:
            operations.add_row(
                found.kind,
                str(len(found.sizes)),
                str(found.arrays),
                f"{found.total_bytes / 1e6:.1f}",
                f"{max(found.sizes) / 1e6:.1f}",
            )
    console = open_console()
    for table in (memory, work, operations):
        console.print(table)
    rate = images * chips / least.seconds
    say(
        f"by the peaks of {chip.name}, a step takes at least {1e3 * least.seconds:.3g} ms: at most "
        f"{rate:,.0f} images/s on {chips} chips (XLA's counts; of loops, one pass)"
    )


def _report_largest(
    memory_bytes: Callable[[int], int], cost: ProgramCost, chip: TpuChip, images: int, chips: int
) -> None:
    try:
        most, each, other = largest_batch(memory_bytes, images, cost.memory_bytes, chip.hbm_bytes)
    except DoesNotFitError:
        say("largest batch: 1 image a chip; 2 do not fit")
        return
    say(
        f"largest batch: about {most:,} images a chip, {most * chips:,} on all chips, at "
        f"{each / 1e6:.0f} MB an image (a line through {images} and {other:,} images a chip)"
    )


def _short(count: float) -> str:
    """Formats a count with three digits and a prefix: "3.72 T"."""
    for prefix in ("", "k", "M", "G", "T"):
        if count < 999.5 or prefix == "T":
            break
        count /= 1000
    return f"{count:.3g} {prefix}"


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(title)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


if __name__ == "__main__":
    cli.run(main)
