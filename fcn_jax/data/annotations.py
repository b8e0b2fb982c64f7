"""Shared by the readers of annotation files: JSON, lists of classes, image files, faults."""

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from fcn_jax.data.folder import split_by_hash
from fcn_jax.data.images import IMAGE_SUFFIXES, header_size, read_bytes
from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.data.polygons import RunLengths, Shape, draw_shapes
from fcn_jax.data.raw import Note, Sample, SourceFile, check_class_names
from fcn_jax.errors import UserError, printable, suggestion, width_by_height

BACKGROUND_NAMES = ("background", "_background_")
IGNORED_NAMES = ("__ignore__", "ignored", "ignore", "void")
"""Labels whose pixels are neither trained on nor scored, whatever the case of their letters."""

MAX_NAME_LENGTH = 200

SPLIT_OF = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


class AnnotatedImage:
    """An image file with its shapes.

    Args:
      name: name of the image in results.
      image: the image file.
      annotations: the file of the shapes.
      shapes: each with its label.
      declared: height and width of the image according to the annotations; None if they have none.
    """

    def __init__(
        self,
        name: str,
        image: Path,
        annotations: Path,
        shapes: Sequence[tuple[Shape, int]],
        declared: tuple[int, int] | None,
    ):
        self.name = name
        self.image = image
        self.annotations = annotations
        self._shapes = shapes
        self._declared = declared

    def sample(self, split: str) -> Sample:
        """Returns the image as a sample of a split, whose mask is drawn when it is read."""
        mask = SourceFile(self.annotations, self._draw)
        return Sample(split, self.image, mask, self.name)

    def _draw(self, path: Path) -> np.ndarray:
        """Draws the mask, uint8 (h, w).

        Raises:
          UserError: the image cannot be opened, or has another size than the annotations say.
        """
        size = header_size(self.image)
        if size is None:
            raise UserError(f"{path}: its image {self.image} cannot be opened; copy it again")
        runs = [shape.size for shape, _ in self._shapes if isinstance(shape, RunLengths)]
        for declared in (self._declared, *runs):
            if declared not in (None, size):
                turned = " (rotated by its EXIF data?)" if declared == size[::-1] else ""
                raise UserError(
                    f"{path}: was drawn on {width_by_height(declared)} pixels, but its image "
                    f"{self.image} has {width_by_height(size)}{turned}; annotate the stored "
                    "pixels, or restore the image"
                )
        return draw_shapes(self._shapes, size)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: no such file, or no JSON in UTF-8.
    """
    try:
        return json.loads(read_bytes(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path}: not JSON ({reason}); export it again") from None


def fault(path: Path, problem: str, remedy: str) -> Note:
    """Returns a note of a fault in an annotation file, which stops preparation."""
    where = f"{path}: {printable(problem)}"
    return Note("annotation", where, error=f"{where}; {remedy}")


def declared_size(height: Any, width: Any) -> tuple[int, int] | None:
    """Returns the size that annotations give an image; None if they give none."""
    return (height, width) if type(height) is int and type(width) is int else None


class ClassList:
    """The classes of annotations, and the label of each name.

    Args:
      names: names in the order of their labels; ignored ones and the second spelling of a
        background do not count.
      path: the file that has the names, for messages.

    Raises:
      UserError: no background, which is the class of pixels outside of all shapes; fewer than two
        classes, more than 255, one name twice, or a name that cannot be printed.
    """

    def __init__(self, names: Iterable[str], path: Path):
        self.path = path
        names = list(names)
        for name in names:
            if not name.isprintable() or len(name) > MAX_NAME_LENGTH:
                raise UserError(
                    f"{path}: the label {printable(name[:40])!r} has control characters, or more "
                    f"than {MAX_NAME_LENGTH} letters; rename it"
                )
        self.ignored = [name for name in names if name.lower() in IGNORED_NAMES]
        self.names = [
            "background" if name.lower() in BACKGROUND_NAMES else name
            for name in names
            if name not in self.ignored
        ]
        check_class_names(self.names, str(path))
        self._labels = {name: label for label, name in enumerate(self.names)}

    def check_background_first(self) -> None:
        """Raises UserError unless class 0 is the background, as pixels outside of shapes are."""
        if self.names[0] != "background":
            raise UserError(
                f"{self.path}: its first class is {self.names[0]!r}, not 'background'; pixels "
                "outside of all shapes are class 0: add the line 'background' at the top"
            )

    def label(self, name: Any) -> int:
        """Returns the label of a name.

        Raises:
          ValueError: there is no such name.
        """
        if isinstance(name, str) and name.lower() in IGNORED_NAMES:
            return IGNORE_INDEX
        known = "background" if str(name).lower() in BACKGROUND_NAMES else name
        if not isinstance(known, str) or known not in self._labels:
            near = suggestion(str(name), self.names).removeprefix(";")
            hint = f" ({near.strip()})" if near else ""
            raise ValueError(f"the label {str(name)[:40]!r} is not in {self.path.name}{hint}")
        return self._labels[known]


def image_path(name: Any, folders: Iterable[Path]) -> Path:
    """Finds the image file that annotations name, in the first of the folders that has it.

    Args:
      name: the name in the file, perhaps with sub-folders and with the separators of Windows.
      folders: where it may be.

    Raises:
      ValueError: no name, a name that leads out of the folders, or of no image file.
    """
    if not isinstance(name, str) or not name:
        raise ValueError("it names no image")
    path = PureWindowsPath(name)  # also takes /
    if path.drive or path.root or ".." in path.parts:
        raise ValueError(f"its image {name[:80]!r} is outside of the folder")
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"its image {name[:80]!r} is no image file")
    for folder in (folders := list(folders)):
        if os.path.isfile(folder / path.as_posix()):  # also of names that no file can have
            return folder / path.as_posix()
    places = ", ".join(str(folder) for folder in folders)
    raise ValueError(f"its image {name[:80]!r} is missing from {places}")


IMAGE_REMEDY = "copy the images next to the annotations or into images/, and name them without .."


def split_name(word: str) -> str | None:
    """Returns the split that a word such as "Train", "validation" or "val2017" names, or None."""
    return SPLIT_OF.get(word.lower().rstrip("0123456789"))


def list_samples(
    images: Mapping[str, AnnotatedImage],
    splits: Mapping[str, Collection[str]],
    validation_fraction: float,
) -> tuple[list[Sample], tuple[str, ...]]:
    """Returns the samples and the names of the splits; without splits, splits by the hash.

    Args:
      images: images by name.
      splits: names by split.
      validation_fraction: share of the images in val, if there are no splits.
    """
    if not splits and images:
        splits = split_by_hash(images, validation_fraction)
    samples = [
        images[name].sample(split)
        for split, names in splits.items()
        for name in names
        if name in images
    ]
    return samples, tuple(splits)
