"""Folders with several label maps, and with channels in addition to RGB."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.channels import find_channel_files
from fcn_jax.data.datasets import Dataset, open_dataset
from fcn_jax.data.labels import by_map
from fcn_jax.data.masks import read_mask
from fcn_jax.errors import UserError
from tests.depth_set import config_of, write_set


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "set"
    write_set(path)
    return path


@pytest.fixture
def own(drawn: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(drawn, tmp_path / "set")
    return tmp_path / "set"


def open_set(folder: Path, **data: Any) -> Dataset:
    return open_dataset(config_of(folder, **data).data)


def refuses(folder: Path, message: str, **data: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_set(folder, **data)
    assert "\n" not in str(caught.value)


def test_channels_and_maps_are_read_in_the_order_given(drawn: Path) -> None:
    dataset = open_set(drawn)
    assert dataset.channels == 4
    assert dataset.label_maps == {"masks": ("ground", "disc"), "geometry": ("far", "near")}
    assert dataset.num_classes == {"masks": 2, "geometry": 2}
    split = dataset.split("train+val")
    record = split[3]
    stem = record["name"]
    for channels, folder in ((np.s_[:3], "images"), (3, "depth")):
        expected = np.asarray(Image.open(drawn / folder / f"{stem}.png"))
        np.testing.assert_array_equal(record["image"][..., channels], expected)
    np.testing.assert_array_equal(split.label(3), record["label"])
    for name, label in by_map(record["label"], ("masks", "geometry")).items():
        np.testing.assert_array_equal(label, read_mask(drawn / name / f"{stem}.png"))
    turned = open_set(drawn, label_maps=("geometry", "masks"))
    assert turned.class_names == ("far", "near")


def test_labels_are_counted_by_map(drawn: Path) -> None:
    statistics = open_set(drawn).statistics("train+val")
    for name, counts in statistics.label_counts.items():
        masks = [read_mask(path) for path in (drawn / name).iterdir()]
        expected = np.bincount(np.concatenate(masks).ravel(), minlength=256)
        np.testing.assert_array_equal(counts, expected)


def test_a_single_map_of_another_name_has_no_name(drawn: Path) -> None:
    dataset = open_set(drawn, label_maps=("geometry",), extra_channels=())
    assert dataset.label_maps == {"": ("far", "near")}
    assert dataset.channels == 3
    record = dataset.split("train")[0]
    expected = read_mask(drawn / "geometry" / f"{record['name']}.png")
    np.testing.assert_array_equal(record["label"], expected)


def test_channels_of_colour_files_in_other_formats(own: Path) -> None:
    (own / "hha").mkdir()
    for path in (own / "images").iterdir():
        Image.new("RGB", (56, 48), (1, 2, 3)).save(own / "hha" / f"{path.stem}.bmp")
    dataset = open_set(own, extra_channels=("hha", "depth"))
    assert dataset.channels == 7
    record = dataset.split("val")[0]
    assert (record["image"][..., 3:6] == [1, 2, 3]).all()
    depth = np.asarray(Image.open(own / "depth" / f"{record['name']}.png"))
    np.testing.assert_array_equal(record["image"][..., 6], depth)


def test_bad_channels_are_named_before_training(own: Path) -> None:
    good = (own / "depth/c.png").read_bytes()
    (own / "depth/c.png").unlink()
    refuses(own, r"images without a file of extra channels: images/c\.png \(in depth/\)")
    Image.new("L", (9, 8)).save(own / "depth/c.png")
    refuses(own, r"depth/c\.png: is 9 × 8, but its image .*images/c\.png is 56 × 48")
    Image.new("RGB", (56, 48)).save(own / "depth/c.png")
    refuses(own, r"depth/c\.png: has 3 channels, but the first file of its folder 1")
    Image.fromarray(np.zeros((48, 56), np.uint16)).save(own / "depth/c.png")
    refuses(own, r"depth/c\.png: more than 8 bits a channel; scale .* to 0…255")
    (own / "depth/c.png").write_bytes(good[:200])
    refuses(own, r"depth/c\.png: the image is damaged")
    (own / "depth/c.png").write_bytes(good)
    refuses(
        own,
        r"dept: no such folder; config\.data\.extra_channels .* has depth, geometry, im",
        extra_channels=("dept",),
    )


def test_bad_maps_are_named_before_training(own: Path) -> None:
    (own / "geometry/c.png").unlink()
    refuses(own, r"1 images without a mask of geometry: c ")
    Image.new("L", (56, 48), 3).save(own / "geometry/c.png")
    refuses(own, r"geometry/c\.png: label 3 is outside 0 to 1 \(2 classes")
    Image.new("L", (8, 9), 1).save(own / "geometry/c.png")
    refuses(own, r"geometry/c\.png: the mask is 8 × 9, but its image")
    (own / "geometry.txt").unlink()
    refuses(own, r"geometry\.txt: missing; write one class name per line")
    refuses(own, r"parts: no such folder; config\.data\.label_maps", label_maps=("masks", "parts"))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("label_maps", ("masks", "masks")),
        ("label_maps", ("masks", "auxiliary")),
        ("label_maps", ()),
        ("extra_channels", ("../depth",)),
        ("extra_channels", ("images",)),
    ],
)
def test_names_that_cannot_be_folders_are_refused(drawn: Path, setting: str, value: tuple) -> None:
    given = ",".join(value) or r"\(\)"
    message = rf"data\.{setting} \(={given}\) must be different names of sub-folders"
    refuses(drawn, message, **{setting: value})


def test_other_data_sets_have_three_channels_and_one_map(drawn: Path) -> None:
    refuses(
        drawn,
        r"label_maps \(=masks,depth\) must name the label maps of shapes, which has a single one",
        name="shapes",
        root=None,
        label_maps=("masks", "depth"),
    )


def test_channel_files_are_found_from_the_image(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own / "images")
    assert find_channel_files(Path("a.png"), ["depth"]) == [own / "depth/a.png"]
    assert find_channel_files(Path("a.png"), []) == []
    shutil.copy(own / "depth/a.png", own / "depth/a.tif")
    with pytest.raises(UserError, match=r"a\.png: its depth must be one file .*; there are 2"):
        find_channel_files(Path("a.png"), ["depth"])
