"""Images read, and label maps written, by window: satellite scenes and slides, as TIFFs.

A TIFF is read through GDAL (rasterio), which decodes only the blocks that a window touches, and the
label map is written as a TIFF of the same place on Earth. Every other format is decoded whole, and
its label map is a palette PNG as ever.
"""

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.data.palettes import voc_palette
from fcn_jax.errors import UserError
from fcn_jax.inference import made_with
from fcn_jax.inference.bands import chosen_bands
from fcn_jax.pictures import overlays
from fcn_jax.terminal.progress import say

CACHE_MB = 64
"""For blocks that GDAL keeps decoded; its own default is a share of the machine's memory."""

MAX_BLOCK_PX = 512

Pieces = Callable[[], Iterator[tuple[slice, slice, np.ndarray]]]
"""Gives, each time anew, rows, columns and label map, uint8, of every part of an image."""


class Scene(Protocol):
    """An image that is read by window. size: height and width. suffix: of its label map's file."""

    size: tuple[int, int]
    suffix: str

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """The channels that the network was trained on: uint8 (h, w, c)."""
        ...

    def reduced(self, size: tuple[int, int]) -> np.ndarray:
        """The whole at a smaller size: uint8 (*size, 3)."""
        ...

    def no_data(self, rows: slice, columns: slice) -> np.ndarray | None:
        """Where the file says that it holds nothing: bool (h, w); None: nowhere."""
        ...

    def write(self, place: Path, tile: int, pieces: Pieces, digest: str) -> None:
        """Writes the label map, whole or not at all.

        tile: side of the pieces. digest: of what it is made with (`made_with.py`).
        """
        ...


class Picture:
    """An image in memory, uint8 (h, w, c), of any format that Pillow reads."""

    suffix = ".png"

    def __init__(self, image: np.ndarray):
        self._image = image
        self.size = image.shape[:2]

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        return self._image[rows, columns]

    def reduced(self, size: tuple[int, int]) -> np.ndarray:
        picture = Image.fromarray(self._image[..., :3])
        return np.asarray(picture.resize(size[::-1], Image.Resampling.BOX))

    def no_data(self, rows: slice, columns: slice) -> None:
        return None

    def write(self, place: Path, tile: int, pieces: Pieces, digest: str) -> None:
        label = np.empty(self.size, np.uint8)
        for rows, columns, part in pieces():
            label[rows, columns] = part
        overlays.save_label_map(place, label, text=made_with.png_text(digest))


