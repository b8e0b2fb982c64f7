"""Feature maps, filters and fields of influence as pictures, uint8 (h, w, 3)."""

import math

import numpy as np
from PIL import Image

GAP_PX = 2
BACKGROUND = 255
MAX_SHEET_PX = 1280
MAX_TILES = 64


def heat(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Colours values from dark to light (matplotlib's magma).

    Args:
        values: float (h, w); nan is drawn as the lowest.
        low, high: values of the darkest and the lightest colour; None for those that occur.
    """
    from matplotlib import colormaps

    low = float(np.nanmin(values)) if low is None else low
    high = float(np.nanmax(values)) if high is None else high
    scaled = np.nan_to_num((values - low) / max(high - low, 1e-12))
    return (255 * colormaps["magma"](scaled.clip(0, 1))[..., :3]).round().astype(np.uint8)


def map_sheet(values: np.ndarray) -> np.ndarray:
    """Draws the first channels of a feature map side by side, each on a scale of its own.

    Args:
        values: float (h, w, c); at most 64 channels are drawn.
    """
    channels = [heat(values[..., index]) for index in range(min(values.shape[-1], MAX_TILES))]
    return sheet(channels)


def filter_sheet(kernel: np.ndarray) -> np.ndarray:
    """Draws filters side by side; grey is zero, and all are on one scale.

    Args:
        kernel: float (h, w, c, n). Filters of three channels are drawn in colour, others as the
            mean over their channels.
    """
    values = kernel if kernel.shape[2] == 3 else kernel.mean(axis=2, keepdims=True)
    scaled = 0.5 + values / (2 * max(float(np.abs(values).max()), 1e-12))
    pictures = (255 * scaled).round().astype(np.uint8)
    pictures = np.broadcast_to(pictures, (*pictures.shape[:2], 3, pictures.shape[3]))
    return sheet([pictures[..., index] for index in range(min(kernel.shape[-1], MAX_TILES))])


def sheet(tiles: list[np.ndarray]) -> np.ndarray:
    """Sets pictures of one size, uint8 (h, w, 3), in rows, enlarged by whole factors or shrunk."""
    height, width = tiles[0].shape[:2]
    columns = min(len(tiles), max(1, round(math.sqrt(len(tiles) * 1.6 * height / width))))
    most = max(1, MAX_SHEET_PX // columns - GAP_PX)
    factor = max(1, min(most // width, math.ceil(72 / width)))
    if width > most:
        size = most, max(1, round(height * most / width))
    else:
        size = width * factor, height * factor
    rows = -(-len(tiles) // columns)
    step_y, step_x = size[1] + GAP_PX, size[0] + GAP_PX
    page = np.full((rows * step_y - GAP_PX, columns * step_x - GAP_PX, 3), BACKGROUND, np.uint8)
    resample = Image.Resampling.NEAREST if factor > 1 or width <= most else Image.Resampling.BOX
    for index, tile in enumerate(tiles):
        top, left = index // columns * step_y, index % columns * step_x
        scaled = np.asarray(Image.fromarray(np.ascontiguousarray(tile)).resize(size, resample))
        page[top : top + size[1], left : left + size[0]] = scaled
    return page


def field_picture(
    image: np.ndarray,
    influence: np.ndarray,
    rows: tuple[int, int],
    columns: tuple[int, int],
    pixel: tuple[int, int],
) -> np.ndarray:
    """Draws the receptive field of a pixel over an image.

    Args:
        image: uint8 (h, w, 3).
        influence: float (h, w), the effective field.
        rows, columns: first and last of the theoretical field, drawn as a frame.
        pixel: row and column, drawn as a cross.
    """
    # The square root, because the gradient falls off steeply.
    strength = np.sqrt(influence / max(float(influence.max()), 1e-30))[..., None]
    grey = image.mean(axis=-1, keepdims=True)
    blended = 0.6 * grey * (1 - strength) + strength * heat(np.sqrt(influence))
    picture = blended.round().astype(np.uint8)
    thickness = max(1, round(max(image.shape[:2]) / 250))
    frame = np.zeros(image.shape[:2], bool)
    frame[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = True
    inner = np.zeros_like(frame)
    inner[
        rows[0] + thickness : rows[1] + 1 - thickness,
        columns[0] + thickness : columns[1] + 1 - thickness,
    ] = True
    picture[frame & ~inner] = (90, 200, 255)
    arm = 4 * thickness
    y, x = pixel
    picture[max(0, y - arm) : y + arm + 1, max(0, x - thickness // 2) : x + thickness] = 255
    picture[max(0, y - thickness // 2) : y + thickness, max(0, x - arm) : x + arm + 1] = 255
    return picture
