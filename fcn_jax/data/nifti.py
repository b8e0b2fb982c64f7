"""NIfTI files: volumes (x, y, z) with their spacing and orientation. Needs nibabel.

Arrays keep the order of axes and the orientation of the file.
"""

import dataclasses
import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.errors import UserError, printable
from fcn_jax.terminal.atomic_files import write_whole

SUFFIXES = (".nii.gz", ".nii")

MAX_LABEL = 254


@dataclasses.dataclass(frozen=True)
class Header:
    """The grid of a volume.

    Attributes:
        shape: number of voxels on each axis.
        affine: voxel index to position in mm, float64 (4, 4).
        spacing_mm: size of a voxel on each axis.
        orientation: direction of each axis, such as "RAS": to the right, anterior, superior.
        nifti: nibabel's header.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    spacing_mm: tuple[float, ...]
    orientation: str
    nifti: Any = dataclasses.field(repr=False)


def stem(path: Path) -> str:
    """Returns the name of a file without `SUFFIXES`."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.stem


def find_files(folder: Path) -> list[Path]:
    """Lists the NIfTI files of a folder in the order of their names, without hidden ones."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.endswith(SUFFIXES) and not path.name.startswith(".")
    )


def read_header(path: Path) -> Header:
    """Reads the grid of a volume, without its voxels.

    Raises:
        UserError: the file is missing, damaged, not three-dimensional or without a valid grid.
    """
    return _header(_open(path), path)


def read_image(path: Path) -> tuple[np.ndarray, Header]:
    """Reads a volume: float32 (x, y, z), and its grid.

    Raises:
        UserError: as for `read_header`, or voxels that are missing or not finite.
    """
    values, header = _read(path)
    if values.dtype.kind not in "uif":
        raise UserError(f"{_name(path)}: holds {values.dtype}, not grey values: convert it")
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise UserError(
            f"{_name(path)}: {count:,} voxels are NaN or infinite; replace them, for example by "
            "the smallest value"
        )
    return values, header


def read_label(path: Path) -> tuple[np.ndarray, Header]:
    """Reads a label map: uint8 (x, y, z), and its grid.

    Raises:
        UserError: as for `read_header`, or voxels that are missing or no whole numbers in 0…255.
    """
    values, header = _read(path)
    if not np.isfinite(values).all() or (values != np.floor(values)).any():
        raise UserError(f"{_name(path)}: labels must be whole numbers; was the mask interpolated?")
    if values.size and (values.min() < 0 or values.max() > IGNORE_INDEX):
        raise UserError(
            f"{_name(path)}: labels from {values.min():g} to {values.max():g}, but classes are "
            f"0…{MAX_LABEL} ({IGNORE_INDEX} is ignored)"
        )
    return values.astype(np.uint8), header


def check_same_grid(label_path: Path, label: Header, image_path: Path, image: Header) -> None:
    """Raises UserError unless a label is on the grid of its image, to a hundredth of a voxel."""
    if label.shape != image.shape:
        raise UserError(
            f"{_name(label_path)}: the label map has {by_axis(label.shape)} voxels, but its image "
            f"{_name(image_path)} {by_axis(image.shape)}; resample it to the image"
        )
    if label.orientation != image.orientation or np.abs(label.affine - image.affine).max() > (
        0.01 * min(image.spacing_mm)
    ):
        raise UserError(
            f"{_name(label_path)}: the label map is on another grid than its image "
            f"{_name(image_path)} (origin, spacing or orientation differ); resample it to the image"
        )


def write_label(path: Path, label: np.ndarray, like: Header, description: str) -> None:
    """Writes a label map, uint8 (x, y, z), with the grid and the header of an image.

    Only what concerns the voxels (type, scaling, range) and the description, of at most 80 bytes,
    differ from the image's header.

    Raises:
        UserError: the file cannot be written.
    """
    _write(path, label.astype(np.uint8, copy=False), like, description)


def write_values(path: Path, values: np.ndarray, like: Header, description: str) -> None:
    """Writes float32 (x, y, z) as `write_label` writes a label map."""
    _write(path, values.astype(np.float32, copy=False), like, description)


def _write(path: Path, values: np.ndarray, like: Header, description: str) -> None:
    nibabel = _nibabel(path)
    header = like.nifti.copy()
    header.set_data_dtype(values.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    header["descrip"] = description.encode()
    image = nibabel.Nifti1Image(values, like.affine, header)
    content = image.to_bytes()
    if path.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=1, mtime=0)  # as nibabel does
    write_whole(path, lambda part: part.write_bytes(content))


def by_axis(values: Any) -> str:
    """Formats one number for each axis: "40 × 56 × 40"."""
    return " × ".join(f"{value:g}" for value in values)


def _read(path: Path) -> tuple[np.ndarray, Header]:
    image = _open(path)
    header = _header(image, path)
    try:
        values = np.asanyarray(image.dataobj).reshape(header.shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _damaged(path, error) from error
    return values, header


def _open(path: Path) -> Any:
    nibabel = _nibabel(path)
    try:
        return nibabel.load(path)
    except FileNotFoundError:
        raise UserError(f"{_name(path)}: no such file") from None
    except Exception as error:  # nibabel, gzip and zlib each raise their own
        raise _damaged(path, error) from error


def _header(image: Any, path: Path) -> Header:
    import nibabel

    shape = tuple(int(n) for n in image.shape)
    if len(shape) > 3 and set(shape[3:]) == {1}:
        shape = shape[:3]
    if len(shape) != 3:
        raise UserError(
            f"{_name(path)}: has {len(shape)} axes ({by_axis(shape)}), where volumes have 3; save "
            "one file for each channel or time, CASE_0000.nii.gz, CASE_0001.nii.gz, …"
        )
    affine = np.asarray(image.affine, np.float64)
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if not np.isfinite(affine).all() or min(spacing) <= 0 or min(shape) < 1:
        raise UserError(f"{_name(path)}: the header gives no valid grid (affine, voxel size)")
    orientation = "".join(axis or "?" for axis in nibabel.aff2axcodes(affine))
    return Header(shape, affine, tuple(spacing.tolist()), orientation, image.header)


def _damaged(path: Path, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(
        f"{_name(path)}: cannot be read, damaged or incomplete ({printable(reason)}); copy it again"
    )


def _nibabel(path: Path) -> Any:
    try:
        import nibabel
    except ImportError:
        raise UserError(
            f"{_name(path)}: reading NIfTI files needs nibabel: pip install 'fcn_jax[volumes]'"
        ) from None
    return nibabel


def _name(path: Path) -> str:
    return printable(str(path))
