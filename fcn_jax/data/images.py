"""Image files: reading them as RGB arrays, reading their headers, and writing PNGs.

Every image file that the package opens with Pillow is opened here, as one of `RASTER_FORMATS`. A
file that cannot be used raises a `UserError` that names it.
"""

import io
import stat
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from fcn_jax.errors import UserError

T = TypeVar("T")

RASTER_FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".pbm", ".pgm", ".ppm"),
    "WEBP": (".webp",),
    "JPEG2000": (".jp2",),
}
"""Formats that are opened, each with its usual suffixes. The content decides on a file's format:
without this list, Pillow would start Ghostscript, a PostScript interpreter, for an EPS named x.png.
"""

IMAGE_SUFFIXES = frozenset(suffix for suffixes in RASTER_FORMATS.values() for suffix in suffixes)
"""Lower-case suffixes by which image files are found in a folder."""

COMPRESSION_TAG, DEFLATE = 259, (8, 32946)
PIECE_TAGS = ((273, 279), (324, 325))
"""Tags of a TIFF: its compression; the offsets and byte counts of its strips, or of its tiles."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a TIFF in either byte order; the last two mark BigTIFF, for files beyond 4 GB."""


def read_bytes(path: str | Path) -> bytes:
    """Reads a file.

    Raises:
      UserError: it is missing, unreadable, or no regular file: opening a named pipe would wait.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: {'a folder' if path.is_dir() else 'not a regular file'}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def read_image(path: str | Path) -> np.ndarray:
    """Reads an image file as uint8 (h, w, 3), RGB.

    Grey becomes three equal channels, 16 bits become the upper 8, and transparency is dropped,
    which keeps the colours beneath it. A rotation noted in the file (EXIF) is not applied, because
    masks are drawn on the pixels as they are stored.

    Raises:
      UserError: the file is missing, is no image of `RASTER_FORMATS`, or is damaged.
    """
    return decode_image(read_bytes(path), str(path))


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decodes the bytes of an image file as `read_image` does; errors begin with `name`."""
    return image_pixels(open_image(data, name), name)


def image_pixels(image: Image.Image, name: str) -> np.ndarray:
    """Converts an opened image to uint8 (h, w, 3) as `read_image` does."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"{name}: pixels of more than 16 bits; save it with 8 bits a channel")
        grey = (values >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise UserError(f"{name}: pixels are fractions; save it with 8 bits a channel")
    if image.mode == "P":
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of lost transparency
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def open_image(data: bytes, name: str) -> Image.Image:
    """Opens and decodes the bytes of an image file; errors begin with `name`.

    Raises:
      UserError: they are no image of `RASTER_FORMATS`, too large an image, or damaged.
    """
    if is_damaged_png(data):
        raise UserError(f"{name}: the image is damaged (a checksum in it does not match)")
    try:
        image = Image.open(io.BytesIO(data), formats=tuple(RASTER_FORMATS))
        image.load()
        if image.format == "TIFF":
            _check_deflated(image, data)
    except UnidentifiedImageError:
        if data.startswith(TIFF_SIGNATURES):
            raise UserError(
                f"{name}: Pillow cannot read this kind of TIFF (colour of 16 bits, say, or many "
                "bands; or its beginning is damaged): save it as RGB with 8 bits a channel; "
                "predict --tile=1024 reads it by rasterio"
            ) from None
        raise UserError(f"{name}: not an image (or its beginning is damaged)") from None
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{name}: too large an image; cut it into tiles, or to label it, save it as a tiled "
            f"TIFF, which predict --tile=1024 reads by window ({error})"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
        raise UserError(f"{name}: the image is damaged ({error})") from error
    return image


def _check_deflated(image: Any, data: bytes) -> None:
    """Raises zlib.error if a checksum of a TIFF's deflated pixels is wrong; libtiff ignores most.

    Args:
        image: the opened TIFF.
        data: the bytes of the file.
    """
    tags = image.tag_v2
    if tags.get(COMPRESSION_TAG) not in DEFLATE:
        return
    offsets, counts = next(
        ((tags[a], tags[b]) for a, b in PIECE_TAGS if a in tags and b in tags), ((), ())
    )
    for offset, count in zip(offsets, counts, strict=False):
        stream, piece = zlib.decompressobj(), data[offset : offset + count]
        while piece and not stream.eof:  # in parts, because a few bytes may become gigabytes
            if not stream.decompress(piece, 1 << 20) and not stream.unconsumed_tail:
                break
            piece = stream.unconsumed_tail


def read_header(path: str | Path, look: Callable[[Image.Image], T]) -> T | None:
    """Calls `look` with an image whose pixels have not been read; None if it cannot be opened."""
    try:
        if not Path(path).is_file():
            return None
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(path, formats=tuple(RASTER_FORMATS)) as image,
        ):
            return look(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None  # reading the file reports it


def header_size(path: str | Path) -> tuple[int, int] | None:
    """Height and width according to an image's header; None if it cannot be read."""
    return read_header(path, lambda image: (image.height, image.width))


def is_tiff(path: Path) -> bool:
    """Returns whether a file has the first bytes of a TIFF; its name does not matter."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(4) in TIFF_SIGNATURES
    except OSError:  # reading the file reports it
        return False


def is_damaged_png(data: bytes) -> bool:
    """Returns whether a checksum in a PNG file is wrong; Pillow ignores those of the pixels.

    Checks the chunks that determine the pixels, whose names begin with a capital letter.
    """
    if not data.startswith(PNG_SIGNATURE):
        return False
    view, start = memoryview(data), len(PNG_SIGNATURE)
    while start + 12 <= len(data):
        length = int.from_bytes(view[start : start + 4], "big")
        name, end = data[start + 4 : start + 8], start + 8 + length
        if end + 4 > len(data):
            return False  # Pillow reports that it is truncated
        if name[:1].isupper() and zlib.crc32(view[start + 4 : end]) != int.from_bytes(
            view[end : end + 4], "big"
        ):
            return True
        if name == b"IEND":
            return False
        start = end + 4
    return False


def png_bits(data: bytes) -> int:
    """Bits a channel of a PNG file; 0 if the bytes are no PNG."""
    return data[24] if data.startswith(b"\x89PNG") and len(data) > 24 else 0


def is_lossy(image: Image.Image, data: bytes) -> bool:
    """Returns whether an opened image's compression changes pixel values.

    JPEG does, in a file of its own or in a TIFF, and so does WebP unless it is lossless.
    """
    if image.format == "TIFF":
        return image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")
    if image.format == "WEBP":
        return data[12:16] == b"VP8 " or (data[12:16] == b"VP8X" and b"VP8L" not in data)
    return image.format in ("JPEG", "MPO")


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes a label map, uint8 (h, w), or an image, uint8 (h, w, 1 or 3), as a PNG file.

    `decode_mask`, `decode_image` and `channels.decode_channels` give the array back.
    """
    file = io.BytesIO()
    grey = pixels.ndim == 3 and pixels.shape[-1] == 1
    Image.fromarray(pixels[..., 0] if grey else pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
