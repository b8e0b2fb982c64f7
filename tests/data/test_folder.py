"""Folder data sets: what is read, and every mistake that is refused by name."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax.config import DataConfig
from fcn_jax.data import folder
from fcn_jax.data.datasets import Dataset, open_dataset
from fcn_jax.doctor.subject import open_subject
from fcn_jax.errors import UserError


def write_set(root: Path, stems: str = "a b c d e", classes: str = "ground\nroad\ncar\n") -> Path:
    """Writes a data set whose image i is grey with value i; the masks hold 0, 1 and 255."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "classes.txt").write_text(classes)
    for index, stem in enumerate(stems.split()):
        Image.new("RGB", (5, 4), (index,) * 3).save(root / "images" / f"{stem}.png")
        write_mask(root, stem)
    return root


def write_mask(root: Path, stem: str, values: tuple[int, ...] = (0, 1, 255), side: int = 4) -> None:
    label = np.resize(np.array(values, np.uint8), (side, 5))
    Image.fromarray(label).save(root / "masks" / f"{stem}.png")


def open_folder(root: Path, **settings) -> Dataset:
    settings = {"prepared_dir": str(root.parent / "prepared")} | settings
    return open_dataset(DataConfig(name="folder", root=str(root), **settings))


def names(dataset: Dataset, split: str) -> list[str]:
    return [record["name"] for record in dataset.split(split)]


def refuses(root: Path, message: str, **settings) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with pytest.raises(UserError, match=message) as caught:
        open_folder(root, **settings)
    assert "\n" not in str(caught.value)
    leftover = [path for path in (root.parent / "prepared").rglob("*") if path.is_file()]
    assert [path.name for path in leftover if path.name != "lock"] == []
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_images_masks_and_classes_are_read(tmp_path):
    root = write_set(tmp_path / "set")
    dataset = open_folder(root)
    assert dataset.class_names == ("ground", "road", "car")
    assert dataset.splits == ("train", "val")
    assert sorted(names(dataset, "train+val")) == ["a", "b", "c", "d", "e"]
    assert len(dataset.split("val")) == 1
    for record in dataset.split("train"):
        assert (record["image"] == "abcde".index(record["name"])).all()
        np.testing.assert_array_equal(record["label"].ravel()[:3], [0, 1, 255])


def test_the_split_is_stable_as_the_set_grows(tmp_path):
    stems = [f"image{index}" for index in range(50)]
    small = folder.split_by_hash(stems[:25], 0.2)
    large = folder.split_by_hash(stems, 0.2)
    assert (len(small["val"]), len(large["val"])) == (5, 10)
    assert small == folder.split_by_hash(reversed(stems[:25]), 0.2)
    moved = set(small["val"]) & set(large["train"])
    assert len(moved) <= 2
    assert folder.split_by_hash(stems, 0.0) == {"train": sorted(stems)}


def test_names_that_are_not_utf8_are_split_by_their_bytes():
    stems = [os.fsdecode(name) for name in (b"caf\xe9", b"stra\xdfe", b"plain", b"other")]
    splits = folder.split_by_hash(stems, 0.25)
    assert sorted(splits["train"] + splits["val"]) == sorted(stems)
    # The SHA-256 digests of the four names begin with da, 38, a1 and d9.
    assert splits["val"] == [os.fsdecode(b"stra\xdfe")]


def test_names_that_are_not_utf8_are_refused(tmp_path):
    root = write_set(tmp_path / "set", os.fsdecode(b"a caf\xe9"))
    refuses(root, r"set: image names must be UTF-8, but caf\\udce9 is not: rename the files$")


def test_lists_make_the_splits(tmp_path):
    root = write_set(tmp_path / "set")
    (root / "train.txt").write_text("b\na.png\n\n")
    (root / "test.txt").write_text("e\n")
    dataset = open_folder(root)
    assert dataset.splits == ("train", "test")
    assert names(dataset, "train") == ["b", "a"]
    assert names(dataset, "test") == ["e"]


def test_other_image_formats_are_read(tmp_path):
    root = write_set(tmp_path / "set", stems="")
    for index, extension in enumerate(("jpg", "bmp", "tif", "PNG")):
        Image.new("L", (5, 4), 7).save(root / "images" / f"{index}.{extension}")
        write_mask(root, str(index))
    for record in open_folder(root, validation_fraction=0.0).split("train"):
        np.testing.assert_array_equal(record["image"], np.full((4, 5, 3), 7))


def test_colour_masks_with_a_palette(tmp_path):
    root = write_set(tmp_path / "set", stems="a b")
    for stem in "ab":
        Image.new("RGB", (5, 4), (9, 8, 7)).save(root / "masks" / f"{stem}.png")
    refuses(root, r"masks/[ab]\.png: the mask is in colour.*mask_palette")
    (tmp_path / "palette.txt").write_text("0 0 0\n1 1 1\n9 8 7\n")
    dataset = open_folder(root, mask_palette=str(tmp_path / "palette.txt"))
    assert (dataset.split("train")[0]["label"] == 2).all()


@pytest.mark.parametrize("name", ["images", "masks"])
def test_a_missing_or_empty_folder(tmp_path, name):
    root = write_set(tmp_path / "set")
    for path in (root / name).iterdir():
        path.unlink()
    refuses(root, f"{name}: no image files")
    (root / name).rmdir()
    refuses(root, f"{name}: no such folder; .*images/, masks/, classes.txt")


