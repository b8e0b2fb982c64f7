"""Faults in single files: each one that a test puts into the set is found and named."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data import shapes
from fcn_jax.data.palettes import voc_palette
from fcn_jax.data.raw import Sample, SourceFile
from fcn_jax.data.splits import Split
from fcn_jax.doctor.examine import examine_record, examine_sample, has_void_area
from tests.doctor.example_set import (
    FIRST,
    TRAIN,
    VAL,
    as_jpeg,
    edit_mask,
    edit_masks,
    examine,
    faults,
    remarks,
    resized,
)


def test_mask_of_another_size(mine):
    edit_mask(mine, lambda label: label[:90, :80])
    height, width = shapes.draw("train_000")[1].shape
    assert faults(mine) == {"mask_size": (f"{FIRST} (80 × 90, its image {width} × {height})",)}


def test_labels_outside_the_classes(mine):
    edit_mask(mine, lambda label: np.where(label == 0, 7, label).astype(np.uint8))
    assert faults(mine) == {"label_outside": (f"{FIRST} (7)",)}


def test_truncated_image(mine):
    path = mine / "images" / "train_001.png"
    path.write_bytes(path.read_bytes()[:5000])
    found = faults(mine)
    assert set(found) == {"image_unreadable"}
    assert found["image_unreadable"][0].startswith("images/train_001.png (the image is damaged")


def test_files_that_are_no_images(mine):
    (mine / "images" / "train_001.png").write_text("not an image")
    (mine / FIRST).write_bytes(b"")
    found = faults(mine)
    assert found["image_unreadable"][0].startswith("images/train_001.png (not an image")
    assert found["mask_unreadable"][0].startswith(f"{FIRST} (not an image")


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged metadata
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF"])
def test_damaged_files_are_findings(kind):
    """Files with random bytes changed and the end cut off give notes, not exceptions."""
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(shapes.draw("train_000")[1]).save(file, kind)
    unreadable = 0
    for _ in range(60):
        damaged = np.frombuffer(file.getvalue(), np.uint8).copy()
        damaged[rng.integers(0, 300, 6)] = rng.integers(0, 256, 6)
        content = damaged[: rng.integers(1, len(damaged))].tobytes()
        source = SourceFile(Path("file"), lambda _, content=content: content)
        sample = Sample("train", image=source, mask=source, channels={"depth": source})
        report = examine_sample(sample, {"": 6})
        kinds = {note.kind for note in report.notes}
        unreadable += kinds >= {"image_unreadable", "mask_unreadable"}
    assert unreadable > 30


def test_mask_saved_as_jpeg(mine):
    with Image.open(mine / FIRST) as mask:
        mask.save(mine / "masks" / "train_000.jpg")
    (mine / FIRST).unlink()
    assert faults(mine) == {"mask_jpeg": ("masks/train_000.jpg",)}


@pytest.mark.parametrize("void", [True, False])
def test_mask_that_was_once_a_jpeg(mine, void):
    """Without void, all stray values are classes, and no label is outside."""
    if not void:
        edit_masks(mine, lambda label: np.where(label == 255, 0, label).astype(np.uint8))
    edit_mask(mine, as_jpeg)
    assert faults(mine) == {"mask_was_jpeg": (FIRST,)}


@pytest.mark.parametrize("void", [True, False])
@pytest.mark.parametrize("method", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_mask_resized_with_interpolation(mine, method, void):
    if not void:
        edit_masks(mine, lambda label: np.where(label == 255, 0, label).astype(np.uint8))
    edit_mask(mine, lambda label: resized(label, method))
    assert faults(mine) == {"mask_interpolated": (FIRST,)}


def test_nearest_neighbours_leave_no_trace(mine):
    edit_masks(mine, lambda label: resized(label, Image.Resampling.NEAREST))
    assert examine(mine) == {}


def test_anti_aliased_colours(mine):
    edit_masks(mine, lambda label: voc_palette()[label])
    edit_mask(mine, lambda colours: resized(colours, Image.Resampling.BILINEAR))
    assert faults(mine, mask_palette="voc") == {"mask_interpolated": (FIRST,)}


def test_void_masks(mine):
    edit_mask(mine, lambda label: np.full_like(label, 255))
    edit_mask(mine, lambda label: np.where(label == 0, 255, label), "masks/train_001.png")
    found = examine(mine)
    assert {kind: finding.places[0][:19] for kind, finding in found.items()} == {
        "mask_void": FIRST,
        "mostly_void": "masks/train_001.png",
    }
    assert not found["mostly_void"].is_fault


def test_masks_in_colour_without_a_palette(mine):
    edit_masks(mine, lambda label: voc_palette()[label])
    found = faults(mine)
    assert set(found) == {"mask_colours"}
    assert len(found["mask_colours"]) == len(TRAIN + VAL)
    assert "0 0 0; " in found["mask_colours"][0]
    assert found["mask_colours"][0].endswith("all in VOC's palette)")
    assert faults(mine, mask_palette="voc") == {}


def test_unusual_images(mine):
    sizes = {name: shapes.draw(name)[1].shape for name in ("train_000", "train_001")}
    Image.new("RGB", sizes["train_000"][::-1], (9, 9, 9)).save(mine / "images" / "train_000.png")
    deep = np.random.default_rng(0).integers(0, 65536, sizes["train_001"], np.uint16)
    Image.fromarray(deep).save(mine / "images" / "train_001.png")
    for folder in ("images", "masks"):
        with Image.open(mine / folder / "train_002.png") as image:
            image.crop((0, 0, 90, 20)).save(mine / folder / "train_002.png")
    assert remarks(mine) == {
        "image_flat": ("images/train_000.png",),
        "image_16_bits": ("images/train_001.png",),
        "image_small": ("train_002 (90 × 20)",),
    }


def test_mask_of_a_format_that_cannot_store_classes(mine):
    with Image.open(mine / FIRST) as mask:
        mask.convert("LA").save(mine / FIRST)
    assert faults(mine) == {"mask_mode": (f"{FIRST} (LA)",)}


def test_colour_that_the_palette_lacks(mine, tmp_path):
    edit_masks(mine, lambda label: voc_palette()[label])
    palette = np.delete(voc_palette(), 3, axis=0)
    (tmp_path / "palette.txt").write_text("\n".join(f"{r} {g} {b}" for r, g, b in palette[:254]))
    found = faults(mine, mask_palette=str(tmp_path / "palette.txt"))
    assert "colour 128 128 0" in "".join(found["mask_stray_colours"])


@pytest.mark.parametrize(("width", "is_area"), [(4, False), (9, True)])
def test_a_band_is_no_area_of_void(width, is_area):
    """Blocks are 5 × 5 pixels: a band of 4 contains none, a band of 9 contains one anywhere."""
    for top in range(40, 50):
        label = np.zeros((100, 120), np.uint8)
        label[top : top + width] = 255
        assert has_void_area(label) == is_area
        assert has_void_area(label.T) == is_area


def write_rotated(root: Path, name: str, orientation: int) -> tuple[int, int]:
    """Replaces an image by a JPEG with an EXIF orientation. Returns its stored width and height."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(root / "images" / f"{name}.png") as image:
        image.save(root / "images" / f"{name}.jpg", exif=exif)
        size = image.size
    (root / "images" / f"{name}.png").unlink()
    return size


