"""The colours and the hatching that all pictures share."""

import numpy as np

Colour = tuple[int, int, int]

CORRECT_COLOUR: Colour = (236, 236, 232)
WRONG_COLOUR: Colour = (214, 39, 40)
VOID_COLOUR: Colour = (158, 158, 158)
INK: Colour = (34, 34, 34)
FAINT_INK: Colour = (110, 110, 110)
PAPER: Colour = (255, 255, 255)
HATCH_GREYS = (205, 95)


def hatch(shape: tuple[int, ...], stripe_px: int) -> np.ndarray:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (x + y) // stripe_px % 2 == 0
