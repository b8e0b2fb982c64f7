"""LabelMe's files: a JSON file of shapes for each image.

    root/
      a.jpg a.json …     or the JSON files in annotations/, or images and JSON files in images/
      labels.txt         optional, or classes.txt: a label per line, _background_ first
      train.txt …        optional lists of stems, as in `folder.py`

Without a list of labels, class 0 is "background" and the others follow by name. Polygons,
rectangles and circles are drawn in the order of the file, each over those before it. The image is
the file that `imagePath` names; the copy in `imageData` is not used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fcn_jax.config import DataConfig
from fcn_jax.data.annotations import (
    BACKGROUND_NAMES,
    IGNORED_NAMES,
    IMAGE_REMEDY,
    AnnotatedImage,
    ClassList,
    declared_size,
    fault,
    image_path,
    list_samples,
    read_json,
)
from fcn_jax.data.folder import note_of, read_lines, read_lists
from fcn_jax.data.images import IMAGE_SUFFIXES
from fcn_jax.data.polygons import Circle, Shape, polygon, read_points, rectangle
from fcn_jax.data.raw import Note, RawDataset
from fcn_jax.errors import UserError

SHAPE_TYPES = "polygon, rectangle and circle"

NamedShape = tuple[Shape, str]


def raw_dataset(data: DataConfig, root: Path, files: Sequence[Path]) -> RawDataset:
    """Reads LabelMe's files, and notes what cannot be used instead of stopping there.

    Args:
      data: the settings.
      root: the folder.
      files: the JSON files, all in one folder.

    Raises:
      UserError: the list of labels cannot be used.
    """
    notes: list[Note] = []
    lists = [path for path in (root / "classes.txt", root / "labels.txt") if path.is_file()]
    classes = ClassList(read_lines(lists[0]), lists[0]) if lists else None
    folders = list(dict.fromkeys((files[0].parent, root, root / "images")))
    read: dict[str, tuple[Path, Path, list[NamedShape], tuple[int, int] | None]] = {}
    for path in files:
        try:
            document = read_json(path)
        except UserError as error:
            notes.append(note_of(error, "annotation"))
            continue
        if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
            notes.append(fault(path, "has no list of shapes", "is it a file of LabelMe?"))
            continue
        try:
            image = image_path(document.get("imagePath"), folders)
        except ValueError as error:
            notes.append(fault(path, str(error), IMAGE_REMEDY))
            continue
        shapes, faults = _read_shapes(path, document["shapes"], classes)
        if image.stem in read:
            other = read[image.stem][0].name
            remedy = "keep one of the two files"
            faults.append(fault(path, f"is a second file for {image.stem}, as {other}", remedy))
        notes += faults
        if not faults:
            size = declared_size(document.get("imageHeight"), document.get("imageWidth"))
            read[image.stem] = path, image, shapes, size
    if classes is None:
        labels = {label for _, _, shapes, _ in read.values() for _, label in shapes}
        others = (name for name in labels if name.lower() not in BACKGROUND_NAMES + IGNORED_NAMES)
        try:
            classes = ClassList(["background", *sorted(others)], root)
        except UserError as error:
            notes.append(note_of(error, "classes"))
            return RawDataset([], [], notes=notes)
    classes.check_background_first()
    images = {
        stem: AnnotatedImage(
            stem, image, path, [(shape, classes.label(label)) for shape, label in shapes], declared
        )
        for stem, (path, image, shapes, declared) in read.items()
    }
    notes += _without_annotations(folders, files, images)
    splits = read_lists(root, {stem: image.image for stem, image in images.items()}, notes)
    samples, names = list_samples(images, splits, data.validation_fraction)
    return RawDataset(classes.names, samples, splits=names, notes=notes)


def _read_shapes(
    path: Path, shapes: list[Any], classes: ClassList | None
) -> tuple[list[NamedShape], list[Note]]:
    """Returns the shapes of a file with their labels, and the faults of the others."""
    found, faults = [], []
    for number, shape in enumerate(shapes, start=1):
        try:
            found.append(_read_shape(shape, classes))
        except ValueError as error:
            remedy = "correct it in LabelMe, or delete the shape"
            if classes is not None:
                remedy += f", or add the label to {classes.path.name}"
            faults.append(fault(path, f"shape {number}: {error}", remedy))
    return found, faults


def _read_shape(shape: Any, classes: ClassList | None) -> NamedShape:
    if not isinstance(shape, dict):
        raise ValueError("it is no shape")
    label = shape.get("label")
    if not isinstance(label, str) or not label.strip():
        raise ValueError("it has no label")
    if classes is not None:
        classes.label(label)
    kind = shape.get("shape_type") or "polygon"  # files of early versions have no type
    if kind not in ("polygon", "rectangle", "circle"):
        raise ValueError(f"a shape of the type {str(kind)[:40]!r}; {SHAPE_TYPES} are read")
    points = read_points(shape.get("points"))
    if kind == "polygon":
        return polygon(points), label
    if len(points) != 2:
        raise ValueError(f"a {kind} of {len(points)} points, not 2")
    if kind == "rectangle":
        return rectangle(*points), label
    (x, y), (at_x, at_y) = points
    return Circle((x, y), ((at_x - x) ** 2 + (at_y - y) ** 2) ** 0.5), label


def _without_annotations(
    folders: Sequence[Path], files: Sequence[Path], images: dict[str, AnnotatedImage]
) -> list[Note]:
    """Notes the images in the folders of the annotated ones that have no JSON file."""
    stems = {path.stem for path in files} | images.keys()
    places = {image.image.parent for image in images.values()} & set(folders)
    return [
        Note("image_unannotated", f"{folder.name}/{path.name}")
        for folder in sorted(places)
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES and path.stem not in stems
    ]
