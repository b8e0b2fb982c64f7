"""Images that are read, and label maps that are written, by window: satellite scenes and slides.

A TIFF is read through GDAL (rasterio), which decodes only the blocks that a window touches, and its
label map is a TIFF with the same georeference. Every other format is decoded whole, and its label
map is a palette PNG.
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
from fcn_jax.errors import UserError
from fcn_jax.inference import output_digest
from fcn_jax.inference.bands import chosen_bands
from fcn_jax.pictures import overlays
from fcn_jax.pictures.colours import palette_or_voc
from fcn_jax.terminal.atomic_files import write_whole
from fcn_jax.terminal.progress import say

CACHE_MB = 64
"""GDAL's cache of decoded blocks; its own default is a share of the machine's memory."""

MAX_BLOCK_PX = 512

Pieces = Callable[[], Iterator[tuple[slice, slice, np.ndarray]]]
"""Returns a new iterator over the parts of a label map: rows, columns and uint8 labels."""


class Scene(Protocol):
    """An image that is read by window.

    Args:
        size: height and width in pixels.
    """

    size: tuple[int, int]

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Returns the channels that the network was trained on: uint8 (h, w, c)."""
        ...

    def reduced(self, size: tuple[int, int]) -> np.ndarray:
        """Returns the whole image at a smaller size: uint8 (*size, 3)."""
        ...

    def no_data(self, rows: slice, columns: slice) -> np.ndarray | None:
        """Returns where the file marks missing data, bool (h, w); None if nowhere."""
        ...

    def write(
        self,
        path: Path,
        tile: int,
        pieces: Pieces,
        digest: str,
        palette: np.ndarray | None = None,
    ) -> None:
        """Writes the label map, whole or not at all.

        Args:
            path: the file to write.
            tile: side of the pieces, in pixels.
            pieces: the label map.
            digest: stored in the file (`output_digest.py`).
            palette: uint8 (256, 3), RGB; VOC's if None.
        """
        ...


class Picture:
    """An image in memory, uint8 (h, w, c), of any format that Pillow reads."""

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

    def write(
        self,
        path: Path,
        tile: int,
        pieces: Pieces,
        digest: str,
        palette: np.ndarray | None = None,
    ) -> None:
        label = np.empty(self.size, np.uint8)
        for rows, columns, part in pieces():
            label[rows, columns] = part
        overlays.save_label_map(path, label, palette, output_digest.png_text(digest))


class Tiff:
    """An open TIFF with one band (grey or palette), RGB, or RGB and the network's other channels.

    16 bits become the upper 8 and transparency is dropped, as in `images.read_image`.
    """

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
                f"note: {path} is stored in whole rows, and each tile reads all rows that it "
                "overlaps; gdal_translate -co TILED=YES makes a file that is read faster"
            )

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        with _errors_of(self._path):
            values = self._dataset.read(self._bands, window=_window(rows, columns))
        return self._pixels(values)

    def reduced(self, size: tuple[int, int]) -> np.ndarray:
        from rasterio.enums import Resampling

        # Indices of a palette cannot be averaged.
        resampling = Resampling.nearest if self._palette is not None else Resampling.average
        with _errors_of(self._path):
            values = self._dataset.read(
                self._bands, out_shape=(len(self._bands), *size), resampling=resampling
            )
        return self._pixels(values)[..., :3]

    def no_data(self, rows: slice, columns: slice) -> np.ndarray | None:
        """Returns what the file's nodata value, mask or alpha band mark; None without these."""
        if not self._has_mask:
            return None
        with _errors_of(self._path):
            return self._dataset.dataset_mask(window=_window(rows, columns)) == 0

    def write(
        self,
        path: Path,
        tile: int,
        pieces: Pieces,
        digest: str,
        palette: np.ndarray | None = None,
    ) -> None:
        """Writes a tiled, compressed TIFF in the palette's colours, with the scene's georeference.

        The file is read back before it gets its name, because GDAL does not report every error of a
        full disk.
        """
        # Pieces that consist of whole blocks are written once.
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
        tags = {
            "AREA_OR_POINT": self._dataset.tags().get("AREA_OR_POINT", "Area"),
            output_digest.TAG: digest,
        }
        write_whole(path, lambda part: _write_tiff(part, profile, tags, pieces, palette))

    def _georeference(self) -> dict[str, Any]:
        points, system = self._dataset.gcps
        if points:
            return {"gcps": points, "crs": system}
        transform = self._dataset.transform
        position = {} if transform.is_identity else {"transform": transform}
        return position | {"crs": self._dataset.crs, "rpcs": self._dataset.rpcs}

    def _read_palette(self) -> np.ndarray | None:
        """Returns the RGB of each index, uint8 (256, 3); None without a palette."""
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
        """Converts GDAL's (c, h, w) to uint8 (h, w, c)."""
        if self._palette is not None:
            return self._palette[values[0]]
        if values.dtype == np.uint16:
            values = values >> 8
        pixels = np.moveaxis(values.astype(np.uint8, copy=False), 0, -1)
        return np.repeat(pixels, 3, axis=-1) if len(values) == 1 else pixels


