"""Anyone's images and masks, in a folder.

    root/
      images/       a.jpg b.png …       whatever Pillow reads
      masks/        a.png b.png …       of the same stem and size: class indices, 255 for void
      classes.txt   a name per line, from class 0 on
      depth/        optional: further channels, 8-bit images of the same stem and size
      parts/        optional: masks of a second label map, whose classes are in parts.txt
      train.txt     optional, as val.txt and test.txt: the stems of each split, one per line

Without lists, a share of the images is kept for validation, picked by the hash of the stem: the
same each time, and an image added later moves no other to another split. Nothing is ever written
to the folder.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.data.channels import read_channels
from fcn_jax.data.images import IMAGE_SUFFIXES, read_bytes
from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.data.masks import read_mask
from fcn_jax.data.palettes import read_palette
from fcn_jax.data.records import RecordSource, SegmentationBuilder, UnreadFile
from fcn_jax.errors import UserError, listed

SPLITS = ("train", "val", "test")
SHOWN = 5  # names in a message


class Folder(SegmentationBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Images and masks from a folder.

    extra_channels, label_maps: names of its sub-folders.
    """

    def __init__(
        self,
        *,
        root: str,
        validation_fraction: float = 0.2,
        mask_palette: str | None = None,
        extra_channels: Sequence[str] = (),
        label_maps: Sequence[str] = ("masks",),
        **options: Any,
    ):
        self._root = Path(root).expanduser()
        self._validation_fraction = validation_fraction
        self._palette = read_palette(mask_palette) if mask_palette else None
        self._channels = {
            name: _files_by_stem(self._root, name, "extra_channels") for name in extra_channels
        }
        self._masks = {name: _files_by_stem(self._root, name, "label_maps") for name in label_maps}
        self._labels_seen = {name: np.zeros(256, bool) for name in label_maps}
        self._classes = {name: read_classes(self._root / classes_file(name)) for name in label_maps}
        super().__init__(
            label_maps=self._classes if len(label_maps) > 1 else {"": self._classes[label_maps[0]]},
            further_channels={
                # The first says for all: the records' features are fixed before they are read.
                name: read_channels(next(iter(files.values()))).shape[-1]
                for name, files in self._channels.items()
            },
            **options,
        )

    def _sources(self, dl_manager: Any) -> dict[str, list[RecordSource]]:
        del dl_manager  # nothing to download
        images = _files_by_stem(self._root, "images")
        splits = _read_lists(self._root, images)
        in_lists = {stem for stems in splits.values() for stem in stems} if splits else None
        for name, files in (self._masks | self._channels).items():
            _check_pairs(self._root, images, name, files, in_lists)
        if not splits:
            splits = split_by_hash(images, self._validation_fraction)
        return {
            split: [self._source(stem, images[stem]) for stem in stems]
            for split, stems in splits.items()
        }

    def _record(self, source: RecordSource) -> dict[str, Any]:
        try:
            return super()._record(source)
        except UserError as error:  # of the first; there may be more
            raise UserError(f"{error} (`python -m fcn_jax.doctor` tells all at once)") from error

    def _source(self, stem: str, image: Path) -> RecordSource:
        return RecordSource(
            name=stem,
            image=_encoded(image),
            labels=[
                UnreadFile(functools.partial(self._read_mask, name, files[stem]), str(files[stem]))
                for name, files in self._masks.items()
            ],
            channels=[_encoded(files[stem]) for files in self._channels.values()],
        )

    def _read_mask(self, label_map: str, path: Path) -> np.ndarray:
        values = read_mask(path, self._palette)
        self._labels_seen[label_map] |= np.bincount(values.reshape(-1), minlength=256) > 0
        return values

    def _check_all(self) -> None:
        for name, labels_seen in self._labels_seen.items():
            seen = set(np.flatnonzero(labels_seen).tolist())
            if seen == {0, IGNORE_INDEX} and len(self._classes[name]) == 2:
                raise UserError(
                    f"{self._root / name}: every mask holds only 0 and {IGNORE_INDEX}, but "
                    f"{IGNORE_INDEX} means void (neither trained on nor scored); save the "
                    "foreground as 1"
                )


def raw_files(root: Path, extra_channels: Sequence[str], label_maps: Sequence[str]) -> list[Path]:
    """Every file that the set is made of, by which a change is noticed."""
    names = [*(classes_file(name) for name in label_maps), *(f"{split}.txt" for split in SPLITS)]
    folders = ("images", *label_maps, *extra_channels)
    pictures = [path for name in folders for path in sorted((root / name).glob("*"))]
    return [path for path in [*(root / name for name in names), *pictures] if path.is_file()]


def classes_file(label_map: str) -> str:
    """The file with a label map's class names."""
    return "classes.txt" if label_map == "masks" else f"{label_map}.txt"


