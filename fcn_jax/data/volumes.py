"""Volumes (`data.name=volumes`): NIfTI files -> a plan -> normalised arrays, prepared once.

Records are NumPy files that are mapped into memory, not ArrayRecords: an image is float32, and
training reads patches of it, where records of two-dimensional images are whole PNGs.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fcn_jax.config import Config, DataConfig
from fcn_jax.data import nifti
from fcn_jax.data.datasets import Dataset, Statistics
from fcn_jax.data.labels import IGNORE_INDEX, check_labels
from fcn_jax.data.plan import Plan, make_plan
from fcn_jax.data.prepared import locked, prepared_dir
from fcn_jax.data.raw import data_root
from fcn_jax.data.resample import resample_image, resample_label
from fcn_jax.data.volume_folder import Case, Listing, check_grids, list_cases, read_channels
from fcn_jax.errors import UserError, printable
from fcn_jax.terminal.atomic_files import write_text
from fcn_jax.terminal.progress import progress_bar, say

FORMAT = 3
"""Changes when prepared arrays must be prepared again."""

INDEX = "volumes.json"
"""Written last: a folder without it is incomplete."""

VERSIONS_KEPT = 2

SAMPLE = 10_000
"""Foreground voxels of each volume whose intensities enter the fingerprint."""

PLACES = 1000
"""Foreground voxels of each volume that are stored, for windows of large volumes."""

_HEADERS = threading.Lock()
"""NumPy parses headers as Python, which fails now and then in several threads of CPython before
3.11.8 (python/cpython#106905)."""


@dataclasses.dataclass(frozen=True)
class VolumeSplit:
    """The prepared volumes of a split, in the order of their names.

    `split[i]` is `{"image": float32 (x, y, z, c), "label": uint8 (x, y, z), "name": str,
    "foreground": int32 (n, 3)}` at the plan's spacing, with some voxels of the foreground.

    Attributes:
        name: train, val, or all.
        folder: of the prepared arrays.
        cases: their entries in the index.
    """

    name: str
    folder: Path
    cases: Sequence[Mapping[str, Any]] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"volume {index} of {len(self)} in split {self.name}")
        return {
            "image": self._load(index, "image"),
            "label": self.label(index),
            "name": self.record_name(index),
            "foreground": self._load(index, "foreground"),
        }

    def label(self, index: int) -> np.ndarray:
        """Returns the label map at the plan's spacing."""
        return self._load(index, "label")

    def native_label(self, index: int) -> np.ndarray:
        """Returns the label map at the spacing of its file."""
        return self._load(index, "native" if self.cases[index]["resampled"] else "label")

    def record_name(self, index: int) -> str:
        return self.cases[index]["name"]

    def spacing_mm(self, index: int) -> tuple[float, ...]:
        """Returns the spacing of the file."""
        return tuple(self.cases[index]["spacing_mm"])

    def _load(self, index: int, kind: str) -> np.ndarray:
        path = self.folder / f"{self.cases[index]['number']}_{kind}.npy"
        try:
            with _HEADERS:
                return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"the prepared volumes in {self.folder} are damaged ({path.name}); remove this "
                "folder to have them prepared again"
            ) from error


@dataclasses.dataclass(frozen=True)
class VolumeDataset(Dataset):
    """A prepared set of volumes.

    Attributes:
        folder: of the prepared arrays.
        cases: their entries in the index.
        plan: what they are resampled and normalised to.
    """

    folder: Path = Path()
    cases: Sequence[Mapping[str, Any]] = dataclasses.field(default=(), repr=False)
    plan: Plan = dataclasses.field(kw_only=True)

    @property
    def channels(self) -> int:
        """Number of channels of a volume."""
        return self.plan.channels

    def split(self, name: str) -> Any:
        """Opens the volumes of a split: train, val, or all.

        Raises:
            UserError: there is no such split.
        """
        if name not in self.splits:
            raise UserError(f"{self.name} has no split {name!r}; it has {', '.join(self.splits)}")
        chosen = [case for case in self.cases if name in ("all", case["split"])]
        return VolumeSplit(name, self.folder, chosen)

    def statistics(self, split_name: str) -> Statistics:
        """Sizes and label counts of a split, at the plan's spacing."""
        split = self.split(split_name)
        names, contents = (
            hashlib.sha256("".join(f"{case[key]}\n" for case in split.cases).encode())
            for key in ("name", "contents")
        )
        counts = np.sum([case["counts"] for case in split.cases], axis=0, initial=0)
        return Statistics(
            np.array([case["shape"] for case in split.cases], np.int32).reshape(-1, 3),
            {"": np.broadcast_to(counts, (256,)).astype(np.int64)},
            names.hexdigest()[:16],
            contents.hexdigest()[:16],
        )


