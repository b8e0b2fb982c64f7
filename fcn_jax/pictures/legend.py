"""The legend below a picture: a swatch and a name for each class that is present."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.errors import printable
from fcn_jax.pictures.colours import FAINT_INK, HATCH_GREYS, INK, PAPER, VOID_COLOUR, Colour, hatch

MAX_UNNAMED = 4
"""Largest number of values outside the classes that a legend lists."""


class LegendEntry(NamedTuple):
    """A name, and the colour or hatching of its swatch."""

    name: str
    colour: Colour
    hatched: bool = False


def legend_entries(
    present: np.ndarray, class_names: Sequence[str], palette: np.ndarray
) -> list[LegendEntry]:
    """Returns an entry for each value that occurs.

    Args:
      present: the distinct values, in ascending order.
      class_names: k names; the first `MAX_UNNAMED` values beyond them are listed as 'class 7'.
      palette: uint8 (256, 3), RGB.
    """
    unnamed = [label for label in present.tolist() if len(class_names) <= label != IGNORE_INDEX]
    names = dict(enumerate(class_names))
    names |= {label: f"class {label}" for label in unnamed[:MAX_UNNAMED]}
    if len(unnamed) > MAX_UNNAMED:
        names[unnamed[MAX_UNNAMED - 1]] += ", …"
    entries = []
    for label in present.tolist():
        if label == IGNORE_INDEX:
            entries.append(LegendEntry("void", VOID_COLOUR, hatched=True))
        elif label in names:
            red, green, blue = palette[label].tolist()
            entries.append(LegendEntry(names[label], (red, green, blue)))
    return entries


class Legend:
    """Swatches with names, wrapped into lines like words."""

    def __init__(self, entries: list[LegendEntry], font_px: int):
        self.font = ImageFont.load_default(font_px)
        self.swatch_px = font_px
        self.gap_px = max(4, round(0.5 * font_px))
        self.line_px = round(1.6 * font_px)
        self.entries = [entry._replace(name=printable(entry.name)) for entry in entries]
        self.widths = [
            self.swatch_px + self.gap_px + math.ceil(self.font.getlength(entry.name))
            for entry in self.entries
        ]

    @property
    def min_width(self) -> int:
        """Width of the longest entry with its margins, in pixels."""
        return max(self.widths, default=0) + 2 * self.gap_px

    def draw(self, width: int) -> Image.Image:
        """Draws the legend as an RGB picture of this width."""
        places = []
        x, line = self.gap_px, 0
        for entry_width in self.widths:
            if x > self.gap_px and x + entry_width + self.gap_px > width:
                x, line = self.gap_px, line + 1
            places.append((x, self.gap_px + line * self.line_px))
            x += entry_width + 3 * self.gap_px
        strip = Image.new("RGB", (width, 2 * self.gap_px + (line + 1) * self.line_px), PAPER)
        draw = ImageDraw.Draw(strip)
        for entry, (x, top) in zip(self.entries, places, strict=True):
            middle = top + self.line_px // 2
            self._draw_swatch(strip, entry, x, middle - self.swatch_px // 2)
            text_at = (x + self.swatch_px + self.gap_px, middle)
            draw.text(text_at, entry.name, INK, self.font, anchor="lm")
        return strip

    def _draw_swatch(self, strip: Image.Image, entry: LegendEntry, x: int, y: int) -> None:
        side = self.swatch_px
        tile = np.full((side, side, 3), entry.colour, np.uint8)
        if entry.hatched:
            stripe = hatch((side, side), max(2, side // 6))
            tile[stripe], tile[~stripe] = HATCH_GREYS
        strip.paste(Image.fromarray(tile), (x, y))
        ImageDraw.Draw(strip).rectangle((x, y, x + side - 1, y + side - 1), outline=FAINT_INK)
