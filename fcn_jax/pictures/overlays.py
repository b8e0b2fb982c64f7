"""Label maps as palette PNGs, and pictures of classes or errors laid over an image."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.data.palettes import voc_palette
from fcn_jax.pictures.colours import (
    CORRECT_COLOUR,
    HATCH_GREYS,
    PAPER,
    VOID_COLOUR,
    WRONG_COLOUR,
    hatch,
)
from fcn_jax.pictures.legend import Legend, legend_entries
from fcn_jax.terminal.atomic_files import write_whole


def save_label_map(
    path: str | os.PathLike[str],
    label: np.ndarray,
    palette: np.ndarray | None = None,
    text: PngInfo | None = None,
) -> None:
    """Write a label map as a palette PNG: looks like colours, reads back as indices.

    The file appears under its name only when it is complete.

    Args:
      path: the PNG to write.
      label: uint8 (h, w).
      palette: uint8 (256, 3), RGB; VOC's if None.
      text: what the file shall hold besides.

    Raises:
      UserError: the file cannot be written.
      ValueError: `label` or `palette` is not of the shape and type above.
    """
    check_label("label", label)
    picture = Image.fromarray(label)
    picture.putpalette(palette_or_voc(palette).tobytes())
    write_whole(Path(path), lambda part: picture.save(part, format="PNG", pnginfo=text))


def overlay(
    image: np.ndarray,
    label: np.ndarray,
    class_names: Sequence[str],
    palette: np.ndarray | None = None,
    opacity: float = 0.55,
) -> np.ndarray:
    """Lay the classes over the picture as `tint` does, and name those present beneath it.

    Args:
      image: uint8 (h, w, 3), RGB.
      label: uint8 (h, w).
      class_names: k names, for the legend.
      palette: uint8 (256, 3), RGB; VOC's if None.
      opacity: of the colours, 0 (nothing to see) to 1 (nothing of the picture to see).

    Returns:
      uint8 (h', w', 3). The picture is `[:h, :w]`, the legend below it. w' is larger than w only
      where the picture is too narrow for the longest class name.

    Raises:
      ValueError: the arrays are not of the shapes and types above.
    """
    picture = tint(image, label, class_names, palette, opacity)
    height, width = label.shape
    palette = palette_or_voc(palette).copy()
    clear = _clear_label(class_names)
    if clear is not None:
        palette[clear] = PAPER
    entries = legend_entries(np.unique(label), class_names, palette)
    legend = Legend(entries, font_px=max(11, round(max(height, width) / 55)))
    strip = legend.draw(max(width, legend.narrowest_px))
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
    """Lay the classes over the picture and outline them.

    Class 0 is left clear (in `overlay`, its swatch is empty) if its name is 'background'; void is
    hatched in grey.

    Args:
      image, label, class_names, palette, opacity: as of `overlay`.

    Returns:
      uint8 (h, w, 3).

    Raises:
      ValueError: the arrays are not of the shapes and types above.
    """
    check_label("label", label)
    check_image(image, label)
    palette = palette_or_voc(palette)
    long_side = max(label.shape)
    clear = _clear_label(class_names)
    picture = image.copy()
    void = label == IGNORE_INDEX
    coloured = ~void if clear is None else ~void & (label != clear)
    blend = (1 - opacity) * image[coloured] + opacity * palette[label[coloured]]
    picture[coloured] = np.rint(blend)
    # Inner outlines: they leave the clear class's own pixels as they were.
    outline = coloured & _near_other_label(label, max(1, round(long_side / 600)))
    picture[outline] = np.rint(0.35 * palette[label[outline]] + 0.65 * 255)

    stripe_px = max(2, round(long_side / 250))
    stripe = hatch(label.shape, stripe_px)
    for where, grey in zip((void & stripe, void & ~stripe), HATCH_GREYS, strict=True):
        picture[where] = np.rint(0.35 * picture[where] + 0.65 * grey)
    return picture


def error_map(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Show where a prediction is right (pale), wrong (red), or not scored (grey).

    Args:
      label: uint8 (h, w), the truth, `IGNORE_INDEX` where not scored.
      prediction: uint8 (h, w).

    Returns:
      uint8 (h, w, 3), RGB: `CORRECT_COLOUR`, `WRONG_COLOUR` or `VOID_COLOUR` at each pixel.

    Raises:
      ValueError: the arrays are not of the shapes and types above.
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


def palette_or_voc(palette: np.ndarray | None) -> np.ndarray:
    if palette is None:
        return voc_palette()
    if palette.shape != (256, 3) or palette.dtype != np.uint8:
        raise ValueError(
            f"`palette` ({palette.dtype}, shape {palette.shape}) must be uint8 of shape (256, 3)"
        )
    return palette


def check_label(name: str, label: np.ndarray) -> None:
    if label.ndim != 2 or label.dtype != np.uint8:
        raise ValueError(f"`{name}` ({label.dtype}, shape {label.shape}) must be uint8 (h, w)")


def check_image(image: np.ndarray, label: np.ndarray) -> None:
    if image.shape != (*label.shape, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"`image` ({image.dtype}, shape {image.shape}) must be uint8 of shape "
            f"{(*label.shape, 3)}, the label's size"
        )


def _near_other_label(label: np.ndarray, reach_px: int) -> np.ndarray:
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


def _clear_label(class_names: Sequence[str]) -> int | None:
    return 0 if class_names and class_names[0] == "background" else None
