"""Faults in the listing of a data set: files that are missing or unused, lists, splits."""

import shutil

import numpy as np
import pytest

from fcn_jax.data import shapes
from fcn_jax.data.datasets import open_dataset
from fcn_jax.doctor import __main__
from fcn_jax.doctor.kinds import FAULTS
from fcn_jax.doctor.subject import open_subject
from fcn_jax.errors import UserError
from tests.data.test_voc import write_archive, write_sbd, write_voc
from tests.doctor.example_set import (
    FIRST,
    TRAIN,
    VAL,
    edit_mask,
    examine,
    faults,
    remarks,
    settings,
)


def test_faultless_set(mine, tmp_path):
    assert examine(mine) == {}
    assert open_dataset(settings(mine, prepared_dir=str(tmp_path)).data).splits == ("train", "val")
    for name in ("train.txt", "val.txt"):
        (mine / name).unlink()
    assert faults(mine, validation_fraction=0.4) == {}  # split by the hash of the names


def test_image_without_a_mask(mine):
    (mine / FIRST).unlink()
    assert faults(mine) == {"image_without_mask": ("images/train_000.png",)}


def test_mask_without_an_image(mine):
    for name in ("train.txt", "val.txt", "images/val_003.png"):
        (mine / name).unlink()
    found = faults(mine, validation_fraction=0.4)
    assert found == {"mask_without_image": ("masks/val_003.png",)}


def test_names_that_differ_in_case_are_two_faults(mine):
    for name in ("train.txt", "val.txt"):
        (mine / name).unlink()
    (mine / FIRST).rename(mine / "masks" / "Train_000.png")
    found = faults(mine, validation_fraction=0.4)
    assert set(found) == {"image_without_mask", "mask_without_image"}


def test_faulty_lists(mine):
    (mine / "train.txt").write_text("\n".join([*TRAIN, "train_000", "zebra", "horse.png"]))
    (mine / "val.txt").write_text("\n")
    assert faults(mine) == {
        "listed_missing": ("train.txt (zebra)", "train.txt (horse.png)"),
        "listed_twice": ("train.txt (train_000)",),
        "split_empty": ("val.txt",),
    }


def test_unlisted_image(mine):
    (mine / "train.txt").write_text("\n".join(TRAIN[1:]))
    (mine / FIRST).unlink()
    assert remarks(mine) == {"image_unlisted": ("images/train_000.png",)}


def test_lists_that_are_no_text(mine):
    for name in ("classes.txt", "val.txt"):
        (mine / name).write_text("a\nb\n", encoding="utf-16")
    found = faults(mine)
    assert set(found) == {"classes", "list_unreadable", "split_empty"}
    assert found["list_unreadable"] == (f"{mine}/val.txt: not text in UTF-8",)


def test_missing_split(mine):
    (mine / "val.txt").unlink()
    assert faults(mine) == {"split_missing": ("val.txt (the set's splits: train)",)}
    assert faults(mine, eval_split="train") == {}
    assert faults(mine, eval_split="train+dev") == {
        "split_missing": ("dev (the set's splits: train)",)
    }
    (mine / "train.txt").rename(mine / "val.txt")
    assert faults(mine) == {"split_missing": ("train.txt (the set's splits: val)",)}


def test_unused_files(mine):
    (mine / "images" / "photo.heic").write_text("")
    shutil.copy(mine / FIRST, mine / "masks" / "train_000.tif")
    found = examine(mine)
    assert found["file_ignored"].places == ("images/photo.heic",)
    assert found["several_files"].places == ("masks/train_000 (.png, .tif)",)


def test_each_label_map_is_examined(mine):
    shutil.copytree(mine / "masks", mine / "parts")
    (mine / "parts.txt").write_text("\n".join(shapes.CLASSES))
    assert examine(mine, label_maps=("masks", "parts")) == {}
    edit_mask(mine, lambda label: label + 3, "parts/train_000.png")
    (mine / "parts" / "train_001.png").unlink()
    drawn = np.unique(shapes.draw("train_000")[1]).tolist()
    outside = ", ".join(str(label + 3) for label in drawn if 5 < label + 3 < 255)
    assert faults(mine, label_maps=("masks", "parts")) == {
        "image_without_mask": ("images/train_001.png (in parts/)",),
        "label_outside": (f"parts/train_000.png ({outside})",),
    }


def test_prepared_records_are_examined_if_there_are_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"train": 8, "val": 6})
    config = settings(None, "shapes", prepared_dir=str(tmp_path))
    with open_subject(config.data) as subject:
        survey, findings = __main__.examine(subject, config)
    assert findings == []
    assert len(survey.sizes(["train"])) == 8
    assert len(survey.sizes(["val"])) == 6
    labels = [shapes.draw(name)[1] for name in VAL]
    statistics = survey.statistics("", ["val"])
    pixels = sum(np.bincount(label.reshape(-1), minlength=256) for label in labels)
    np.testing.assert_array_equal(statistics.pixels, pixels)
    images = [sum((label == index).any() for label in labels) for index in range(6)]
    np.testing.assert_array_equal(statistics.images[:6], images)


def test_voc_from_its_archive(tmp_path):
    found = examine(write_archive(tmp_path), "voc")
    assert not found.keys() & FAULTS.keys()
    assert len(found["image_flat"].places) == 3
    assert found["part_of_voc"].places == ("train (2 of 1,464 images)", "val (1 of 1,449 images)")


def test_sbd_masks_and_files_that_voc_lists_but_lacks(tmp_path):
    folder = write_voc(tmp_path)
    write_sbd(tmp_path / "benchmark_RELEASE" / "dataset")
    (folder / "JPEGImages" / "b.jpg").unlink()
    (folder / "SegmentationClass" / "a.png").unlink()
    found = examine(tmp_path, "voc/trainaug")
    assert found["image_unreadable"].places == ("JPEGImages/b.jpg (No such file or directory)",)
    assert found["mask_unreadable"].places[0].startswith("SegmentationClass/a.png (No such file")
    assert found["part_of_voc"].places[0] == "train (3 of 10,582 images)"


def test_nothing_to_examine(tmp_path):
    with pytest.raises(UserError, match=r"images: no such folder; .*classes\.txt"):
        examine(tmp_path)
    with pytest.raises(UserError, match=r"needs --config\.data\.root"):
        open_subject(settings(None).data).__enter__()
