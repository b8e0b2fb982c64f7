"""The layouts of a folder of one's own images: that of `folder.py`, and those of annotation tools.

The content of the folder decides:

    masks/ (the setting `data.label_maps`)        images and masks, `folder.py`
    labelmap.txt or SegmentationClass/            CVAT's "Segmentation mask 1.1", `cvat.py`
    *.json with "shapes"                          LabelMe, `labelme.py`
    *.json with "annotations" and "categories"    COCO, `coco.py`

JSON files are looked for in the folder itself, in annotations/ and in images/. A folder that fits
more than one layout is refused.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fcn_jax.config import DataConfig
from fcn_jax.data import coco, cvat, folder, labelme
from fcn_jax.data.annotations import read_json
from fcn_jax.data.raw import Note, RawDataset, data_root
from fcn_jax.errors import ArgumentError, UserError
from fcn_jax.terminal.progress import say

JSON_FOLDERS = ("", "annotations", "images")

MAX_JSON_TRIED = 20
"""Files of a folder that are opened to find out whose they are."""


def raw_dataset(data: DataConfig) -> RawDataset:
    """Lists a folder in the layout that it has, and says which if it is an annotation tool's.

    Raises:
      UserError: no root, a layout that is not clear or lacks a part, or settings that do not apply
        to it.
    """
    root = data_root(data)
    found = _find_layouts(root, data) if root.is_dir() else {}
    if len(found) > 1:
        raise UserError(
            f"{root}: not clear which data set it holds, {' or '.join(found)}; move the files of "
            "the others to another folder"
        )
    for title, read in found.items():
        if read is None:
            break
        _check_settings(data, title)
        raw = read()
        classes = ", ".join(next(iter(raw.label_maps.values()))) or "unknown"
        count = len(list(raw.samples))
        say(f"{root}: {title}; {count} image{'' if count == 1 else 's'}; classes: {classes}")
        return raw
    return folder.raw_dataset(data)


def _find_layouts(root: Path, data: DataConfig) -> dict[str, Callable[[], RawDataset] | None]:
    """Returns the layouts that a folder has, with their readers; None for that of `folder.py`."""
    found: dict[str, Callable[[], RawDataset] | None] = {}
    masks = [name for name in data.label_maps if (root / name).is_dir()]
    if masks:
        found[f"masks in {masks[0]}/"] = None
    signs = [name for name in (cvat.LABEL_MAP, f"{cvat.MASKS}/") if (root / name).exists()]
    if signs:
        found[f"CVAT's segmentation masks ({signs[0]})"] = functools.partial(
            cvat.raw_dataset, data, root
        )
    unreadable: list[UserError] = []
    for place in JSON_FOLDERS:
        files = sorted((root / place).glob("*.json")) if (root / place).is_dir() else []
        for path in files[:MAX_JSON_TRIED]:
            try:
                document = read_json(path)
            except UserError as error:
                unreadable.append(error)
                continue
            where = path.relative_to(root)
            if isinstance(document, dict) and "shapes" in document:
                found[f"LabelMe's shapes ({where})"] = functools.partial(
                    labelme.raw_dataset, data, root, files
                )
                break
            if coco.is_document(document):
                found[f"COCO's annotations ({where})"] = functools.partial(
                    _read_coco, data, root, files
                )
                break
    if not found and unreadable:
        raise unreadable[0]
    return found


def _read_coco(data: DataConfig, root: Path, files: list[Path]) -> RawDataset:
    """Reads the files of COCO among JSON files; notes the others."""
    documents: dict[Path, Any] = {}
    notes: list[Note] = []
    for path in files:
        try:
            document = read_json(path)
        except UserError as error:
            notes.append(folder.note_of(error, "annotation"))
            continue
        if coco.is_document(document):
            documents[path] = document
        else:
            notes.append(Note("file_ignored", str(path.relative_to(root)), "not COCO's objects"))
    raw = coco.raw_dataset(data, root, documents)
    return RawDataset(raw.class_names, raw.samples, splits=raw.splits, notes=[*raw.notes, *notes])


def _check_settings(data: DataConfig, title: str) -> None:
    """Raises ArgumentError for settings that apply to `folder.py` alone."""
    for name in ("mask_palette", "extra_channels", "label_maps"):
        value, default = getattr(data, name), getattr(DataConfig(), name)
        if value != default:
            raise ArgumentError(
                f"data.{name}", value, f"does not apply to {title}: leave it at its default"
            )
