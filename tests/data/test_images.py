"""Image files: what is read as RGB, and what is refused by name."""

import io
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from fcn_jax.data import images, masks
from fcn_jax.errors import UserError


def save(path: Path, array: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("values", [np.zeros((3, 9, 9), np.uint16), np.zeros((5, 9, 9), np.uint8)])
def test_tiffs_that_pillow_cannot_read_have_a_message_of_their_own(tmp_path, values):
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    count, height, width = values.shape
    path, placed = tmp_path / "a.tif", rasterio.Affine(2, 0, 500, 0, -2, 900)
    with rasterio.open(
        path, "w", "GTiff", width, height, count, dtype=values.dtype, transform=placed
    ) as file:
        file.write(values)
    with pytest.raises(UserError, match=r"a\.tif: Pillow cannot read .* --tile=1024 reads it"):
        images.read_image(path)


@pytest.mark.parametrize("read", [masks.read_mask, images.read_image])
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
        images.read_image(tmp_path / "half.jpg")


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
    image = images.read_image(save(tmp_path / "a.png", array, mode))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, [[expected]])


def test_images_are_not_rotated(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    path = save(tmp_path / "a.jpg", np.zeros((2, 5, 3), np.uint8), exif=exif)
    assert images.read_image(path).shape == (2, 5, 3)


@pytest.mark.parametrize("read", [images.read_image, masks.read_mask])
def test_postscript_is_never_run_whatever_its_name(tmp_path, read, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    monkeypatch.setattr(EpsImagePlugin, "has_ghostscript", lambda: True)
    started = []
    monkeypatch.setattr(subprocess, "check_call", started.append)
    with pytest.raises(UserError, match=r"a\.png: not an image"):
        read(tmp_path / "a.png")
    assert images.header_size(tmp_path / "a.png") is None
    assert not started


def test_a_named_pipe_is_refused_at_once(tmp_path):
    """Opening a named pipe for reading waits until another process writes to it."""
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: not a regular file"):
        images.read_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r": a folder"):
        images.read_image(tmp_path)
    assert images.header_size(tmp_path / "a.png") is None
    assert not images.is_tiff(tmp_path / "a.png")


@pytest.mark.parametrize(
    "options", [{"format": "PNG"}, {"format": "TIFF", "compression": "tiff_adobe_deflate"}]
)
def test_a_changed_byte_of_the_pixels_is_noticed(options):
    """Pillow ignores a PNG's checksums of pixels, and libtiff most of a deflated TIFF's."""
    label = np.random.default_rng(0).integers(5, size=(40, 30)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(label).save(file, **options)
    content = file.getvalue()
    start = content.index(b"IDAT") + 4 if options["format"] == "PNG" else 8
    for position in range(start, start + 200, 7):
        damaged = bytearray(content)
        damaged[position] ^= 4
        with pytest.raises(UserError, match=r"x\.png: the image is damaged"):
            images.open_image(bytes(damaged), "x.png")
    np.testing.assert_array_equal(np.asarray(images.open_image(content, "x.png")), label)
