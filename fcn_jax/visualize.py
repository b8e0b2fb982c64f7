"""Pictures of labels and predictions: label maps, overlays, error maps, sheets, confusion plots."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from fcn_jax.data.labels import VOID_LABEL, voc_palette
from fcn_jax.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Colour = tuple[int, int, int]

CORRECT_COLOUR: Colour = (236, 236, 232)
WRONG_COLOUR: Colour = (214, 39, 40)
VOID_COLOUR: Colour = (158, 158, 158)
UNNAMED_SHOWN = 4
"""Values outside the classes that a legend tells of."""

_INK: Colour = (34, 34, 34)
_FAINT_INK: Colour = (110, 110, 110)
_PAPER: Colour = (255, 255, 255)
_HATCH_GREYS = (205, 95)
_THUMBNAIL_WIDTH_PX = 280
_GAP_PX = 12
_SHEET_FONT_PX = 15


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
    _check_label("label", label)
    picture = Image.fromarray(label)
    picture.putpalette(_palette_or_voc(palette).tobytes())
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
    palette = _palette_or_voc(palette).copy()
    clear = _clear_label(class_names)
    if clear is not None:
        palette[clear] = _PAPER
    entries = legend_entries(np.unique(label), class_names, palette)
    legend = Legend(entries, font_px=max(11, round(max(height, width) / 55)))
    strip = legend.draw(max(width, legend.narrowest_px))
    canvas = np.full((height + strip.height, strip.width, 3), _PAPER, np.uint8)
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
    _check_label("label", label)
    _check_image(image, label)
    palette = _palette_or_voc(palette)
    long_side = max(label.shape)
    clear = _clear_label(class_names)
    picture = image.copy()
    void = label == VOID_LABEL
    coloured = ~void if clear is None else ~void & (label != clear)
    blend = (1 - opacity) * image[coloured] + opacity * palette[label[coloured]]
    picture[coloured] = np.rint(blend)
    # Inner outlines: they leave the clear class's own pixels as they were.
    outline = coloured & _near_other_label(label, max(1, round(long_side / 600)))
    picture[outline] = np.rint(0.35 * palette[label[outline]] + 0.65 * 255)

    stripe_px = max(2, round(long_side / 250))
    stripe = _hatch(label.shape, stripe_px)
    for where, grey in zip((void & stripe, void & ~stripe), _HATCH_GREYS, strict=True):
        picture[where] = np.rint(0.35 * picture[where] + 0.65 * grey)
    return picture


def error_map(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Show where a prediction is right (pale), wrong (red), or not scored (grey).

    Args:
      label: uint8 (h, w), the truth, `VOID_LABEL` where not scored.
      prediction: uint8 (h, w).

    Returns:
      uint8 (h, w, 3), RGB: `CORRECT_COLOUR`, `WRONG_COLOUR` or `VOID_COLOUR` at each pixel.

    Raises:
      ValueError: the arrays are not of the shapes and types above.
    """
    _check_label("label", label)
    _check_label("prediction", prediction)
    if label.shape != prediction.shape:
        raise ValueError(
            f"`label` (shape {label.shape}) and `prediction` (shape {prediction.shape}) must have "
            "the same shape"
        )
    verdict = np.where(label == VOID_LABEL, 2, (label != prediction).astype(np.uint8))
    return np.array([CORRECT_COLOUR, WRONG_COLOUR, VOID_COLOUR], np.uint8)[verdict]


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
    palette = _palette_or_voc(palette).copy()
    palette[VOID_LABEL] = VOID_COLOUR
    present: set[int] = set()
    bands = [_title_band()]
    for image, label, prediction, name in rows:
        _check_label("label", label)
        _check_image(image, label)
        wrong = error_map(label, prediction)
        present.update(np.unique(label).tolist(), np.unique(prediction).tolist())
        caption = f"pixel accuracy {_pixel_accuracy(label, prediction)}"
        bands.append(_row_band([image, palette[label], palette[prediction], wrong], name, caption))

    entries = legend_entries(np.array(sorted(present - {VOID_LABEL})), class_names, palette)
    entries += [
        LegendEntry("correct", CORRECT_COLOUR),
        LegendEntry("wrong", WRONG_COLOUR),
        LegendEntry("void", VOID_COLOUR),
    ]
    bands.append(Legend(entries, _SHEET_FONT_PX).draw(bands[0].width))
    page = Image.new("RGB", (bands[0].width, sum(band.height for band in bands)), _PAPER)
    top = 0
    for band in bands:
        page.paste(band, (0, top))
        top += band.height
    return page


