"""Sheets of predictions: image, truth, prediction and error, one row per image."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.pictures import layout
from fcn_jax.pictures.colours import (
    CORRECT_COLOUR,
    PAPER,
    VOID_COLOUR,
    WRONG_COLOUR,
    palette_with_grey_void,
)
from fcn_jax.pictures.legend import Legend, LegendEntry, legend_entries
from fcn_jax.pictures.overlays import check_image, check_label, error_map

THUMBNAIL_PX = 280
TITLES = ("image", "truth", "prediction", "error")

SheetRow = tuple[np.ndarray, np.ndarray, np.ndarray, str]
"""A row of a sheet: image uint8 (h, w, 3), label and prediction uint8 (h, w), and its name."""


def sheet(
    rows: Iterable[SheetRow],
    class_names: Sequence[str],
    palette: np.ndarray | None = None,
) -> Image.Image:
    """Draws a row of image, truth, prediction and error for each image.

    Args:
      rows: images of any sizes; all are drawn at one width.
      class_names: k names, for the legend.
      palette: uint8 (256, 3), RGB; VOC's if None.

    Returns:
      An RGB picture about 1,200 pixels wide, with each image's pixel accuracy in its caption and a
      legend of the classes that occur in any truth or prediction.

    Raises:
      ValueError: the arrays are not of the shapes and types above.
    """
    palette = palette_with_grey_void(palette)
    present: set[int] = set()
    bands = [_title_band()]
    for image, label, prediction, name in rows:
        check_label("label", label)
        check_image(image, label)
        errors = error_map(label, prediction)
        present.update(np.unique(label).tolist(), np.unique(prediction).tolist())
        pictures = [image, palette[label], palette[prediction], errors]
        bands.append(layout.row([layout.thumbnail(p, THUMBNAIL_PX) for p in pictures]))
        accuracy = f"pixel accuracy {_pixel_accuracy(label, prediction)}"
        bands.append(layout.caption(bands[-1].width, name, accuracy))
    entries = legend_entries(np.array(sorted(present - {IGNORE_INDEX})), class_names, palette)
    entries += [
        LegendEntry("correct", CORRECT_COLOUR),
        LegendEntry("wrong", WRONG_COLOUR),
        LegendEntry("void", VOID_COLOUR),
    ]
    bands.append(Legend(entries, layout.FONT_PX).draw(bands[0].width))
    return layout.stack(bands)


def _title_band() -> Image.Image:
    size = THUMBNAIL_PX, layout.CAPTION_PX
    return layout.row([layout.placeholder(title, size, PAPER) for title in TITLES])


def _pixel_accuracy(label: np.ndarray, prediction: np.ndarray) -> str:
    scored = label != IGNORE_INDEX
    if not scored.any():
        return "–"
    return f"{100 * (label == prediction)[scored].mean():.1f} %"
