"""Files that are written whole or not at all."""

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from fcn_jax.errors import UserError

UNFINISHED = ".unfinished"
"""Ending of the names of files that are being written; a process that is killed leaves them."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary name in the same folder, then renames the file to `path`.

    Creates the folder. Several processes may write the same file at once: the last one to finish
    determines its content. The temporary name is hidden, and has no ending that tells a format.

    Raises:
        UserError: the file cannot be written; what was there before is unchanged.
    """
    try:
        with replacement(path) as part:
            write(part)
    # safetensors and PyTorch report a full disk by their own errors.
    except (OSError, SafetensorError, RuntimeError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        reason = getattr(error, "strerror", None) or lines[0]
        raise UserError(f"cannot write {path} ({reason})") from error


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8 as `write_whole` does. Raises UserError if that is not possible."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


@contextlib.contextmanager
def replacement(path: Path) -> Iterator[Path]:
    """Yields the temporary name of a file that takes the place of `path` at the end of the block.

    If the block raises, the temporary file is deleted.

    Raises:
        OSError: the folder or the file cannot be written.
    """
    # Not the process's number: processes of several hosts may have the same.
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        part.touch()
        mode = part.stat().st_mode
        yield part
        part.chmod(mode)  # safetensors makes it readable by its owner only
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
