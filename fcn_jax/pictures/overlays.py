"""Writes label maps as palette PNGs, draws them over images, and draws maps of errors."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.pictures.colours import (
    CORRECT_COLOUR,
    HATCH_GREYS,
    PAPER,
    VOID_COLOUR,
    WRONG_COLOUR,
    hatch,
    palette_or_voc,
)
from fcn_jax.pictures.legend import Legend, legend_entries
from fcn_jax.terminal.atomic_files import write_whole


def save_label_map(
    path: str | os.PathLike[str],
    label: np.ndarray,
    palette: np.ndarray | None = None,
    text: PngInfo | None = None,
) -> None:
    """Writes a label map as a palette PNG: viewers show colours, and its pixels are class indices.

    The file is renamed to `path` when it is complete.

    Args:
      path: the PNG to write.
      label: uint8 (h, w).
      palette: uint8 (256, 3), RGB; VOC's if None.
      text: text chunks to add to the file.

    Raises:
      UserError: the file cannot be written.
      ValueError: `label` or `palette` has another shape or dtype.
    """
    picture = palette_picture(label, palette)
    write_whole(Path(path), lambda part: picture.save(part, format="PNG", pnginfo=text))


def palette_picture(label: np.ndarray, palette: np.ndarray | None = None) -> Image.Image:
    """Returns a label map as a picture that shows its classes in colours.

    Args:
      label: uint8 (h, w).
      palette: uint8 (256, 3), RGB; VOC's if None.

    Raises:
      ValueError: `label` or `palette` has another shape or dtype.
    """
    check_label("label", label)
    picture = Image.fromarray(label)
    picture.putpalette(palette_or_voc(palette).tobytes())
    return picture


def overlay(
    image: np.ndarray,
    label: np.ndarray,
    class_names: Sequence[str],
    palette: np.ndarray | None = None,
    opacity: float = 0.55,
) -> np.ndarray:
    """Draws the classes over an image as `tint` does, and a legend of the classes present below it.

    Args:
      image: uint8 (h, w, 3), RGB.
      label: uint8 (h, w).
      class_names: k names, for the legend.
      palette: uint8 (256, 3), RGB; VOC's if None.
      opacity: opacity of the colours, from 0 (invisible) to 1 (they hide the image).

    Returns:
      uint8 (h', w', 3): the image in `[:h, :w]`, and the legend below it. w' > w only if the image
      is narrower than the longest class name.

    Raises:
      ValueError: an array has another shape or dtype.
    """
    picture = tint(image, label, class_names, palette, opacity)
    height, width = label.shape
    palette = palette_or_voc(palette).copy()
    uncoloured = _uncoloured_label(class_names)
    if uncoloured is not None:
        palette[uncoloured] = PAPER
    entries = legend_entries(np.unique(label), class_names, palette)
    legend = Legend(entries, font_px=max(11, round(max(height, width) / 55)))
    strip = legend.draw(max(width, legend.min_width))
    canvas = np.full((height + strip.height, strip.width, 3), PAPER, np.uint8)
    canvas[:height, :width] = picture
    canvas[height:] = np.asarray(strip)
    return canvas


def tint(
    image: np.ndarray,
    label: np.ndarray,
    class_names: Sequence[str],
    palette: np.ndarray | None = None,
    opacity: float = 0.55,
) -> np.ndarray:
    """Draws the classes over an image, with outlines.

    Class 0 is not coloured if its name is 'background', and its swatch in the legend of `overlay`
    is empty. Pixels of `IGNORE_INDEX` are hatched in grey.

    Args:
      image, label, class_names, palette, opacity: see `overlay`.

    Returns:
      uint8 (h, w, 3).

    Raises:
      ValueError: an array has another shape or dtype.
    """
    check_label("label", label)
    check_image(image, label)
    palette = palette_or_voc(palette)
    long_side = max(label.shape)
    uncoloured = _uncoloured_label(class_names)
    picture = image.copy()
    void = label == IGNORE_INDEX
    coloured = ~void if uncoloured is None else ~void & (label != uncoloured)
    blend = (1 - opacity) * image[coloured] + opacity * palette[label[coloured]]
    picture[coloured] = np.rint(blend)
    # Outlines are drawn inside each class, so that pixels of the uncoloured class do not change.
    outline = coloured & _near_other_label(label, max(1, round(long_side / 600)))
    picture[outline] = np.rint(0.35 * palette[label[outline]] + 0.65 * 255)

    stripe_px = max(2, round(long_side / 250))
    stripe = hatch(label.shape, stripe_px)
    for where, grey in zip((void & stripe, void & ~stripe), HATCH_GREYS, strict=True):
        picture[where] = np.rint(0.35 * picture[where] + 0.65 * grey)
    return picture


def error_map(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Draws where a prediction is correct (pale), wrong (red), or not scored (grey).

    Args:
      label: uint8 (h, w), the truth; `IGNORE_INDEX` is not scored.
      prediction: uint8 (h, w).

    Returns:
      uint8 (h, w, 3), RGB: `CORRECT_COLOUR`, `WRONG_COLOUR` or `VOID_COLOUR` at each pixel.

    Raises:
      ValueError: an array has another shape or dtype.
    """
    check_label("label", label)
    check_label("prediction", prediction)
    if label.shape != prediction.shape:
        raise ValueError(
            f"`label` (shape {label.shape}) and `prediction` (shape {prediction.shape}) must have "
            "the same shape"
        )
    verdict = np.where(label == IGNORE_INDEX, 2, (label != prediction).astype(np.uint8))
    return np.array([CORRECT_COLOUR, WRONG_COLOUR, VOID_COLOUR], np.uint8)[verdict]


def check_label(name: str, label: np.ndarray) -> None:
    """Raises ValueError unless the label map is uint8 (h, w)."""
    if label.ndim != 2 or label.dtype != np.uint8:
        raise ValueError(f"`{name}` ({label.dtype}, shape {label.shape}) must be uint8 (h, w)")


def check_image(image: np.ndarray, label: np.ndarray) -> None:
    """Raises ValueError unless the image is uint8 (h, w, 3), of the label map's size."""
    if image.shape != (*label.shape, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"`image` ({image.dtype}, shape {image.shape}) must be uint8 of shape "
            f"{(*label.shape, 3)}, the label's size"
        )


def _near_other_label(label: np.ndarray, reach_px: int) -> np.ndarray:
    """Returns the pixels with another label within `reach_px` in their row or column."""
    near = np.zeros(label.shape, bool)
    for distance in range(1, reach_px + 1):
        for a, b in (
            (np.s_[distance:, :], np.s_[:-distance, :]),
            (np.s_[:, distance:], np.s_[:, :-distance]),
        ):
            differs = label[a] != label[b]
            near[a] |= differs
            near[b] |= differs
    return near


def _uncoloured_label(class_names: Sequence[str]) -> int | None:
    return 0 if class_names and class_names[0] == "background" else None