def test_no_root(tmp_path):
    refuses_root = DataConfig(name="folder", prepared_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"needs --config\.data\.root"):
        open_dataset(refuses_root)


@pytest.mark.parametrize("name", ["images", "masks"])
def test_a_named_pipe_is_refused(tmp_path, name):
    """Reading a named pipe would wait for ever."""
    root = write_set(tmp_path / "set")
    (root / name / "a.png").unlink()
    os.mkfifo(root / name / "a.png")
    refuses(root, rf"{name}/a\.png: not a regular file")
    with open_subject(DataConfig(name="folder", root=str(root))) as subject:
        reports = [subject.examine(index) for index in range(subject.num_images)]
    (note,) = [n for r in reports for n in r.notes if n.where == f"{name}/a.png"]
    assert note[:3] == (f"{name[:-1]}_unreadable", f"{name}/a.png", "not a regular file")


def test_a_list_that_leads_out_of_the_folder(tmp_path):
    root = write_set(tmp_path / "set")
    (tmp_path / "secret.png").write_bytes((root / "images" / "a.png").read_bytes())
    (root / "train.txt").write_text(f"a\n../../secret\n{tmp_path}/secret\n")
    refuses(root, r"no such images: train\.txt \(\.\./\.\./secret\), train\.txt \(/")


def test_images_without_masks(tmp_path):
    root = write_set(tmp_path / "set", stems="a b c d e f g")
    for stem in "abcdef":
        (root / "masks" / f"{stem}.png").unlink()
    refuses(
        root, r"6 images without a mask: [a-g], .* and 1 more \(`python -m fcn_jax\.doctor` lists"
    )


def test_stems_match_by_case(tmp_path):
    root = write_set(tmp_path / "set")
    (root / "masks" / "a.png").rename(root / "masks" / "A.png")
    refuses(root, r"masks without an image of the same name: masks/A\.png")


def test_masks_without_images(tmp_path):
    root = write_set(tmp_path / "set")
    (root / "images" / "b.png").unlink()
    refuses(root, r"masks without an image of the same name: masks/b\.png")


def test_one_stem_twice(tmp_path):
    root = write_set(tmp_path / "set")
    Image.new("RGB", (5, 4)).save(root / "images" / "a.jpg")
    refuses(root, r"several files for one name: images/a \(\.jpg, \.png\)")


def test_mask_of_another_size(tmp_path):
    root = write_set(tmp_path / "set")
    write_mask(root, "c", side=9)
    message = r"masks/c\.png: the mask is 5 × 9, but its image .*images/c\.png is 5 × 4"
    refuses(root, message + r" \(`python -m fcn_jax\.doctor` lists every fault\)$")


def test_label_that_is_no_class(tmp_path):
    root = write_set(tmp_path / "set")
    write_mask(root, "c", (0, 3, 7))
    refuses(root, r"masks/c\.png: label 3, 7 is outside 0 to 2")


def test_truncated_image(tmp_path):
    root = write_set(tmp_path / "set")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(root / "images" / "d.png")
    data = (root / "images" / "d.png").read_bytes()
    (root / "images" / "d.png").write_bytes(data[:3000])
    refuses(root, r"images/d\.png: the image is damaged")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("", r"classes\.txt: 0 class names"),
        ("ground\n", r"classes\.txt: 1 class names; 2 to 255"),
        ("ground\nroad\nroad\n", r"classes\.txt: class names must differ, but road"),
    ],
)
def test_unusable_class_lists(tmp_path, classes, message):
    refuses(write_set(tmp_path / "set", classes=classes), message)


def test_missing_classes(tmp_path):
    root = write_set(tmp_path / "set")
    (root / "classes.txt").unlink()
    refuses(root, r"classes\.txt: missing; write one class name per line")


def test_unusable_list_entries(tmp_path):
    root = write_set(tmp_path / "set")
    (root / "val.txt").write_text("a\nzebra\n")
    refuses(root, r"no such images: val\.txt \(zebra\)")
    (root / "val.txt").write_text("a\na\n")
    refuses(root, r"images listed twice: val\.txt \(a\)")
    (root / "val.txt").write_text("\n")
    refuses(root, r"lists without an image: val\.txt")


@pytest.mark.parametrize("name", ["classes.txt", "val.txt"])
def test_lists_in_another_encoding(tmp_path, name):
    root = write_set(tmp_path / "set")
    (root / name).write_text("a\nb\n", encoding="utf-16")
    refuses(root, rf"{name}: not text in UTF-8")


def test_foreground_saved_as_255(tmp_path):
    root = write_set(tmp_path / "set", classes="ground\ncell\n")
    for stem in "abcde":
        write_mask(root, stem, (0, 255))
    refuses(root, r"set: every mask holds only 0 and 255.*void.*foreground as 1")
    write_mask(root, "b", (0, 1, 255))  # now 255 is void indeed
    assert open_folder(root).num_classes == {"": 2}


def test_validation_fraction_is_a_share(tmp_path):
    refuses(
        write_set(tmp_path / "set"),
        r"validation_fraction \(=1.5\) must be a finite number, at least 0 and below 1",
        validation_fraction=1.5,
    )
    one = write_set(tmp_path / "one", stems="a")
    with pytest.raises(UserError, match="one image cannot be split"):
        open_folder(one)
