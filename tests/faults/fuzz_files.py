"""Reads damaged files, and counts how that ends.

    python -m tests.faults.fuzz_files [--mutations=500] [--seed=0] [KIND...]

writes a file of each kind (see `KINDS`), changes one byte of it at a time, and reads it as the
commands do. Each reading must end in the right result or in one line, within `SECONDS` and
`MEMORY_BYTES`. Kinds in `WITHOUT_CHECKSUM` may also give another result: nothing in these formats
tells that a pixel was another one. The exit status is 1 if any reading ends otherwise; the same
seed changes the same bytes.
"""

import argparse
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

SECONDS = 20
MEMORY_BYTES = 2 << 30
OUTCOMES = ("right", "one line", "other result")


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        write: writes a file, or a folder of files, into a folder that exists, and returns it.
        read: reads it; the result is compared by its bytes.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]


def write_checkpoint(folder: Path) -> Path:
    import jax

    from fcn_jax.training.checkpoint import CheckpointWriter

    with CheckpointWriter(folder / "checkpoints") as writer:
        writer.save(jax.tree.map(jax.numpy.asarray, _state()), 0.5)
    return folder / "checkpoints/7"


def read_checkpoint(path: Path) -> Any:
    from fcn_jax.training.checkpoint import CheckpointReader

    reader = CheckpointReader(path.parent)
    return reader.best, reader.restore(_state())


def _state() -> Any:
    from fcn_jax.training.train_step import TrainState

    kernel = np.arange(2000, dtype=np.float32).reshape(2, 1000)
    return TrainState(np.int32(7), {"kernel": kernel}, {"mean": kernel[0]}, {"trace": -kernel})


def write_safetensors(folder: Path) -> Path:
    from fcn_jax.config import Config
    from fcn_jax.pretrained import Provenance, model_file

    provenance = Provenance(Config(), {"": ("ground", "road")}, 3, source="fuzz", step=7)
    path = folder / "model.safetensors"
    model_file.save(path, _tensors(), provenance)
    return path


def write_npz(folder: Path) -> Path:
    np.savez(folder / "weights.npz", **_tensors())  # type: ignore[arg-type]
    return folder / "weights.npz"


def write_pth(folder: Path) -> Path:
    import torch

    tensors = {name: torch.from_numpy(value) for name, value in _tensors().items()}
    torch.save(tensors, folder / "weights.pth")
    return folder / "weights.pth"


def _tensors() -> dict[str, np.ndarray]:
    random_numbers = np.random.default_rng(0)
    return {
        f"backbone/conv{layer}/kernel": random_numbers.random((3, 3, 8, 8), np.float32)
        for layer in range(3)
    }


def read_model_file(path: Path) -> Any:
    from fcn_jax.pretrained import read

    weights = read(path)
    return repr(weights.provenance), weights.tensors


def read_weights(path: Path) -> Any:
    from fcn_jax.pretrained.weight_files import read_weights

    return read_weights(path)


def write_image(folder: Path, name: str, **options: Any) -> Path:
    from fcn_jax.data import shapes

    image, label = shapes.draw("val_000")
    pixels = label if "mask" in name else image
    Image.fromarray(pixels).save(folder / name, **options)
    return folder / name


def read_image(path: Path) -> Any:
    from fcn_jax.data.images import read_image

    return read_image(path)


def read_mask(path: Path) -> Any:
    from fcn_jax.data.masks import read_mask

    return read_mask(path)


KINDS = {
    "checkpoint": Kind(write_checkpoint, read_checkpoint),
    "safetensors": Kind(write_safetensors, read_model_file),
    "npz": Kind(write_npz, read_weights),
    "pth": Kind(write_pth, read_weights),
    "png": Kind(lambda folder: write_image(folder, "image.png"), read_image),
    "mask_png": Kind(lambda folder: write_image(folder, "mask.png"), read_mask),
    "jpeg": Kind(lambda folder: write_image(folder, "image.jpg", quality=90), read_image),
    "tiff_mask": Kind(
        lambda folder: write_image(folder, "mask.tif", compression="tiff_adobe_deflate"), read_mask
    ),
}
WITHOUT_CHECKSUM = {"jpeg", "tiff_mask"}


