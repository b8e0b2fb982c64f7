"""Folders of annotation tools: masks worked out by hand, and every mistake that is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcn_jax.config import DataConfig
from fcn_jax.data.datasets import Dataset, open_dataset
from fcn_jax.data.layouts import raw_dataset
from fcn_jax.data.raw import RawDataset
from fcn_jax.errors import UserError
from tests.in_process import run_command

WIDTH, HEIGHT = 10, 8

CVAT_LABELS = (
    "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:250,50,83::\ncar:36,179,83::\n"
)
ROAD, CAR = (250, 50, 83), (36, 179, 83)


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def box(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def shape(label: str, points: Any, kind: str = "polygon") -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}}


def write_labelme(root: Path, stem: str, shapes: list[Any], **changes: Any) -> None:
    write_image(root / f"{stem}.png", seed=ord(stem[0]))
    document = {"version": "5.4.1", "shapes": shapes, "imagePath": f"{stem}.png"}
    document |= {"imageData": "QUJD", "imageHeight": HEIGHT, "imageWidth": WIDTH}
    (root / f"{stem}.json").write_text(json.dumps(document | changes))


def labelme_set(root: Path) -> Path:
    for stem in "abcd":
        write_labelme(
            root,
            stem,
            [
                shape("road", box(0, 4, 10, 8)),
                shape("car", [[2, 3], [6, 5]], "rectangle"),
                shape("car", [[8, 2], [8, 4]], "circle"),
            ],
        )
    return root


def coco_document(names: str) -> dict[str, Any]:
    return {
        "images": [
            {"id": number, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT}
            for number, name in enumerate(names, start=1)
        ],
        "categories": [{"id": 7, "name": "car"}, {"id": 3, "name": "road"}],
        "annotations": [
            {
                "id": number,
                "image_id": number,
                "category_id": 3,
                "segmentation": [[0, 4, 10, 4, 10, 8, 0, 8], [0, 0, 2, 0, 2, 2, 0, 2]],
            }
            for number in range(1, len(names) + 1)
        ],
    }


def write_coco(root: Path, document: Any, name: str = "annotations/instances.json") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(document))
    for image in document["images"]:
        write_image(root / "images" / image["file_name"], seed=ord(image["file_name"][0]))


def cvat_set(root: Path, names: str = "abcd", lists: dict[str, str] | None = None) -> Path:
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "labelmap.txt").write_text(CVAT_LABELS)
    for split, listed in (lists or {"default": names}).items():
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(listed))
    colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colours[4:] = ROAD
    colours[3:5, 2:6] = CAR
    for name in names:
        write_image(root / f"JPEGImages/{name}.png", seed=ord(name))
        (root / "SegmentationClass").mkdir(exist_ok=True)
        Image.fromarray(colours).save(root / f"SegmentationClass/{name}.png")
    return root


def settings(root: Path, **changes: Any) -> DataConfig:
    changes = {"prepared_dir": str(root.parent / "prepared")} | changes
    return DataConfig(name="folder", root=str(root), **changes)


def raw(root: Path, **changes: Any) -> RawDataset:
    return raw_dataset(settings(root, **changes))


def counts(dataset: RawDataset, name: str) -> list[int]:
    """The pixels of each class in the mask of an image that annotations describe."""
    (sample,) = (sample for sample in dataset.samples if sample.name == name)
    return np.bincount(np.asarray(sample.masks[""].load()).ravel()).tolist()


def opened(root: Path) -> Dataset:
    dataset = open_dataset(settings(root))
    assert (dataset.splits, len(dataset.split("train")), len(dataset.split("val"))) == (
        ("train", "val"),
        3,
        1,
    )
    return dataset


def refuses(root: Path, message: str, **changes: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(settings(root, **changes))
    assert "\n" not in str(caught.value)
    prepared = root.parent / "prepared"
    assert [path for path in prepared.rglob("*") if path.is_file() and path.name != "lock"] == []


# LabelMe. The rectangle has 4 × 2 pixels, 4 of them on the road, and the circle of radius 2 covers
# 12 pixels in rows 0 to 3 and columns 6 to 9. Of the road's 10 × 4 pixels 36 remain.


def test_labelme(tmp_path, capsys):
    dataset = opened(labelme_set(tmp_path / "set"))
    assert dataset.class_names == ("background", "car", "road")
    assert dataset.colours == ()
    label = dataset.split("train")[0]["label"]
    assert np.bincount(label.ravel()).tolist() == [80 - 20 - 36, 20, 36]
    assert label[3, 2:6].tolist() == [1, 1, 1, 1]
    assert (label[5:] == 2).all()
    said = capsys.readouterr().out
    assert "LabelMe's shapes (a.json); 4 images; classes: background, car, road" in said


def test_labelme_with_a_list_of_labels_and_lists_of_images(tmp_path):
    root = labelme_set(tmp_path / "set")
    (root / "labels.txt").write_text("__ignore__\n_background_\nroad\ncar\n")
    write_labelme(
        root, "e", [shape("__ignore__", box(0, 0, 10, 1)), shape("road", box(0, 0, 1, 1))]
    )
    (root / "train.txt").write_text("a\ne\n")
    (root / "val.txt").write_text("b\n")
    dataset = raw(root)
    assert dataset.class_names == ["background", "road", "car"]
    assert [(sample.split, sample.name) for sample in dataset.samples] == [
        ("train", "a"),
        ("train", "e"),
        ("val", "b"),
    ]
    e = counts(dataset, "e")
    assert (e[0], e[1], e[255]) == (70, 1, 9)


def test_labelme_in_a_folder_of_its_own(tmp_path):
    root = labelme_set(tmp_path / "set")
    (root / "annotations").mkdir()
    for path in list(root.glob("*.json")):
        path.rename(root / "annotations" / path.name)
    (root / "unlabelled.png").write_bytes((root / "a.png").read_bytes())
    dataset = raw(root)
    assert counts(dataset, "a") == [24, 20, 36]
    assert [note[:2] for note in dataset.notes] == [("image_unannotated", "set/unlabelled.png")]


@pytest.mark.parametrize(
    ("points", "kind", "message"),
    [
        (
            [[0, 0], [1, 1]],
            "polygon",
            r"shape 1: a polygon of 2 points, which has no area; correct",
        ),
        ([[0, 0], [1, 1], [2, float("nan")]], "polygon", r"shape 1: a coordinate of nan"),
        ([[0, 0], [1, 1], [2, 1e30]], "polygon", r"shape 1: a coordinate of 1e\+30, which is not"),
        ([[0, 0]], "circle", r"shape 1: a circle of 1 points, not 2"),
        ([[0, 0], [3, 3]], "linestrip", r"the type 'linestrip'; polygon, rectangle and circle are"),
        (None, "polygon", r"shape 1: there are no points"),
    ],
)
def test_labelme_shapes_that_cannot_be_drawn(tmp_path, points, kind, message):
    root = labelme_set(tmp_path / "set")
    write_labelme(root, "b", [shape("car", points, kind)])
    refuses(root, rf"set/b\.json: .*{message}")


def test_labelme_labels_that_are_not_in_the_list(tmp_path):
    root = labelme_set(tmp_path / "set")
    (root / "labels.txt").write_text("_background_\nroad\ncart\n")
    message = (
        r"a\.json: shape 2: the label 'car' is not in labels\.txt \(did you mean cart\?\); .* "
    )
    refuses(root, message + r"or add the label to labels\.txt$")


def test_labels_without_background(tmp_path):
    root = labelme_set(tmp_path / "set")
    (root / "classes.txt").write_text("road\ncar\n")
    refuses(root, r"classes\.txt: its first class is 'road', not 'background'; .* add the line")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imagePath": "../secret.png"}, r"its image '\.\./secret\.png' is outside of the folder"),
        ({"imagePath": "..\\images\\b.png"}, r"its image .* is outside of the folder"),
        ({"imagePath": "/etc/b.png"}, r"its image '/etc/b\.png' is outside"),
        ({"imagePath": "C:\\b.png"}, r"its image .* is outside"),
        ({"imagePath": "gone.png"}, r"its image 'gone\.png' is missing from .*; copy the images"),
        ({"imagePath": "b.json"}, r"its image 'b\.json' is no image file"),
        ({"imagePath": None}, r"it names no image"),
        ({"imagePath": "b" * 5000 + ".png"}, r"its image 'b+' is missing from"),
        ({"imagePath": "\ud800.png"}, r"its image '.*' is missing from"),
        ({"shapes": None}, r"has no list of shapes; is it a file of LabelMe\?"),
        ({"imagePath": "a.png"}, r"is a second file for a, as a\.json; keep one"),
    ],
)
def test_labelme_files_that_do_not_fit(tmp_path, changes, message):
    root = labelme_set(tmp_path / "set")
    (tmp_path / "secret.png").write_bytes((root / "a.png").read_bytes())
    write_labelme(root, "b", **{"shapes": []} | changes)
    refuses(root, rf"set/b\.json: {message}")


def test_labelme_of_another_size_than_the_image(tmp_path):
    root = labelme_set(tmp_path / "set")
    write_image(root / "b.png", size=(HEIGHT, WIDTH))
    refuses(
        root,
        r"b\.json: was drawn on 10 × 8 pixels, but its image .*b\.png has 8 × 10 \(rotated by its "
        r"EXIF data\?\); ",
    )


@pytest.mark.parametrize("label", ["c\nar", "\ud800", "c" * 201, "\x1b[2J"])
def test_labels_that_cannot_be_printed(tmp_path, label):
    root = labelme_set(tmp_path / "set")
    write_labelme(root, "b", [shape(label, box(0, 0, 1, 1))])
    refuses(root, r"set: the label .* has control characters, or more than 200 letters; rename it")


def test_broken_json(tmp_path):
    root = labelme_set(tmp_path / "set")
    (root / "c.json").write_text('{"shapes": [')
    refuses(root, r"set/c\.json: not JSON \(.*\); export it again")
    (root / "c.json").write_text("[" * 100_000)
    refuses(root, r"set/c\.json: not JSON \(.*recursion.*\); export it again")
    for path in root.glob("*.json"):
        path.write_bytes(b"\xff\xfe{")
    refuses(root, r"set/a\.json: not JSON \(.*\); export it again")


# COCO. The first polygon has 10 × 4 pixels, the second 2 × 2.


def test_coco(tmp_path, capsys):
    document = coco_document("abcd")
    crowd = {"counts": [80 - 8, 8], "size": [HEIGHT, WIDTH]}  # the last column
    document["annotations"].append(
        {"id": 9, "image_id": 1, "category_id": 7, "iscrowd": 1, "segmentation": crowd}
    )
    write_coco(tmp_path / "set", document)
    dataset = opened(tmp_path / "set")
    assert dataset.class_names == ("background", "road", "car")
    said = capsys.readouterr().out
    assert "COCO's annotations (annotations/instances.json); 4 images; classes: backgr" in said
    described = raw(tmp_path / "set")
    assert counts(described, "a") == [80 - 44 - 4, 44 - 4, 8]
    assert counts(described, "b") == [80 - 44, 44]


def test_coco_files_of_splits(tmp_path):
    write_coco(tmp_path / "set", coco_document("abc"), "annotations/instances_train2017.json")
    write_coco(tmp_path / "set", coco_document("de"), "annotations/instances_Validation.json")
    (tmp_path / "set/annotations/captions_train2017.json").write_text('{"annotations": []}')
    dataset = raw(tmp_path / "set")
    assert [(sample.split, sample.name) for sample in dataset.samples] == [
        ("val", "d"),
        ("val", "e"),
        ("train", "a"),
        ("train", "b"),
        ("train", "c"),
    ]
    (note,) = dataset.notes
    assert note[:2] == ("file_ignored", "annotations/captions_train2017.json")
    write_coco(tmp_path / "set", coco_document("f"), "annotations/stuff_train2017.json")
    refuses(tmp_path / "set", r"several files of COCO .* that do not name one split each; keep one")


def test_coco_images_in_the_folder_of_their_subset(tmp_path):
    """CVAT puts them there."""
    write_coco(tmp_path / "set", coco_document("ab"), "annotations/instances_default.json")
    (tmp_path / "set/images/default").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "set/images" / name).rename(tmp_path / "set/images/default" / name)
    (tmp_path / "set/train.txt").write_text("a\n")
    (tmp_path / "set/val.txt").write_text("b\n")
    dataset = raw(tmp_path / "set")
    assert [(sample.split, sample.name) for sample in dataset.samples] == [
        ("train", "a"),
        ("val", "b"),
    ]
    assert counts(dataset, "a") == [36, 44]


def test_coco_category_called_background(tmp_path):
    document = coco_document("ab")
    document["categories"].append({"id": 9, "name": "Background"})
    write_coco(tmp_path / "set", document)
    dataset = raw(tmp_path / "set")
    assert dataset.class_names == ["background", "road", "car"]
    assert counts(dataset, "a") == [36, 44]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 5}, r"annotation 2 of b\.png: the category 5 is not in the file; correct"),
        ({"image_id": 77}, r"annotation 2 is of the image 77, which is not in the file; correct"),
        ({"segmentation": []}, r"annotation 2 of b\.png: it has no segmentation \(a box alone"),
        ({"segmentation": [[1, 2, 3, 4]]}, r"annotation 2 of b\.png: a polygon of 2 points"),
        (
            {"segmentation": [[1, 2, 3]]},
            r"annotation 2 of b\.png: a polygon is not a list of pairs",
        ),
        (
            {"segmentation": [[1, 2, 3, 4, 5, float("inf")]]},
            r"annotation 2 of b\.png: a coordinate of inf",
        ),
        (
            {"segmentation": {"counts": [5], "size": [8, 10]}},
            r"annotation 2 of b\.png: its run lengths have 5 pixels in all, not 8 × 10",
        ),
        (
            {"segmentation": {"counts": [20], "size": [4, 5]}},
            r"was drawn on 5 × 4 pixels, but its image .*b\.png has 10 × 8",
        ),
    ],
)
def test_coco_annotations_that_cannot_be_used(tmp_path, change, message):
    document = coco_document("abcd")
    document["annotations"][1] |= change
    write_coco(tmp_path / "set", document)
    refuses(tmp_path / "set", rf"instances\.json: {message}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../b.png", r"its image '\.\./b\.png' is outside of the folder; copy the images"),
        ("gone.png", r"its image 'gone\.png' is missing from .*/images"),
    ],
)
def test_coco_images_that_cannot_be_used(tmp_path, name, message):
    write_coco(tmp_path / "set", coco_document("abcd"))
    document = coco_document("abcd")
    document["images"][1]["file_name"] = name
    (tmp_path / "set/annotations/instances.json").write_text(json.dumps(document))
    refuses(tmp_path / "set", rf"instances\.json: {message}")


def test_coco_categories_that_cannot_be_used(tmp_path):
    document = coco_document("ab")
    document["categories"][0]["id"] = 3
    write_coco(tmp_path / "set", document)
    refuses(tmp_path / "set", r"instances\.json: the category .* needs a number of its own and a")


# CVAT. The car's 4 × 2 pixels are drawn over the road's 10 × 4.


def test_cvat(tmp_path, capsys):
    dataset = opened(cvat_set(tmp_path / "set"))
    assert dataset.class_names == ("background", "road", "car")
    assert dataset.colours == ((0, 0, 0), ROAD, CAR)
    label = dataset.split("train")[0]["label"]
    assert np.bincount(label.ravel()).tolist() == [80 - 44, 36, 8]
    said = capsys.readouterr().out
    assert "CVAT's segmentation masks (labelmap.txt); 4 images; classes: background, road" in said


def test_cvat_lists_of_subsets_and_ignored_labels(tmp_path):
    root = cvat_set(tmp_path / "set", lists={"Train": "ab", "Validation": "c"})
    (root / "labelmap.txt").write_text(CVAT_LABELS.replace("road", "ignored"))
    dataset = open_dataset(settings(root))
    assert dataset.class_names == ("background", "car")
    assert dataset.colours == ((0, 0, 0), CAR)
    assert dataset.splits == ("train", "val")
    label = dataset.split("val")[0]["label"]
    assert np.bincount(label.ravel(), minlength=256)[[0, 1, 255]].tolist() == [36, 8, 36]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "road:250,50,83::\ncar:36,179,83::\n",
            r"labelmap\.txt: no label 'background'; add the line background:0,0,0::",
        ),
        (CVAT_LABELS + "bus:1,2::\n", r"labelmap\.txt: 'bus:1,2::' is no label; write it as NAME:"),
        (CVAT_LABELS + "bus:1,2,300::\n", r"labelmap\.txt: 'bus:1,2,300::' is no label"),
        (CVAT_LABELS + "road:1,2,3::\n", r"labelmap\.txt: the label 'road' occurs twice; delete"),
        (CVAT_LABELS + "bus:36,179,83::\n", r"labelmap\.txt: 'car' and 'bus' have one colour; exp"),
        ("background:0,0,0::\n", r"labelmap\.txt: 1 class names; 2 to 255 are needed"),
        (
            CVAT_LABELS.replace("179", "178"),
            r"SegmentationClass/.\.png: colour 36 179 83 .* is not",
        ),
    ],
)
def test_cvat_labels_that_cannot_be_used(tmp_path, text, message):
    root = cvat_set(tmp_path / "set")
    (root / "labelmap.txt").write_text(text)
    refuses(root, message)


def test_cvat_exports_that_are_incomplete(tmp_path):
    root = cvat_set(tmp_path / "set")
    (root / "ImageSets/Segmentation/default.txt").write_text("a\nb\ngone\n../../secret\n")
    refuses(root, r"no such images: JPEGImages/gone, JPEGImages/\.\./\.\./secret")
    (root / "ImageSets/Segmentation/default.txt").write_text("a\nb\n")
    (root / "SegmentationClass/b.png").unlink()
    refuses(root, r"1 images without a mask: b")
    (root / "JPEGImages").rename(root / "elsewhere")
    refuses(
        root, r"JPEGImages: no such folder; export with 'Save images', or copy the images there"
    )
    (root / "labelmap.txt").unlink()
    refuses(root, r"labelmap\.txt: missing; unpack the whole export")


# Which layout it is.


def test_folders_that_fit_several_layouts_are_refused(tmp_path):
    root = labelme_set(tmp_path / "set")
    (root / "masks").mkdir()
    refuses(root, r"not clear .*, masks in masks/ or LabelMe's shapes \(a\.json\); move the files")
    (root / "masks").rmdir()
    (root / "labelmap.txt").write_text(CVAT_LABELS)
    refuses(
        root, r"not clear .*, CVAT's .* \(labelmap\.txt\) or LabelMe's shapes \(a\.json\); move"
    )


def test_json_files_of_other_programs_beside_masks_do_not_matter(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "info.json").write_text('{"licence": "none"}')
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match=r"images: no such folder"):
        raw(tmp_path)


def test_settings_of_masks_do_not_apply(tmp_path):
    root = labelme_set(tmp_path / "set")
    refuses(root, r"data\.mask_palette \(=voc\) does not apply to LabelMe's", mask_palette="voc")
    refuses(root, r"data\.extra_channels \(=depth\) does not apply", extra_channels=("depth",))


# The doctor.


def test_the_doctor_examines_every_layout(tmp_path):
    labelme_set(tmp_path / "labelme")
    write_coco(tmp_path / "coco", coco_document("abcd"))
    cvat_set(tmp_path / "cvat")
    for name in ("labelme", "cvat"):
        result = doctor(tmp_path, name)
        assert "no faults" in result.stdout, result.stdout
        assert result.returncode == 0
    result = doctor(tmp_path, "coco")
    assert "classes without a pixel in the training splits" in result.stdout  # car
    assert result.returncode == 1
    picture = np.asarray(Image.open(tmp_path / "cvat.png")).reshape(-1, 3)
    assert {ROAD, CAR} <= set(map(tuple, picture.tolist()))  # swatches of the legend


def test_the_doctor_lists_every_fault_of_annotations(tmp_path):
    root = labelme_set(tmp_path / "labelme")
    write_labelme(root, "b", [shape("car", [[0, 0]]), shape("", box(0, 0, 1, 1))])
    (root / "c.json").write_text("{")
    write_image(root / "d.png", size=(7, 7))
    result = doctor(tmp_path, "labelme")
    assert result.returncode == 1
    said = " ".join(result.stdout.split())
    assert "annotations that cannot be used" in said
    for fault in ("a polygon of 1 points", "shape 2: it has no label", "not JSON", "has 7 × 7"):
        assert fault in said
    for path in root.glob("*.json"):
        path.write_text('{"shapes": 3}')
    assert doctor(tmp_path, "labelme").returncode == 1


def doctor(folder: Path, name: str) -> Any:
    return run_command(
        "doctor",
        "--config.data.name=folder",
        f"--config.data.root={folder / name}",
        f"--output={folder / name}.png",
    )