def _encoded(path: Path) -> UnreadFile:
    return UnreadFile(functools.partial(read_bytes, path), str(path))


def read_classes(path: Path) -> list[str]:
    """The names in a classes.txt.

    Raises:
      UserError: no such file, no text, fewer than two names, more than 255, or one name twice.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing; write one class name per line, class 0 first")
    names = _lines(path)
    if not 2 <= len(names) <= IGNORE_INDEX:
        raise UserError(
            f"{path}: {len(names)} class names; 2 to {IGNORE_INDEX} are needed (background counts)"
        )
    if twice := _repeated(names):
        named = listed(twice, SHOWN)
        raise UserError(f"{path}: class names must differ, but {named} is there twice")
    return names


def image_files(root: Path, name: str, setting: str = "") -> list[Path]:
    """The image files in a sub-folder, sorted; hidden ones are left out.

    setting: of `config.data`, that named the folder.

    Raises:
      UserError: no such folder, or none in it.
    """
    folder = root / name
    if not folder.is_dir():
        if name not in ("images", "masks"):
            held = ", ".join(sorted(path.name for path in root.glob("*/"))) or "none"
            raise UserError(
                f"{folder}: no such folder; config.data.{setting} names folders in {root}, which "
                f"has {held}"
            )
        raise UserError(
            f"{folder}: no such folder; a data set is a folder with images/, masks/, classes.txt"
        )
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]
    if not files:
        raise UserError(f"{folder}: no image files in it (folders within are not searched)")
    return files


def _files_by_stem(root: Path, name: str, setting: str = "") -> dict[str, Path]:
    files = image_files(root, name, setting)
    if twice := _repeated(path.stem for path in files):
        raise UserError(
            f"{root / name}: one file for each name, but {listed(twice, SHOWN)} is there with "
            "several extensions"
        )
    return {path.stem: path for path in files}


def _read_lists(root: Path, images: dict[str, Path]) -> dict[str, list[str]]:
    """The stems of each split that has a list; none where there are no lists."""
    splits = {}
    for split in SPLITS:
        path = root / f"{split}.txt"
        if not path.is_file():
            continue
        stems = read_list(path, images)
        if not stems:
            raise UserError(f"{path}: lists no image")
        if unknown := [stem for stem in stems if stem not in images]:
            raise UserError(f"{path}: no such file in {root / 'images'}: {listed(unknown, SHOWN)}")
        if twice := _repeated(stems):
            raise UserError(f"{path}: listed twice: {listed(twice, SHOWN)}")
        splits[split] = stems
    return splits


def read_list(path: Path, images: Mapping[str, Path]) -> list[str]:
    """The stems in a list of images, whether or not they are among those there are.

    Raises:
      UserError: it is no text.
    """
    return [_as_stem(line, images) for line in _lines(path)]


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:  # Windows' terminal writes UTF-16
        raise UserError(f"{path}: not text in UTF-8; save it in UTF-8") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _as_stem(entry: str, images: Mapping[str, Path]) -> str:
    """A list may name the file with its extension too."""
    path = Path(entry)
    named_with_extension = path.stem in images and images[path.stem].name == path.name
    return path.stem if entry not in images and named_with_extension else entry


def _check_pairs(
    root: Path,
    images: dict[str, Path],
    name: str,
    files: dict[str, Path],
    in_lists: set[str] | None,
) -> None:
    """Every image needs its mask, and every mask its image; with lists, those that are listed.

    So it is with the other folders: `files` are those of the folder `name`.
    """
    missing = sorted((images.keys() if in_lists is None else in_lists) - files.keys())
    if missing:
        raise UserError(
            f"{root}: {len(missing)} of the images have no file of the same stem in {name}/: "
            f"{listed(missing, SHOWN)}"
        )
    without_image = sorted(files.keys() - images.keys()) if in_lists is None else []
    if without_image:
        raise UserError(
            f"{root}: {len(without_image)} of the files in {name}/ have no file of the same stem "
            f"in images/: {listed(without_image, SHOWN)}"
        )


def split_by_hash(stems: Iterable[str], validation_fraction: float) -> dict[str, list[str]]:
    """The stems of each split where there are no lists. Raises UserError for a single image."""
    stems = sorted(stems)
    if not validation_fraction:
        return {"train": stems}
    if len(stems) < 2:
        raise UserError("a folder with one image cannot be split; list it in train.txt and val.txt")
    by_hash = sorted(stems, key=lambda stem: hashlib.sha256(stem.encode()).digest())
    count = min(max(round(validation_fraction * len(stems)), 1), len(stems) - 1)
    kept = set(by_hash[:count])
    return {
        "train": [stem for stem in stems if stem not in kept],
        "val": [stem for stem in stems if stem in kept],
    }


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
