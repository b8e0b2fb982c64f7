"""Checksums of the files of a checkpoint, in the file `checksums.json` of its folder.

CRC-32 detects accidental damage, not attacks. One CPU core calculates about 2 GB/s.
"""

import json
import zlib
from collections.abc import Collection
from pathlib import Path

from fcn_jax.terminal.atomic_files import write_text

FILE = "checksums.json"
CHUNK_BYTES = 4 << 20


def write_checksums(folder: Path) -> None:
    """Writes the checksums of all files in a checkpoint's folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FILE)
    checksums = {str(path.relative_to(folder)): _crc32(path) for path in paths}
    text = json.dumps({"crc32": checksums}, indent=1) + "\n"
    write_text(folder / FILE, text)


def find_damage(folder: Path, items: Collection[str]) -> str | None:
    """Compares files of a checkpoint, which must have checksums, with these.

    Args:
        folder: the checkpoint's folder.
        items: the parts to compare, such as "model"; files outside the parts are always compared.

    Returns:
        The first file that differs, and how; None if there is none.
    """
    path = folder / FILE
    try:
        for name, checksum in json.loads(path.read_text())["crc32"].items():
            path = folder / name
            if ("/" not in name or name.partition("/")[0] in items) and _crc32(path) != checksum:
                return f"{path} is damaged (it has changed since it was saved)"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"{path} is damaged (it holds no checksums)"
    return None


def _crc32(path: Path) -> str:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return f"{checksum:08x}"
