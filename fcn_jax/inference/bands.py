"""Which bands of a TIFF a network sees. What is not plain RGB of 8 bits is told in a line."""

from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.errors import UserError
from fcn_jax.terminal.progress import say

MAX_16_BIT = 65535

SAMPLE_PX = 128
SAMPLES_A_SIDE = 4
"""Windows in which a scene's largest value is looked for, since to read all of it takes minutes."""


def chosen_bands(path: Path, dataset: Any, channels: int) -> list[int]:
    """Those of an open TIFF that a network of so many channels sees; notes what is left out.

    Raises:
        UserError: its bands are not such as the network wants; with a command that makes them so.
    """
    from rasterio.enums import ColorInterp as Meaning

    meanings = dict(zip(dataset.indexes, dataset.colorinterp, strict=True))
    bands = [band for band, meaning in meanings.items() if meaning != Meaning.alpha]
    kept_as = dataset.tags(ns="IMAGE_STRUCTURE") | dataset.tags(1, ns="IMAGE_STRUCTURE")
    types = {dataset.dtypes[band - 1] for band in bands}
    remedy = _scaling_command(path, bands[:channels])
    if not types <= {"uint8", "uint16"} or kept_as.get("NBITS", "8") not in ("8", "16"):
        bits = kept_as.get("NBITS")
        found = f"pixels of {bits} bits" if bits else f"pixels of type {', '.join(types)}"
    elif kept_as.get("MINISWHITE") == "YES":
        found = "grey with white as 0"
    elif len(bands) == channels or (len(bands) == 1 and channels == 3):
        notes = _notes(dataset, bands, remedy)
        if notes:
            say(f"note: {path}: {'; '.join(notes)}")
        return bands
    else:
        found = f"{len(bands)} bands besides alpha, and the network was trained on {channels}"
    raise UserError(
        f"{path}: {found}; choose and scale the bands that it shall see, as by {remedy}"
    )


def _notes(dataset: Any, bands: list[int], remedy: str) -> list[str]:
    from rasterio.enums import ColorInterp as Meaning

    notes = []
    if len(bands) == 1 and dataset.colorinterp[bands[0] - 1] != Meaning.palette:
        notes.append(f"band {bands[0]} is seen as grey")
    left_out = [str(band) for band in dataset.indexes if band not in bands]
    if left_out:
        notes.append(f"band {', '.join(left_out)} is left out as alpha")
    if dataset.dtypes[bands[0] - 1] == "uint16":
        notes.append(f"{_of_16_bits(dataset, bands)}; to scale it, {remedy}")
    return notes


def _scaling_command(path: Path, bands: list[int]) -> str:
    choice = " ".join(f"-b {band}" for band in bands)
    return f"gdal_translate -co TILED=YES -ot Byte -scale {choice} {path.name} scaled.tif"


def _of_16_bits(dataset: Any, bands: list[int]) -> str:
    largest = _largest_value(dataset, bands)
    said = "of its 16 bits the upper 8 are seen"
    if largest is None:
        return said
    said += f", and the largest value in a sample is {largest} of {MAX_16_BIT}"
    if largest > MAX_16_BIT // 2:
        return said
    return f"{said}: to the network all is darker than {(largest >> 8) + 1} of 255"


def _largest_value(dataset: Any, bands: list[int]) -> int | None:
    """Over windows all over the scene; None: they hold no data."""
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
    return np.unique(np.linspace(0, last, SAMPLES_A_SIDE).astype(int)).tolist()
