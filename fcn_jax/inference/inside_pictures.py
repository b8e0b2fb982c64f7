"""Pictures of what a network computes on the way, for `fcn_jax.inspect` and the server's page."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from fcn_jax.errors import UserError
from fcn_jax.inference.inside import (
    Opened,
    at_pixels,
    feature_maps,
    first_filters,
    receptive_field,
    skips,
)
from fcn_jax.pictures.maps import field_picture, filter_sheet, map_sheet, sheet
from fcn_jax.pictures.overlays import tint

MAX_SIDE_PX = 512


class InsidePicture(NamedTuple):
    """A picture, uint8 (h, w, 3), with a name for its file, a title and a caption."""

    name: str
    title: str
    caption: str
    pixels: np.ndarray


def shrunk(image: np.ndarray, pixel: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Shrinks an image, uint8 (h, w, c), and a pixel (row, column) in it, to `MAX_SIDE_PX`."""
    height, width = image.shape[:2]
    factor = min(1.0, MAX_SIDE_PX / max(height, width))
    if factor == 1:
        return image, pixel
    size = max(1, math.floor(height * factor)), max(1, math.floor(width * factor))
    bands = [
        Image.fromarray(band).resize(size[::-1], Image.Resampling.BILINEAR)
        for band in np.moveaxis(image, -1, 0)
    ]
    row, column = (min(int(at * factor), side - 1) for at, side in zip(pixel, size, strict=True))
    return np.stack([np.asarray(band) for band in bands], axis=-1), (row, column)


def inside_pictures(
    opened: Opened, image: np.ndarray, pixel: tuple[int, int]
) -> list[InsidePicture]:
    """Draws filters, the skips' scores, the receptive field of a pixel, and all layers.

    Args:
        opened: the network; of the features of a classifier, filters and layers alone are drawn.
        image: uint8 (h, w, c), RGB and the channels that follow it.
        pixel: row and column.

    Raises:
        UserError: the network sees other channels.
    """
    if opened.channels != image.shape[-1]:
        raise UserError(
            f"the network sees {opened.channels} channels, and the image has {image.shape[-1]}"
        )
    kernel = first_filters(opened)
    pictures = [
        InsidePicture(
            "filters",
            "Filters of the first layer",
            f"{kernel.shape[-1]} filters of {kernel.shape[0]} × {kernel.shape[1]}; grey is zero.",
            filter_sheet(kernel),
        )
    ]
    if opened.has_skips:
        pictures.append(_skips(opened, image))
    if opened.class_names:
        pictures.append(_field(opened, image, pixel))
    for index, (name, values) in enumerate(feature_maps(opened, image).items(), start=1):
        height, width, channels = values.shape
        pictures.append(
            InsidePicture(
                f"layers/{index:02}_{name}",
                name,
                f"{channels} channels of {width} × {height}, values {values.min():.3g} to "
                f"{values.max():.3g}; each channel has its own scale.",
                map_sheet(values),
            )
        )
    return pictures


def _skips(opened: Opened, image: np.ndarray) -> InsidePicture:
    size = image.shape[0], image.shape[1]
    tiles: list[np.ndarray] = []
    found = skips(opened, image)
    for scores in [*(skip.own for skip in found), *(skip.fused for skip in found)]:
        grid = found[len(tiles) % len(found)].grid
        label = at_pixels(scores, grid, size).argmax(-1).astype(np.uint8)
        tiles.append(tint(image[..., :3], label, opened.class_names, opened.palette, opacity=0.6))
    coarsest = found[0].stride
    names = ", ".join(f"stride {skip.stride}" for skip in found)
    steps = ", ".join(f"FCN-{skip.stride}s" for skip in found)
    caption = (
        f"Best classes of the scores of each stage alone ({names}), then those after each fusion "
        f"({steps} of a backbone of stride {coarsest}), interpolated to the image's pixels."
    )
    return InsidePicture("skips", "What each skip adds", caption, sheet(tiles))


def _field(opened: Opened, image: np.ndarray, pixel: tuple[int, int]) -> InsidePicture:
    field = receptive_field(opened, image, pixel)
    rows, columns = (last - first + 1 for first, last in (field.rows, field.columns))
    bounds = (
        f"the frame of {columns} × {rows} pixels within the image"
        if field.is_bounded
        else "the whole image, because a layer sees all of it"
    )
    inside = field.influence.sum()
    order = np.sort(field.influence, axis=None)[::-1].cumsum()
    half = int(np.searchsorted(order, 0.5 * inside)) + 1
    caption = (
        f"The score of {opened.class_names[field.label]} at x {pixel[1]}, y {pixel[0]} may depend "
        f"on {bounds}. Half of its gradient comes from {half:,} pixels (colours, by their square "
        "root)."
    )
    drawn = field_picture(image[..., :3], field.influence, field.rows, field.columns, pixel)
    return InsidePicture("field", "Receptive field", caption, drawn)
