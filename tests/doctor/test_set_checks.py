"""Faults that only the whole set shows: duplicates, missing classes, foreground saved as 255."""

import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data import shapes
from fcn_jax.data.palettes import voc_palette
from fcn_jax.doctor.kinds import FAULTS
from tests.data.test_voc import REAL
from tests.doctor.example_set import (
    FIRST,
    TRAIN,
    VAL,
    as_jpeg,
    binary,
    edit_mask,
    edit_masks,
    examine,
    faults,
    remarks,
)


def test_thin_border_class(mine):
    """Class 1 is a border between 0 and 2, which looks like interpolation between them."""

    def bordered(label):
        return np.select([label == 255, label == 0], [1, 0], 2).astype(np.uint8)

    (mine / "classes.txt").write_text("ground\nborder\ncell\n")
    edit_masks(mine, bordered)
    found = remarks(mine)
    assert set(found) == {"thin_class"}
    assert found["thin_class"][0].startswith("border (in ")


def test_one_image_in_two_splits(mine):
    """The name and the file format differ; the pixels are compared."""
    with Image.open(mine / "images" / "train_002.png") as image:
        image.save(mine / "images" / "val_000.bmp")
    (mine / "images" / "val_000.png").unlink()
    shutil.copy(mine / "masks" / "train_002.png", mine / "masks" / "val_000.png")
    assert faults(mine) == {"same_image_split": ("train train_002 = val val_000",)}


def test_one_image_twice_in_a_split(mine):
    shutil.copy(mine / "images" / "train_002.png", mine / "images" / "train_003.png")
    shutil.copy(mine / "masks" / "train_002.png", mine / "masks" / "train_003.png")
    assert set(examine(mine)) == {"same_image"}
    (mine / "masks" / "train_003.png").write_bytes(b"")
    assert set(faults(mine)) == {"mask_unreadable"}
    with Image.open(mine / "masks" / "train_002.png") as mask:
        mask.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(mine / "masks" / "train_003.png")
    assert faults(mine) == {"same_image_masks": ("train train_002 = train train_003",)}


def test_one_name_in_two_lists(mine):
    (mine / "val.txt").write_text("\n".join([*VAL, "train_004"]))
    assert faults(mine) == {"same_image_split": ("train train_004 = val train_004",)}


def test_blank_images_are_duplicates_only_of_themselves(mine):
    size = shapes.draw("train_004")[1].shape[::-1]
    for name in ("train_004", "val_001", "val_002"):
        Image.new("RGB", size, (200, 0, 0)).save(mine / "images" / f"{name}.png")
        Image.new("L", size, 1).save(mine / "masks" / f"{name}.png")
    found = examine(mine)
    assert set(found) == {"image_flat", "class_absent"}
    blank = tuple(f"images/{name}.png" for name in ("train_004", "val_001", "val_002"))
    assert found["image_flat"].places == blank
    (mine / "val.txt").write_text("\n".join([*VAL, "train_004"]))
    assert faults(mine) == {"same_image_split": ("train train_004 = val train_004",)}


def test_class_that_a_split_lacks(mine):
    (mine / "classes.txt").write_text("\n".join([*shapes.CLASSES, "moon"]))
    found = examine(mine)
    assert found["class_untrained"].places == ("moon",)
    assert found["class_absent"].places == ("val (moon)",)
    assert not found["class_absent"].is_fault


def test_class_whose_masks_are_all_faulty(mine):
    """If some masks were not counted, their remedy comes first."""
    (mine / "classes.txt").write_text("\n".join([*shapes.CLASSES, "moon"]))
    alone = examine(mine)["class_untrained"].remedy
    assert alone == FAULTS["class_untrained"].remedy
    edit_mask(mine, lambda label: label[:50])
    assert examine(mine)["class_untrained"].remedy == (
        "correct the other faults first, which may hide pixels; then: " + alone
    )


