"""Measures how fast the parts that take the time are, compared with other implementations.

    python -m benchmarks [--suites=NAME,NAME] [--against=torch] [--repeats=N] [--all]
                         [--voc_root=VOCdevkit] [--json=FILE] [--small]

startup     import, --help, and training to its first step: nothing compiled, again, resumed
memory      peak memory of a training step, activations saved per image, largest batch on a GPU
upsample    transposed convolutions to about 320×480, batch 2, forward and with their gradients: of
            21 classes with strides 2 to 32, and of a U-Net's features with kernels of 2×2; ours,
            flax's, lax's and, if asked for, PyTorch's
scaling     how time and memory grow with the side of the image, the batch, the classes and the
            number of images
volumes     convolutions and transposed convolutions of three axes, as in a 3-D U-Net; ours, lax's
            and, if asked for, PyTorch's
train_step  a whole step, from canvases of 512×512 bytes to new parameters: scale, crop and flip,
            forward, loss, gradients, update. FCN-8s on SqueezeNet; on a CPU also FCN-32s on
            ResNet-18, FCN-8s on VGG16 and a U-Net; on a GPU torchvision's FCN on ResNet-50 and
            FCN-8s on VGG16, in bfloat16
members     a step of four members of an ensemble at once, and of one member, four times
input       a training iteration that reads its images, compared with the bare step
evaluate    the score of all validation images, compared with a loop over them in PyTorch

Every call is waited for and comes after a warm-up; the contenders of a case run in turn, in one
process. --against=torch adds PyTorch on the same shapes: with channels-last, torch.compile and
automatic mixed precision on a GPU; on a CPU in the faster of the contiguous and the channels-last
layout, eager, and training steps also compiled. It cuts its crops image by image; another row shows
its steps on crops that were cut before. As in the commands, freed memory stays with the process,
for PyTorch too (fcn_jax/terminal/allocator.py); $MALLOC_ARENA_MAX=8 leaves it to the C library.

GFLOP are the operations of the compiled program on one device, or those of its convolutions and
matrix products as traced if these are more (XLA counts loops once and library calls not at all).
The peak is what the device's maker publishes for dense products (`benchmarks/cost.py`); CPUs have
none.

The limit is the time that the operations take at the rate of a product of large matrices, or
the arguments and results of the program at the rate of a copy, whichever is longer; both rates are
measured on the machine. A whole step also moves what it keeps in between.

What this machine cannot measure is in the table with the reason. Each suite's table is printed when
it ends; the JSON file is rewritten after every case.
"""

from absl import flags

from benchmarks import SUITES
from fcn_jax.terminal import cli

if __name__ == "__main__":
    flags.DEFINE_list("suites", list(SUITES), f"some of {', '.join(SUITES)}")
    flags.DEFINE_enum("against", None, ["torch"], "also measure PyTorch")
    flags.DEFINE_integer("repeats", 9, "timed calls of each contender", lower_bound=1)
    flags.DEFINE_bool("all", False, "also run what is meant for a GPU if there is none")
    flags.DEFINE_string("voc_root", None, "folder of PASCAL VOC (default: drawn shapes instead)")
    flags.DEFINE_string("json", None, "file that the numbers are written to")
    flags.DEFINE_bool("small", False, "tiny sizes, to see that all runs; their times mean nothing")
    cli.begin()

import dataclasses
import datetime
import gc
import importlib
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from benchmarks.hardware import hardware, versions
from benchmarks.measuring import Row, run_case
from benchmarks.report import CAPTION, heading, suite_table
from benchmarks.settings import Settings, on_gpu
from benchmarks.workloads import workloads
from fcn_jax.config import DataConfig
from fcn_jax.errors import UserError
from fcn_jax.terminal.atomic_files import write_text
from fcn_jax.terminal.progress import progress_bar

if TYPE_CHECKING:
    from benchmarks.torch_peer import Peer


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r} (see --help)")
    options = flags.FLAGS
    suites = in_order(options.suites)
    # PyTorch and the processes that are started need some of a GPU's memory as well.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    root = options.voc_root
    data = DataConfig(name="voc", root=root) if root else DataConfig(name="shapes")
    settings = Settings(
        workloads=workloads(options.small),
        small=options.small,
        gpu_cases=options.all or on_gpu(),
        data=data,
        peer=torch_peer(small=options.small) if options.against == "torch" else None,
    )
    if options.voc_root:
        _ = settings.dataset  # errors in it are reported before the time is spent
    run(suites, settings, options.repeats, Path(options.json) if options.json else None)


def in_order(names: Collection[str]) -> list[str]:
    """Returns the suites in the order of `SUITES`. Raises UserError for an unknown one."""
    for name in names:
        if name not in SUITES:
            raise UserError(f"--suites (={name!r}) must be among {', '.join(SUITES)}")
    return [name for name in SUITES if name in names]


def torch_peer(*, small: bool) -> "Peer":
    """Returns PyTorch as a peer. Raises UserError if it is missing or does not see JAX's GPU."""
    try:
        from benchmarks.torch_peer import Peer
    except ImportError as error:
        raise UserError(
            "--against=torch needs PyTorch, which is not installed: pip install torch"
        ) from error
    return Peer(compiles_on_cpu=not small)


def run(
    suites: Sequence[str], settings: Settings, repeats: int, json_path: Path | None = None
) -> dict[str, Any]:
    """Runs suites and prints the table of each when it ends.

    Args:
        suites: names from `SUITES`.
        settings: what to measure.
        repeats: timed calls of each contender.
        json_path: file that the report is written to before the first case and after each.

    Returns:
        The report, as written to the file.

    Raises:
        UserError: images that cannot be read, or a file that cannot be written.
    """
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions() | (settings.peer.versions if settings.peer else {}),
        "repeats": repeats,
        "small": settings.small,
        "results": [],
    }
    _write(report, json_path)
    print(f"{heading(report)}\n", flush=True)
    for name in suites:
        rows: list[Row] = []
        try:
            cases = list(importlib.import_module(f"benchmarks.suite_{name}").cases(settings))
            with progress_bar(name, len(cases), "cases") as bar:
                for case in cases:
                    measured = run_case(name, case, repeats)
                    rows += measured
                    report["results"] += map(dataclasses.asdict, measured)
                    _write(report, json_path)
                    if settings.peer:
                        settings.peer.release()
                    _forget_programs()
                    bar.advance()
        finally:  # an interrupted suite prints the cases that it has measured
            if rows:
                print(f"{suite_table(name, rows)}\n", flush=True)
    print(CAPTION + ("\n\nSmall sizes: the times mean nothing." if settings.small else ""))
    return report


def _forget_programs() -> None:
    """Frees the case's programs, each of them about a thousand mappings of memory.

    With those of all cases a process reaches Linux's limit of 65,530, and compiles no more.
    """
    jax.clear_caches()
    gc.collect()


def _write(report: dict[str, Any], path: Path | None) -> None:
    if path:
        text = json.dumps(report, indent=1) + "\n"
        write_text(path, text)


if __name__ == "__main__":
    cli.run(main)
