"""Reads the weights in a PyTorch checkpoint without PyTorch, and without executing anything in it.

Both formats hold a pickle whose tensors refer to storages, flat pieces of memory, by key. The zip
format (PyTorch 1.6 and later) has an entry for each storage; the older one has the storages one
after another behind the pickle.
"""

import io
import math
import os
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fcn_jax.errors import UserError
from fcn_jax.pretrained.archives import check_archive, check_memory, read_entry
from fcn_jax.pretrained.torch_pickle import REMEDY, Storage, Tensor, unpickle

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
TAR_MAGIC, TAR_MAGIC_AT = b"ustar", 257

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "model_ema")
"""Keys of the weights in a checkpoint that holds more; the first one with tensors counts."""

PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile add to every name."""


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Reads the weights in a checkpoint of either format, from any device.

    Returns:
        Name -> array of the tensor's dtype and shape, in the order of the file. No two arrays share
        memory, even if the tensors did.

    Raises:
        UserError: the file names a class or function that tensors do not need (a whole pickled
            `nn.Module`, for example), or holds no state dict.
        ValueError, or an error of `zipfile`: the file is damaged.
    """
    with path.open("rb") as stream:
        start = stream.read(TAR_MAGIC_AT + len(TAR_MAGIC))
        stream.seek(0)
        if start.startswith(ZIP_MAGIC):
            with zipfile.ZipFile(stream) as archive:
                return _read_zip(path, archive)
        if start[TAR_MAGIC_AT:] == TAR_MAGIC:
            raise UserError(f"{path} is a tar archive: unpack it, and name the file of weights")
        return _read_legacy(path, stream)


def _read_zip(path: Path, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    check_archive(path, archive)
    names = set(archive.namelist())
    folder = next(
        (name.removesuffix("data.pkl") for name in names if f"/{name}".endswith("/data.pkl")), None
    )
    if folder is None:
        raise ValueError("it is a zip archive, but not a checkpoint of PyTorch")
    checkpoint, _ = unpickle(path, io.BytesIO(read_entry(archive, f"{folder}data.pkl")))
    tensors = _state_dict(path, checkpoint)
    order_name = f"{folder}byteorder"  # absent before PyTorch 2.1: little-endian
    big_endian = order_name in names and read_entry(archive, order_name) == b"big"

    def read_storage(storage: Storage) -> bytes:
        name = f"{folder}data/{storage.key}"
        _check_length(storage, archive.getinfo(name).file_size)
        return read_entry(archive, name)

    return _arrays(path, tensors, read_storage, big_endian)


def _read_legacy(path: Path, stream: BinaryIO) -> dict[str, np.ndarray]:
    magic, _ = unpickle(path, stream)
    if magic != LEGACY_MAGIC:
        raise ValueError("it does not begin as a checkpoint of PyTorch does")
    protocol, _ = unpickle(path, stream)
    if protocol != LEGACY_PROTOCOL:
        raise ValueError("its version of the format is not known")
    unpickle(path, stream)  # about the machine that wrote it; the numbers are always little-endian
    checkpoint, storages = unpickle(path, stream)
    tensors = _state_dict(path, checkpoint)
    keys, _ = unpickle(path, stream)
    starts = _starts_of_storages(stream, keys, storages)

    def read_storage(storage: Storage) -> bytes:
        if storage.key not in starts:
            raise ValueError(f"storage {storage.key!r} is not in it")
        stream.seek(starts[storage.key])
        return stream.read(storage.size * storage.dtype.itemsize)

    return _arrays(path, tensors, read_storage, big_endian=False)


def _starts_of_storages(
    stream: BinaryIO, keys: Any, storages: dict[str, Storage]
) -> dict[str, int]:
    """Returns the position of each storage's bytes, which follow its number of elements."""
    if not isinstance(keys, list) or not all(key in storages for key in keys):
        raise ValueError("its list of storages is not that of its tensors")
    starts = {}
    position = stream.tell()
    length = stream.seek(0, os.SEEK_END)
    for key in keys:
        stream.seek(position)
        count = int.from_bytes(stream.read(8), "little", signed=True)
        starts[key] = position + 8
        position += 8 + storages[key].size * storages[key].dtype.itemsize
        if count != storages[key].size or position > length:
            raise ValueError(f"storage {key!r} in it is not whole")
    return starts


def _check_length(storage: Storage, length: int) -> None:
    if length != storage.size * storage.dtype.itemsize:
        raise ValueError(
            f"storage {storage.key!r} in it has {length} bytes, not as many as it says"
        )


def _arrays(
    path: Path,
    tensors: dict[str, Tensor],
    read_storage: Callable[[Storage], bytes],
    big_endian: bool,
) -> dict[str, np.ndarray]:
    """Reads the storages one after another, so that only one at a time is in memory."""
    check_memory(path, sum(math.prod(t.shape) * t.storage.dtype.itemsize for t in tensors.values()))
    sharing: defaultdict[str, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        sharing[tensor.storage.key].append(name)
    arrays = {}
    for names in sharing.values():
        storage = tensors[names[0]].storage
        data = read_storage(storage)
        _check_length(storage, len(data))
        # Unsigned integers of the same width, because NumPy cannot swap the bytes of bfloat16.
        elements = np.frombuffer(data, f"{'>' if big_endian else '<'}u{storage.dtype.itemsize}")
        for name in names:
            arrays[name] = _array(tensors[name], elements)
    return {name: arrays[name] for name in tensors}


def _array(tensor: Tensor, elements: np.ndarray) -> np.ndarray:
    if math.prod(tensor.shape) == 0:
        return np.zeros(tensor.shape, tensor.storage.dtype)
    width = elements.dtype.itemsize
    view = np.ndarray(  # checks the bounds once more
        tensor.shape,
        elements.dtype,
        elements.data,
        tensor.offset * width,
        tuple(step * width for step in tensor.strides),
    )
    return np.array(view, f"=u{width}", order="C").view(tensor.storage.dtype)


def _state_dict(path: Path, checkpoint: Any) -> dict[str, Tensor]:
    """Returns the tensors by name, whichever key of the checkpoint holds them."""
    values = checkpoint if isinstance(checkpoint, dict) else {}
    for candidate in (*(values.get(key) for key in WRAPPERS), values):
        if tensors := _tensors_in(candidate):
            return _without_prefixes(tensors)
    found = ", ".join(repr(key) for key in list(values)[:5]) or type(checkpoint).__name__.strip("_")
    raise UserError(f"{path} holds no state dict (it holds {found}); {REMEDY}")


def _tensors_in(candidate: Any) -> dict[str, Tensor]:
    items = candidate.items() if isinstance(candidate, dict) else ()
    return {
        name: value for name, value in items if isinstance(name, str) and isinstance(value, Tensor)
    }


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            return _without_prefixes(bare)
    return tensors
