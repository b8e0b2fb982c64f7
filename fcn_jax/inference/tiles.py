"""Large images in tiles, with the label map that the whole image would give.

A pixel's scores depend on the pixels around it as far as the network's receptive field reaches, no
further. A tile is therefore run with that much of the image around it, its *halo*, cut so that
every layer's positions fall where they fall in the whole image: begun at a multiple of the largest
stride. Where the image ends, the tile ends, and the network sees the same border. All tiles lie on
canvases of one size, so there is one compilation, and memory does not grow with the image.
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
from fcn_jax.errors import UserError
from fcn_jax.models.fcn import suffix
from fcn_jax.models.feature_map import TilePosition
from fcn_jax.models.geometry import ReceptiveField
from fcn_jax.models.pure_model import Network, predict

MIN_TILE_PX = 64
BLOCK_PX = 16
"""A TIFF's own blocks have sides of a multiple of this, and a tile is made of whole ones."""


class Tile(NamedTuple):
    """rows, columns: what it labels. seen_rows, seen_columns: what it is run on."""

    rows: slice
    columns: slice
    seen_rows: slice
    seen_columns: slice

    @property
    def size(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How images are cut; all in pixels.

    tile: side of what a tile labels, one of the `multiple`. before, after: what is seen
    beyond it. is_exact: whether that is all that the network would see in the whole image.
    """

    tile: int
    before: int
    after: int
    alignment: int
    is_exact: bool

    def __str__(self) -> str:
        halo = f"{self.before} and {self.after}" if self.before != self.after else f"{self.after}"
        kind = "exact" if self.is_exact else "approximate: the network sees more"
        return f"tiles of {self.tile} pixels with a halo of {halo} ({kind})"

    @property
    def multiple(self) -> int:
        """Of which the side of a tile is one, in pixels."""
        return math.lcm(self.alignment, BLOCK_PX)

    def tiles(self, size: Sequence[int]) -> list[Tile]:
        """Those of an image of (height, width), row by row."""
        rows, columns = map(self._spans, size)
        return [
            Tile(row, column, seen_row, seen_column)
            for row, seen_row in rows
            for column, seen_column in columns
        ]

    def canvas(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width that hold what any tile of such an image sees."""
        before = round_up(self.before, self.alignment)
        largest = round_up(before + self.tile + self.after, self.alignment)
        height, width = (min(largest, round_up(pixels, self.alignment)) for pixels in size)
        return height, width

    def _spans(self, size: int) -> list[tuple[slice, slice]]:
        spans = []
        for start in range(0, size, self.tile):
            stop = min(start + self.tile, size)
            first = max(0, start - self.before) // self.alignment * self.alignment
            spans.append((slice(start, stop), slice(first, min(size, stop + self.after))))
        return spans


def receptive_field(network: Network, variables: Any) -> ReceptiveField:
    """What the scores of a pixel depend on, over all label maps; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, 256, 256, network.preprocessing.channels), jnp.uint8)
    features = jax.eval_shape(
        lambda variables, image: network.model(variables).features(image), variables, image
    )
    fields = [features[f"logits{suffix(name)}"].field for name in network.label_maps]
    return functools.reduce(ReceptiveField.joined, fields)


def tiling(field: ReceptiveField, tile_px: int, halo_px: int | None = None) -> Tiling:
    """The tiling of about the side that is wanted, for a network of this receptive field.

    halo_px: what is seen beyond each tile, where that shall be less than exact; None: exact.

    Raises:
        UserError: too small a tile, or a network that sees the whole image and no `halo_px`.
    """
    step = math.lcm(field.alignment, BLOCK_PX)
    least = max(MIN_TILE_PX, step)
    if tile_px < least:
        raise UserError(f"--tile (={tile_px}) must be at least {least}, in pixels")
    if halo_px is None and not field.is_bounded:
        raise UserError(
            "--tile: this network sees the whole image at once (squeeze-and-excitation takes means "
            "over it), so no tiles give exactly its label map; --halo=256 takes the means over "
            "each tile and as many pixels around it, which is approximate"
        )
    halo = math.inf if halo_px is None else halo_px
    before, after = max(0, -field.first), max(0, field.last)
    return Tiling(
        tile=tile_px // step * step,
        before=int(min(halo, before)),
        after=int(min(halo, after)),
        alignment=field.alignment,
        is_exact=halo >= max(before, after) and field.is_bounded,
    )


def label_tiles(
    network: Network,
    variables: Any,
    cut: Tiling,
    size: Sequence[int],
    tiles: Iterable[Tile],
    read: Callable[[slice, slice], np.ndarray],
) -> Iterator[dict[str, np.ndarray]]:
    """The label maps of each tile in turn, by name: uint8 of the tile's size.

    Args:
        size: height and width of the image.
        read: gives what lies in these rows and columns, uint8 (h, w, c).
    """
    canvas = cut.canvas(size)
    whole = jnp.asarray([size], jnp.int32)
    pending: tuple[Tile, dict[str, jax.Array]] | None = None
    for tile in tiles:
        pixels = read(tile.seen_rows, tile.seen_columns)
        image = np.zeros((1, *canvas, pixels.shape[-1]), np.uint8)
        height, width = pixels.shape[:2]
        image[0, :height, :width] = pixels
        start = jnp.asarray([[tile.seen_rows.start, tile.seen_columns.start]], jnp.int32)
        valid = jnp.asarray([[height, width]], jnp.int32)
        labels = _labels(network, variables, image, valid, TilePosition(start, whole))
        # The device works on this tile while the host takes the last one away.
        if pending is not None:
            yield _cropped(*pending)
        pending = tile, labels
    if pending is not None:
        yield _cropped(*pending)


@functools.partial(jax.jit, static_argnums=0)
def _labels(
    network: Network, variables: Any, image: jax.Array, valid: jax.Array, position: TilePosition
) -> dict[str, jax.Array]:
    labels = predict(network, variables, image, valid, tile=position)
    return {name: label.astype(jnp.uint8) for name, label in labels.items()}


def _cropped(tile: Tile, labels: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    top = tile.rows.start - tile.seen_rows.start
    left = tile.columns.start - tile.seen_columns.start
    height, width = tile.size
    return {
        name: np.asarray(label)[0, top : top + height, left : left + width]
        for name, label in labels.items()
    }
