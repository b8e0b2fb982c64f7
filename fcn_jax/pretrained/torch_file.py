"""Reads a checkpoint of PyTorch without PyTorch, and without running anything that it names.

Both formats are a pickle whose tensors refer to storages, flat pieces of memory, by key. The zip
format (PyTorch 1.6 and later) has an entry per storage; the older one has them one after another
behind the pickle.
"""

import io
import math
import os
import pickle
import pickletools
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED

import jax.numpy as jnp
import numpy as np

from fcn_jax.errors import UserError

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
TAR_MAGIC, TAR_MAGIC_AT = b"ustar", 257

# Where a checkpoint keeps the weights when it holds more than them; the first one that does counts.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "model_ema")
# What DataParallel and torch.compile put before every name.
PREFIXES = ("module.", "_orig_mod.")

# Tensors may share a storage or repeat its numbers (stride 0), and a zip archive may be compressed:
# what a file asks for can be larger than it is. Beyond this many times, it would fill the memory.
EXPANSION = 64
SMALL_FILE = 2**20  # bytes; a smaller file may ask for as much as one of this size

REMEDY = (
    "where PyTorch is, load it if you trust its maker, and save `model.state_dict()` alone: "
    "torch.save(model.state_dict(), FILE)"
)


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Reads the weights in a checkpoint of PyTorch, in either format, on whatever device it was.

    Returns:
        Name → array of the tensor's own dtype and shape, in the order of the file. No two arrays
        share memory, even where the tensors did.

    Raises:
        UserError: the file names a class or a function other than those that tensors need (a whole
            pickled `nn.Module`, say), or holds no state dict.
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


# These two are tuples since a pickle that has got one cannot change it.
class _Storage(NamedTuple):
    """`size` elements of memory in the file; a tensor's own offset counts from `start`."""

    key: str
    dtype: np.dtype
    size: int
    start: int = 0