class Tiff:
    """A TIFF, open. Its bands: grey, palette, RGB, or RGB and the further channels of the network.

    16 bits become the upper 8 and transparency is dropped, as by `images.read_image`.
    """

    suffix = ".tif"

    def __init__(self, path: Path, dataset: Any, channels: int):
        self._path = path
        self._dataset = dataset
        self.size = dataset.shape
        with _errors_of(path):
            self._bands = chosen_bands(path, dataset, channels)
        self._palette = self._read_palette()
        self._has_mask = any(flags != ["all_valid"] for flags in self._mask_flags())
        block_width = dataset.block_shapes[0][1]
        decoded_mb = math.prod(self.size) * len(self._bands) / 1e6
        if block_width == self.size[1] and decoded_mb > CACHE_MB:
            say(
                f"note: {path} is kept in whole rows, of which every tile reads all that it "
                "touches; gdal_translate -co TILED=YES makes a file that is read faster"
            )

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        with _errors_of(self._path):
            values = self._dataset.read(self._bands, window=_window(rows, columns))
        return self._pixels(values)

    def reduced(self, size: tuple[int, int]) -> np.ndarray:
        from rasterio.enums import Resampling

        # A palette's indices have no mean.
        resampling = Resampling.nearest if self._palette is not None else Resampling.average
        with _errors_of(self._path):
            values = self._dataset.read(
                self._bands, out_shape=(len(self._bands), *size), resampling=resampling
            )
        return self._pixels(values)[..., :3]

    def no_data(self, rows: slice, columns: slice) -> np.ndarray | None:
        """By the file's value for no data, its mask, or its alpha."""
        if not self._has_mask:
            return None
        with _errors_of(self._path):
            return self._dataset.dataset_mask(window=_window(rows, columns)) == 0

    def write(self, place: Path, tile: int, pieces: Pieces, digest: str) -> None:
        """As a tiled, compressed TIFF in VOC's colours, with the scene's georeference.

        What was written is read again before it takes its name: GDAL does not tell of every error
        of a full disk.
        """
        import rasterio

        part = place.with_name(f".{place.name}.partial")
        # Pieces that are made of whole blocks are written once each.
        block = max(n for n in range(16, MAX_BLOCK_PX + 1, 16) if tile % n == 0)
        profile = {
            "driver": "GTiff",
            "height": self.size[0],
            "width": self.size[1],
            "count": 1,
            "dtype": "uint8",
            "nodata": IGNORE_INDEX if self._has_mask else None,
            "tiled": True,
            "blockxsize": block,
            "blockysize": block,
            "compress": "deflate",
            "bigtiff": "if_safer",
        } | self._georeference()
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with rasterio.open(part, "w", **profile) as written:
                written.write_colormap(1, dict(enumerate(map(tuple, voc_palette().tolist()))))
                place_of_pixels = self._dataset.tags().get("AREA_OR_POINT", "Area")
                written.update_tags(AREA_OR_POINT=place_of_pixels, **{made_with.TAG: digest})
                for rows, columns, label in pieces():
                    written.write(label, 1, window=_window(rows, columns))
            with rasterio.open(part) as written:
                for rows, columns, label in pieces():
                    if not np.array_equal(written.read(1, window=_window(rows, columns)), label):
                        raise OSError("what was written does not read back")
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(place)
        except OSError as error:  # rasterio's own are among them
            raise UserError(f"cannot write {place} ({_cause(error)}): is the disk full?") from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def _georeference(self) -> dict[str, Any]:
        points, system = self._dataset.gcps
        if points:
            return {"gcps": points, "crs": system}
        transform = self._dataset.transform
        placed = {} if transform.is_identity else {"transform": transform}
        return placed | {"crs": self._dataset.crs, "rpcs": self._dataset.rpcs}

    def _read_palette(self) -> np.ndarray | None:
        """The RGB that indices stand for: uint8 (256, 3)."""
        from rasterio.enums import ColorInterp

        if self._dataset.colorinterp[0] != ColorInterp.palette:
            return None
        palette = np.zeros((256, 3), np.uint8)
        for index, colour in self._dataset.colormap(1).items():
            palette[index] = colour[:3]
        return palette

    def _mask_flags(self) -> list[list[str]]:
        enums = self._dataset.mask_flag_enums
        return [[flag.name for flag in enums[band - 1]] for band in self._bands]

    def _pixels(self, values: np.ndarray) -> np.ndarray:
        """GDAL's (c, h, w) to uint8 (h, w, c)."""
        if self._palette is not None:
            return self._palette[values[0]]
        if values.dtype == np.uint16:
            values = values >> 8
        pixels = np.moveaxis(values.astype(np.uint8, copy=False), 0, -1)
        return np.repeat(pixels, 3, axis=-1) if len(values) == 1 else pixels


@contextlib.contextmanager
def open_tiff(path: Path, channels: int) -> Iterator[Tiff]:
    """A TIFF for a network of so many channels.

    Raises:
        UserError: rasterio is not installed; the file is damaged, or its bands are not such as the
            network wants.
    """
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
    except ImportError:
        raise UserError(
            f"{path}: to label a TIFF in tiles, rasterio is needed: pip install rasterio"
        ) from None
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=CACHE_MB):
        # A slide lies nowhere on Earth.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with _errors_of(path):
            dataset = rasterio.open(path, driver="GTiff")
        with dataset:
            yield Tiff(path, dataset, channels)


def reduced_size(size: tuple[int, int], longest_px: int) -> tuple[tuple[int, int], int]:
    """The size of every k-th row and column, none longer than that, and k."""
    step = max(1, math.ceil(max(size) / longest_px))
    return (-(-size[0] // step), -(-size[1] // step)), step


def reduced_label(size: tuple[int, int], pieces: Pieces, longest_px: int) -> np.ndarray:
    """Every k-th pixel of a label map in pieces: uint8 of the `reduced_size`."""
    reduced, step = reduced_size(size, longest_px)
    label = np.empty(reduced, np.uint8)
    for rows, columns, part in pieces():
        top, left = -(-rows.start // step), -(-columns.start // step)
        taken = part[top * step - rows.start :: step, left * step - columns.start :: step]
        label[top : top + taken.shape[0], left : left + taken.shape[1]] = taken
    return label


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: the image is damaged ({_cause(error)})") from error


def _cause(error: BaseException) -> str:
    """GDAL's own words, which rasterio chains behind its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def _window(rows: slice, columns: slice) -> Any:
    from rasterio.windows import Window

    return Window.from_slices(rows, columns)
