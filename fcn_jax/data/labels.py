"""What a label map is: class indices, the void label, the colours that stand for them.

Image and mask files become arrays here, and nowhere else: `read_image` and `read_mask` for files,
`decode_image` and `decode_mask` for the bytes of one. Whatever is wrong with a file is a
`UserError` that names it.
"""

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from fcn_jax.errors import UserError, listed

Array = TypeVar("Array", bound=Any)
T = TypeVar("T")

IGNORE_INDEX = 255
"""Pixels that are neither trained on nor scored (VOC's object borders, a canvas's outside)."""

TIFF_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""Of either byte order; the last two of files beyond 4 GB."""

LABELS_SHOWN = 8
"""Of labels that are no classes, in a message."""

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def voc_palette() -> np.ndarray:
    """VOC's colour of each label: uint8 (256, 3), RGB.

    The bits of the label are dealt in turn to red, green and blue, from the highest bit down
    (VOC development kit, `VOClabelcolormap`). Label 0 is black, 1 (128, 0, 0), 255 (224, 224, 192).
    """
    label = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((label >> (3 * bit + channel)) & 1) << (7 - bit)).astype(
                np.uint8
            )
    return palette


def read_image(path: str | Path) -> np.ndarray:
    """The picture in a file (JPEG, PNG, whatever Pillow reads): uint8 (h, w, 3), RGB.

    Grey becomes three equal channels, 16 bits become the upper 8, transparency is dropped (the
    colours beneath it stay). A rotation noted in the file (EXIF) is not applied, because masks are
    stored as the camera's pixels lie.

    Raises:
      UserError: the file is missing, is no image, or is damaged.
    """
    return decode_image(read_bytes(path), str(path))


def header_size(path: str | Path) -> tuple[int, int] | None:
    """Height and width as an image's header has them; None where it cannot be read."""
    return read_header(path, lambda image: (image.height, image.width))


def read_header(path: str | Path, look: Callable[[Image.Image], T]) -> T | None:
    """What `look` sees of an image whose pixels are not read; None where it cannot be opened."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return look(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None  # whoever reads it tells of it


def is_tiff(path: Path) -> bool:
    """By its first bytes, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(4) in TIFF_BEGINNINGS
    except OSError:  # told of where it is read
        return False


def decode_image(data: bytes, name: str) -> np.ndarray:
    """`read_image` for bytes in memory; `name` stands for them in errors."""
    return image_pixels(open_image(data, name), name)


def image_pixels(image: Image.Image, name: str) -> np.ndarray:
    """`read_image` for an opened file."""
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


def read_mask(path: str | Path, palette: np.ndarray | None = None) -> np.ndarray:
    """The class indices in a mask file: uint8 (h, w).

    Indexed files (VOC's palette PNGs) give their indices, grey files their values, one-bit files 0
    and 1. Colour files need the palette that says which class a colour stands for.

    Args:
      path: the file; anything lossless that Pillow reads.
      palette: the colour of each class, uint8 (k, 3), RGB, as from `read_palette`. With it, the
        colours of RGB and indexed files are looked up; grey files still hold class indices.

    Raises:
      UserError: the file is missing, no image, damaged, a JPEG, in colour without a palette, has a
        colour that is not in the palette, or a value above 255.
    """
    return decode_mask(read_bytes(path), str(path), palette)


def decode_mask(data: bytes, name: str, palette: np.ndarray | None = None) -> np.ndarray:
    """`read_mask` for bytes in memory; `name` stands for them in errors."""
    return mask_labels(open_image(data, name), data, name, palette)


def mask_labels(
    image: Image.Image, data: bytes, name: str, palette: np.ndarray | None = None
) -> np.ndarray:
    """`read_mask` for an opened file, of those bytes."""
    if image.format in ("JPEG", "MPO"):
        raise UserError(f"{name}: JPEG changes pixel values, so it cannot hold a mask; save as PNG")
    if image.mode == "L":
        return np.asarray(image) // _grey_step(data)
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 255:
            raise UserError(
                f"{name}: values from {values.min()} to {values.max()}; "
                f"a mask holds class indices, with {IGNORE_INDEX} for void"
            )
        return values.astype(np.uint8)
    if image.mode == "P" and palette is None:
        return np.asarray(image)
    if image.mode not in ("P", "RGB", "RGBA"):
        raise UserError(
            f"{name}: a mask of mode {image.mode}; save it as an 8-bit grey PNG of class indices"
        )
    if palette is None:
        raise UserError(
            f"{name}: the mask is in colour, but masks hold class indices; say which class a "
            "colour is with --config.data.mask_palette=voc, or =FILE with a line 'R G B' per class"
        )
    return _look_up_colours(np.asarray(image.convert("RGB")), palette, name)