class _Tensor(NamedTuple):
    """A view of a storage, before the storage is read. Offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _RebuildTensor:
    """What `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2` become."""

    __slots__ = ()

    def __call__(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *_gradients: Any
    ) -> _Tensor:
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or len(shape) != len(strides):
            raise ValueError("a tensor in it has no storage, or no stride for each dimension")
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError("a tensor in it has an offset, a size or a stride that is no count")
        offset += storage.start
        last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
        if math.prod(shape) and last >= storage.size:
            raise ValueError(
                f"a tensor of shape {tuple(shape)} in it reaches element {last} of a storage of "
                f"{storage.size}"
            )
        return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _RebuildParameter:
    """What `torch._utils._rebuild_parameter` and `_rebuild_parameter_with_state` become."""

    __slots__ = ()

    def __call__(self, tensor: Any, *_gradients: Any) -> Any:
        return tensor


def _read_zip(path: Path, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    entries = archive.infolist()
    if any(entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED) for entry in entries):
        raise ValueError("it is compressed in a way that PyTorch does not know either")
    _refuse_to_fill_the_memory(path, sum(entry.file_size for entry in entries))
    names = set(archive.namelist())
    folder = next(
        (name.removesuffix("data.pkl") for name in names if f"/{name}".endswith("/data.pkl")), None
    )
    if folder is None:
        raise ValueError("it is a zip archive, but not a checkpoint of PyTorch")
    held, _ = _unpickle(path, io.BytesIO(_read_entry(archive, f"{folder}data.pkl")))
    tensors = _state_dict(path, held)
    order_name = f"{folder}byteorder"  # absent before PyTorch 2.1: little
    big_endian = order_name in names and _read_entry(archive, order_name) == b"big"

    def read_storage(storage: _Storage) -> bytes:
        name = f"{folder}data/{storage.key}"
        _check_length(storage, archive.getinfo(name).file_size)
        return _read_entry(archive, name)

    return _arrays(path, tensors, read_storage, big_endian)


def _read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """Unpacks no more than the length that the archive states, unlike `archive.read`."""
    with archive.open(name) as stream:
        return stream.read(archive.getinfo(name).file_size)


def _read_legacy(path: Path, stream: BinaryIO) -> dict[str, np.ndarray]:
    magic, _ = _unpickle(path, stream)
    if magic != LEGACY_MAGIC:
        raise ValueError("it does not begin as a checkpoint of PyTorch does")
    protocol, _ = _unpickle(path, stream)
    if protocol != LEGACY_PROTOCOL:
        raise ValueError("its version of the format is not known")
    _unpickle(path, stream)  # about the machine that wrote it; the numbers are little-endian on all
    held, storages = _unpickle(path, stream)
    tensors = _state_dict(path, held)
    keys, _ = _unpickle(path, stream)
    places = _places_of_storages(stream, keys, storages)

    def read_storage(storage: _Storage) -> bytes:
        if storage.key not in places:
            raise ValueError(f"storage {storage.key!r} is not in it")
        stream.seek(places[storage.key])
        return stream.read(storage.size * storage.dtype.itemsize)

    return _arrays(path, tensors, read_storage, big_endian=False)


def _places_of_storages(
    stream: BinaryIO, keys: Any, storages: dict[str, _Storage]
) -> dict[str, int]:
    """Where in the file the bytes of each storage begin; each has its element count before it."""
    if not isinstance(keys, list) or not all(key in storages for key in keys):
        raise ValueError("its list of storages is not that of its tensors")
    places = {}
    position = stream.tell()
    length = stream.seek(0, os.SEEK_END)
    for key in keys:
        stream.seek(position)
        count = int.from_bytes(stream.read(8), "little", signed=True)
        places[key] = position + 8
        position += 8 + storages[key].size * storages[key].dtype.itemsize
        if count != storages[key].size or position > length:
            raise ValueError(f"storage {key!r} in it is not whole")
    return places


def _refuse_to_fill_the_memory(path: Path, wanted: int) -> None:
    size = path.stat().st_size
    if wanted > EXPANSION * max(size, SMALL_FILE):
        raise ValueError(f"it asks for {wanted} bytes of memory, and has only {size} itself")


def _check_length(storage: _Storage, length: int) -> None:
    if length != storage.size * storage.dtype.itemsize:
        raise ValueError(
            f"storage {storage.key!r} in it has {length} bytes, not as many as it says"
        )


def _arrays(
    path: Path,
    tensors: dict[str, _Tensor],
    read_storage: Callable[[_Storage], bytes],
    big_endian: bool,
) -> dict[str, np.ndarray]:
    """Reads one storage after another, so that no more than one is in memory beside the arrays."""
    _refuse_to_fill_the_memory(
        path,
        sum(math.prod(tensor.shape) * tensor.storage.dtype.itemsize for tensor in tensors.values()),
    )
    sharing: defaultdict[str, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        sharing[tensor.storage.key].append(name)
    arrays = {}
    for names in sharing.values():
        storage = tensors[names[0]].storage
        data = read_storage(storage)
        _check_length(storage, len(data))
        # Unsigned numbers of the same width: numpy can swap the bytes of these, not of bfloat16.
        elements = np.frombuffer(data, f"{'>' if big_endian else '<'}u{storage.dtype.itemsize}")
        for name in names:
            arrays[name] = _array(tensors[name], elements)
    return {name: arrays[name] for name in tensors}


def _array(tensor: _Tensor, elements: np.ndarray) -> np.ndarray:
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


def _state_dict(path: Path, held: Any) -> dict[str, _Tensor]:
    """The tensors by name in what a checkpoint held, wherever in it the weights are kept."""
    inside = held if isinstance(held, dict) else {}
    for candidate in (*(inside.get(key) for key in WRAPPERS), inside):
        if tensors := _tensors_in(candidate):
            return _without_prefixes(tensors)
    found = ", ".join(repr(key) for key in list(inside)[:5]) or type(held).__name__.strip("_")
    raise UserError(f"{path} holds no state dict (it holds {found}); {REMEDY}")


def _tensors_in(candidate: Any) -> dict[str, _Tensor]:
    items = candidate.items() if isinstance(candidate, dict) else ()
    return {
        name: value for name, value in items if isinstance(name, str) and isinstance(value, _Tensor)
    }


def _without_prefixes(tensors: dict[str, _Tensor]) -> dict[str, _Tensor]:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            return _without_prefixes(bare)
    return tensors


def _unpickle(path: Path, stream: BinaryIO) -> tuple[Any, dict[str, _Storage]]:
    """The next object in the stream, which is left right behind it, and the storages it names."""
    try:
        unpickler = _Unpickler(path, _next_pickle(stream))
        return unpickler.load(), unpickler.storages
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises any of a dozen kinds
        reason = str(error) or type(error).__name__
        raise ValueError(f"its pickle is damaged: {reason}") from error


def _next_pickle(stream: BinaryIO) -> bytes:
    """The bytes of the next pickle, whose lengths and numbers are all found possible.

    The unpickler believes them and takes that much memory: one wrong byte could ask for 64 GB.
    """
    start = stream.tell()
    memo_size = 0
    for opcode, argument, _ in pickletools.genops(stream):  # refuses lengths beyond the end
        if opcode.name in ("PUT", "LONG_BINPUT"):
            memo_size = max(memo_size, int(argument or 0))
    length = stream.tell() - start
    if memo_size > length:
        raise ValueError(f"it has an object number {memo_size} in {length} bytes")
    stream.seek(start)
    return stream.read(length)


class _Unpickler(pickle.Unpickler):
    """Unpickles one object of a checkpoint; of all that it names, only `ALLOWED` exists."""

    def __init__(self, path: Path, data: bytes):
        # latin1 takes any string that Python 2 wrote; it matters for no name of a tensor.
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.path = path
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise UserError(
                f"{self.path} names {f'{module}.{name}'!a}, which is no part of weights, and was "
                f"refused; {REMEDY}"
            )
        return ALLOWED[module, name]

    def persistent_load(self, reference: Any) -> _Storage:
        """('storage', type, key, device, element count), and in the legacy format a view of it."""
        kind, storage_type, key, _device, size, *view = reference
        if kind != "storage" or not isinstance(key, str) or not isinstance(size, int) or size < 0:
            raise ValueError("a storage in it is not described as it should be")
        storage = _Storage(key, STORAGE_DTYPES[storage_type], size)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {key!r} in it is described in two ways")
        if view and view[0] is not None:
            _view_key, start, _view_size = view[0]
            if not isinstance(start, int) or start < 0:
                raise ValueError(f"a view of storage {key!r} in it begins nowhere")
            return storage._replace(start=start)
        return storage


class _Dict(dict):
    """An OrderedDict without the attributes that a pickle may give it (`_metadata`)."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Inert:
    """Takes the place of an object that is no weight, and keeps nothing of it."""

    def __init__(self, *arguments: Any, **settings: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


STORAGE_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "UntypedStorage": np.dtype(np.uint8),
}

