"""Contact sheets of images with their masks: image, classes, and the classes over the image."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from fcn_jax.pictures import layout, overlays
from fcn_jax.pictures.colours import (
    FAULT_INK,
    INK,
    PAPER,
    PLACEHOLDER_COLOUR,
    Colour,
    palette_of,
    palette_with_grey_void,
)
from fcn_jax.pictures.legend import Legend, legend_entries

THUMBNAIL_PX = 220
DETAIL = 4  # thumbnails are made from pictures of up to this many times their width
COLUMNS = 2


class Entry(NamedTuple):
    """An image with its mask.

    image: uint8 (h, w, 3), or a text to draw instead. mask: class indices, uint8 (h, w); or, if the
    mask file contains none, its picture, uint8 (h, w, 3); or a text. colours: those of the first
    classes; VOC's for the others.
    """

    caption: str
    image: np.ndarray | str
    mask: np.ndarray | str
    class_names: Sequence[str]
    is_faulty: bool = False
    colours: Sequence[Colour] = ()

    @property
    def palette(self) -> np.ndarray:
        return palette_with_grey_void(palette_of(self.colours))


def draw(entries: Iterable[Entry]) -> Image.Image | None:
    """Draws the entries in their order, each in the column that is shortest.

    Each entry is released once it is drawn, so that memory holds one at a time.

    Returns:
      An RGB picture, or None if there are no entries.
    """
    columns: list[list[Image.Image]] = [[] for _ in range(COLUMNS)]
    for entry in entries:
        band = _draw_entry(entry)
        min(columns, key=lambda bands: sum(b.height for b in bands)).append(band)
    drawn = [layout.stack(bands) for bands in columns if bands]
    if not drawn:
        return None
    width = drawn[0].width
    page = Image.new("RGB", (COLUMNS * width, max(column.height for column in drawn)), PAPER)
    for index, column in enumerate(drawn):
        page.paste(column, (index * width, 0))
    return page


def _draw_entry(entry: Entry) -> Image.Image:
    pictures = layout.row([_thumbnail(picture) for picture in _pictures(entry)])
    ink = FAULT_INK if entry.is_faulty else INK
    bands = [pictures, layout.caption(pictures.width, entry.caption, ink=ink)]
    if not isinstance(entry.mask, str) and entry.mask.ndim == 2:
        present = np.unique(entry.mask)
        legend = legend_entries(present, entry.class_names, entry.palette)
        bands.append(Legend(legend, layout.FONT_PX).draw(pictures.width))
    return layout.stack(bands)


def _pictures(entry: Entry) -> list[np.ndarray | str]:
    """Returns image, mask, and the mask over the image, or texts if there are none."""
    image = entry.image if isinstance(entry.image, str) else _reduce(entry.image)
    mask = entry.mask
    if isinstance(mask, str):
        return [image, mask, "no mask"]
    if mask.ndim == 3:
        is_grey = (mask == mask[..., :1]).all()
        return [image, _reduce(mask), "no classes in the mask" if is_grey else "mask in colour"]
    factor = _reduction(mask)
    reduced = mask[::factor, ::factor]
    if isinstance(entry.image, str) or isinstance(image, str):
        overlay: np.ndarray | str = "no image"
    elif entry.image.shape[:2] != mask.shape:
        overlay = "of different sizes"
    else:
        overlay = overlays.tint(image, reduced, entry.class_names, palette_of(entry.colours))
    return [image, entry.palette[reduced], overlay]


def _reduce(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).reduce(_reduction(picture)))


def _reduction(picture: np.ndarray) -> int:
    return max(1, picture.shape[1] // (DETAIL * THUMBNAIL_PX))


def _thumbnail(picture: np.ndarray | str) -> Image.Image:
    if isinstance(picture, str):
        return layout.placeholder(picture, (THUMBNAIL_PX, THUMBNAIL_PX // 2), PLACEHOLDER_COLOUR)
    return layout.thumbnail(picture, THUMBNAIL_PX, max_height_px=2 * THUMBNAIL_PX)
