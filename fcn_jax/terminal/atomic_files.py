"""Files that are written whole or not at all."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from fcn_jax.errors import UserError

UNFINISHED = ".unfinished"
"""How the names of files end that are being written; of a killed run, they stay behind."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Has a file written beside its name and renamed when whole; makes the folder for it.

    Several processes may write the same file at once: one of them has the last word. The name that
    `write` is given is hidden, and has no ending by which a format could be told.

    Raises:
        UserError: it cannot be written; what stood there before still stands.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.touch()
            mode = part.stat().st_mode
            write(part)
            part.chmod(mode)  # safetensors writes for its owner alone; this is to be passed on
            part.replace(path)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
    # A full disk, in the words of safetensors and of PyTorch.
    except (OSError, SafetensorError, RuntimeError) as error:
        said = str(error).splitlines() or [type(error).__name__]
        reason = getattr(error, "strerror", None) or said[0]
        raise UserError(f"cannot write {path} ({reason})") from error