# (module, name) as a pickle has them → what they become here. A pickle can also set attributes of
# what it gets (BUILD), so there is no function, no method and no open class among these: builtin
# types, strings, callables without a __dict__, and two classes whose own __setstate__ stands in for
# setting attributes, on them as on what they make.
ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("collections", "defaultdict"): defaultdict,
    ("collections", "Counter"): dict,  # the milestones of a schedule
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    ("torch._utils", "_rebuild_parameter_with_state"): _RebuildParameter(),
    ("torch.storage", "UntypedStorage"): "UntypedStorage",
    **{("torch", name): name for name in STORAGE_DTYPES},
    **{
        (module, name): builtin
        for module in ("builtins", "__builtin__")  # Python 3 and Python 2
        for name, builtin in (("dict", dict), ("list", list), ("set", set), ("tuple", tuple))
    },
    # Beside weights there are the arguments and the results of the training script.
    ("argparse", "Namespace"): _Inert,
    ("torch", "device"): _Inert,
    **{
        ("torch", name): _Inert
        for name in (
            *("float16", "bfloat16", "float32", "float64", "bool"),
            *("uint8", "int8", "int16", "int32", "int64"),
        )
    },
    **{
        (module, name): _Inert
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
    **{
        (module, name): _Inert
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("scalar", "_reconstruct")
    },
    ("numpy", "dtype"): _Inert,
    ("numpy", "ndarray"): _Inert,
    ("_codecs", "encode"): _Inert,  # bytes, of a number of numpy
}
