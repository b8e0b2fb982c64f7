"""Colours that all pictures share, and hatching."""

from collections.abc import Sequence

import numpy as np

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.data.palettes import Colour, voc_palette

CORRECT_COLOUR: Colour = (236, 236, 232)
WRONG_COLOUR: Colour = (214, 39, 40)
VOID_COLOUR: Colour = (158, 158, 158)
INK: Colour = (34, 34, 34)
FAINT_INK: Colour = (110, 110, 110)
FAULT_INK: Colour = (190, 30, 30)
PAPER: Colour = (255, 255, 255)
PLACEHOLDER_COLOUR: Colour = (228, 228, 228)
HATCH_GREYS = (205, 95)


def palette_of(colours: Sequence[Colour]) -> np.ndarray:
    """Returns VOC's palette, uint8 (256, 3), with these colours for the first classes."""
    palette = voc_palette()
    if colours:
        palette[: len(colours)] = colours
    return palette


def palette_or_voc(palette: np.ndarray | None) -> np.ndarray:
    """Returns the palette, uint8 (256, 3), or VOC's if it is None.

    Raises:
      ValueError: the palette is not of this shape and type.
    """
    if palette is None:
        return voc_palette()
    if palette.shape != (256, 3) or palette.dtype != np.uint8:
        raise ValueError(
            f"`palette` ({palette.dtype}, shape {palette.shape}) must be uint8 of shape (256, 3)"
        )
    return palette


def palette_with_grey_void(palette: np.ndarray | None = None) -> np.ndarray:
    """Returns a copy of the palette (VOC's if None) in which void is `VOID_COLOUR`."""
    palette = palette_or_voc(palette).copy()
    palette[IGNORE_INDEX] = VOID_COLOUR
    return palette


def hatch(shape: tuple[int, ...], stripe_px: int) -> np.ndarray:
    """Returns diagonal stripes: bool (h, w), true in every second stripe."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (x + y) // stripe_px % 2 == 0
