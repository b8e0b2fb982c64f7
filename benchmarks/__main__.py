"""Measures how fast the parts that take the time are, beside other implementations of the same.

    python -m benchmarks [--suites=NAME,NAME] [--against=torch] [--repeats=N] [--all]
                                [--voc_root=VOCdevkit] [--json=FILE] [--small]

startup     import, --help, and a run to its first step: with nothing compiled, again, resumed
memory      the most memory that a training step takes, and on a GPU the largest batch that runs
upsample    transposed convolution of 21 classes to about 320×480, batch 2, by strides 2 to 32,
            forward and with its gradients: ours, flax's, lax's and, where asked, PyTorch's
train_step  a whole step, from canvases of 512×512 bytes to new parameters: scale, crop and flip,
            forward, loss, gradients, update. FCN-8s on SqueezeNet; on a GPU also torchvision's FCN
            on ResNet-50 and FCN-8s on VGG16, in bfloat16
input       a training iteration that reads its images, beside the bare step
evaluate    the score of all validation images, beside a loop over them in PyTorch

Times are of calls that are waited for, after a warm-up; the contenders of a case run in turn, in
one process. --against=torch adds PyTorch on the same shapes: on a GPU with channels-last,
torch.compile and automatic mixed precision, on the CPU eager, contiguous or channels-last,
whichever is faster. Its crops are cut image by image: a row of its own is of steps on crops made
before.

GFLOP are those of the compiled program, of one device, or of its convolutions and matrix products
as traced where those are more (XLA counts loops once and calls of libraries not at all); the peak
is what the device's maker publishes for dense products (`benchmark/cost.py`), and CPUs have none.

What cannot be measured on the machine at hand is in the table, with the reason.
Each suite's table is printed when it ends; the JSON grows with every case.
"""

from absl import flags

from fcn_jax.terminal import cli

if __name__ == "__main__":
    flags.DEFINE_list(
        "suites", [], "of startup, memory, upsample, train_step, input, evaluate (default: all)"
    )
    flags.DEFINE_enum("against", None, ["torch"], "also measure PyTorch")
    flags.DEFINE_integer("repeats", 9, "timed calls of each contender", lower_bound=1)
    flags.DEFINE_bool("all", False, "also what is meant for a GPU, where there is none")
    flags.DEFINE_string("voc_root", None, "where PASCAL VOC is (default: drawn shapes stand in)")
    flags.DEFINE_string("json", None, "file that the numbers are written to")
    flags.DEFINE_bool("small", False, "tiny sizes, to see that it runs; their times mean nothing")
    cli.begin()

import datetime
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

import jax

from benchmarks import device_memory, evaluation_rate, input_rate, startup, train_step, upsample
from benchmarks.hardware import hardware, versions
from benchmarks.measuring import Case, Row, run_case
from benchmarks.report import Report, caption, heading, suite_table
from benchmarks.settings import Settings, on_gpu
from fcn_jax.errors import UserError
from fcn_jax.terminal.atomic_files import write_whole
from fcn_jax.terminal.progress import progress_bar

SUITES: dict[str, Callable[[Settings], Iterator[Case]]] = {
    "startup": startup.cases,
    "memory": device_memory.cases,
    "upsample": upsample.cases,
    "train_step": train_step.cases,
    "input": input_rate.cases,
    "evaluate": evaluation_rate.cases,
}
"""In an order in which programs of their own, which want a device's memory, come first."""


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r} (see --help)")
    options = flags.FLAGS
    suites = in_order(options.suites or SUITES)
    if options.json:
        check_writable(options.json)
    # PyTorch and the programs that are started want some of a GPU's memory as well.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    settings = Settings(
        small=options.small,
        gpu_cases=options.all or on_gpu(),
        voc_root=options.voc_root or "",
        peer=torch_peer() if options.against == "torch" else None,
    )
    if options.voc_root:
        settings.dataset()  # what is wrong with it is told before the time is spent
    benchmark(
        suites,
        repeats=options.repeats,
        settings=settings,
        keep=partial(write_json, options.json) if options.json else lambda _: None,
    )


def in_order(names: Collection[str]) -> list[str]:
    """Suites in the order of `SUITES`, each once. Raises UserError for an unknown one."""
    for name in names:
        if name not in SUITES:
            raise UserError(f"--suites (={name!r}) must be among {', '.join(SUITES)}")
    return [name for name in SUITES if name in names]


def check_writable(path: str) -> None:
    """Raises UserError unless a file can be written there: before the time is spent."""
    if Path(path).exists() and not Path(path).is_file():
        raise UserError(f"--json (={path}) cannot be written: it is no file")
    try:
        with tempfile.TemporaryFile(dir=Path(path).parent):
            pass
    except OSError as error:
        raise UserError(f"--json (={path}) cannot be written: {error.strerror}") from error


def write_json(path: str, report: Report) -> None:
    text = json.dumps(report, indent=1) + "\n"
    write_whole(Path(path), lambda part: part.write_text(text))


def torch_peer():
    """PyTorch as a peer. Raises UserError where it is missing, or does not see JAX's GPU."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "--against=torch needs PyTorch, which is not installed: pip install torch"
        ) from error
    backend = jax.default_backend()
    if backend != "cpu" and not torch.cuda.is_available():
        raise UserError(
            f"--against=torch: JAX is on a {backend.upper()}, and PyTorch {torch.__version__} sees "
            "no GPU: install a CUDA build"
        )
    from benchmarks.torch_peer import Peer

    return Peer()


def benchmark(
    suites: Sequence[str],
    *,
    repeats: int,
    settings: Settings,
    keep: Callable[[Report], object],
) -> Report:
    """Runs suites by name, prints the table of each when it ends, and returns all of it.

    Args:
        suites: keys of `SUITES`.
        repeats: timed calls of each contender.
        keep: called with what there is after each case, so that an interruption loses nothing.

    Raises:
        UserError: images that cannot be read, or what `keep` raises.
    """
    report: Report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions() | (settings.peer.versions if settings.peer else {}),
        "repeats": repeats,
        "small": settings.small,
        "results": [],
    }
    print(f"{heading(report)}\n", flush=True)
    for name in suites:
        rows: list[Row] = []
        try:
            cases = list(SUITES[name](settings))
            with progress_bar(name, len(cases), "cases") as bar:
                for case in cases:
                    rows += run_case(name, case, repeats)
                    keep({**report, "results": report["results"] + rows})
                    if settings.peer is not None:
                        settings.peer.release()
                    bar.advance()
        finally:  # of an interrupted suite what there is
            if rows:
                print(f"{suite_table(name, rows)}\n", flush=True)
        report["results"] += rows
    print(caption(report))
    return report


if __name__ == "__main__":
    cli.run(main)
