"""Parts of sheets: rows of thumbnails, captions, and bands stacked on a page."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fcn_jax.errors import printable
from fcn_jax.pictures.colours import FAINT_INK, INK, PAPER, Colour

GAP_PX = 10
FONT_PX = 14
CAPTION_PX = 24


def thumbnail(picture: np.ndarray, width_px: int, max_height_px: int | None = None) -> Image.Image:
    """Scales a picture, uint8 (h, w, 3), to a width.

    Box averaging keeps thin lines when it shrinks a picture, and keeps labels sharp when it
    enlarges one. A picture that would become higher than `max_height_px` is squeezed.
    """
    height, width = picture.shape[:2]
    height_px = max(1, round(height * width_px / width))
    if max_height_px is not None:
        height_px = min(height_px, max_height_px)
    return Image.fromarray(picture).resize((width_px, height_px), Image.Resampling.BOX)


def placeholder(text: str, size: tuple[int, int], colour: Colour) -> Image.Image:
    """Draws a text in the middle of an area of one colour; `size` is width and height."""
    area = Image.new("RGB", size, colour)
    middle = size[0] // 2, size[1] // 2
    ImageDraw.Draw(area).text(middle, text, INK, ImageFont.load_default(FONT_PX), anchor="mm")
    return area


def row(pictures: Sequence[Image.Image]) -> Image.Image:
    """Sets pictures of one width next to each other, with a gap above and on all sides of each."""
    step = pictures[0].width + GAP_PX
    height = GAP_PX + max(picture.height for picture in pictures)
    band = Image.new("RGB", (len(pictures) * step + GAP_PX, height), PAPER)
    for column, picture in enumerate(pictures):
        band.paste(picture, (GAP_PX + column * step, GAP_PX))
    return band


def caption(width: int, left: str, right: str = "", ink: Colour = INK) -> Image.Image:
    """Draws a line of text at the left and, fainter, at the right."""
    band = Image.new("RGB", (width, CAPTION_PX), PAPER)
    draw, font = ImageDraw.Draw(band), ImageFont.load_default(FONT_PX)
    draw.text((GAP_PX, CAPTION_PX // 2), printable(left), ink, font, anchor="lm")
    draw.text((width - GAP_PX, CAPTION_PX // 2), right, FAINT_INK, font, anchor="rm")
    return band


def stack(bands: Sequence[Image.Image]) -> Image.Image:
    """Sets bands below each other on a page as wide as the widest."""
    size = max(band.width for band in bands), sum(band.height for band in bands)
    page = Image.new("RGB", size, PAPER)
    top = 0
    for band in bands:
        page.paste(band, (0, top))
        top += band.height
    return page
