"""A person's own images and masks, in a folder; `layouts.py` has the layouts of annotation tools.

    root/
      images/       a.jpg b.png …       files of `images.RASTER_FORMATS`
      masks/        a.png b.png …       of the same stem and size: class indices, 255 for void
      classes.txt   a name per line, from class 0 on
      depth/        optional: extra channels, 8-bit images of the same stem and size
      parts/        optional: masks of a second label map, whose classes are in parts.txt
      train.txt     optional, as val.txt and test.txt: the stems of each split, one per line

Without lists, a share of the images is held out for validation, picked by the hash of the stem: the
same each time, and an image added later moves no other to another split. Nothing is ever written
to the folder.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from fcn_jax.config import DataConfig
from fcn_jax.data.images import IMAGE_SUFFIXES, read_bytes
from fcn_jax.data.palettes import read_palette
from fcn_jax.data.raw import Note, RawDataset, Sample, check_class_names, data_root, duplicates
from fcn_jax.errors import UserError

SPLITS = ("train", "val", "test")


def raw_dataset(data: DataConfig) -> RawDataset:
    """Lists a folder, and notes what does not fit together instead of stopping there.

    Raises:
      UserError: no root, or no images, masks or extra channels in it.
    """
    root = data_root(data)
    notes: list[Note] = []
    images = _by_stem(root, "images", "", notes)
    notes += [Note("file_ignored", name) for name in _ignored(root / "images")]
    masks = {name: _by_stem(root, name, "label_maps", notes) for name in data.label_maps}
    channels = {name: _by_stem(root, name, "extra_channels", notes) for name in data.extra_channels}
    splits = read_lists(root, images, notes)
    notes += _unmatched(images, masks, channels, splits)
    class_names = {}
    for folder, label_map in zip(masks, data.label_map_names(), strict=True):
        try:
            class_names[label_map] = read_classes(root / classes_file(folder))
        except UserError as error:
            notes.append(note_of(error, "classes"))
            class_names[label_map] = []
    by_map = dict(zip(class_names, masks.values(), strict=True))
    splits = splits or split_by_hash(images, data.validation_fraction)
    return RawDataset(
        class_names,
        samples=[
            Sample(split, images[stem], _of_stem(by_map, stem), stem, _of_stem(channels, stem))
            for split, stems in splits.items()
            for stem in stems
        ],
        palette=read_palette(data.mask_palette) if data.mask_palette else None,
        splits=tuple(splits),
        notes=notes,
    )


def classes_file(label_map: str) -> str:
    """The name of the file with a label map's class names."""
    return "classes.txt" if label_map == "masks" else f"{label_map}.txt"


