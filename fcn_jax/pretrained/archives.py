"""Zip archives of untrusted files: sizes are checked before anything is unpacked."""

import zipfile
from pathlib import Path

EXPANSION = 64
"""A file may ask for this many times its own size in memory. Compressed archives, tensors that
share memory and repeated numbers (stride 0) need more than the file has."""

SMALL_FILE_BYTES = 2**20
"""A smaller file may ask for as much memory as one of this size."""


def check_memory(path: Path, needed_bytes: int) -> None:
    """Raises ValueError if a file asks for more memory than its own size justifies."""
    size = path.stat().st_size
    if needed_bytes > EXPANSION * max(size, SMALL_FILE_BYTES):
        raise ValueError(f"it asks for {needed_bytes} bytes of memory, and has only {size} itself")


def check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    """Raises ValueError for a compression method other than deflate, or entries that are too large.

    Args:
        path: the archive, for its size.
        archive: the same, open.
    """
    entries = archive.infolist()
    usual = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if any(entry.compress_type not in usual for entry in entries):
        raise ValueError("it is compressed in an unusual way")
    check_memory(path, sum(entry.file_size for entry in entries))


def read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """Unpacks at most the length that the archive states, unlike `ZipFile.read`."""
    with archive.open(name) as stream:
        return stream.read(archive.getinfo(name).file_size)
