"""The legend below a picture: a swatch and a name for each class that is present."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.pictures.colours import FAINT_INK, HATCH_GREYS, INK, PAPER, VOID_COLOUR, Colour, hatch

UNNAMED_SHOWN = 4
"""Values outside the classes that a legend tells of."""


@dataclass(frozen=True)
class LegendEntry:
    """What a swatch is of."""

    name: str
    colour: Colour
    hatched: bool = False


def legend_entries(
    present: np.ndarray, class_names: Sequence[str], palette: np.ndarray
) -> list[LegendEntry]:
    """What is to be told of the values that occur.

    Args:
      present: the values, each once, in order.
      class_names: k names; of values beyond them the first few are told, as 'class 7'.
      palette: uint8 (256, 3), RGB.
    """
    unnamed = [label for label in present.tolist() if len(class_names) <= label != IGNORE_INDEX]
    names = dict(enumerate(class_names))
    names |= {label: f"class {label}" for label in unnamed[:UNNAMED_SHOWN]}
    if len(unnamed) > UNNAMED_SHOWN:
        names[unnamed[UNNAMED_SHOWN - 1]] += ", …"
    entries = []
    for label in present.tolist():
        if label == IGNORE_INDEX:
            entries.append(LegendEntry("void", VOID_COLOUR, hatched=True))
        elif label in names:
            red, green, blue = palette[label].tolist()
            entries.append(LegendEntry(names[label], (red, green, blue)))
    return entries


class Legend:
    """Swatches with names, set in lines like words; `draw` gives an RGB picture of that width."""

    def __init__(self, entries: list[LegendEntry], font_px: int):
        self.font = ImageFont.load_default(font_px)
        self.swatch_px = font_px
        self.gap_px = max(4, round(0.5 * font_px))
        self.line_px = round(1.6 * font_px)
        self.entries = entries
        self.widths = [
            self.swatch_px + self.gap_px + math.ceil(self.font.getlength(entry.name))
            for entry in entries
        ]

    @property
    def narrowest_px(self) -> int:
        """The width of the longest entry with its margins."""
        return max(self.widths, default=0) + 2 * self.gap_px

    def draw(self, width: int) -> Image.Image:
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
