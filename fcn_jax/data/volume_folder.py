"""The files of a set of volumes: layouts of folders, channels, and the grids of all files.

A set is a folder in one of two layouts:

    images/ labels/                          CASE.nii.gz in both, and optionally classes.txt
    imagesTr/ labelsTr/ dataset.json         nnU-Net's raw layout

Several channels are files CASE_0000.nii.gz, CASE_0001.nii.gz, … of one grid. Without classes.txt
the classes are called background, class_1, …
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fcn_jax.data import nifti
from fcn_jax.data.folder import read_classes
from fcn_jax.data.plan import Normalisation
from fcn_jax.data.raw import check_class_names
from fcn_jax.errors import UserError, listed, printable

MAX_SPACING_RATIO = 10
"""Of a volume's spacing to the plan's: more suggests another unit, and would fill the memory."""

CHANNEL = re.compile(r"(.+)_(\d{4})")

CASES_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Case:
    """The files of a volume: an image for each channel, and a label map."""

    name: str
    images: tuple[Path, ...]
    label: Path


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of a set. class_names: empty if the labels decide how many there are."""

    cases: tuple[Case, ...]
    class_names: tuple[str, ...]
    normalisation: Normalisation


def list_cases(root: Path) -> Listing:
    """Lists the files of a set in either layout, in the order of their names.

    Raises:
        UserError: folders or files are missing, or dataset.json cannot be used.
    """
    names: tuple[str, ...] = ()
    normalisation: Normalisation = "zscore"
    if (root / "imagesTr").is_dir():
        images, labels = root / "imagesTr", root / "labelsTr"
        names, normalisation = _read_dataset_json(root / "dataset.json")
    else:
        images, labels = root / "images", root / "labels"
        if (root / "classes.txt").exists():
            names = tuple(read_classes(root / "classes.txt"))
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such folder; volumes are images/ and labels/, or nnU-Net's "
                "imagesTr/, labelsTr/ and dataset.json"
            )
    label_paths = {nifti.stem(path): path for path in nifti.find_files(labels)}
    by_case: dict[str, list[Path]] = {}
    for path in nifti.find_files(images):
        match = CHANNEL.fullmatch(nifti.stem(path))
        has_channel = match is not None and nifti.stem(path) not in label_paths
        by_case.setdefault(match[1] if match and has_channel else nifti.stem(path), []).append(path)
    if not by_case:
        raise UserError(f"{images}: holds no NIfTI files (*.nii.gz or *.nii)")
    lacking = sorted(by_case.keys() - label_paths.keys())
    if lacking:
        shown = printable(listed(lacking, CASES_SHOWN))
        raise UserError(f"{labels}: {len(lacking)} volumes have no label map: {shown}")
    counts = {name: len(paths) for name, paths in by_case.items()}
    first = next(iter(counts))
    for name, count in counts.items():
        if count != counts[first]:
            raise UserError(
                f"{images}: {printable(name)} has {count} channels, but {printable(first)} "
                f"{counts[first]}; all volumes need the same files CASE_0000, CASE_0001, …"
            )
    cases = [Case(name, tuple(paths), label_paths[name]) for name, paths in sorted(by_case.items())]
    return Listing(tuple(cases), names, normalisation)


def read_channels(
    paths: Sequence[Path], orientation: str, spacing_mm: Sequence[float] | None = None
) -> tuple[np.ndarray, nifti.Header]:
    """Reads the channels of a volume: float32 (x, y, z, c), and their grid.

    Args:
        paths: a file for each channel.
        orientation: the plan's.
        spacing_mm: the plan's, to which the volume is to be resampled; None if it is not.

    Raises:
        UserError: a file cannot be read, or is of another grid or orientation, or of a spacing that
            differs from the plan's by more than `MAX_SPACING_RATIO`.
    """
    channels = [nifti.read_image(path) for path in paths]
    _, header = channels[0]
    for path, (_, other) in zip(paths, channels, strict=True):
        nifti.check_same_grid(path, other, paths[0], header)
    if header.orientation != orientation:
        raise UserError(
            f"{printable(str(paths[0]))}: has the orientation {header.orientation}, but the plan "
            f"{orientation}; reorient it, for example with nibabel.as_closest_canonical"
        )
    for old, new in zip(header.spacing_mm, spacing_mm or header.spacing_mm, strict=True):
        if not 1 / MAX_SPACING_RATIO <= old / new <= MAX_SPACING_RATIO:
            raise UserError(
                f"{printable(str(paths[0]))}: its voxels are {nifti.by_axis(header.spacing_mm)} "
                f"mm, and the plan's {nifti.by_axis(spacing_mm or ())} mm; is its header right?"
            )
    if len(channels) == 1:
        return channels[0][0][..., None], header  # without a copy
    return np.stack([values for values, _ in channels], axis=-1), header


def _read_dataset_json(path: Path) -> tuple[tuple[str, ...], Normalisation]:
    """Reads class names and normalisation from nnU-Net's dataset.json, of version 1 or 2."""
    try:
        content = json.loads(path.read_text())
        labels = content["labels"]
        if all(str(key).isdigit() for key in labels):  # version 1: {"0": "background"}
            labels = {name: int(key) for key, name in labels.items()}
        labels.pop("ignore", None)
        by_value = {int(value): str(name) for name, value in labels.items()}
        names = tuple(by_value[value] for value in range(len(by_value)))
        channels = content.get("channel_names") or content.get("modality") or {}
        is_ct = any(str(name).upper() == "CT" for name in channels.values())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: `labels` must give each class a number, from 0 on without gaps, as in "
            '{"background": 0, "liver": 1}; regions of several classes are not supported'
        ) from error
    check_class_names(names, str(path))
    return names, "ct" if is_ct else "zscore"


def check_grids(cases: Sequence[Case]) -> list[nifti.Header]:
    """Reads the headers of all images; checks that labels have their grid, and one orientation."""
    headers: list[nifti.Header] = []
    for case in cases:
        header = nifti.read_header(case.images[0])
        for path in (*case.images[1:], case.label):
            nifti.check_same_grid(path, nifti.read_header(path), case.images[0], header)
        headers.append(header)
    found = sorted({header.orientation for header in headers})
    if len(found) > 1:
        examples = ", ".join(
            f"{printable(cases[index].name)} is {name}"
            for name in found
            for index in [[header.orientation for header in headers].index(name)]
        )
        raise UserError(
            f"{cases[0].images[0].parent}: the volumes have different orientations ({examples}); "
            "reorient all, for example with nibabel.as_closest_canonical"
        )
    return headers
