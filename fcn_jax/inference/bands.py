"""Selects the bands of a TIFF for a network, and notes how they differ from plain 8-bit RGB."""

from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.errors import UserError
from fcn_jax.terminal.progress import say

MAX_16_BIT = 65535

SAMPLE_PX = 128
SAMPLES_PER_SIDE = 4
"""Windows in which the largest value of a scene is searched; reading all of it takes minutes."""


def chosen_bands(path: Path, dataset: Any, channels: int) -> list[int]:
    """Returns the bands of an open TIFF that are the network's input; prints notes about them.

    Args:
        path: the file, for messages.
        dataset: rasterio's dataset.
        channels: number of channels of the network.

    Raises:
        UserError: the bands do not fit the network; the message has a command that converts them.
    """
    from rasterio.enums import ColorInterp

    meanings = dict(zip(dataset.indexes, dataset.colorinterp, strict=True))
    bands = [band for band, meaning in meanings.items() if meaning != ColorInterp.alpha]
    structure = dataset.tags(ns="IMAGE_STRUCTURE") | dataset.tags(1, ns="IMAGE_STRUCTURE")
    types = {dataset.dtypes[band - 1] for band in bands}
    remedy = _scaling_command(path, bands[:channels])
    if not types <= {"uint8", "uint16"} or structure.get("NBITS", "8") not in ("8", "16"):
        bits = structure.get("NBITS")
        found = f"pixels of {bits} bits" if bits else f"pixels of type {', '.join(types)}"
    elif structure.get("MINISWHITE") == "YES":
        found = "grey with white as 0"
    elif len(bands) == channels or (len(bands) == 1 and channels == 3):
        notes = _notes(dataset, bands, remedy)
        if notes:
            say(f"note: {path}: {'; '.join(notes)}")
        return bands
    else:
        found = f"{len(bands)} bands besides alpha, and the network was trained on {channels}"
    raise UserError(f"{path}: {found}; choose and scale the bands for the network, as by {remedy}")


def _notes(dataset: Any, bands: list[int], remedy: str) -> list[str]:
    from rasterio.enums import ColorInterp

    notes = []
    if len(bands) == 1 and dataset.colorinterp[bands[0] - 1] != ColorInterp.palette:
        notes.append(f"band {bands[0]} is used as grey")
    alpha = [str(band) for band in dataset.indexes if band not in bands]
    if alpha:
        notes.append(f"band {', '.join(alpha)} is alpha and is not used")
    if dataset.dtypes[bands[0] - 1] == "uint16":
        notes.append(f"{_note_of_16_bits(dataset, bands)}; to scale it, {remedy}")
    return notes


def _scaling_command(path: Path, bands: list[int]) -> str:
    choice = " ".join(f"-b {band}" for band in bands)
    return f"gdal_translate -co TILED=YES -ot Byte -scale {choice} {path.name} scaled.tif"


def _note_of_16_bits(dataset: Any, bands: list[int]) -> str:
    largest = _largest_value(dataset, bands)
    note = "of its 16 bits the upper 8 are used"
    if largest is None:
        return note
    note += f", and the largest value in a sample is {largest} of {MAX_16_BIT}"
    if largest > MAX_16_BIT // 2:
        return note
    return f"{note}: every pixel of the network's input is below {(largest >> 8) + 1} of 255"


def _largest_value(dataset: Any, bands: list[int]) -> int | None:
    """Returns the largest value in windows all over the scene; None if they hold no data."""
    from rasterio.windows import Window

    found = []
    height, width = (min(SAMPLE_PX, pixels) for pixels in dataset.shape)
    for top in _spread(dataset.shape[0] - height):
        for left in _spread(dataset.shape[1] - width):
            window = Window(left, top, width, height)
            values = dataset.read(bands, window=window, masked=True).compressed()
            if values.size:
                found.append(int(values.max()))
    return max(found, default=None)


def _spread(last: int) -> list[int]:
    return np.unique(np.linspace(0, last, SAMPLES_PER_SIDE).astype(int)).tolist()
