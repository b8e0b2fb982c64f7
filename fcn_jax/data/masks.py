"""Mask files: reading them as class indices."""

from pathlib import Path

import numpy as np
from PIL import Image

from fcn_jax.data.images import is_lossy, open_image, png_bits, read_bytes
from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.data.palettes import labels_from_colours
from fcn_jax.errors import UserError


def read_mask(path: str | Path, palette: np.ndarray | None = None) -> np.ndarray:
    """Reads the class indices in a mask file: uint8 (h, w).

    Indexed files (VOC's palette PNGs) give their indices, grey files their values, one-bit files 0
    and 1. Colour files need a palette, which maps each colour to a class.

    Args:
      path: a file of `images.RASTER_FORMATS`, compressed without loss.
      palette: the colour of each class, uint8 (k, 3), RGB, as from `read_palette`. With it, the
        colours of RGB and indexed files are looked up; grey files still hold class indices.

    Raises:
      UserError: the file is missing, no image, damaged, compressed with loss, in colour without a
        palette, has a colour that is not in the palette, or a value above 255.
    """
    return decode_mask(read_bytes(path), str(path), palette)


def decode_mask(data: bytes, name: str, palette: np.ndarray | None = None) -> np.ndarray:
    """Decodes the bytes of a mask file as `read_mask` does; errors begin with `name`."""
    return mask_labels(open_image(data, name), data, name, palette)


def mask_labels(
    image: Image.Image, data: bytes, name: str, palette: np.ndarray | None = None
) -> np.ndarray:
    """Converts an opened mask to class indices as `read_mask` does; `data` are the file's bytes."""
    if is_lossy(image, data):
        kind = f"{image.format} with loss" if image.format in ("TIFF", "WEBP") else "JPEG"
        raise UserError(
            f"{name}: {kind} changes pixel values, so it cannot hold a mask; save as PNG"
        )
    if image.mode == "L":
        return np.asarray(image) // _grey_step(data)
    if image.mode == "1" or image.mode.startswith("I"):
        return as_labels(np.asarray(image), name)
    if image.mode == "P" and palette is None:
        return np.asarray(image)
    if image.mode not in ("P", "RGB", "RGBA"):
        raise UserError(
            f"{name}: a mask of mode {image.mode}; save it as an 8-bit grey PNG of class indices"
        )
    if palette is None:
        raise UserError(
            f"{name}: the mask is in colour, but masks hold class indices; define the class of "
            "each colour: for a folder by --config.data.mask_palette=voc, or =FILE with a line "
            "'R G B' per class, for a data set of your own by the `palette` of its RawDataset"
        )
    return labels_from_colours(np.asarray(image.convert("RGB")), palette, name)


def as_labels(values: np.ndarray, name: str) -> np.ndarray:
    """Converts class indices that a data set's own reader returned to uint8 (h, w).

    Raises:
      UserError: begins with `name`; not two axes, no integers, or values outside 0…255.
    """
    values = np.asarray(values)
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise UserError(
            f"{name}: the mask is {values.dtype} {values.shape}; integers (h, w) are needed"
        )
    if values.size and (values.min() < 0 or values.max() > 255):
        raise UserError(
            f"{name}: values from {values.min()} to {values.max()}; "
            f"a mask holds class indices, with {IGNORE_INDEX} for void"
        )
    return values.astype(np.uint8, copy=False)


def _grey_step(data: bytes) -> int:
    """The factor that Pillow applies to grey values: it stretches 2- and 4-bit PNGs to 0…255."""
    return {2: 85, 4: 17}.get(png_bits(data), 1)