@contextlib.contextmanager
def open_tiff(path: Path, channels: int) -> Iterator[Tiff]:
    """Opens a TIFF for a network with this number of channels.

    Raises:
        UserError: rasterio is not installed, the file is damaged, or its bands do not fit the
            network.
    """
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
    except ImportError:
        raise UserError(
            f"{path}: labelling a TIFF in tiles needs rasterio: pip install rasterio"
        ) from None
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=CACHE_MB):
        # A microscope's slide has no georeference.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with _errors_of(path):
            dataset = rasterio.open(path, driver="GTiff")
        with dataset:
            yield Tiff(path, dataset, channels)


def reduced_size(size: tuple[int, int], longest_px: int) -> tuple[tuple[int, int], int]:
    """Returns the size of every k-th row and column, and the smallest k for which both fit."""
    step = max(1, math.ceil(max(size) / longest_px))
    return (-(-size[0] // step), -(-size[1] // step)), step


def reduced_label(size: tuple[int, int], pieces: Pieces, longest_px: int) -> np.ndarray:
    """Returns every k-th pixel of a label map in pieces: uint8 of the `reduced_size`."""
    reduced, step = reduced_size(size, longest_px)
    label = np.empty(reduced, np.uint8)
    for rows, columns, part in pieces():
        top, left = -(-rows.start // step), -(-columns.start // step)
        sampled = part[top * step - rows.start :: step, left * step - columns.start :: step]
        label[top : top + sampled.shape[0], left : left + sampled.shape[1]] = sampled
    return label


def _write_tiff(
    path: Path,
    profile: dict[str, Any],
    tags: dict[str, str],
    pieces: Pieces,
    palette: np.ndarray | None,
) -> None:
    import rasterio

    try:
        with rasterio.open(path, "w", **profile) as written:
            colours = map(tuple, palette_or_voc(palette).tolist())
            written.write_colormap(1, dict(enumerate(colours)))
            written.update_tags(**tags)
            for rows, columns, label in pieces():
                written.write(label, 1, window=_window(rows, columns))
        with rasterio.open(path) as written:
            for rows, columns, label in pieces():
                if not np.array_equal(written.read(1, window=_window(rows, columns)), label):
                    raise OSError("the file does not contain what was written")
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as error:  # errors of rasterio are OSErrors
        raise OSError(f"{_cause(error)}: is the disk full?") from error


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: the image is damaged ({_cause(error)})") from error


def _cause(error: BaseException) -> str:
    """Returns GDAL's message, which is the cause of rasterio's."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def _window(rows: slice, columns: slice) -> Any:
    from rasterio.windows import Window

    return Window.from_slices(rows, columns)
