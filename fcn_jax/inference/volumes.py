"""Predicts volumes in tiles, block by block: overlapping ones, or exact ones with a halo.

Overlapping tiles have the size of the training patches and overlap by half, as nnU-Net's. Their
class probabilities are averaged with Gaussian weights. The tiles are computed in the order of the
first axis, and labels are decided as soon as no further tile covers them, so only the sums of the
tiles at one place of the first axis are held: never the probabilities of the whole volume.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.inference.tiles import Tiling, label_tile
from fcn_jax.inference.windows import MIN_WEIGHT, SIGMA_SCALE, window_starts
from fcn_jax.models.confidence import packed_confidence
from fcn_jax.models.feature_map import TilePosition
from fcn_jax.models.pure_model import PureModel

OVERLAP = 0.5
"""Share of a tile that the next one covers again (nnU-Net's)."""


def tile_weights(patch: Sequence[int]) -> np.ndarray:
    """Returns the weight of each voxel of a tile: float32 patch, above 0, at most about 1.

    A Gaussian about the middle with a standard deviation of an eighth of each side, and a lower
    bound so that voxels in the corners of a volume have a weight.
    """
    weights = np.ones((1,) * len(patch))
    for axis, side in enumerate(patch):
        place = (np.arange(side) - (side - 1) / 2) / (SIGMA_SCALE * side)
        weights = weights * np.exp(-(place**2) / 2).reshape(
            [-1 if n == axis else 1 for n in (0, 1, 2)]
        )
    return np.maximum(weights, MIN_WEIGHT).astype(np.float32)


class VolumePredictor:
    """Predicts label maps of normalised volumes; compiled once, for tiles.

    Args:
        network: a network of three spatial axes with a single label map.
        patch: size of the tiles.
        mirror_axes: axes along which tiles are also mirrored; the views' probabilities are
            averaged.
    """

    def __init__(self, network: PureModel, patch: Sequence[int], mirror_axes: Sequence[int] = ()):
        self.patch = tuple(patch)
        self._views = [
            tuple(1 + axis for axis in axes)
            for count in range(len(mirror_axes) + 1)
            for axes in itertools.combinations(mirror_axes, count)
        ]
        self._weights = tile_weights(self.patch)
        (self._classes,) = network.num_classes.values()
        self._probabilities = jax.jit(functools.partial(_probabilities, network))

    def __call__(self, variables: Any, volume: np.ndarray) -> np.ndarray:
        """Predicts the class of each voxel.

        Args:
            variables: (params, batch_stats).
            volume: normalised intensities, float32 (x, y, z, c); it may be mapped into memory.

        Returns:
            uint8 (x, y, z).
        """
        return joined(self.blocks(variables, volume), volume.shape[0])

    def blocks(
        self,
        variables: Any,
        volume: np.ndarray,
        on_tile: Callable[[], None] = lambda: None,
        first_block: int = 0,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the label map in blocks along the first axis, in order: (start, uint8 block).

        Args:
            variables, volume: as in `__call__`.
            on_tile: is called after each tile of the blocks.
            first_block: blocks before this one are not computed.
        """
        for start, sums in self._sums([variables], volume, on_tile, first_block):
            # The sum of the weights is the same for all classes: it does not change the largest.
            yield start, sums[0].argmax(axis=-1).astype(np.uint8)

    def probability_blocks(
        self,
        draws: Sequence[Any],
        volume: np.ndarray,
        on_tile: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the class probabilities of several draws in blocks along the first axis.

        Args:
            draws: variables of the network, such as those of the members of an ensemble.
            volume: as in `__call__`.
            on_tile: is called after each tile.

        Yields:
            First voxel on the first axis, and float32 (draws, block, y, z, k). The sums of all
            draws are held for one row of tiles.
        """
        for start, sums in self._sums(draws, volume, on_tile):
            yield start, sums / sums.sum(axis=-1, keepdims=True)

    def packed(self, variables: Any, volume: np.ndarray, temperature: float) -> np.ndarray:
        """Predicts the classes with their probabilities.

        Args:
            variables, volume: as in `__call__`.
            temperature: see `packed_confidence`.

        Returns:
            int32 (x, y, z), see `models.confidence.unpacked`.
        """
        blocks = (
            (start, np.asarray(_packed(sums[0], temperature)))
            for start, sums in self._sums([variables], volume)
        )
        return joined(blocks, volume.shape[0])

    def _sums(
        self,
        draws: Sequence[Any],
        volume: np.ndarray,
        on_tile: Callable[[], None] = lambda: None,
        first_block: int = 0,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the weighted sums of probabilities: first voxel, (draws, block, y, z, k)."""
        size = volume.shape[:3]
        padded = tuple(max(n, side) for n, side in zip(size, self.patch, strict=True))
        starts = self._starts(size)
        sums = np.zeros((len(draws), self.patch[0], *padded[1:], self._classes), np.float32)
        for number, first in enumerate(starts[0]):
            if first + self.patch[0] <= starts[0][first_block]:
                continue  # its tiles do not reach the first block
            for second, third in itertools.product(*starts[1:]):
                corner = (first, second, third)
                tile = self._tile(volume, corner)
                window = tuple(
                    slice(start, start + side)
                    for start, side in zip(corner[1:], self.patch[1:], strict=True)
                )
                for variables, of_draw in zip(draws, sums, strict=True):
                    views = self._sum_of_views(variables, tile)
                    of_draw[(slice(None), *window)] += self._weights[..., None] * views
                if number >= first_block:
                    on_tile()
            following = starts[0][number + 1] if number + 1 < len(starts[0]) else size[0]
            done = following - first
            if number >= first_block:
                yield first, sums[:, :done, : size[1], : size[2]]
            kept = self.patch[0] - done
            sums[:, :kept] = sums[:, done:].copy()
            sums[:, kept:] = 0

    def _sum_of_views(self, variables: Any, tile: np.ndarray) -> np.ndarray:
        """Returns the sum of the probabilities over the mirrored views, (*patch, k)."""
        by_view = [self._probabilities(variables, np.flip(tile, v)) for v in self._views]
        views = [np.flip(np.asarray(p), v) for p, v in zip(by_view, self._views, strict=True)]
        return sum(views[1:], views[0])[0]

    def num_tiles(self, size: Sequence[int]) -> int:
        """Returns the number of tiles of a volume of this size."""
        return int(np.prod([len(starts) for starts in self._starts(size)]))

    def spans(self, size: Sequence[int]) -> list[slice]:
        """Returns the places of the blocks on the first axis of a volume of this size."""
        starts = self._starts(size)[0]
        return [slice(*pair) for pair in itertools.pairwise([*starts, size[0]])]

    def _starts(self, size: Sequence[int]) -> list[list[int]]:
        """First voxels of the tiles on each axis; the last tile ends at the volume's border."""
        by_axis = [
            window_starts(n, side, OVERLAP) for n, side in zip(size, self.patch, strict=True)
        ]
        return [
            sorted({*starts, max(n - side, 0)})
            for starts, n, side in zip(by_axis, size, self.patch, strict=True)
        ]

    def _tile(self, volume: np.ndarray, corner: Sequence[int]) -> np.ndarray:
        """Cuts out (1, *patch, c); 0, the mean, where the volume is smaller than the patch."""
        window = tuple(
            slice(start, start + side) for start, side in zip(corner, self.patch, strict=True)
        )
        values = volume[window]
        tile = np.zeros((1, *self.patch, volume.shape[-1]), np.float32)
        inside = tuple(slice(n) for n in values.shape[:3])
        tile[0][inside] = values
        return tile


class ExactVolumePredictor:
    """Predicts label maps of volumes in tiles with a halo: exactly those of the whole volume.

    For networks with a bounded receptive field, so without instance or group normalisation.

    Args:
        network: a network of three spatial axes with a single label map.
        cut: the tiling, see `tiles.tiling`.
    """

    def __init__(self, network: PureModel, cut: Tiling):
        self._network, self._cut = network, cut

    def blocks(
        self,
        variables: Any,
        volume: np.ndarray,
        on_tile: Callable[[], None] = lambda: None,
        first_block: int = 0,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the label map as `VolumePredictor.blocks` does."""
        size = volume.shape[:3]
        canvas = self._cut.canvas(size)
        whole = jnp.asarray([size], jnp.int32)
        first_axis, *others = map(self._cut.spans, size)
        for rows, input_rows in first_axis[first_block:]:
            block = np.empty((rows.stop - rows.start, *size[1:]), np.uint8)
            for spans in itertools.product(*others):
                tiles = (rows, *(tile for tile, _ in spans))
                inputs = (input_rows, *(given for _, given in spans))
                values = volume[inputs]
                image = np.zeros((1, *canvas, volume.shape[-1]), np.float32)
                image[0][tuple(map(slice, values.shape[:3]))] = values
                starts = jnp.asarray([[given.start for given in inputs]], jnp.int32)
                labels = label_tile(
                    self._network,
                    variables,
                    image,
                    jnp.asarray([values.shape[:3]], jnp.int32),
                    TilePosition(starts, whole),
                )
                (label,) = labels.values()
                inside = tuple(
                    slice(tile.start - given.start, tile.stop - given.start)
                    for tile, given in zip(tiles, inputs, strict=True)
                )
                block[:, tiles[1], tiles[2]] = np.asarray(label)[0][inside]
                on_tile()
            yield rows.start, block

    def num_tiles(self, size: Sequence[int]) -> int:
        """Returns the number of tiles of a volume of this size."""
        return math.prod(len(self._cut.spans(side)) for side in size)

    def spans(self, size: Sequence[int]) -> list[slice]:
        """Returns the places of the blocks on the first axis of a volume of this size."""
        return [rows for rows, _ in self._cut.spans(size[0])]


def joined(blocks: Iterable[tuple[int, np.ndarray]], length: int) -> np.ndarray:
    """Joins blocks along the first axis, of this length in all, such as `blocks` yields."""
    whole: np.ndarray | None = None
    for start, block in blocks:
        if whole is None:
            whole = np.empty((length, *block.shape[1:]), block.dtype)
        whole[start : start + len(block)] = block
    assert whole is not None, "a volume has at least one block"
    return whole


def _probabilities(network: PureModel, variables: Any, tile: jax.Array) -> jax.Array:
    values, _ = network(variables, tile)
    return jax.nn.softmax(values["logits"].astype(jnp.float32))


@jax.jit
def _packed(sums: jax.Array, temperature: float) -> jax.Array:
    """Packs sums of probabilities, (…, k)."""
    return packed_confidence(jnp.log(sums), temperature, jnp.argmax(sums, axis=-1))
