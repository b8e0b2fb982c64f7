"""The pickle inside a PyTorch checkpoint, read without executing anything that it names.

The pickle describes tensors as views of storages, flat pieces of memory that the container holds
under a key (`torch_file`).
"""

import io
import math
import pickle
import pickletools
from collections import defaultdict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from fcn_jax.errors import UserError

REMEDY = (
    "load it in PyTorch if you trust its author, and save `model.state_dict()` alone: "
    "torch.save(model.state_dict(), FILE)"
)


# These two are tuples because a pickle cannot change a tuple that it has got.
class Storage(NamedTuple):
    """`size` elements in the file; the offset of a tensor counts from `start`."""

    key: str
    dtype: np.dtype
    size: int
    start: int = 0


class Tensor(NamedTuple):
    """A view of a storage that is not read yet; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def unpickle(path: Path, stream: BinaryIO) -> tuple[Any, dict[str, Storage]]:
    """Reads the next pickle in a stream, and leaves the stream behind it.

    Args:
        path: the file, for messages.
        stream: a seekable stream.

    Returns:
        The object, with a `Tensor` for each tensor, and the storages by key.

    Raises:
        UserError: the pickle names a class or function that is not in `ALLOWED`.
        ValueError: it is damaged.
    """
    try:
        unpickler = _Unpickler(path, _next_pickle(stream))
        return unpickler.load(), unpickler.storages
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises any of a dozen types
        reason = str(error) or type(error).__name__
        raise ValueError(f"its pickle is damaged: {reason}") from error


def _next_pickle(stream: BinaryIO) -> bytes:
    """Returns the bytes of the next pickle after checking its lengths and numbers.

    The unpickler would allocate what they say: one wrong byte could ask for 64 GB.
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
    def __init__(self, path: Path, data: bytes):
        # latin1 decodes every string of Python 2, and the names of tensors are ASCII.
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.path = path
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise UserError(
                f"{self.path} names {f'{module}.{name}'!a}, which is not part of weights and was "
                f"refused; {REMEDY}"
            )
        return ALLOWED[module, name]

    def persistent_load(self, reference: Any) -> Storage:
        """Returns the storage of ("storage", type, key, device, size[, view]).

        The older format has the view: None, or (key, start, size) of a part of the storage.
        """
        kind, storage_type, key, _device, size, *view = reference
        if kind != "storage" or not isinstance(key, str) or not isinstance(size, int) or size < 0:
            raise ValueError("a storage in it is not described as it should be")
        storage = Storage(key, STORAGE_DTYPES[storage_type], size)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {key!r} in it is described in two ways")
        if view and view[0] is not None:
            _view_key, start, _view_size = view[0]
            if not isinstance(start, int) or start < 0:
                raise ValueError(f"a view of storage {key!r} in it has no valid start")
            return storage._replace(start=start)
        return storage


class _RebuildTensor:
    """Replaces `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`."""

    __slots__ = ()

    def __call__(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *_gradients: Any
    ) -> Tensor:
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, Storage) or len(shape) != len(strides):
            raise ValueError("a tensor in it has no storage, or no stride for each dimension")
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError("a tensor in it has an offset, size or stride that is not a count")
        offset += storage.start
        last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
        if math.prod(shape) and last >= storage.size:
            raise ValueError(
                f"a tensor of shape {tuple(shape)} in it reaches element {last} of a storage of "
                f"{storage.size}"
            )
        return Tensor(storage, offset, tuple(shape), tuple(strides))


class _RebuildParameter:
    """Replaces `torch._utils._rebuild_parameter` and `_rebuild_parameter_with_state`."""

    __slots__ = ()

    def __call__(self, tensor: Any, *_gradients: Any) -> Any:
        return tensor


class _Dict(dict):
    """Replaces OrderedDict, and ignores the attributes that a pickle may set (`_metadata`)."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Ignored:
    """Replaces an object that is not a weight, and stores nothing."""

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
    # Checkpoints also contain the arguments and the results of the training script.
    ("argparse", "Namespace"): _Ignored,
    ("torch", "device"): _Ignored,
    **{
        ("torch", name): _Ignored
        for name in (
            *("float16", "bfloat16", "float32", "float64", "bool"),
            *("uint8", "int8", "int16", "int32", "int64"),
        )
    },
    **{
        (module, name): _Ignored
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
    **{
        (module, name): _Ignored
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("scalar", "_reconstruct")
    },
    ("numpy", "dtype"): _Ignored,
    ("numpy", "ndarray"): _Ignored,
    ("_codecs", "encode"): _Ignored,  # bytes of a NumPy number
}
"""(module, name) in a pickle -> its replacement.

A pickle can also set attributes of the objects that it gets (BUILD), so no replacement has any that
can be set: they are builtin types, strings, callables without a `__dict__`, and two classes whose
own `__setstate__` ignores attributes, on the class and on its instances.
"""
