"""Masks and images from files: which pixels become which labels, and what is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data import labels
from fcn_jax.errors import UserError

INDICES = np.array([[0, 1, 2], [2, 255, 20]], np.uint8)


def save(path: Path, array: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_palette_png_gives_indices_not_colours(tmp_path):
    image = Image.fromarray(INDICES).convert("L")
    image.putpalette(labels.voc_palette().flatten().tolist())
    assert image.mode == "P"
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(labels.read_mask(tmp_path / "a.png"), INDICES)
    # Looked up by colour, VOC's palette gives the same.
    np.testing.assert_array_equal(
        labels.read_mask(tmp_path / "a.png", labels.voc_palette()), INDICES
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_grey_values_are_labels(tmp_path, dtype):
    path = save(tmp_path / "a.tif", INDICES.astype(dtype))
    label = labels.read_mask(path)
    np.testing.assert_array_equal(label, INDICES)
    assert label.dtype == np.uint8


def test_one_bit_mask_is_zero_and_one(tmp_path):
    path = save(tmp_path / "a.png", np.array([[False, True], [True, False]]))
    np.testing.assert_array_equal(labels.read_mask(path), [[0, 1], [1, 0]])


def test_two_bit_grey_png_is_not_stretched(tmp_path):
    # A 4×1 PNG of 2-bit samples 0, 1, 2, 3, written out by hand.
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0)
    rows = zlib.compress(bytes([0, 0b00_01_10_11]))
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(labels.read_mask(tmp_path / "a.png"), [[0, 1, 2, 3]])


def test_colours_are_looked_up_exactly(tmp_path):
    colours = np.array([[[0, 0, 0], [128, 0, 0]], [[224, 224, 192], [0, 64, 128]]], np.uint8)
    path = save(tmp_path / "a.png", colours)
    # VOC: black is background, (128, 0, 0) aeroplane, (0, 64, 128) tvmonitor, 224 224 192 void.
    np.testing.assert_array_equal(
        labels.read_mask(path, labels.read_palette("voc")), [[0, 1], [255, 20]]
    )


def test_colour_mask_without_palette_says_how_to_convert(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(UserError, match=r"a\.png.*class indices.*mask_palette=voc"):
        labels.read_mask(path)


def test_colour_outside_the_palette_is_named(tmp_path):
    path = save(tmp_path / "a.png", np.full((2, 2, 3), (1, 2, 3), np.uint8))
    with pytest.raises(UserError, match=r"a\.png: colour 1 2 3 \(R G B\) is not in the palette"):
        labels.read_mask(path, labels.voc_palette())


def test_jpeg_masks_are_refused(tmp_path):
    path = save(tmp_path / "a.jpg", INDICES)
    with pytest.raises(UserError, match=r"a\.jpg: JPEG changes pixel values"):
        labels.read_mask(path)


def test_value_above_255_is_refused(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 1000]], np.uint16))
    with pytest.raises(UserError, match=r"a\.png: values from 0 to 1000"):
        labels.read_mask(path)


def test_fractions_are_no_labels(tmp_path):
    path = save(tmp_path / "a.tif", np.zeros((2, 2), np.float32))
    with pytest.raises(UserError, match=r"a\.tif: a mask of mode F"):
        labels.read_mask(path)


@pytest.mark.parametrize("values", [np.zeros((3, 9, 9), np.uint16), np.zeros((5, 9, 9), np.uint8)])
def test_tiffs_that_pillow_does_not_know_are_told_from_what_is_no_image(tmp_path, values):
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    count, height, width = values.shape
    path, placed = tmp_path / "a.tif", rasterio.Affine(2, 0, 500, 0, -2, 900)
    with rasterio.open(
        path, "w", "GTiff", width, height, count, dtype=values.dtype, transform=placed
    ) as file:
        file.write(values)
    with pytest.raises(UserError, match=r"a\.tif: Pillow cannot read .* --tile=1024 reads it"):
        labels.read_image(path)


@pytest.mark.parametrize("read", [labels.read_mask, labels.read_image])
def test_damaged_files_are_named(tmp_path, read):
    random = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    whole = save(tmp_path / "whole.png", random).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half\.png: the image is damaged"):
        read(tmp_path / "half.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png: not an image"):
        read(tmp_path / "text.png")
    with pytest.raises(UserError, match=r"gone\.png: No such file"):
        read(tmp_path / "gone.png")


def test_truncated_jpeg_is_named(tmp_path):
    random = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    whole = save(tmp_path / "whole.jpg", random).read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half\.jpg: the image is damaged"):
        labels.read_image(tmp_path / "half.jpg")


@pytest.mark.parametrize(
    ("array", "mode", "expected"),
    [
        (np.array([[7]], np.uint8), None, (7, 7, 7)),
        (np.array([[7 * 256 + 200]], np.uint16), None, (7, 7, 7)),
        (np.array([[[1, 2, 3, 0]]], np.uint8), None, (1, 2, 3)),
        (np.array([[[255, 0, 0]]], np.uint8), "P", (255, 0, 0)),
        (np.array([[True]]), None, (255, 255, 255)),
    ],
)
def test_every_image_becomes_rgb(tmp_path, array, mode, expected):
    image = labels.read_image(save(tmp_path / "a.png", array, mode))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, [[expected]])


def test_images_are_not_rotated(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    path = save(tmp_path / "a.jpg", np.zeros((2, 5, 3), np.uint8), exif=exif)
    assert labels.read_image(path).shape == (2, 5, 3)


def test_check_labels_names_file_and_values():
    labels.check_labels(np.array([[0, 2, 255]], np.uint8), 3, "a.png")
    with pytest.raises(UserError, match=r"a\.png: label 3, 9 is outside 0 to 2"):
        labels.check_labels(np.array([[9, 3, 255, 3, 0]], np.uint8), 3, "a.png")
    with pytest.raises(UserError, match=r"label 2, 3, 4, 5, 6, 7, 8, 9 and 190 more is outside"):
        labels.check_labels(np.arange(200, dtype=np.uint8)[None], 2, "a.png")


def test_palette_file(tmp_path):
    path = tmp_path / "palette.txt"
    path.write_text("0 0 0\n10, 20, 30\n\n")
    np.testing.assert_array_equal(labels.read_palette(str(path)), [[0, 0, 0], [10, 20, 30]])
    path.write_text("0 0 0\nred\n")
    with pytest.raises(UserError, match=r"palette\.txt, line 2: 'red'"):
        labels.read_palette(str(path))
    path.write_text("0 0 0\n1 1 1\n0 0 0\n")
    with pytest.raises(UserError, match=r"lines 1 and 3 are the same colour, 0 0 0"):
        labels.read_palette(str(path))
    with pytest.raises(UserError, match="No such file"):
        labels.read_palette(str(tmp_path / "gone.txt"))


def test_encoded_masks_decode_to_themselves():
    data = labels.encode_png(INDICES)
    np.testing.assert_array_equal(labels.decode_mask(data, "a"), INDICES)
    assert Image.open(io.BytesIO(data)).mode == "L"
