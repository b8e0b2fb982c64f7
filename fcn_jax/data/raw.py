"""Data sets before preparation: lists of their images, masks and splits; no file is read yet.

One registered function adds a data set for training, preparation and the doctor:

    @register_dataset("cells")
    def cells(data: DataConfig) -> RawDataset:
        root = data_root(data)
        return RawDataset(
            class_names=("background", "cell"),
            samples=[
                Sample(split, image=path, mask=root / "masks" / f"{path.stem}.png")
                for split in ("train", "val")
                for path in sorted((root / split).glob("*.jpg"))
            ],
        )

If a mask is not an image file, pass a `SourceFile` with a function that reads the class indices.
"""

import dataclasses
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fcn_jax import registry
from fcn_jax.config import DataConfig
from fcn_jax.data.images import encode_png, read_bytes
from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.data.palettes import Colour, voc_palette
from fcn_jax.errors import ArgumentError, UserError, listed, printable

T = TypeVar("T")

PACKAGE = Path(__file__).parents[1]

NAMES_SHOWN = 5
"""Number of names that an error message lists."""

SEE_DOCTOR = " (`python -m fcn_jax.doctor` lists every fault)"

FATAL_NOTES = {
    "classes": "class lists that cannot be used",
    "list_unreadable": "lists that cannot be read",
    "several_files": "several files for one name",
    "split_empty": "lists without an image",
    "listed_missing": "no such images",
    "listed_twice": "images listed twice",
    "mask_without_image": "masks without an image of the same name",
    "channels_missing": "images without a file of extra channels",
    "annotation": "annotations that cannot be used",
}
"""Kinds of notes that stop preparation, with their titles; the first kind found is reported."""


class Note(NamedTuple):
    """An observation of a fault, or of something unusual, in a data set.

    Attributes:
      kind: key of `doctor.kinds.KINDS`.
      where: the file, split or class.
      detail: what was observed there.
      images: indices of the images concerned, if known.
      error: the error message of preparation, if `where` and `detail` are not enough.
    """

    kind: str
    where: str
    detail: str = ""
    images: tuple[int, ...] = ()
    error: str = ""


class ReaderError(UserError):
    """An error that the function which reads a file raised. The message names the line."""


class SourceFile(NamedTuple):
    """A file of an image, a mask or extra channels, with the function that reads it.

    Attributes:
      path: the file that messages name; if its size or modification time changes, the records are
        prepared again.
      read: takes the path and returns the bytes of an image file, or an array: class indices (h, w)
        with 255 for ignored pixels, or an image, uint8 (h, w, 3).
    """

    path: Path
    read: Callable[[Path], bytes | np.ndarray] = read_bytes

    def load(self) -> bytes | np.ndarray:
        """Reads the file.

        Raises:
          UserError: the file cannot be read.
          ReaderError: `read` raised another error.
        """
        try:
            return call_own_code(self.read, self.path, place=str(self.path))
        except _OwnCodeError as error:
            raise ReaderError(f"{self.path}: {error}") from error

    def load_bytes(self) -> bytes:
        """Reads an image or extra channels as the bytes of an image file; encodes arrays as PNG.

        Raises:
          UserError: the file cannot be read, or `read` returned neither bytes nor such an array.
        """
        content = self.load()
        if isinstance(content, bytes):
            return content
        pixels = np.asarray(content)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
            raise UserError(
                f"{self.path}: the image is {pixels.dtype} {pixels.shape}; it must be "
                "uint8 (h, w, 3) or (h, w, 1)"
            )
        return encode_png(pixels)

    @property
    def name(self) -> str:
        """The names of the file and of its folder, such as "masks/a.png"."""
        return "/".join(self.path.parts[-2:])


File = Path | SourceFile


class Sample:
    """An image of a split with its mask.

    Args:
      split: "train", "val" or any other name.
      image: an image file.
      mask: an image file of class indices or colours, or a `SourceFile` that reads class indices;
        for several label maps, a mapping from the name of each to its file.
      name: the name of the image in results, unique within its split; None for the stem of `image`.
      channels: image files of extra channels (depth, …): name in `data.extra_channels` -> file.
    """

    def __init__(
        self,
        split: str,
        image: File,
        mask: File | Mapping[str, File],
        name: str | None = None,
        channels: Mapping[str, File] | None = None,
    ):
        masks = mask if isinstance(mask, Mapping) else {"": mask}
        self.split = split
        self.image = _source(image)
        self.masks = {label_map: _source(file) for label_map, file in masks.items()}
        self.channels = {folder: _source(file) for folder, file in (channels or {}).items()}
        self.name = self.image.path.stem if name is None else name

    @property
    def files(self) -> list[SourceFile]:
        return [self.image, *self.masks.values(), *self.channels.values()]


