"""Reads the tensors in any weight file, without PyTorch and without Caffe.

Formats: NumPy's .npz, .safetensors, both formats of PyTorch's checkpoints (`torch_file`) and
Caffe's .caffemodel (`caffe_file`). Nothing in a file is ever executed.
"""

import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from fcn_jax.errors import UserError, format_value
from fcn_jax.pretrained.archives import check_archive, read_entry
from fcn_jax.pretrained.caffe_file import read_caffe
from fcn_jax.pretrained.torch_file import read_torch

WEB_PAGE_STARTS = (b"<!doctype", b"<html", b"<head", b"<?xml")
GIT_LFS_START = b"version https://git-lfs"

DAMAGE = (
    ValueError,  # also raised by torch_file and caffe_file
    KeyError,
    EOFError,
    MemoryError,  # a damaged length
    NotImplementedError,  # a damaged method of compression
    RuntimeError,
    SafetensorError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors of reading a damaged file. UserError is none of them."""


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Reads a weight file; the suffix of its name determines the format.

    Args:
        path: a file that ends in .npz, .safetensors, .caffemodel, or .pth, .pt, .bin or .tar (all
            four of PyTorch). A checkpoint of PyTorch may hold more than weights, such as the state
            of an optimizer, which is ignored. The prefixes that DataParallel and torch.compile add
            to names are removed.

    Returns:
        Name -> array, in the order of the file. Floating-point tensors of any width are float32;
        integers and booleans (`num_batches_tracked`) keep their dtype. The layout is the file's
        own. A blob of Caffe is named by its layer and its number: 'conv1/0' are weights, 'conv1/1'
        a bias. An array may be read-only.

    Raises:
        UserError: there is no such file, its suffix is unknown, it is damaged, holds no tensors or
            tensors of other dtypes, asks for far more memory than its size, or names something that
            only code in the file could create.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file of weights")
    if not path.exists():
        raise UserError(
            f"there is no file {path} (docs/weights.md says where published weights are)"
        )
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise UserError(f"{path} must be a file of weights that ends in {', '.join(READERS)}")
    try:
        _refuse_failed_downloads(path)
        tensors = {name: _real_numbers(path, name, tensor) for name, tensor in read(path).items()}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except DAMAGE as error:
        # Some errors of zipfile quote the bytes at the place of a name.
        reason = format_value((str(error).splitlines() or [type(error).__name__])[0])
        raise UserError(
            f"{path} cannot be read ({reason}): it may be truncated or damaged; fetch it again"
        ) from error
    if not tensors:
        raise UserError(f"{path} holds no tensors: is it the file of weights?")
    return tensors


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    tensors = {}
    with zipfile.ZipFile(path) as archive:
        check_archive(path, archive)
        for name in archive.namelist():
            npy = io.BytesIO(read_entry(archive, name))
            try:
                tensor = np.lib.format.read_array(npy, allow_pickle=False)
            except Exception as error:  # a damaged header raises any of several types
                raise ValueError(f"{name!r} in it is not an array: {error}") from error
            if tensor.dtype == np.dtype("V2"):  # the format has no name for bfloat16
                tensor = tensor.view(jnp.bfloat16)
            tensors[name.removesuffix(".npy")] = tensor
    return tensors


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    tensors = {}
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dict
            try:
                tensors[name] = file.get_tensor(name)
            except (AttributeError, TypeError):
                raise UserError(
                    f"{path} holds {name!r} in a number format that NumPy lacks "
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


def _refuse_failed_downloads(path: Path) -> None:
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


def _real_numbers(path: Path, name: str, tensor: np.ndarray) -> np.ndarray:
    """Returns a float tensor as float32, and integers and booleans unchanged."""
    if tensor.dtype.kind in "iub":
        return tensor
    if not jax.dtypes.issubdtype(tensor.dtype, np.floating):
        raise UserError(f"{path} holds {name!r} as {tensor.dtype}: weights must be real numbers")
    with np.errstate(over="ignore", invalid="ignore"):  # finiteness is checked later
        return tensor.astype(np.float32, copy=False)