def encode_png(pixels: np.ndarray) -> bytes:
    """A label map, uint8 (h, w), or an image, uint8 (h, w, 1 or 3), as the bytes of a PNG.

    `decode_mask`, `decode_image` and `channels.decode_channels` give them back.
    """
    file = io.BytesIO()
    grey = pixels.ndim == 3 and pixels.shape[-1] == 1
    Image.fromarray(pixels[..., 0] if grey else pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def read_palette(spec: str) -> np.ndarray:
    """The colour of each class: uint8 (k, 3), RGB.

    Args:
      spec: "voc", or the path of a text file in which line i (from 0) is the colour 'R G B' of
        class i. A file of 256 lines gives the colour of void in its last.

    Raises:
      UserError: no such file, a line that is no colour, or one colour for two classes.
    """
    if spec == "voc":
        return voc_palette()
    lines = read_bytes(spec).decode("utf-8", "replace").rstrip().splitlines()
    if not 1 <= len(lines) <= 256:
        raise UserError(f"{spec}: {len(lines)} lines; a palette has a line 'R G B' for each class")
    line_of_colour: dict[tuple[int, ...], int] = {}
    for number, line in enumerate(lines, start=1):
        words = line.replace(",", " ").split()
        colour = tuple(int(word) for word in words if word.isdecimal())
        if len(words) != 3 or len(colour) != 3 or max(colour) > 255:
            raise UserError(f"{spec}, line {number}: {line!r} is not a colour 'R G B' of 0 to 255")
        if colour in line_of_colour:
            raise UserError(
                f"{spec}: lines {line_of_colour[colour]} and {number} are the same colour, "
                f"{colour_words(colour)}"
            )
        line_of_colour[colour] = number
    return np.array(list(line_of_colour), np.uint8)


def check_labels(label: np.ndarray, num_classes: int, name: str) -> None:
    """Refuse a label map, uint8 (h, w), with values other than 0 to num_classes − 1 and void.

    Raises:
      UserError: names the map by `name`, and the values (the first few).
    """
    stray = label[(label >= num_classes) & (label != IGNORE_INDEX)]
    if stray.size:
        shown = listed(np.unique(stray).tolist(), LABELS_SHOWN)
        raise UserError(
            f"{name}: label {shown} is outside 0 to {num_classes - 1} ({num_classes} classes, "
            f"{IGNORE_INDEX} is void); fix the mask or the list of classes"
        )


def label_feature(label_map: str) -> str:
    """What a record calls a label map; the only one has no name."""
    return f"label_{label_map}" if label_map else "label"


def by_map(label: Array, label_maps: Sequence[str]) -> dict[str, Array]:
    """The label maps of a record or batch by name, each (…, h, w).

    Args:
      label: (…, h, w) of a single one, else (…, h, w, m); NumPy's or JAX's.
      label_maps: m names; ("",) for a single one.
    """
    if len(label_maps) == 1:
        return {label_maps[0]: label}
    return {name: label[..., index] for index, name in enumerate(label_maps)}


def read_bytes(path: str | Path) -> bytes:
    """A file's contents.

    Raises:
      UserError: it is missing or unreadable.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def open_image(data: bytes, name: str) -> Image.Image:
    """The decoded file; Pillow's errors as a UserError that begins with `name`."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except UnidentifiedImageError:
        if data.startswith(TIFF_BEGINNINGS):
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
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"{name}: the image is damaged ({error})") from error
    return image


def _grey_step(data: bytes) -> int:
    """What Pillow multiplies grey values with: 2- and 4-bit PNGs are stretched to 0–255."""
    return {2: 85, 4: 17}.get(png_bits(data), 1)


def png_bits(data: bytes) -> int:
    """Bits of a channel in a PNG; 0: no PNG."""
    return data[24] if data.startswith(b"\x89PNG") else 0


def _look_up_colours(rgb: np.ndarray, palette: np.ndarray, name: str) -> np.ndarray:
    codes = _colour_codes(palette)
    order = np.argsort(codes)
    wanted = _colour_codes(rgb)
    place = np.searchsorted(codes, wanted, sorter=order)
    label = order[np.minimum(place, len(codes) - 1)]
    stray = codes[label] != wanted
    if stray.any():
        colours = np.unique(rgb[stray], axis=0)
        shown = "; ".join(colour_words(colour) for colour in colours[:4])
        raise UserError(
            f"{name}: colour {shown}{'; …' if len(colours) > 4 else ''} (R G B) "
            "is not in the palette; fix the mask or --config.data.mask_palette"
        )
    return label.astype(np.uint8)


def _colour_codes(rgb: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(rgb.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def colour_words(colour: tuple[int, ...] | np.ndarray) -> str:
    """A colour as palettes are written: '128 0 0'."""
    return " ".join(str(int(value)) for value in colour)
