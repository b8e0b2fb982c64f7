"""COCO's files: the polygons and run lengths of many images in one JSON file.

    root/
      instances.json       or in annotations/; or instances_train.json, instances_val.json …
      images/ a.jpg …      or next to the JSON file, in images/train/ … or in train/ …
      train.txt …          optional lists of stems, as in `folder.py`, for a single JSON file

Class 0 is "background", the class of pixels outside of all shapes, unless the first category has
that name; the others follow by the numbers of their categories. The annotations of an image are
drawn in the order of the file, each over those before it, crowds too.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from fcn_jax.config import DataConfig
from fcn_jax.data.annotations import (
    BACKGROUND_NAMES,
    IMAGE_REMEDY,
    AnnotatedImage,
    ClassList,
    declared_size,
    fault,
    image_path,
    list_samples,
    split_name,
)
from fcn_jax.data.folder import note_of, read_lists
from fcn_jax.data.polygons import Shape, polygon, read_points, run_lengths
from fcn_jax.data.raw import Note, RawDataset
from fcn_jax.errors import UserError

KEYS = ("images", "annotations", "categories")

REMEDY = "correct it in the annotation tool, and export again"


def raw_dataset(data: DataConfig, root: Path, documents: Mapping[Path, Any]) -> RawDataset:
    """Reads COCO's files, and notes what cannot be used instead of stopping there.

    Args:
      data: the settings.
      root: the folder.
      documents: the content of each file; each has the `KEYS`.

    Raises:
      UserError: several files whose names are not those of different splits.
    """
    notes: list[Note] = []
    splits_of_files = _splits_of_files(root, list(documents))
    first, *others = documents
    try:
        labels, classes = _read_categories(first, documents[first]["categories"])
        for path in others:
            if _read_categories(path, documents[path]["categories"])[0] != labels:
                raise UserError(f"{path}: has other categories than {first.name}; {REMEDY}")
    except UserError as error:
        return RawDataset([], [], notes=[note_of(error, "classes")])
    images: dict[str, AnnotatedImage] = {}
    splits: dict[str, list[str]] = {}
    for path, document in documents.items():
        read = _read_images(root, path, document, labels, notes)
        for name in sorted(images.keys() & read.keys()):
            remedy = "each image is in one split"
            notes.append(fault(path, f"its image {name} is in {first.name} too", remedy))
        if split := splits_of_files[path]:
            splits[split] = list(read)
        images |= read
    if len(documents) == 1 and not splits:
        splits = read_lists(root, {name: image.image for name, image in images.items()}, notes)
    samples, names = list_samples(images, splits, data.validation_fraction)
    return RawDataset(classes.names, samples, splits=names, notes=notes)


def is_document(document: Any) -> bool:
    """Returns whether the content of a JSON file is COCO's."""
    return isinstance(document, dict) and all(isinstance(document.get(key), list) for key in KEYS)


def _splits_of_files(root: Path, paths: Sequence[Path]) -> dict[Path, str | None]:
    """Returns the split of each file by the last word of its name; None for all of a single file.

    Raises:
      UserError: several files, not each of a split of its own.
    """
    splits = {path: split_name(path.stem.rpartition("_")[2]) for path in paths}
    if len(paths) > 1 and (None in splits.values() or len(set(splits.values())) < len(paths)):
        names = ", ".join(path.name for path in paths)
        raise UserError(
            f"{root}: several files of COCO ({names}) that do not name one split each; keep one, "
            "or end their names in _train, _val and _test"
        )
    return splits


def _read_categories(path: Path, categories: list[Any]) -> tuple[dict[int, int], ClassList]:
    """Returns the label of each category's number, and the classes.

    Raises:
      UserError: a category without number or name, one number twice, or unusable names.
    """
    names: dict[int, str] = {}
    for category in categories:
        number, name = (
            (category.get("id"), category.get("name")) if isinstance(category, dict) else (None, "")
        )
        if type(number) is not int or not isinstance(name, str) or not name or number in names:
            raise UserError(
                f"{path}: the category {str(category)[:60]} needs a number of its own and a name; "
                f"{REMEDY}"
            )
        names[number] = name
    ordered = [names[number] for number in sorted(names)]
    backgrounds = [name for name in ordered if name.lower() in BACKGROUND_NAMES]
    if not backgrounds:
        ordered.insert(0, "background")
    classes = ClassList(sorted(ordered, key=lambda name: name not in backgrounds), path)
    classes.check_background_first()
    return {number: classes.label(name) for number, name in names.items()}, classes


def _read_images(
    root: Path,
    path: Path,
    document: Mapping[str, list[Any]],
    labels: Mapping[int, int],
    notes: list[Note],
) -> dict[str, AnnotatedImage]:
    """Returns the images of a file by name, without those whose annotations cannot be used."""
    images: dict[int, dict[str, Any]] = {}
    for image in document["images"]:
        number = image.get("id") if isinstance(image, dict) else None
        if type(number) is not int or number in images:
            problem = f"the image {str(image)[:60]} has no number of its own"
            notes.append(fault(path, problem, REMEDY))
        else:
            images[number] = image
    shapes: dict[int, list[tuple[Shape, int]]] = {number: [] for number in images}
    unusable: set[int] = set()
    for place, annotation in enumerate(document["annotations"], start=1):
        annotation = annotation if isinstance(annotation, dict) else {}
        number = annotation.get("image_id")
        title = f"annotation {str(annotation.get('id', f'in place {place}'))[:40]}"
        if type(number) is not int or number not in images:
            problem = f"{title} is of the image {str(number)[:40]}, which is not in the file"
            notes.append(fault(path, problem, REMEDY))
            continue
        try:
            category = annotation.get("category_id")
            if type(category) is not int or category not in labels:
                raise ValueError(f"the category {str(category)[:40]} is not in the file")
            found = _read_segmentation(annotation.get("segmentation"))
            shapes[number] += [(shape, labels[category]) for shape in found]
        except ValueError as error:
            of_image = f"{title} of {str(images[number].get('file_name'))[:80]}"
            notes.append(fault(path, f"{of_image}: {error}", REMEDY))
            unusable.add(number)
    read: dict[str, AnnotatedImage] = {}
    folders = _image_folders(root, path)
    for number, image in images.items():
        try:
            file = image_path(image.get("file_name"), folders)
        except ValueError as error:
            notes.append(fault(path, str(error), IMAGE_REMEDY))
            continue
        name = str(PurePosixPath(image["file_name"].replace("\\", "/")).with_suffix(""))
        if name in read:
            notes.append(fault(path, f"two images are called {name}", "rename one"))
        elif number not in unusable:
            size = declared_size(image.get("height"), image.get("width"))
            read[name] = AnnotatedImage(name, file, path, shapes[number], size)
    return read


def _image_folders(root: Path, path: Path) -> Iterable[Path]:
    word = path.stem.rpartition("_")[2]
    images = root / "images"
    return dict.fromkeys((path.parent, root, images, images / word, root / word))


def _read_segmentation(value: Any) -> list[Shape]:
    """Returns the polygons of an annotation, or its run lengths.

    Raises:
      ValueError: there are none, or they cannot be used.
    """
    if isinstance(value, dict):
        return [run_lengths(value.get("counts"), value.get("size"))]
    if not isinstance(value, list) or not value:
        raise ValueError("it has no segmentation (a box alone has no outline)")
    shapes: list[Shape] = []
    for numbers in value:
        if not isinstance(numbers, list) or len(numbers) % 2:
            raise ValueError("a polygon is not a list of pairs x, y")
        points = [list(pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
        shapes.append(polygon(read_points(points)))
    return shapes
