"""Files of counts: .npz archives of arrays, written whole and read without trusting them."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.errors import UserError
from fcn_jax.terminal.atomic_files import write_whole


def save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a compressed .npz file atomically.

    Raises:
        UserError: it cannot be written.
    """

    def write(part: Path) -> None:
        with part.open("wb") as file:  # NumPy appends .npz to other names
            np.savez_compressed(file, allow_pickle=False, **arrays)

    write_whole(path, write)


@contextlib.contextmanager
def opened(path: Path, remedy: str) -> Iterator[Mapping[str, Any]]:
    """Opens a file that `save` wrote, for a block that reads its arrays and checks them.

    Args:
        path: the file.
        remedy: ends the message of an error.

    Raises:
        UserError: the file cannot be read, is damaged, or the block finds something else in it.
    """
    try:
        # Opened here, because NumPy does not close a damaged file.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            yield stored
    except (
        OSError,
        EOFError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}): {remedy}") from error
