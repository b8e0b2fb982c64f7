"""Examines a set of volumes before training: grids, intensities and labels of every file."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from fcn_jax.config import DataConfig
from fcn_jax.data import nifti
from fcn_jax.data.labels import IGNORE_INDEX, check_labels
from fcn_jax.data.raw import data_root
from fcn_jax.data.volume_folder import Case, Listing, list_cases, read_channels
from fcn_jax.errors import UserError, listed, printable
from fcn_jax.pictures.contact_sheet import Entry
from fcn_jax.pictures.orthogonal import orthogonal_views
from fcn_jax.terminal.console import open_console
from fcn_jax.terminal.progress import progress_bar, say

MAX_PICTURES = 6

CASES_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class CaseReport:
    """The grid of a volume, the voxels of each label, and its faults.

    header, voxels: None if they cannot be read.
    """

    name: str
    header: nifti.Header | None = None
    voxels: np.ndarray | None = None
    faults: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def examine_volumes(data: DataConfig) -> tuple[list[str], list[Entry]]:
    """Examines all volumes of a set, and prints what they hold and what is wrong with them.

    Returns:
        The faults, one line each, and pictures of the first volumes without a fault.

    Raises:
        UserError: the folder is in neither layout of `data/volumes.py`.
    """
    listing = list_cases(data_root(data))
    with progress_bar("examining", len(listing.cases), "volumes") as bar:
        reports = []
        for case in listing.cases:
            reports.append(examine_case(case, len(listing.class_names)))
            bar.advance()
    faults = [fault for report in reports for fault in report.faults]
    faults += _set_faults(reports)
    remarks = [remark for report in reports for remark in report.remarks]
    _print(listing, reports)
    for title, lines in (("fault", faults), ("remark", remarks)):
        for line in lines:
            say(f"{title}: {line}")
    clean = [
        case
        for case, report in zip(listing.cases, reports, strict=True)
        if report.header is not None and not report.faults
    ]
    return faults, [_picture(case, listing.class_names) for case in clean[:MAX_PICTURES]]


def examine_case(case: Case, num_classes: int) -> CaseReport:
    """Reads a volume and its label map.

    Args:
        case: the files.
        num_classes: 0 if unknown.
    """
    try:
        header = nifti.read_header(case.images[0])
    except UserError as error:
        return CaseReport(case.name, faults=(str(error),))
    faults, remarks, voxels = [], [], None
    try:
        image, _ = read_channels(case.images, header.orientation)
        if np.ptp(image) == 0:
            remarks.append(f"{printable(str(case.images[0]))}: all voxels have one value")
    except UserError as error:
        faults.append(str(error))
    try:
        label, label_header = nifti.read_label(case.label)
        nifti.check_same_grid(case.label, label_header, case.images[0], header)
        voxels = np.bincount(label.reshape(-1), minlength=256)
        if num_classes:
            check_labels(label, num_classes, printable(str(case.label)))
        if not voxels[1:IGNORE_INDEX].any():
            remarks.append(f"{printable(str(case.label))}: has no foreground (no label above 0)")
    except UserError as error:
        faults.append(str(error))
    return CaseReport(case.name, header, voxels, tuple(faults), tuple(remarks))


def _set_faults(reports: Sequence[CaseReport]) -> list[str]:
    by_orientation: dict[str, list[str]] = {}
    for report in reports:
        if report.header is not None:
            by_orientation.setdefault(report.header.orientation, []).append(report.name)
    if len(by_orientation) < 2:
        return []
    found = "; ".join(
        f"{name}: {printable(listed(cases, CASES_SHOWN))}" for name, cases in by_orientation.items()
    )
    return [
        f"the volumes have different orientations ({found}); reorient all, for example with "
        "nibabel.as_closest_canonical"
    ]


def _print(listing: Listing, reports: Sequence[CaseReport]) -> None:
    console = open_console()
    headers = [report.header for report in reports if report.header is not None]
    console.print(Text(f"volumes: {len(reports):,}", "bold"))
    if headers:
        for title, values in (
            ("voxels", np.array([header.shape for header in headers])),
            ("spacing in mm", np.array([header.spacing_mm for header in headers]).round(3)),
        ):
            rows = (values.min(axis=0), np.median(values, axis=0), values.max(axis=0))
            low, middle, high = (nifti.by_axis(row) for row in rows)
            console.print(f"{title}: {low} to {high}, median {middle}")
        orientations = Counter(header.orientation for header in headers)
        shown = ", ".join(f"{name} {count:,}" for name, count in orientations.most_common())
        console.print(f"orientation: {shown}")
    counts = [report.voxels for report in reports if report.voxels is not None]
    if not counts:
        return
    voxels = np.array(counts)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("", "class", "% of voxels", "volumes"):
        table.add_column(title, justify="left" if title == "class" else "right")
    names = dict(enumerate(listing.class_names))
    for label in sorted({*names, *np.flatnonzero(voxels.any(axis=0)).tolist()}):
        name = "ignored" if label == IGNORE_INDEX else names.get(label, f"label {label}")
        share = 100 * voxels[:, label].sum() / voxels.sum()
        volumes = int((voxels[:, label] > 0).sum())
        table.add_row(str(label), Text(printable(name)), f"{share:.2f}", f"{volumes:,}")
    console.print(table)


def _picture(case: Case, class_names: Sequence[str]) -> Entry:
    image, _ = nifti.read_image(case.images[0])
    label, _ = nifti.read_label(case.label)
    picture, shown = orthogonal_views(image[..., None], label)
    count = int(label[label != IGNORE_INDEX].max(initial=0)) + 1
    names = class_names or tuple(f"label {number}" for number in range(count))
    return Entry(printable(case.name), picture, shown, names)