def _source(file: File) -> SourceFile:
    if isinstance(file, SourceFile):
        return file
    return SourceFile(file if isinstance(file, Path) else Path(file))  # Path(…) of a Path is slow


@dataclasses.dataclass(frozen=True)
class RawDataset:
    """The description of a data set before preparation.

    Attributes:
      class_names: 2 to 255 names, class 0 first. For several label maps, a mapping from the name of
        each, the main one first, to its class names. Empty if the list of classes cannot be used;
        the doctor still inspects such a data set.
      samples: every image with its mask. A generator requires `files`, and runs only when the
        records are prepared, not whenever they are opened.
      files: files and folders; if the name, size or modification time of one changes, the records
        are prepared again. A folder stands for the files in it. None for the files of `samples`.
      palette: the colours of the classes in colour masks, uint8 (k, 3) or a list of RGB triples;
        see `read_palette`. Predictions and pictures have them too.
      splits: names of the splits; required only if a split may be empty.
      complete_sizes: split -> number of samples in the complete data set, if the raw files may be
        only a part of it.
      notes: faults found while the files were listed. A data set may raise `UserError` instead.

    Raises:
      ValueError: the palette does not consist of RGB triples from 0 to 255.
    """

    class_names: Sequence[str] | Mapping[str, Sequence[str]]
    samples: Iterable[Sample]
    files: Sequence[Path] | None = None
    palette: np.ndarray | None = None
    splits: Sequence[str] = ()
    complete_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: Sequence[Note] = ()

    def __post_init__(self) -> None:
        if self.palette is None:
            return
        palette = np.asarray(self.palette)
        if palette.ndim != 2 or palette.shape[1] != 3 or palette.dtype.kind not in "ui":
            raise ValueError("`palette` must be whole numbers (k, 3): the RGB of each class")
        if palette.size and not 0 <= palette.min() <= palette.max() <= 255:
            raise ValueError("`palette` must contain numbers from 0 to 255")
        object.__setattr__(self, "palette", palette.astype(np.uint8, copy=False))

    @property
    def colours(self) -> tuple[Colour, ...]:
        """The colours of the classes in `palette`; empty for VOC's, or without a palette."""
        if self.palette is None:
            return ()
        colours = self.palette[: max(map(len, self.label_maps.values()), default=0)]
        if np.array_equal(colours, voc_palette()[: len(colours)]):
            return ()
        return tuple((red, green, blue) for red, green, blue in colours.tolist())

    @property
    def label_maps(self) -> dict[str, tuple[str, ...]]:
        """Class names by label map; the name of a single label map is ""."""
        names = self.class_names
        by_map = names if isinstance(names, Mapping) else {"": names}
        return {label_map: tuple(class_names) for label_map, class_names in by_map.items()}


def open_raw(data: DataConfig) -> RawDataset | None:
    """Lists the raw files of a registered data set; returns None for the name of a TFDS data set.

    Raises:
      UserError: `data.root` is missing, the files cannot be listed, or the registered function
        raises an error or returns something else.
    """
    if data.name not in registry.datasets:
        return None
    if data.ndim == 3:
        raise UserError(
            f"{data.root or data.name}: this needs images, and data.name=volumes is none"
        )
    raw = _call_data_set(registry.datasets[data.name], data, data=data)
    if not isinstance(raw, RawDataset):
        raise UserError(
            f"the function of the data set {data.name!r} returned {type(raw).__name__}, not a "
            "RawDataset"
        )
    for class_names in raw.label_maps.values():
        if class_names:
            check_class_names(class_names, data.name)
    return raw