def open_volumes(data: DataConfig) -> VolumeDataset:
    """Opens a set of volumes, prepared first if it has not been.

    Raises:
        UserError: files are missing, wrong or damaged, or the arrays cannot be written.
    """
    root = data_root(data)
    listing = list_cases(root)
    base = prepared_dir(data) / data.name / f"{root.name}-{_digest(str(root.resolve()))}"
    plan_path = Path(data.plan).expanduser() if data.plan else base / "plan.json"
    headers = None
    if data.plan or plan_path.exists():
        plan = Plan.load(plan_path)
    else:
        headers = check_grids(listing.cases)
        plan = _fingerprint(listing, headers)
        plan.save(plan_path)
        say(f"plan of {len(listing.cases)} volumes: {plan_path}")
    if listing.class_names and plan.class_names != listing.class_names:
        raise UserError(
            f"{plan_path}: has the classes {', '.join(plan.class_names)}, but the volumes "
            f"{', '.join(listing.class_names)}; remove the plan to have it made again"
        )
    if plan.channels != len(listing.cases[0].images):
        raise UserError(
            f"{plan_path}: has {plan.channels} channels, but the volumes "
            f"{len(listing.cases[0].images)}; remove the plan to have it made again"
        )
    written = (plan.spacing_mm, plan.orientation, plan.normalisation, plan.intensities)
    classes = len(plan.class_names)
    folder = base / _digest([FORMAT, *written, classes, *map(_state, listing.cases)])
    if not (folder / INDEX).exists():
        with locked(base / "lock"):
            if not (folder / INDEX).exists():
                check_grids(listing.cases) if headers is None else None
                _prepare(folder, listing.cases, plan)
    cases = _read_index(folder)
    step = round(1 / data.validation_fraction) if data.validation_fraction else 0
    for number, case in enumerate(cases):
        case["split"] = "val" if step and number % step == 0 else "train"
    return VolumeDataset(
        name=data.name,
        label_maps={"": plan.class_names},
        splits=("train", "val", "all"),
        builder=None,
        ndim=3,
        folder=folder,
        cases=cases,
        plan=plan,
    )


def with_patch(config: Config, dataset: Dataset) -> Config:
    """Replaces `volumes.patch=None` by the patch of a set of volumes' plan."""
    if not isinstance(dataset, VolumeDataset) or config.volumes.patch is not None:
        return config
    x, y, z = dataset.plan.patch
    return dataclasses.replace(config, volumes=dataclasses.replace(config.volumes, patch=(x, y, z)))


def _fingerprint(listing: Listing, headers: list[nifti.Header]) -> Plan:
    samples, largest = [], 1
    random = np.random.default_rng(0)
    with progress_bar("examining", len(listing.cases), "volumes") as bar:
        for case, header in zip(listing.cases, headers, strict=True):
            image, _ = read_channels(case.images, header.orientation)
            label, _ = nifti.read_label(case.label)
            classes = label[label != IGNORE_INDEX]
            largest = max(largest, int(classes.max(initial=0)))
            foreground = image[(label > 0) & (label != IGNORE_INDEX)]
            if len(foreground) > SAMPLE:
                foreground = random.choice(foreground, SAMPLE, replace=False)
            samples.append(foreground)
            bar.advance()
    intensities = np.concatenate(samples)
    if not len(intensities):
        raise UserError(
            f"{listing.cases[0].label.parent}: no label map has a foreground voxel (a label above "
            "0): there is nothing to learn"
        )
    default = ("background", *(f"class_{number}" for number in range(1, largest + 1)))
    return make_plan(
        headers,
        intensities,
        normalisation=listing.normalisation,
        class_names=listing.class_names or default,
        platform=jax.default_backend(),
    )


def _prepare(folder: Path, cases: Sequence[Case], plan: Plan) -> None:
    """Writes the arrays of all cases and their index."""
    part = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        entries = []
        with progress_bar("preparing", len(cases), "volumes") as bar:
            for number, case in enumerate(cases):
                entries.append(_prepare_case(part, number, case, plan))
                bar.advance()
        write_text(part / INDEX, json.dumps(entries))
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    except OSError as error:
        raise UserError(
            f"cannot write the prepared volumes to {folder} ({error.strerror}); free some space, "
            "or set --config.data.prepared_dir to another folder"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    versions = sorted(folder.parent.glob(f"*/{INDEX}"), key=lambda path: path.stat().st_mtime)
    for old in versions[:-VERSIONS_KEPT]:
        shutil.rmtree(old.parent, ignore_errors=True)


def _prepare_case(folder: Path, number: int, case: Case, plan: Plan) -> dict[str, Any]:
    image, header = read_channels(case.images, plan.orientation, plan.spacing_mm)
    label, label_header = nifti.read_label(case.label)
    nifti.check_same_grid(case.label, label_header, case.images[0], header)
    check_labels(label, len(plan.class_names), printable(str(case.label)))
    contents = hashlib.sha256(repr(image.shape).encode())
    for array in (image, label):
        contents.update(array.tobytes())
    shape = plan.resampled_shape(header.shape, header.spacing_mm)
    is_resampled = shape != header.shape
    if is_resampled:
        np.save(folder / f"{number}_native.npy", label)
        image, label = resample_image(image, shape), resample_label(label, shape)
    np.save(folder / f"{number}_image.npy", plan.normalise(image))
    np.save(folder / f"{number}_label.npy", label)
    foreground = np.argwhere((label > 0) & (label != IGNORE_INDEX)).astype(np.int32)
    if len(foreground) > PLACES:
        foreground = np.random.default_rng(number).choice(foreground, PLACES, replace=False)
    np.save(folder / f"{number}_foreground.npy", foreground)
    return {
        "number": number,
        "name": case.name,
        "shape": list(shape),
        "spacing_mm": list(header.spacing_mm),
        "resampled": is_resampled,
        "contents": contents.hexdigest(),
        "counts": np.bincount(label.reshape(-1), minlength=256).tolist(),
    }


def _read_index(folder: Path) -> list[dict[str, Any]]:
    try:
        return json.loads((folder / INDEX).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"the prepared volumes in {folder} are damaged ({INDEX}); remove this folder to have "
            "them prepared again"
        ) from error


def _state(case: Case) -> list[Any]:
    """Returns what the prepared arrays of a case depend on: names, sizes and times of its files."""
    try:
        states = [os.stat(path) for path in (*case.images, case.label)]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
    return [case.name, *([state.st_size, state.st_mtime_ns] for state in states)]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
