"""Colours that stand for classes: VOC's palette, palette files, and label maps from colours."""

import numpy as np

from fcn_jax.data.images import read_bytes
from fcn_jax.errors import UserError

Colour = tuple[int, int, int]
"""Red, green and blue, from 0 to 255."""


def voc_palette() -> np.ndarray:
    """VOC's colour of each label: uint8 (256, 3), RGB.

    The bits of the label go in turn to red, green and blue, from the highest bit of the colour down
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


def read_palette(spec: str) -> np.ndarray:
    """Reads the colour of each class: uint8 (k, 3), RGB.

    Args:
      spec: "voc", or the path of a text file in which line i (from 0) is the colour 'R G B' of
        class i. In a file of 256 lines the last is the colour of void.

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
                f"{format_colour(colour)}"
            )
        line_of_colour[colour] = number
    return np.array(list(line_of_colour), np.uint8)


def labels_from_colours(rgb: np.ndarray, palette: np.ndarray, name: str) -> np.ndarray:
    """Looks up the class of each pixel's colour: uint8 (h, w).

    Args:
      rgb: uint8 (h, w, 3).
      palette: uint8 (k, 3). If a colour occurs more than once, its last class counts.
      name: what errors begin with.

    Raises:
      UserError: a colour is not in the palette.
    """
    codes = _colour_codes(palette)
    order = np.argsort(codes, kind="stable")
    wanted = _colour_codes(rgb)
    position = np.searchsorted(codes, wanted, side="right", sorter=order) - 1
    label = order[np.maximum(position, 0)]
    stray = codes[label] != wanted
    if stray.any():
        colours = np.unique(rgb[stray], axis=0)
        shown = "; ".join(format_colour(colour) for colour in colours[:4])
        raise UserError(
            f"{name}: colour {shown}{'; …' if len(colours) > 4 else ''} (R G B) "
            "is not in the palette; correct the mask, or add the colour to the palette"
        )
    return label.astype(np.uint8)


def _colour_codes(rgb: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(rgb.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def format_colour(colour: tuple[int, ...] | np.ndarray) -> str:
    """Formats a colour as a palette file has it: '128 0 0'."""
    return " ".join(str(int(value)) for value in colour)