def test_mask_drawn_on_a_rotated_photo(mine):
    width, height = write_rotated(mine, "train_000", 6)
    edit_mask(mine, np.rot90)
    shown = f"{FIRST} ({height} × {width}, its image {width} × {height})"
    assert faults(mine) == {"mask_turned": (shown,)}


@pytest.mark.parametrize("orientation", [3, 6])
def test_rotated_photo_whose_mask_matches_the_stored_pixels(mine, orientation):
    write_rotated(mine, "train_000", orientation)
    assert remarks(mine) == {"exif_turned": ("images/train_000.jpg",)}


def write_channels(root: Path, mode: str) -> None:
    (root / "depth").mkdir()
    for path in (root / "images").iterdir():
        with Image.open(path) as image:
            image.convert("L").convert(mode).save(root / "depth" / path.name)


def test_depth_saved_in_colour(mine):
    write_channels(mine, "RGB")
    found = remarks(mine, extra_channels=("depth",))
    assert set(found) == {"channels_coloured"}
    assert "the three are equal" in found["channels_coloured"][0]


def test_faulty_extra_channels(mine):
    write_channels(mine, "L")
    assert examine(mine, extra_channels=("depth",)) == {}
    depth = mine / "depth"
    (depth / "train_000.png").unlink()
    (depth / "train_001.png").write_bytes(b"")
    Image.new("L", (5, 4)).save(depth / "train_002.png")
    with Image.open(depth / "train_003.png") as image:
        image.convert("RGB").save(depth / "train_003.png")
    found = faults(mine, extra_channels=("depth",))
    assert found.pop("channels_unreadable")[0].startswith("depth/train_001.png (not an image")
    height, width = shapes.draw("train_002")[1].shape
    assert found == {
        "channels_missing": ("images/train_000.png (in depth/)",),
        "channels_size": (f"depth/train_002.png (5 × 4, its image {width} × {height})",),
        "channels_differ": ("depth/train_003 (in colour)",),
    }


def test_unusable_record():
    records = [{"image": np.zeros((4, 5, 3), np.uint8), "label": np.full((4, 5), 3), "name": "a"}]
    split = Split("train", {"label": 3}, records)
    (note,) = examine_record(split, 0, ("",)).notes
    assert note[:2] == ("record_unusable", "train[0]")
    assert note.detail.startswith("a: label 3 is outside 0 to 2")


def test_extra_channels_do_not_make_a_blank_record_valid():
    image = np.zeros((4, 5, 3), np.uint8)
    image[...] = 200, 0, 0
    depth = np.arange(20, dtype=np.uint8).reshape(4, 5, 1)
    records = [{"image": image, "depth": depth, "label": np.zeros((4, 5), np.uint8), "name": "a"}]
    split = Split("train", {"label": 3}, records, channel_features=("depth",))
    assert [note[:2] for note in examine_record(split, 0, ("",)).notes] == [("image_flat", "a")]
    image[3, 4, 1] = 1
    assert examine_record(split, 0, ("",)).notes == []
