"""The raw files of a data set, listed whatever is wrong with them.

Preparation (`folder.Folder`, `voc.Voc`) stops at the first fault; this goes by the same rules of
what belongs together and where it lies, but notes what does not fit and goes on.
"""

import contextlib
import dataclasses
import functools
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fcn_jax.config import DataConfig
from fcn_jax.data import folder, voc
from fcn_jax.data.images import IMAGE_SUFFIXES, read_bytes
from fcn_jax.data.labels import VOC_CLASSES
from fcn_jax.data.palettes import read_palette
from fcn_jax.data.records import UnreadFile
from fcn_jax.errors import UserError


class Note(NamedTuple):
    """Observation of a fault or of something unusual.

    kind: key of `doctor.kinds.KINDS`. where: the file, split or class. images: indices of the
    images concerned, if known.
    """

    kind: str
    where: str
    detail: str = ""
    images: tuple[int, ...] = ()


class Pair(NamedTuple):
    """An image in a split, and what goes with it, unread.

    image, channels: give the encoded file. masks: by label map; each gives the encoded file, or
    class indices, uint8 (h, w). What is missing is left out.
    """

    name: str
    split: str
    image: UnreadFile
    masks: Mapping[str, UnreadFile]
    channels: Mapping[str, UnreadFile]


@dataclasses.dataclass(frozen=True)
class RawSet:
    """label_maps: class names by label map, a single one is called ""; none where unknown.

    palette: of masks in colour, uint8 (k, 3), or None. notes: what the listing showed.
    is_part: of a known set, which is why classes may be missing.
    """

    label_maps: Mapping[str, tuple[str, ...]]
    splits: tuple[str, ...]
    pairs: list[Pair]
    palette: np.ndarray | None = None
    notes: tuple[Note, ...] = ()
    is_part: bool = False


@contextlib.contextmanager
def open_raw_set(data: DataConfig) -> Iterator[RawSet | None]:
    """The raw files of a data set; None where there are none but records.

    Raises:
      UserError: there is nothing to look at: no folder, no images or masks in it, no lists.
    """
    if data.name == "folder":
        yield list_folder(data)
    elif data.name in ("voc", "voc/trainaug") and data.root:
        with voc.open_raw(Path(data.root).expanduser()) as (place, read):
            yield _list_voc(data, place, read)
    else:
        yield None


def list_folder(data: DataConfig) -> RawSet:
    """A person's own folder."""
    if not data.root:
        raise UserError("the folder data set needs --config.data.root=DIR")
    root = Path(data.root).expanduser()
    notes: list[Note] = []
    images = _by_stem(root, "images", "", notes)
    notes += [Note("file_ignored", name) for name in _ignored(root / "images")]
    masks = {name: _by_stem(root, name, "label_maps", notes) for name in data.label_maps}
    channels = {name: _by_stem(root, name, "extra_channels", notes) for name in data.extra_channels}
    splits = _lists(root, images, notes)
    notes += _unmatched(images, masks, channels, splits)
    label_maps = {}
    for name, label_map in zip(masks, data.label_map_names(), strict=True):
        try:
            label_maps[label_map] = tuple(folder.read_classes(root / folder.classes_file(name)))
        except UserError as error:
            notes.append(Note("classes", _reason(error)))
            label_maps[label_map] = ()
    by_map = dict(zip(label_maps, masks.values(), strict=True))
    splits = splits or folder.split_by_hash(images, data.validation_fraction)
    pairs = [
        Pair(stem, split, _part(images[stem]), _parts(by_map, stem), _parts(channels, stem))
        for split, stems in splits.items()
        for stem in stems
    ]
    palette = read_palette(data.mask_palette) if data.mask_palette else None
    return RawSet(label_maps, tuple(splits), pairs, palette, tuple(notes))


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


def _by_stem(root: Path, name: str, setting: str, notes: list[Note]) -> dict[str, Path]:
    """The first file of each stem."""
    files = folder.image_files(root, name, setting)
    counts = Counter(path.stem for path in files)
    for stem, count in counts.items():
        if count > 1:
            endings = ", ".join(path.suffix for path in files if path.stem == stem)
            notes.append(Note("several_files", f"{name}/{stem}", endings))
    return {path.stem: path for path in reversed(files)}


def _lists(root: Path, images: Mapping[str, Path], notes: list[Note]) -> dict[str, list[str]]:
    """The stems of each list, each once and of those that have an image."""
    splits = {}
    for split in folder.SPLITS:
        path = root / f"{split}.txt"
        if not path.is_file():
            continue
        try:
            stems = folder.read_list(path, images)
        except UserError as error:
            notes.append(Note("list_unreadable", _reason(error)))
            stems = []
        counts = Counter(stems)
        notes += [Note("listed_missing", path.name, s) for s in counts if s not in images]
        notes += [Note("listed_twice", path.name, s) for s, count in counts.items() if count > 1]
        splits[split] = [stem for stem in counts if stem in images]
        if not splits[split]:
            notes.append(Note("split_empty", path.name))
    return splits


def _ignored(images: Path) -> list[str]:
    return [
        _shown(path) + ("/" if path.is_dir() else "")
        for path in sorted(images.iterdir())
        if not path.name.startswith(".") and path.suffix.lower() not in IMAGE_SUFFIXES
    ]


def _reason(error: UserError) -> str:
    """Without the remedy, which the finding has."""
    return str(error).partition(";")[0]


def _shown(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _part(path: Path) -> UnreadFile:
    return UnreadFile(functools.partial(read_bytes, path), _shown(path))


def _parts(folders: Mapping[str, Mapping[str, Path]], stem: str) -> dict[str, UnreadFile]:
    return {name: _part(files[stem]) for name, files in folders.items() if stem in files}


def _list_voc(data: DataConfig, place: Path, read: voc.Read) -> RawSet:
    """VOC by its lists, from the folder or the archive; its own masks, and SBD's for trainaug."""
    lock = threading.Lock()  # an archive is read at one place at a time

    def read_alone(path: str) -> bytes:
        with lock:
            return read(path)

    def part(path: str) -> UnreadFile:
        return UnreadFile(functools.partial(read_alone, path), path)

    def pair(name: str, split: str, mask: UnreadFile) -> Pair:
        return Pair(name, split, part(f"{voc.IMAGES}/{name}.jpg"), {"": mask}, {})

    lists = {split: voc.read_list(read, place, split) for split in ("train", "val")}
    pairs = [
        pair(name, split, part(f"{voc.MASKS}/{name}.png"))
        for split, names in lists.items()
        for name in names
    ]
    if data.name == "voc/trainaug" and data.root:
        own = {*lists["train"], *lists["val"]}
        masks = voc.sbd_masks(Path(data.root).expanduser())
        pairs += [
            pair(name, "train", UnreadFile(mask, f"SBD's mask {name}"))
            for name, mask in sorted(masks.items())
            if name not in own
        ]
    counts = Counter(pair.split for pair in pairs)
    whole = voc.IMAGES_OF[data.name]
    notes = [
        Note("part_of_voc", split, f"{counts[split]:,} of {whole[split]:,} images")
        for split in lists
        if counts[split] < whole[split]
    ]
    return RawSet({"": VOC_CLASSES}, tuple(lists), pairs, notes=tuple(notes), is_part=bool(notes))
