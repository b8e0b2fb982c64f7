"""Predicts large images in tiles; the label map equals that of the whole image.

The scores of a pixel depend only on the pixels in the network's receptive field. So the input of
the network is a tile and the *halo*, the part of the image around the tile that the receptive field
covers. The input starts at a multiple of the largest stride, so every layer computes the same
positions as for the whole image. It is clipped at the image's border, where the network pads it as
it pads the whole image. All inputs are placed on canvases of one size, so there is one compilation,
and memory does not grow with the image.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.data.canvases import round_up
from fcn_jax.errors import ArgumentError
from fcn_jax.models.fcn import suffix
from fcn_jax.models.feature_map import TilePosition
from fcn_jax.models.geometry import ReceptiveField
from fcn_jax.models.pure_model import PureModel, predict

MIN_TILE_PX = 64
MIN_TILE_VOXELS = 16
BLOCK_PX = 16
"""The sides of a TIFF's blocks are multiples of this, and a tile consists of whole blocks."""


class Tile(NamedTuple):
    """One forward pass: the pixels that it labels, and the larger input that it needs for them.

    Args:
        rows, columns: the pixels that are labelled.
        input_rows, input_columns: the network's input, which is the tile and its halo.
    """

    rows: slice
    columns: slice
    input_rows: slice
    input_columns: slice

    @property
    def size(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Sizes, in pixels, that determine how an image is cut into tiles.

    Args:
        tile: side of a tile without its halo, a multiple of `multiple`.
        before: halo above the tile and on its left.
        after: halo below the tile and on its right.
        alignment: the input of the network starts at multiples of this.
        is_exact: the halo covers the receptive field, so the label map is that of the whole image.
    """

    tile: int
    before: int
    after: int
    alignment: int
    is_exact: bool

    def __str__(self) -> str:
        halo = f"{self.before} and {self.after}" if self.before != self.after else f"{self.after}"
        kind = "exact" if self.is_exact else "approximate: smaller than the receptive field"
        return f"tiles of {self.tile} pixels with a halo of {halo} ({kind})"

    @property
    def multiple(self) -> int:
        """Tile sides are multiples of this, in pixels."""
        return math.lcm(self.alignment, BLOCK_PX)

    def tiles(self, size: Sequence[int]) -> list[Tile]:
        """Returns the tiles of an image of (height, width), row by row."""
        rows, columns = map(self.spans, size)
        return [
            Tile(row, column, input_row, input_column)
            for row, input_row in rows
            for column, input_column in columns
        ]

    def canvas(self, size: Sequence[int]) -> tuple[int, ...]:
        """Returns the size of a canvas that holds the input of any tile."""
        before = round_up(self.before, self.alignment)
        largest = round_up(before + self.tile + self.after, self.alignment)
        return tuple(min(largest, round_up(pixels, self.alignment)) for pixels in size)

    def spans(self, size: int) -> list[tuple[slice, slice]]:
        """Returns the tiles along one axis: the pixels that are labelled, and the input's."""
        spans = []
        for start in range(0, size, self.tile):
            stop = min(start + self.tile, size)
            first = max(0, start - self.before) // self.alignment * self.alignment
            spans.append((slice(start, stop), slice(first, min(size, stop + self.after))))
        return spans


def receptive_field(network: PureModel, variables: Any, ndim: int = 2) -> ReceptiveField:
    """Returns a receptive field that contains those of all label maps' scores.

    The network, of `ndim` spatial axes, is traced, not run.
    """
    shape = (1, *[256] * ndim, network.preprocessing.channels)
    image = jax.ShapeDtypeStruct(shape, jnp.uint8)
    features = jax.eval_shape(
        lambda variables, image: network.model(variables).features(image), variables, image
    )
    fields = [features[f"logits{suffix(name)}"].field for name in network.label_maps]
    return functools.reduce(ReceptiveField.joined, fields)


def tiling(
    field: ReceptiveField, tile: int, halo: int | None = None, *, min_tile: int = MIN_TILE_PX
) -> Tiling:
    """Returns the tiling for a network of this receptive field.

    Args:
        field: as returned by `receptive_field`.
        tile: side of a tile in pixels, at least `min_tile`; rounded down to a multiple of the
            network's largest stride and of 16.
        halo: pixels around each tile; more than an exact result needs are not used. None for an
            exact result.

    Raises:
        ArgumentError: the tile is too small, or the receptive field is the whole image and there is
            no `halo`.
    """
    multiple = math.lcm(field.alignment, BLOCK_PX)
    smallest = max(min_tile, multiple)
    if tile < smallest:
        raise ArgumentError("tile", tile, f"must be at least {smallest}, in pixels")
    if halo is None and not field.is_bounded:
        raise ArgumentError(
            "halo",
            halo,
            "must be given: this network averages over the whole image (squeeze-and-excitation, "
            "or group or instance normalisation), so tiles cannot give exactly its label map; 256 "
            "averages over each tile and 256 pixels around it, which is approximate",
        )
    limit = math.inf if halo is None else halo
    before, after = max(0, -field.first), max(0, field.last)
    return Tiling(
        tile=tile // multiple * multiple,
        before=int(min(limit, before)),
        after=int(min(limit, after)),
        alignment=field.alignment,
        is_exact=limit >= max(before, after) and field.is_bounded,
    )


def predict_tiles(
    network: PureModel,
    variables: Any,
    cut: Tiling,
    size: Sequence[int],
    tiles: Iterable[Tile],
    read: Callable[[slice, slice], np.ndarray],
) -> Iterator[dict[str, np.ndarray]]:
    """Predicts the label maps of each tile, in the order given.

    Args:
        network: the network.
        variables: its (params, batch_stats).
        cut: the tiling that `tiles` come from.
        size: height and width of the image.
        tiles: the tiles.
        read: returns the pixels in these rows and columns, uint8 (h, w, c).

    Yields:
        Label maps by name, uint8 of the tile's size.
    """
    canvas = cut.canvas(size)
    image_size = jnp.asarray([size], jnp.int32)
    pending: tuple[Tile, dict[str, jax.Array]] | None = None
    for tile in tiles:
        pixels = read(tile.input_rows, tile.input_columns)
        image = np.zeros((1, *canvas, pixels.shape[-1]), np.uint8)
        height, width = pixels.shape[:2]
        image[0, :height, :width] = pixels
        start = jnp.asarray([[tile.input_rows.start, tile.input_columns.start]], jnp.int32)
        valid = jnp.asarray([[height, width]], jnp.int32)
        labels = label_tile(network, variables, image, valid, TilePosition(start, image_size))
        # The device works on this tile while the host processes the previous one.
        if pending is not None:
            yield _cropped(*pending)
        pending = tile, labels
    if pending is not None:
        yield _cropped(*pending)


@functools.partial(jax.jit, static_argnums=0)
def label_tile(
    network: PureModel, variables: Any, image: jax.Array, valid: jax.Array, position: TilePosition
) -> dict[str, jax.Array]:
    """Returns the label maps of a canvas (1, …, c) that is a part of a larger image: uint8."""
    labels = predict(network, variables, image, valid, tile=position)
    return {name: label.astype(jnp.uint8) for name, label in labels.items()}


def _cropped(tile: Tile, labels: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    top = tile.rows.start - tile.input_rows.start
    left = tile.columns.start - tile.input_columns.start
    height, width = tile.size
    return {
        name: np.asarray(label)[0, top : top + height, left : left + width]
        for name, label in labels.items()
    }