def test_stray_values_do_not_count_as_a_class(mine):
    """JPEG creates the moon's label, 6, from star and void."""
    (mine / "classes.txt").write_text("\n".join([*shapes.CLASSES, "moon"]))
    edit_mask(mine, as_jpeg)
    with Image.open(mine / FIRST) as mask:
        assert 6 in np.asarray(mask)
    assert faults(mine) == {"mask_was_jpeg": (FIRST,), "class_untrained": ("moon",)}


def test_indexed_masks_whose_palettes_differ(mine):
    def index(path: Path, palette: np.ndarray) -> None:
        with Image.open(path) as mask:
            mask.load()
        mask.putpalette(palette.tobytes())
        mask.save(path)

    for path in (mine / "masks").iterdir():
        index(path, voc_palette())
    assert examine(mine) == {}
    index(mine / "masks" / "val_005.png", voc_palette()[::-1])
    assert {kind: finding.places for kind, finding in examine(mine).items()} == {
        "palettes_differ": ("masks/val_005.png (0 is 224 224 192, not 0 0 0)",)
    }


def test_foreground_saved_as_255(mine):
    (mine / "classes.txt").write_text("ground\nthing\n")
    edit_masks(mine, binary)
    (finding,) = (finding for finding in examine(mine).values() if finding.is_fault)
    assert finding.kind == "foreground_255"
    assert "of the pixels are 255" in finding.places[0]
    assert finding.images == (0, 1, 2)  # these are drawn


def test_some_masks_of_0_and_255_only(mine):
    """In 6 of 14 masks, 255 is the drawn shapes."""
    merged = [f"masks/{name}.png" for name in (*TRAIN[:4], *VAL[:2])]
    for name in merged:
        edit_mask(mine, binary, name)
    found = faults(mine)
    assert set(found) == {"foreground_255_some"}
    label = binary(shapes.draw(TRAIN[0])[1])
    share = f"{100 * (label == 255).mean():.3g} % are 255"
    assert found["foreground_255_some"][0] == f"{FIRST} ({share}; 8 other masks contain classes)"
    assert [place.partition(" ")[0] for place in found["foreground_255_some"]] == merged


def test_one_mask_of_0_and_255_may_be_intended(mine):
    edit_mask(mine, binary)
    assert len(remarks(mine)["foreground_255_maybe"]) == 1


def test_areas_of_void_may_be_usual_in_a_set(mine):
    """Three masks have only 0 and 255, and all others have an area of void as well."""

    def with_void_area(label: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(label))[:, None] < 12, 255, label).astype(np.uint8)

    edit_masks(mine, with_void_area)
    for name in TRAIN[:3]:
        edit_mask(mine, lambda label: with_void_area(np.zeros_like(label)), f"masks/{name}.png")
    assert len(remarks(mine)["foreground_255_maybe"]) == 3


def test_borders_of_void_around_background(mine):
    """Masks may look so after a class was removed from them and its void borders were not."""
    for name in TRAIN[:4]:
        border = functools.partial(np.where, shapes.draw(name)[1] == 255, np.uint8(255))
        edit_mask(mine, lambda _, border=border: border(np.uint8(0)), f"masks/{name}.png")
    assert not any(kind.startswith("foreground") for kind in remarks(mine))


def test_image_much_larger_than_the_others(mine):
    for folder in ("images", "masks"):
        path = mine / folder / "train_000.png"
        with Image.open(path) as image:
            large = image.resize((8 * image.width, 8 * image.height), Image.Resampling.NEAREST)
        large.save(path)
    assert set(remarks(mine)) == {"image_large"}


def test_the_real_part_of_voc_has_no_fault():
    if not (REAL / "VOCdevkit").is_dir():
        pytest.skip(f"no VOC at {REAL}")
    found = examine(REAL, "voc")
    assert not found.keys() & FAULTS.keys()
    assert set(found) == {"part_of_voc", "class_absent", "class_rare", "mostly_void"}
    absent = "aeroplane, bicycle, bus, motorbike, train"
    assert found["class_absent"].places[0] == f"train ({absent})"
