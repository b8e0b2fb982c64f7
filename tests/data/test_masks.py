"""Mask files: which pixels become which labels, and what is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data import images, masks, palettes
from fcn_jax.errors import UserError

INDICES = np.array([[0, 1, 2], [2, 255, 20]], np.uint8)


def save(path: Path, array: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_palette_png_gives_indices_not_colours(tmp_path):
    image = Image.fromarray(INDICES).convert("L")
    image.putpalette(palettes.voc_palette().flatten().tolist())
    assert image.mode == "P"
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(masks.read_mask(tmp_path / "a.png"), INDICES)
    # Looked up by colour, VOC's palette gives the same.
    np.testing.assert_array_equal(
        masks.read_mask(tmp_path / "a.png", palettes.voc_palette()), INDICES
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_grey_values_are_labels(tmp_path, dtype):
    path = save(tmp_path / "a.tif", INDICES.astype(dtype))
    label = masks.read_mask(path)
    np.testing.assert_array_equal(label, INDICES)
    assert label.dtype == np.uint8


def test_one_bit_mask_is_zero_and_one(tmp_path):
    path = save(tmp_path / "a.png", np.array([[False, True], [True, False]]))
    np.testing.assert_array_equal(masks.read_mask(path), [[0, 1], [1, 0]])


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
    np.testing.assert_array_equal(masks.read_mask(tmp_path / "a.png"), [[0, 1, 2, 3]])


def test_colours_are_looked_up_exactly(tmp_path):
    colours = np.array([[[0, 0, 0], [128, 0, 0]], [[224, 224, 192], [0, 64, 128]]], np.uint8)
    path = save(tmp_path / "a.png", colours)
    # VOC: black is background, (128, 0, 0) aeroplane, (0, 64, 128) tvmonitor, 224 224 192 void.
    np.testing.assert_array_equal(
        masks.read_mask(path, palettes.read_palette("voc")), [[0, 1], [255, 20]]
    )


def test_colour_mask_without_palette_says_how_to_convert(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(UserError, match=r"a\.png.*class indices.*mask_palette=voc"):
        masks.read_mask(path)


def test_colour_outside_the_palette_is_named(tmp_path):
    path = save(tmp_path / "a.png", np.full((2, 2, 3), (1, 2, 3), np.uint8))
    with pytest.raises(UserError, match=r"a\.png: colour 1 2 3 \(R G B\) is not in the palette"):
        masks.read_mask(path, palettes.voc_palette())


def test_jpeg_masks_are_refused(tmp_path):
    path = save(tmp_path / "a.jpg", INDICES)
    with pytest.raises(UserError, match=r"a\.jpg: JPEG changes pixel values"):
        masks.read_mask(path)


def test_lossy_compression_is_refused_whatever_the_format(tmp_path):
    path = save(tmp_path / "a.tif", INDICES, compression="jpeg")
    with Image.open(path) as changed:
        assert (np.asarray(changed) != INDICES).any()
    with pytest.raises(UserError, match=r"a\.tif: TIFF with loss changes pixel values"):
        masks.read_mask(path)
    colours = palettes.voc_palette()[INDICES]
    path = save(tmp_path / "a.webp", colours)
    with pytest.raises(UserError, match=r"a\.webp: WEBP with loss changes pixel values"):
        masks.read_mask(path, palettes.voc_palette())


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_lossless_tiffs_hold_masks(tmp_path, compression):
    path = save(tmp_path / "a.tif", INDICES, compression=compression)
    np.testing.assert_array_equal(masks.read_mask(path), INDICES)


def test_lossless_webp_holds_a_mask(tmp_path):
    path = save(tmp_path / "a.webp", palettes.voc_palette()[INDICES], lossless=True)
    np.testing.assert_array_equal(masks.read_mask(path, palettes.voc_palette()), INDICES)


def test_value_above_255_is_refused(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 1000]], np.uint16))
    with pytest.raises(UserError, match=r"a\.png: values from 0 to 1000"):
        masks.read_mask(path)


def test_fractions_are_no_labels(tmp_path):
    path = save(tmp_path / "a.tif", np.zeros((2, 2), np.float32))
    with pytest.raises(UserError, match=r"a\.tif: a mask of mode F"):
        masks.read_mask(path)


def test_encoded_masks_decode_to_themselves():
    data = images.encode_png(INDICES)
    np.testing.assert_array_equal(masks.decode_mask(data, "a"), INDICES)
    assert Image.open(io.BytesIO(data)).mode == "L"
