"""CVAT's export "Segmentation mask 1.1", which is VOC's layout with a list of labels and colours.

    root/
      labelmap.txt                     label:R,G,B:parts:actions per line; one is 'background'
      SegmentationClass/ a.png …       masks in these colours
      SegmentationObject/ …            not used
      ImageSets/Segmentation/ *.txt    names of images: default.txt, or train.txt, val.txt, test.txt
      JPEGImages/ a.jpg …              in the export with "Save images"; else to be added

The classes have the order of labelmap.txt. The names of images may contain sub-folders.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fcn_jax.config import DataConfig
from fcn_jax.data.annotations import ClassList, split_name
from fcn_jax.data.folder import note_of, read_lines, split_by_hash
from fcn_jax.data.images import IMAGE_SUFFIXES
from fcn_jax.data.raw import Note, RawDataset, Sample, duplicates
from fcn_jax.errors import UserError

LABEL_MAP = "labelmap.txt"
LISTS = "ImageSets/Segmentation"
MASKS = "SegmentationClass"
IMAGES = "JPEGImages"


def raw_dataset(data: DataConfig, root: Path) -> RawDataset:
    """Lists an export, and notes what does not fit together instead of stopping there.

    Raises:
      UserError: a part of the export is missing, or the list of labels cannot be used.
    """
    names, palette = read_label_map(root / LABEL_MAP)
    notes: list[Note] = []
    remedy = "unpack the whole export"
    masks = _by_name(root / MASKS, remedy, notes)
    remedy = "export with 'Save images', or copy the images there"
    images = _by_name(root / IMAGES, remedy, notes)
    splits = _read_lists(root, masks, notes)
    missing = [name for names in splits.values() for name in names if name not in images]
    notes += [Note("listed_missing", f"{IMAGES}/{name}") for name in missing]
    splits = {split: [name for name in names if name in images] for split, names in splits.items()}
    if tuple(splits) == ("",):
        splits = split_by_hash(splits[""], data.validation_fraction) if splits[""] else {}
    notes += [Note("split_empty", split) for split, names in splits.items() if not names]
    samples = [
        Sample(split, images[name], {"": masks[name]} if name in masks else {}, name)
        for split, names in splits.items()
        for name in names
    ]
    return RawDataset(names, samples, palette=palette, splits=tuple(splits), notes=notes)


def read_label_map(path: Path) -> tuple[list[str], np.ndarray]:
    """Reads the labels and their colours.

    Returns:
      The names of the classes, and their colours, uint8 (k, 3), or (256, 3) if a label is ignored.

    Raises:
      UserError: no such file, a line that is no label, no background, or one name or colour twice.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing; unpack the whole export, or write a line NAME:R,G,B::")
    colours: dict[str, tuple[int, ...]] = {}
    for line in read_lines(path):
        if line.startswith("#"):
            continue
        name, *parts = (part.strip() for part in line.split(":"))
        words = parts[0].split(",") if parts else []
        colour = tuple(int(word) for word in words if word.strip().isdecimal())
        if not name or len(words) != 3 or len(colour) != 3 or max(colour) > 255:
            raise UserError(f"{path}: {line[:60]!r} is no label; write it as NAME:R,G,B::")
        if name in colours:
            raise UserError(f"{path}: the label {name!r} occurs twice; delete one line")
        if colour in colours.values():
            other = next(known for known in colours if colours[known] == colour)
            raise UserError(f"{path}: {other!r} and {name!r} have one colour; export again")
        colours[name] = colour
    if not any(name.lower() == "background" for name in colours):
        raise UserError(
            f"{path}: no label 'background'; add the line background:0,0,0:: for pixels without a "
            "label"
        )
    classes = ClassList(colours, path)
    kept = [colour for name, colour in colours.items() if name not in classes.ignored]
    if classes.ignored:
        kept += [colours[classes.ignored[0]]] * (256 - len(kept))
    return classes.names, np.array(kept, np.uint8)


def _by_name(folder: Path, remedy: str, notes: list[Note]) -> dict[str, Path]:
    """Returns the image files below a folder by their path in it, without suffix."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; {remedy}")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"{folder}: no image files in it; {remedy}")
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
    notes += [Note("several_files", f"{folder.name}/{name}") for name in duplicates(names)]
    return dict(zip(reversed(names), reversed(files), strict=True))


def _read_lists(root: Path, masks: Iterable[str], notes: list[Note]) -> dict[str, list[str]]:
    """Returns the names by split; without lists of splits, all names under ""."""
    splits: dict[str, list[str]] = {}
    others: list[str] = []
    has_lists = False
    for path in sorted((root / LISTS).glob("*.txt")):
        try:
            names = read_lines(path)
        except UserError as error:
            notes.append(note_of(error, "list_unreadable"))
            continue
        has_lists = True
        where = path.name
        notes += [Note("listed_twice", where, name) for name in duplicates(names)]
        if split := split_name(path.stem):
            splits.setdefault(split, []).extend(dict.fromkeys(names))
        else:
            others += names
    if splits:
        return splits
    return {"": list(dict.fromkeys(others)) if has_lists else sorted(masks)}
