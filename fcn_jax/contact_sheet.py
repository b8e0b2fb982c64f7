"""A picture of some images with their masks: image, classes, and the one laid over the other."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fcn_jax import visualize
from fcn_jax.data.labels import VOID_LABEL, voc_palette

PICTURE_PX = 220
GAP_PX = 10
FONT_PX = 13
LINE_PX = 19
UNNAMED_SHOWN = 4  # values outside the classes
COLUMNS = 2
INK, FAULT_INK = (34, 34, 34), (190, 30, 30)
PAPER, NOTHING = (255, 255, 255), (228, 228, 228)


class Entry(NamedTuple):
    """An image with its mask, as they are drawn.

    image: uint8 (h, w, 3), or None where it cannot be read. mask: class indices, uint8 (h, w); the
    picture that it is, uint8 (h, w, 3), where it holds none; or None.
    """

    name: str
    image: np.ndarray | None
    mask: np.ndarray | None
    class_names: Sequence[str]
    is_faulty: bool


def draw(entries: Iterable[Entry]) -> Image.Image:
    """Sets the entries in columns, in their order, each below where the column is shortest."""
    columns: list[list[Image.Image]] = [[] for _ in range(COLUMNS)]
    heights = [0] * COLUMNS
    for entry in entries:
        band = _band(entry)
        shortest = heights.index(min(heights))
        columns[shortest].append(band)
        heights[shortest] += band.height
    width = 3 * PICTURE_PX + 4 * GAP_PX
    page = Image.new("RGB", (COLUMNS * width, max(max(heights), 1)), PAPER)
    for column, bands in enumerate(columns):
        top = 0
        for band in bands:
            page.paste(band, (column * width, top))
            top += band.height
    return page


def _band(entry: Entry) -> Image.Image:
    pictures = _pictures(entry)
    sizes = [_size(picture) for picture in pictures]
    legend = _legend(entry)
    text_px = (1 + len(legend)) * LINE_PX
    height = max(height for _, height in sizes) + text_px + 2 * GAP_PX
    band = Image.new("RGB", (3 * PICTURE_PX + 4 * GAP_PX, height), PAPER)
    pen, font = ImageDraw.Draw(band), ImageFont.load_default(FONT_PX)
    for place, (picture, size) in enumerate(zip(pictures, sizes, strict=True)):
        left = GAP_PX + place * (PICTURE_PX + GAP_PX)
        if picture is None:
            pen.rectangle((left, GAP_PX, left + size[0], GAP_PX + size[1]), NOTHING)
        else:
            # Box averaging keeps thin lines when it shrinks, and labels sharp when it enlarges.
            shrunk = Image.fromarray(picture).resize(size, Image.Resampling.BOX)
            band.paste(shrunk, (left, GAP_PX))
    top = height - GAP_PX - text_px
    ink = FAULT_INK if entry.is_faulty else INK
    pen.text((GAP_PX, top + LINE_PX // 2), entry.name, ink, font, anchor="lm")
    for line in legend:
        top += LINE_PX
        left = GAP_PX
        for name, colour in line:
            pen.rectangle((left, top + 4, left + 11, top + 15), colour, INK)
            pen.text((left + 16, top + LINE_PX // 2), name, INK, font, anchor="lm")
            left += _legend_px(name, font)
    return band


def _pictures(entry: Entry) -> list[np.ndarray | None]:
    image, mask = entry.image, entry.mask
    if mask is None or mask.ndim == 3:
        return [image, mask, None]
    laid_over = None
    if image is not None and image.shape[:2] == mask.shape:
        height, width = mask.shape
        laid_over = visualize.overlay(image, mask, entry.class_names)[:height, :width]
    return [image, voc_palette()[mask], laid_over]


def _size(picture: np.ndarray | None) -> tuple[int, int]:
    if picture is None:
        return PICTURE_PX, PICTURE_PX // 2
    height, width = picture.shape[:2]
    # Of a strip that stands upright, no more is shown than twice the width.
    return PICTURE_PX, min(max(1, round(height * PICTURE_PX / width)), 2 * PICTURE_PX)


def _legend(entry: Entry) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Names and colours of the mask's values, in lines."""
    if entry.mask is None or entry.mask.ndim == 3:
        return []
    names: Mapping[int, str] = {**dict(enumerate(entry.class_names)), VOID_LABEL: "void"}
    font = ImageFont.load_default(FONT_PX)
    lines: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    left = 0
    values = np.unique(entry.mask).tolist()
    unnamed = [label for label in values if label not in names]
    for label in [label for label in values if label in names] + unnamed[:UNNAMED_SHOWN]:
        more = len(unnamed) > UNNAMED_SHOWN and label == unnamed[UNNAMED_SHOWN - 1]
        name = names.get(label, f"{label}, …" if more else str(label))
        width = _legend_px(name, font)
        if left + width > 3 * PICTURE_PX + 2 * GAP_PX and lines[-1]:
            lines.append([])
            left = 0
        lines[-1].append((name, tuple(voc_palette()[label].tolist())))
        left += width
    return lines


def _legend_px(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return 16 + int(font.getlength(name)) + 12