def mutate(path: Path, seed: str) -> tuple[Path, int, bytes]:
    """Changes a byte of a file, or of a file in a folder; returns the file, position, content."""
    choice = random.Random(seed)
    files = [path] if path.is_file() else sorted(x for x in path.rglob("*") if x.is_file())
    file = choice.choice([x for x in files if x.stat().st_size])
    content = file.read_bytes()
    position = choice.randrange(len(content))
    changed = bytearray(content)
    changed[position] ^= choice.randrange(1, 256)
    file.write_bytes(changed)
    return file, position, content


def digest(result: Any) -> int:
    import jax

    checksum = 0
    for leaf in jax.tree.leaves(result):
        array = np.asarray(leaf)
        header = f"{array.dtype} {array.shape}".encode()
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), zlib.crc32(header, checksum))
    return checksum


def outcome(kind: Kind, path: Path, right: int, name: str) -> str:
    """Reads a changed file, and returns one of `OUTCOMES` or what is wrong."""
    from fcn_jax.errors import UserError, printable

    try:
        result = digest(kind.read(path))
    except UserError as error:
        names_file = any(part in str(error) for part in (path.name, str(path.parent)))
        is_line = str(error).strip() and len(printable(str(error))) < 1000
        return "one line" if names_file and is_line else f"unclear: {error}"
    except MemoryError:
        return "out of memory"
    except BaseException:
        return f"traceback: {traceback.format_exc()}"
    if result == right:
        return "right"
    return "other result" if name in WITHOUT_CHECKSUM else "a wrong result in silence"


def child(name: str, folder: Path, seed: int, start: int, stop: int, pipe: Connection) -> None:
    """Reads the mutations start…stop, and sends the outcome of each."""
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff's own messages
    kind = KINDS[name]
    path = kind.write(folder)
    right = digest(kind.read(path))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    for index in range(start, stop):
        file, position, content = mutate(path, f"{seed} {name} {index}")
        started = time.monotonic()
        result = outcome(kind, path, right, name)
        seconds = time.monotonic() - started
        pipe.send((index, f"{file.name} at byte {position}", result, seconds))
        file.write_bytes(content)


def fuzz(name: str, seed: int, mutations: int) -> tuple[Counter[str], list[str], float]:
    """Returns the number of each outcome, what is wrong, and the longest time of a reading."""
    context = multiprocessing.get_context("spawn")
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    longest, done = 0.0, 0
    while done < mutations:
        with tempfile.TemporaryDirectory() as folder:
            receiver, sender = context.Pipe(duplex=False)
            arguments = (name, Path(folder), seed, done, mutations, sender)
            process = context.Process(target=child, args=arguments)
            process.start()
            sender.close()
            patience = 120.0  # the imports
            while True:
                problem = "no answer" if not receiver.poll(patience) else ""
                try:
                    index, place, result, seconds = (
                        (done, "?", "a hang", SECONDS) if problem else receiver.recv()
                    )
                except EOFError:
                    process.join()
                    if done == mutations:
                        break
                    result = f"the process ended with status {process.exitcode}"
                    index, place, seconds = done, "?", 0.0
                    problem = result
                done, longest, patience = index + 1, max(longest, seconds), SECONDS
                counts[result if result in OUTCOMES else "wrong"] += 1
                if result not in OUTCOMES:
                    wrong.append(f"{name}, mutation {index} ({place}): {result}")
                if problem:
                    break
            process.kill()
            process.join()
    return counts, wrong, longest


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--mutations", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    all_wrong = []
    print(f"seed {options.seed}, {options.mutations} mutations of each kind")
    for name in options.kinds or KINDS:
        if name == "pth":
            try:
                import torch  # noqa: F401
            except ImportError:
                print("pth: not done, because PyTorch, which writes the file, is not installed")
                continue
        counts, wrong, longest = fuzz(name, options.seed, options.mutations)
        all_wrong += wrong
        numbers = ", ".join(f"{counts[result]} {result}" for result in (*OUTCOMES, "wrong"))
        print(f"{name}: {numbers}; the longest took {longest:.2f} s", flush=True)
        for line in wrong[:10]:
            print(f"  {line[:2000]}", flush=True)
    return 1 if all_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