def list_samples(raw: RawDataset, data: DataConfig) -> list[Sample]:
    """Lists the samples, which may come from a generator.

    Raises:
      UserError: the generator raises an error, or yields something else.
    """
    samples: list[Sample] = _call_data_set(list, raw.samples, data=data)
    for sample in samples:
        if not isinstance(sample, Sample):
            raise UserError(
                f"the samples of the data set {data.name!r} contain {type(sample).__name__}, not "
                "only Sample"
            )
    return samples


def _call_data_set(call: Callable[..., T], *arguments: Any, data: DataConfig) -> T:
    """Calls code of the data set; raises UserError for its errors."""
    try:
        return call_own_code(call, *arguments, place=data.root or data.name)
    except _OwnCodeError as error:
        raise UserError(f"{error} (in the data set {data.name!r})") from error


def expanded(path: str, argument: str) -> Path:
    """Returns a path whose ~ is replaced by the home directory.

    Raises:
      ArgumentError: the user has no home directory, as in a container with another user's number.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ArgumentError(
            argument, path, "needs a home directory ($HOME), and there is none: give another folder"
        ) from error


def data_root(data: DataConfig) -> Path:
    """Returns the folder that `data.root` names.

    Raises:
      UserError: the setting is empty, or there is no such folder.
    """
    if not data.root:
        raise UserError(f"the {data.name} data set needs --config.data.root=DIR")
    root = expanded(data.root, "data.root")
    if not root.exists():
        raise UserError(f"{root}: no such folder (--config.data.root)")
    return root


def check_class_names(names: Sequence[str], where: str) -> None:
    """Raises UserError, beginning with `where`, unless there are 2 to 255 different names."""
    if not 2 <= len(names) <= IGNORE_INDEX:
        raise UserError(
            f"{where}: {len(names)} class names; 2 to {IGNORE_INDEX} are needed (background counts)"
        )
    if twice := duplicates(names):
        named = listed(twice, NAMES_SHOWN)
        raise UserError(f"{where}: class names must differ, but {named} occurs twice")


def check_image_names(names: Iterable[str], where: str) -> None:
    """Raises UserError, beginning with `where`, for names outside the image folder or not UTF-8."""
    names = list(names)
    undecoded = [printable(name) for name in names if any("\udc80" <= c <= "\udcff" for c in name)]
    if undecoded:
        raise UserError(
            f"{where}: image names must be UTF-8, but {listed(undecoded, NAMES_SHOWN)} is not: "
            "rename the files"
        )
    outside = [name for name in names if PurePath(name).is_absolute() or ".." in name.split("/")]
    if outside:
        raise UserError(
            f"{where}: {listed([repr(name) for name in outside], NAMES_SHOWN)} leads out of the "
            "folder of images; image names must not begin with / or contain .."
        )


def raise_for_notes(notes: Sequence[Note], data: DataConfig) -> None:
    """Raises UserError for the notes of the first kind in `FATAL_NOTES` that has any."""
    for kind, title in FATAL_NOTES.items():
        found = [note for note in notes if note.kind == kind]
        if found and found[0].error:
            raise UserError(found[0].error)
        if found:
            places = [f"{n.where} ({n.detail})" if n.detail else n.where for n in found]
            raise UserError(
                f"{data.root or data.name}: {title}: {listed(places, NAMES_SHOWN)}" + SEE_DOCTOR
            )


class _OwnCodeError(Exception):
    """An error of code outside this package: "FILE:LINE: ERROR: MESSAGE"."""


def call_own_code(call: Callable[..., T], *arguments: Any, place: str) -> T:
    """Calls a function that may belong to the user.

    Raises:
      UserError: begins with the file of an OSError, or `place` if the error names none.
      _OwnCodeError: the function is not part of this package and raises another error. The message
        names the last line that ran in the function's file.
    """
    try:
        return call(*arguments)
    except UserError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{error.filename or place}: {reason}") from error
    except Exception as error:
        _, *frames = traceback.extract_tb(error.__traceback__)
        if frames and Path(frames[0].filename).is_relative_to(PACKAGE):
            raise
        lines = [frame.lineno for frame in frames if frame.filename == frames[0].filename]
        line = f"{frames[0].filename}:{lines[-1]}: " if lines else ""
        message = " ".join(f"{type(error).__name__}: {error}".split())
        raise _OwnCodeError(f"{line}{message}") from error


def duplicates(names: Iterable[T]) -> list[T]:
    """Returns the values that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]
