"""Sheets of image | ground truth | prediction | error, one row per image."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.pictures.colours import (
    CORRECT_COLOUR,
    FAINT_INK,
    INK,
    PAPER,
    VOID_COLOUR,
    WRONG_COLOUR,
)
from fcn_jax.pictures.legend import Legend, LegendEntry, legend_entries
from fcn_jax.pictures.overlays import check_image, check_label, error_map, palette_or_voc

_THUMBNAIL_WIDTH_PX = 280
_GAP_PX = 12
_SHEET_FONT_PX = 15


SheetRow = tuple[np.ndarray, np.ndarray, np.ndarray, str]
"""Of a sheet: image uint8 (h, w, 3), label and prediction uint8 (h, w), and the caption."""


def sheet(
    rows: Iterable[SheetRow],
    class_names: Sequence[str],
    palette: np.ndarray | None = None,
) -> Image.Image:
    """Set images beside truth, prediction and errors, a row for each image.

    Args:
      rows: of images whose sizes may differ; all are drawn at one width.
      class_names: k names, for the legend.
      palette: uint8 (256, 3), RGB; VOC's if None.

    Returns:
      An RGB picture about 1,200 pixels wide, with a caption that gives each image's pixel accuracy
      and a legend of the classes that occur in any truth or prediction.

    Raises:
      ValueError: the arrays are not of the shapes and types above.
    """
    palette = palette_or_voc(palette).copy()
    palette[IGNORE_INDEX] = VOID_COLOUR
    present: set[int] = set()
    bands = [_title_band()]
    for image, label, prediction, name in rows:
        check_label("label", label)
        check_image(image, label)
        wrong = error_map(label, prediction)
        present.update(np.unique(label).tolist(), np.unique(prediction).tolist())
        caption = f"pixel accuracy {_pixel_accuracy(label, prediction)}"
        bands.append(_row_band([image, palette[label], palette[prediction], wrong], name, caption))

    entries = legend_entries(np.array(sorted(present - {IGNORE_INDEX})), class_names, palette)
    entries += [
        LegendEntry("correct", CORRECT_COLOUR),
        LegendEntry("wrong", WRONG_COLOUR),
        LegendEntry("void", VOID_COLOUR),
    ]
    bands.append(Legend(entries, _SHEET_FONT_PX).draw(bands[0].width))
    page = Image.new("RGB", (bands[0].width, sum(band.height for band in bands)), PAPER)
    top = 0
    for band in bands:
        page.paste(band, (0, top))
        top += band.height
    return page


def _columns_left() -> list[int]:
    return [_GAP_PX + column * (_THUMBNAIL_WIDTH_PX + _GAP_PX) for column in range(4)]


def _sheet_band(height: int) -> Image.Image:
    return Image.new("RGB", (4 * _THUMBNAIL_WIDTH_PX + 5 * _GAP_PX, height), PAPER)


def _title_band() -> Image.Image:
    band = _sheet_band(2 * _GAP_PX + _SHEET_FONT_PX)
    font = ImageFont.load_default(_SHEET_FONT_PX + 3)
    draw = ImageDraw.Draw(band)
    titles = ("image", "truth", "prediction", "error")
    for left, title in zip(_columns_left(), titles, strict=True):
        middle = (left + _THUMBNAIL_WIDTH_PX // 2, band.height // 2)
        draw.text(middle, title, INK, font, anchor="mm")
    return band


def _row_band(pictures: list[np.ndarray], name: str, caption: str) -> Image.Image:
    height, width = pictures[0].shape[:2]
    size = (_THUMBNAIL_WIDTH_PX, max(1, round(height * _THUMBNAIL_WIDTH_PX / width)))
    caption_px = round(1.9 * _SHEET_FONT_PX)
    band = _sheet_band(size[1] + caption_px + _GAP_PX)
    for left, array in zip(_columns_left(), pictures, strict=True):
        # Box averaging shrinks without dropping thin errors, and enlarges without smearing labels.
        thumbnail = Image.fromarray(array).resize(size, Image.Resampling.BOX)
        band.paste(thumbnail, (left, 0))
    font = ImageFont.load_default(_SHEET_FONT_PX)
    draw = ImageDraw.Draw(band)
    middle = size[1] + caption_px // 2
    draw.text((_GAP_PX, middle), name, INK, font, anchor="lm")
    draw.text((band.width - _GAP_PX, middle), caption, FAINT_INK, font, anchor="rm")
    return band


def _pixel_accuracy(label: np.ndarray, prediction: np.ndarray) -> str:
    scored = label != IGNORE_INDEX
    if not scored.any():
        return "–"
    return f"{100 * (label == prediction)[scored].mean():.1f} %"
