"""Reads any file of weights into arrays by name, without PyTorch and without Caffe.

What is read: numpy's .npz, .safetensors, the checkpoints of PyTorch in both of their formats
(`torch_file`) and the .caffemodel of Caffe (`caffe_file`). Nothing in a file is ever executed.
"""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from fcn_jax.errors import UserError
from fcn_jax.pretrained.caffe_file import read_caffe
from fcn_jax.pretrained.torch_file import read_torch

WEB_PAGE_STARTS = (b"<!doctype", b"<html", b"<head", b"<?xml")
GIT_LFS_START = b"version https://git-lfs"

# What reading a damaged file raises. UserError is none of these and passes.
DAMAGE = (
    ValueError,  # also what torch_file and caffe_file raise
    KeyError,
    EOFError,
    MemoryError,  # a damaged length
    NotImplementedError,  # a damaged method of compression
    RuntimeError,
    SafetensorError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Reads a file of weights, of the kind that the ending of its name tells.

    Args:
        path: a file that ends in .npz, .safetensors, .caffemodel, or .pth, .pt, .bin or .tar (all
            four of PyTorch). A checkpoint of PyTorch may hold the weights among other things, such
            as the state of an optimizer; these are left out, and so are the prefixes that
            DataParallel and torch.compile put before every name.

    Returns:
        Name → array, in the order of the file. Tensors of floating point of any width are float32,
        others (`num_batches_tracked`) keep their dtype; the layout is the file's own. A blob of
        Caffe has the name of its layer and its number: 'conv1/0' are weights, 'conv1/1' a bias.
        An array may be read-only.

    Raises:
        UserError: there is no such file, its ending is unknown, it is damaged, holds no tensors, or
            names something that only running foreign code could make.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file of weights")
    if not path.exists():
        raise UserError(f"there is no file {path}")
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise UserError(f"{path} must be a file of weights that ends in {', '.join(READERS)}")
    try:
        _refuse_what_a_failed_download_leaves(path)
        tensors = {name: _as_float32(tensor) for name, tensor in read(path).items()}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} cannot be read ({reason}): it may be truncated or damaged; fetch it again"
        ) from error
    if not tensors:
        raise UserError(f"{path} holds no tensors: is it the file of weights?")
    return tensors


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as stream:
        if stream.read(2) != b"PK":
            raise ValueError("it does not begin as a .npz file does")
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as archive:
            tensors = {name: archive[name] for name in archive.files}
    for name, tensor in tensors.items():
        if not isinstance(tensor, np.ndarray):
            raise ValueError(f"{name!r} in it is not an array")
        if tensor.dtype == np.dtype("V2"):  # numpy forgets the name of bfloat16 when it saves it
            tensors[name] = tensor.view(jnp.bfloat16)
    return tensors


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    tensors = {}
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dict
            try:
                tensors[name] = file.get_tensor(name)
            except (AttributeError, TypeError):
                raise UserError(
                    f"{path} holds {name!r} in a number format that numpy lacks "
                    f"({file.get_slice(name).get_dtype()}): save it as float32"
                ) from None
    return tensors


READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".pth": read_torch,
    ".pt": read_torch,
    ".bin": read_torch,
    ".tar": read_torch,
    ".caffemodel": read_caffe,
}


def _refuse_what_a_failed_download_leaves(path: Path) -> None:
    with path.open("rb") as stream:
        start = stream.read(256)
    if not start:
        raise UserError(f"{path} is empty: fetch it again")
    if start.startswith(GIT_LFS_START):
        raise UserError(
            f"{path} is a pointer of git-lfs, not the weights: run `git lfs pull` in the "
            "repository that it comes from, or download the file itself"
        )
    if start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(WEB_PAGE_STARTS):
        raise UserError(
            f"{path} is a web page, not weights: its download failed (often the address is that of "
            "a page about the file); fetch the file itself"
        )


def _as_float32(tensor: np.ndarray) -> np.ndarray:
    if not jax.dtypes.issubdtype(tensor.dtype, np.floating):
        return tensor
    with np.errstate(over="ignore", invalid="ignore"):  # whether all is finite is asked later
        return tensor.astype(np.float32, copy=False)