def plot_confusion(
    confusion: np.ndarray, class_names: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Plot a confusion matrix in percent of each true class, as a heat map with class names.

    Up to 25 classes the percentages are written out. Rows of classes that the truth lacks are
    hatched and their names put in brackets.

    Args:
      confusion: integers (k, k), rows true and columns predicted.
      class_names: k names.
      path: the file to write; its suffix gives the format (`.png`, `.pdf`, `.svg`).

    Raises:
      ValueError: `class_names` does not have k names.
    """
    # Matplotlib takes half a second to import. A Figure of its own, without pyplot, needs no
    # display and leaves no global state behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    k = len(confusion)
    if len(class_names) != k:
        raise ValueError(f"`class_names` (={len(class_names)} names) must have {k} names")
    truth = confusion.sum(axis=1, keepdims=True)
    percent = np.divide(100 * confusion, truth, out=np.full((k, k), np.nan), where=truth > 0)
    absent = truth[:, 0] == 0

    side_inches = min(2.6 + 0.42 * k, 24.0)
    figure = Figure(figsize=(side_inches + 1.2, side_inches), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    heat = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    bar = figure.colorbar(heat, ax=axes, shrink=0.75, pad=0.015)
    bar.ax.spines[:].set_visible(False)
    bar.set_label("% of the true class's pixels")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    _name_ticks(axes, class_names, absent)
    for row in np.flatnonzero(absent):
        axes.axhspan(row - 0.5, row + 0.5, facecolor="0.93", edgecolor="0.75", hatch="///", lw=0)
    if k <= 25:
        for row, column in np.argwhere(percent >= 0.5):
            value = percent[row, column]
            colour = "white" if value > 60 else "black"
            axes.text(
                column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour
            )
    figure.savefig(path, dpi=150)


def _name_ticks(axes: "Axes", class_names: Sequence[str], absent: np.ndarray) -> None:
    k = len(class_names)
    shown = range(0, k, math.ceil(k / 120))  # more than 120 names would overlap
    names = [f"({class_names[i]})" if absent[i] else class_names[i] for i in shown]
    font_points = 9 if k <= 40 else 6
    axes.set_xticks(shown, names, rotation=90, fontsize=font_points)
    axes.set_yticks(shown, names, fontsize=font_points)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(k + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(k + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)


def _clear_label(class_names: Sequence[str]) -> int | None:
    return 0 if class_names and class_names[0] == "background" else None


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


def _hatch(shape: tuple[int, ...], stripe_px: int) -> np.ndarray:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (x + y) // stripe_px % 2 == 0


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
    unnamed = [label for label in present.tolist() if len(class_names) <= label != VOID_LABEL]
    names = dict(enumerate(class_names))
    names |= {label: f"class {label}" for label in unnamed[:UNNAMED_SHOWN]}
    if len(unnamed) > UNNAMED_SHOWN:
        names[unnamed[UNNAMED_SHOWN - 1]] += ", …"
    entries = []
    for label in present.tolist():
        if label == VOID_LABEL:
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
        strip = Image.new("RGB", (width, 2 * self.gap_px + (line + 1) * self.line_px), _PAPER)
        draw = ImageDraw.Draw(strip)
        for entry, (x, top) in zip(self.entries, places, strict=True):
            middle = top + self.line_px // 2
            self._draw_swatch(strip, entry, x, middle - self.swatch_px // 2)
            text_at = (x + self.swatch_px + self.gap_px, middle)
            draw.text(text_at, entry.name, _INK, self.font, anchor="lm")
        return strip

    def _draw_swatch(self, strip: Image.Image, entry: LegendEntry, x: int, y: int) -> None:
        side = self.swatch_px
        tile = np.full((side, side, 3), entry.colour, np.uint8)
        if entry.hatched:
            stripe = _hatch((side, side), max(2, side // 6))
            tile[stripe], tile[~stripe] = _HATCH_GREYS
        strip.paste(Image.fromarray(tile), (x, y))
        ImageDraw.Draw(strip).rectangle((x, y, x + side - 1, y + side - 1), outline=_FAINT_INK)


def _columns_left() -> list[int]:
    return [_GAP_PX + column * (_THUMBNAIL_WIDTH_PX + _GAP_PX) for column in range(4)]


def _sheet_band(height: int) -> Image.Image:
    return Image.new("RGB", (4 * _THUMBNAIL_WIDTH_PX + 5 * _GAP_PX, height), _PAPER)


def _title_band() -> Image.Image:
    band = _sheet_band(2 * _GAP_PX + _SHEET_FONT_PX)
    font = ImageFont.load_default(_SHEET_FONT_PX + 3)
    draw = ImageDraw.Draw(band)
    titles = ("image", "truth", "prediction", "error")
    for left, title in zip(_columns_left(), titles, strict=True):
        middle = (left + _THUMBNAIL_WIDTH_PX // 2, band.height // 2)
        draw.text(middle, title, _INK, font, anchor="mm")
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
    draw.text((_GAP_PX, middle), name, _INK, font, anchor="lm")
    draw.text((band.width - _GAP_PX, middle), caption, _FAINT_INK, font, anchor="rm")
    return band


def _pixel_accuracy(label: np.ndarray, prediction: np.ndarray) -> str:
    scored = label != VOID_LABEL
    if not scored.any():
        return "–"
    return f"{100 * (label == prediction)[scored].mean():.1f} %"


def _palette_or_voc(palette: np.ndarray | None) -> np.ndarray:
    if palette is None:
        return voc_palette()
    if palette.shape != (256, 3) or palette.dtype != np.uint8:
        raise ValueError(
            f"`palette` ({palette.dtype}, shape {palette.shape}) must be uint8 of shape (256, 3)"
        )
    return palette


def _check_label(name: str, label: np.ndarray) -> None:
    if label.ndim != 2 or label.dtype != np.uint8:
        raise ValueError(f"`{name}` ({label.dtype}, shape {label.shape}) must be uint8 (h, w)")


def _check_image(image: np.ndarray, label: np.ndarray) -> None:
    if image.shape != (*label.shape, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"`image` ({image.dtype}, shape {image.shape}) must be uint8 of shape "
            f"{(*label.shape, 3)}, the label's size"
        )
