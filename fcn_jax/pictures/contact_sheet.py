"""A picture of some images with their masks: image, classes, and the one laid over the other."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.data.palettes import voc_palette
from fcn_jax.pictures import legend, overlays

PICTURE_PX = 220
GAP_PX = 10
FONT_PX = 13
LINE_PX = 19
DETAIL = 4  # times as many pixels a side are kept until it is drawn: thin lines stay
COLUMNS = 2
INK, FAULT_INK = (34, 34, 34), (190, 30, 30)
PAPER, NOTHING = (255, 255, 255), (228, 228, 228)


class Entry(NamedTuple):
    """An image with its mask, as they are drawn.

    image: uint8 (h, w, 3). mask: class indices, uint8 (h, w), or the picture that it is, uint8
    (h, w, 3), where it holds none. Where there is none to draw, a word that says why.
    """

    caption: str
    image: np.ndarray | str
    mask: np.ndarray | str
    class_names: Sequence[str]
    is_faulty: bool = False


def draw(entries: Iterable[Entry]) -> Image.Image | None:
    """Sets the entries in columns, in their order, each below where the column is shortest.

    None where there are none. Each is let go of once it is drawn: they are never all held.
    """
    columns: list[list[Image.Image]] = [[] for _ in range(COLUMNS)]
    heights = [0] * COLUMNS
    for entry in entries:
        band = _band(entry)
        shortest = heights.index(min(heights))
        columns[shortest].append(band)
        heights[shortest] += band.height
    if not any(heights):
        return None
    width = 3 * PICTURE_PX + 4 * GAP_PX
    page = Image.new("RGB", (COLUMNS * width, max(heights)), PAPER)
    for column, bands in enumerate(columns):
        top = 0
        for band in bands:
            page.paste(band, (column * width, top))
            top += band.height
    return page


def _band(entry: Entry) -> Image.Image:
    pictures = _pictures(entry)
    sizes = [_size(picture) for picture in pictures]
    width = 3 * PICTURE_PX + 4 * GAP_PX
    legend = _legend(entry, width)
    below = GAP_PX + max(height for _, height in sizes)
    height = below + LINE_PX + (legend.height if legend else GAP_PX)
    band = Image.new("RGB", (width, height), PAPER)
    pen, font = ImageDraw.Draw(band), ImageFont.load_default(FONT_PX)
    for place, (picture, size) in enumerate(zip(pictures, sizes, strict=True)):
        left = GAP_PX + place * (PICTURE_PX + GAP_PX)
        if isinstance(picture, str):
            pen.rectangle((left, GAP_PX, left + size[0] - 1, GAP_PX + size[1] - 1), NOTHING)
            middle = left + size[0] // 2, GAP_PX + size[1] // 2
            pen.text(middle, picture, INK, font, anchor="mm")
        else:
            # Box averaging keeps thin lines when it shrinks, and labels sharp when it enlarges.
            shrunk = Image.fromarray(picture).resize(size, Image.Resampling.BOX)
            band.paste(shrunk, (left, GAP_PX))
    ink = FAULT_INK if entry.is_faulty else INK
    pen.text((GAP_PX, below + LINE_PX // 2 + 2), entry.caption, ink, font, anchor="lm")
    if legend:
        band.paste(legend, (0, below + LINE_PX))
    return band


def _pictures(entry: Entry) -> list[np.ndarray | str]:
    """Image, mask, and the one laid over the other; somewhat larger than they are to be drawn."""
    image = entry.image if isinstance(entry.image, str) else _reduced(entry.image)
    mask = entry.mask
    if isinstance(mask, str):
        return [image, mask, "no mask"]
    if mask.ndim == 3:
        is_grey = (mask == mask[..., :1]).all()
        return [image, _reduced(mask), "no classes in the mask" if is_grey else "mask in colour"]
    shown = mask[:: _factor(mask), :: _factor(mask)]
    if isinstance(entry.image, str) or isinstance(image, str):
        laid_over: np.ndarray | str = "no image"
    elif entry.image.shape[:2] != mask.shape:
        laid_over = "of different sizes"
    else:
        laid_over = overlays.tint(image, shown, entry.class_names)
    return [image, _palette()[shown], laid_over]


def _reduced(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).reduce(_factor(picture)))


def _factor(picture: np.ndarray) -> int:
    return max(1, picture.shape[1] // (DETAIL * PICTURE_PX))


def _palette() -> np.ndarray:
    palette = voc_palette()
    palette[IGNORE_INDEX] = overlays.VOID_COLOUR
    return palette


def _size(picture: np.ndarray | str) -> tuple[int, int]:
    if isinstance(picture, str):
        return PICTURE_PX, PICTURE_PX // 2
    height, width = picture.shape[:2]
    # Of a strip that stands upright, no more is shown than twice the width.
    return PICTURE_PX, min(max(1, round(height * PICTURE_PX / width)), 2 * PICTURE_PX)


def _legend(entry: Entry, width: int) -> Image.Image | None:
    """Names and colours of the mask's values."""
    if isinstance(entry.mask, str) or entry.mask.ndim == 3:
        return None
    entries = legend.legend_entries(np.unique(entry.mask), entry.class_names, _palette())
    return legend.Legend(entries, FONT_PX).draw(width)
