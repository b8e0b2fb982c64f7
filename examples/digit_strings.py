"""Draws strings of digits, and the windows that a classifier of single digits is trained on."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

WINDOW_PX = 32
NO_DIGIT = 10
NUM_CLASSES = 11
MAX_DIGITS = 8
MIN_DISTANCE_PX = 13  # between the centres of neighbours: three columns of the map
OVERSAMPLING = 2  # digits are drawn this much larger and shrunk, for smooth edges
DEJAVU = "Sans Sans-Bold Sans-Oblique Sans-BoldOblique SansMono SansMono-Bold Serif Serif-Bold"
FONTS = ("", *(f"DejaVu{style}" for style in [*DEJAVU.split(), "Serif-Italic"]))  # "": Pillow's
UNSEEN_FONTS = ("STIXGeneral", "STIXGeneralBol", "cmr10", "cmss10")  # not trained on


class DrawnString(NamedTuple):
    """An image, uint8 (32, w, 1), its digits, and their centres in pixels."""

    image: np.ndarray
    text: str
    centres_px: np.ndarray


def draw_windows(
    strings: int, rng: np.random.Generator, after_each: Callable[[], None] = lambda: None
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts windows, uint8 (n, 32, 32, 1), with labels, int32 (n,), from strings.

    Each digit gives a window near its centre and one between digits, so neighbours are visible.
    """
    images, labels = [], []
    for _ in range(strings):
        string = draw_string(rng)
        lefts = np.arange(string.image.shape[1] - WINDOW_PX + 1)
        distances = np.abs(lefts[:, None] + (WINDOW_PX - 1) / 2 - string.centres_px)
        for index, digit in enumerate(string.text):
            near = rng.choice(lefts[distances[:, index] <= 3])
            between = rng.choice(lefts[distances.min(1) >= 5.5])  # ambiguous ones are left out
            for left, label in ((near, int(digit)), (between, NO_DIGIT)):
                images.append(string.image[:, left : left + WINDOW_PX])
                labels.append(label)
        after_each()
    return np.stack(images), np.array(labels, np.int32)


def draw_string(rng: np.random.Generator, fonts: tuple[str, ...] = FONTS) -> DrawnString:
    """Draws five to eight digits in one font, at random distances, on noisy paper."""
    text = "".join(map(str, rng.integers(10, size=rng.integers(5, MAX_DIGITS + 1))))
    font = load_font(str(rng.choice(fonts)), OVERSAMPLING * int(rng.integers(21, 30)))
    stroke_px = int(rng.integers(0, 3))
    max_gap_px = rng.integers(3, 14)
    ink = np.zeros((WINDOW_PX, MAX_DIGITS * 2 * WINDOW_PX), np.float32)
    centres: list[float] = []
    left = int(rng.integers(13, 20))  # a window can be centred on the first digit
    for digit in text:
        glyph = draw_glyph(digit, font, stroke_px, rng)
        height, width = glyph.shape
        half = (width - 1) / 2
        if centres:
            left += int(rng.integers(0, max_gap_px))
            left = max(left, math.ceil(centres[-1] + MIN_DISTANCE_PX - half))
        top = int(np.clip((WINDOW_PX - height) // 2 + rng.integers(-2, 3), 0, WINDOW_PX - height))
        area = ink[top : top + height, left : left + width]
        np.maximum(area, glyph, out=area)
        centres.append(left + half)
        left += width
    # A multiple of the window: few widths mean few compilations.
    ink = ink[:, : -(-(left + 13) // WINDOW_PX) * WINDOW_PX]
    ink = gaussian_filter(ink, rng.uniform(0, 0.8))
    paper = rng.uniform(0, 255) + rng.uniform(-30, 30) * np.linspace(-1, 1, ink.shape[1])
    contrast = rng.uniform(80, 200) * (1 if paper.mean() < 128 else -1)
    noise = rng.uniform(0, 16) * rng.standard_normal(ink.shape)
    image = np.clip(paper + contrast * ink + noise, 0, 255).astype(np.uint8)
    return DrawnString(image[..., None], text, np.array(centres))


def draw_glyph(digit: str, font: Any, stroke_px: int, rng: np.random.Generator) -> np.ndarray:
    """Draws a rotated and slanted digit in its bounding box: float32 (h, w), 1 for ink."""
    side = 40 * OVERSAMPLING
    canvas = Image.new("L", (side, side))
    middle = side / 2, side / 2
    ImageDraw.Draw(canvas).text(middle, digit, 255, font, anchor="mm", stroke_width=stroke_px)
    slant = rng.uniform(-0.2, 0.2)
    canvas = canvas.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR)
    shear = (1, slant, -slant * side / 2, 0, 1, 0)
    canvas = canvas.transform(canvas.size, Image.Transform.AFFINE, shear, Image.Resampling.BILINEAR)
    small = np.asarray(canvas.crop(canvas.getbbox()).reduce(OVERSAMPLING), np.float32) / 255
    return small[:WINDOW_PX]


@functools.cache
def load_font(name: str, size_px: int) -> Any:
    if not name:
        return ImageFont.load_default(size_px)
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / f"{name}.ttf", size_px)