def read_classes(path: Path) -> list[str]:
    """Reads the names in a classes.txt.

    Raises:
      UserError: no such file, no text, fewer than two names, more than 255, or one name twice.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing; write one class name per line, class 0 first")
    names = read_lines(path)
    check_class_names(names, str(path))
    return names


def image_files(root: Path, name: str, setting: str = "") -> list[Path]:
    """Lists the image files in a sub-folder, sorted, without hidden ones.

    Args:
      root: the data set's folder.
      name: the sub-folder.
      setting: the setting of `config.data` that named the sub-folder.

    Raises:
      UserError: no such folder, or none in it.
    """
    folder = root / name
    if not folder.is_dir():
        if name not in ("images", "masks"):
            others = ", ".join(sorted(path.name for path in root.glob("*/"))) or "none"
            raise UserError(
                f"{folder}: no such folder; config.data.{setting} names folders in {root}, which "
                f"has {others}"
            )
        raise UserError(
            f"{folder}: no such folder; a data set is a folder with images/, masks/, classes.txt"
        )
    # Strings are compared and split much faster than paths, of which there may be 100,000.
    files = [folder / entry for entry in _visible_entries(folder) if _is_image(entry)]
    if not files:
        raise UserError(f"{folder}: no image files in it (folders within are not searched)")
    return files


def split_by_hash(stems: Iterable[str], validation_fraction: float) -> dict[str, list[str]]:
    """Splits the stems of images into train and val, for a data set without lists.

    The split of an image depends on the hash of its stem, and on the other images only near the
    border between the splits. Images that are added later leave most of the others where they are.

    Args:
      stems: file names without suffix; the bytes that are not UTF-8 as `os.fsdecode` decodes them.
      validation_fraction: share of the images in val, in 0…1; 0 for a train split only.

    Raises:
      UserError: there is a single image.
    """
    stems = sorted(stems)
    if not validation_fraction:
        return {"train": stems}
    if len(stems) < 2:
        raise UserError("a folder with one image cannot be split; list it in train.txt and val.txt")

    def digest(stem: str) -> bytes:
        return hashlib.sha256(stem.encode(errors="surrogateescape")).digest()

    by_hash = sorted(stems, key=digest)
    count = min(max(round(validation_fraction * len(stems)), 1), len(stems) - 1)
    held_out = set(by_hash[:count])
    return {
        "train": [stem for stem in stems if stem not in held_out],
        "val": [stem for stem in stems if stem in held_out],
    }


def _by_stem(root: Path, name: str, setting: str, notes: list[Note]) -> dict[str, Path]:
    """The first file of each stem."""
    files = image_files(root, name, setting)
    for stem in duplicates(path.stem for path in files):
        suffixes = ", ".join(path.suffix for path in files if path.stem == stem)
        notes.append(Note("several_files", f"{name}/{stem}", suffixes))
    return {path.stem: path for path in reversed(files)}


def _of_stem(folders: Mapping[str, Mapping[str, Path]], stem: str) -> dict[str, Path]:
    return {name: files[stem] for name, files in folders.items() if stem in files}


def read_lists(root: Path, images: Mapping[str, Path], notes: list[Note]) -> dict[str, list[str]]:
    """Reads the stems in train.txt, val.txt and test.txt, each once and only those with an image.

    Args:
      root: the folder of the lists.
      images: the images by stem.
      notes: faults of the lists are added to it.

    Returns:
      The stems by split; without lists, {}.
    """
    splits = {}
    for split in SPLITS:
        path = root / f"{split}.txt"
        if not path.is_file():
            continue
        try:
            stems = [_as_stem(line, images) for line in read_lines(path)]
        except UserError as error:
            notes.append(note_of(error, "list_unreadable"))
            stems = []
        counts = Counter(stems)
        notes += [Note("listed_missing", path.name, s) for s in counts if s not in images]
        notes += [Note("listed_twice", path.name, s) for s, count in counts.items() if count > 1]
        splits[split] = [stem for stem in counts if stem in images]
        if not splits[split]:
            notes.append(Note("split_empty", path.name))
    return splits


def _unmatched(
    images: Mapping[str, Path],
    masks: Mapping[str, Mapping[str, Path]],
    channels: Mapping[str, Mapping[str, Path]],
    splits: Mapping[str, list[str]],
) -> list[Note]:
    """Notes masks without an image, images without extra channels, and images in no list.

    With lists, images that no list names are not used, so they and their masks may be missing.
    """
    listed = {stem for stems in splits.values() for stem in stems} if splits else set(images)
    notes = [
        Note("image_unlisted", _shown(images[stem])) for stem in sorted(images.keys() - listed)
    ]
    for files in masks.values():
        lonely = sorted(files.keys() - images.keys()) if not splits else []
        notes += [Note("mask_without_image", _shown(files[stem])) for stem in lonely]
    for name, files in channels.items():
        bare = sorted(listed - files.keys())
        notes += [Note("channels_missing", _shown(images[stem]), f"in {name}/") for stem in bare]
    return notes


def _ignored(images: Path) -> list[str]:
    return [
        f"{images.name}/{entry}" + ("/" if (images / entry).is_dir() else "")
        for entry in _visible_entries(images)
        if not _is_image(entry)
    ]


def _visible_entries(folder: Path) -> list[str]:
    return sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _as_stem(entry: str, images: Mapping[str, Path]) -> str:
    """A list may name the file with its suffix too."""
    path = Path(entry)
    named_with_suffix = path.stem in images and images[path.stem].name == path.name
    return path.stem if entry not in images and named_with_suffix else entry


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a text file, without empty ones and the space around each.

    Raises:
      UserError: no such file, or no text in UTF-8.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:  # Windows' terminal writes UTF-16
        raise UserError(f"{path}: not text in UTF-8; save it in UTF-8") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def note_of(error: UserError, kind: str) -> Note:
    """Returns a note without the remedy, which the doctor's finding has."""
    return Note(kind, str(error).partition(";")[0], error=str(error))


def _shown(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
