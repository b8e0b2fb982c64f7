"""U-Net (Ronneberger, Fischer & Brox 2015): a contracting path, and an expanding one with skips.

`UNetEncoder` is the contracting path, a backbone (`model.backbone=unet`). `UNetDecoder` is the
expanding path, for the features of any backbone (`model.decoder=unet`): at each step it doubles the
resolution, puts the backbone's features of that stride beside the result, and convolves both.

With padding="same" every convolution pads by zeros, and any size of image will do. With "valid",
the paper's, none pads: each image is first padded by its mirror image, so far that the scores reach
its borders; the paper does the same for the tiles at an image's border.

Arrays are (b, *spatial, c) with one, two or three spatial axes, `ndim`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
from flax import nnx

from fcn_jax.errors import ArgumentError
from fcn_jax.models.backbones.preprocess import TORCHVISION, Preprocessing
from fcn_jax.models.feature_map import FeatureMap, TilePosition, concatenate
from fcn_jax.models.geometry import PIXELS, Grid
from fcn_jax.models.layers import Conv, dropout, max_pool, mirror_pad, relu
from fcn_jax.models.normalisation import norm_layer
from fcn_jax.models.recorded import recorded
from fcn_jax.models.remat import remat_block
from fcn_jax.models.upsampling import BlockUpsample


class DoubleConv(nnx.Module):
    """Two 3×3 convolutions, each normalised and rectified."""

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        padding: str,
        norm: str,
        ndim: int,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        def conv(in_features: int) -> Conv:
            return Conv(
                in_features,
                features,
                (3,) * ndim,
                padding=1 if padding == "same" else 0,
                use_bias=norm == "none",
                rngs=rngs,
            )

        self.conv1, self.norm1 = conv(in_features), norm_layer(norm, features, axis_name=axis_name)
        self.conv2, self.norm2 = conv(features), norm_layer(norm, features, axis_name=axis_name)

    @remat_block
    def __call__(self, x: FeatureMap | tuple[FeatureMap, FeatureMap], *, train: bool) -> FeatureMap:
        """Convolves a feature map, or two that it puts beside each other, to (b, *n, features).

        It does not store two joined: the backward pass joins them again.
        """
        if isinstance(x, tuple):
            y = jax.checkpoint(lambda *both: self.conv1(concatenate(*both)))(*x)
        else:
            y = self.conv1(x)
        y = relu(y if self.norm1 is None else self.norm1(y, train=train))
        y = self.conv2(y)
        return relu(y if self.norm2 is None else self.norm2(y, train=train))


class UNetEncoder(nnx.Module):
    """The contracting path: two convolutions at each level, and a 2×2 max pooling between levels.

    Args:
        features: of each level, from stride 1 on; the default is the paper's.
        norm: normalisation after each convolution; the paper has none. See `GroupNorm` for what
            "group" and "instance" mean for tiles.
        padding: see the module.
        dropout_rate: of the coarsest features (the paper: 'drop-out layers at the end of the
            contracting path').
        ndim: number of spatial axes.
        preprocessing, axis_name, rngs: see `Backbone`.
    """

    def __init__(
        self,
        *,
        features: tuple[int, ...] = (64, 128, 256, 512, 1024),
        norm: Literal["batch", "group", "instance", "none"] = "batch",
        padding: Literal["same", "valid"] = "same",
        dropout_rate: float = 0.5,
        ndim: int = 2,
        preprocessing: Preprocessing = TORCHVISION,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        if len(features) < 2:
            raise ArgumentError("model.features", features, "must have at least two levels")
        self.preprocessing = preprocessing
        self.ndim = ndim
        self.dropout_rate = dropout_rate
        self.channels = {2**level: count for level, count in enumerate(features)}
        self.grids: dict[int, Grid] = {}
        # Each level of two unpadded convolutions takes 2 positions from either end, on the way down
        # and up again. Poolings that leave out a last position take up to the coarsest stride − 1.
        coarsest = max(self.channels)
        margin = 2 * (3 * coarsest - 2)
        self.mirrored = None if padding == "same" else (margin, margin + coarsest - 1)
        grid = PIXELS if padding == "same" else Grid(offset=-margin)
        in_features = preprocessing.channels
        for stage, count in self.channels.items():
            if stage > 1:
                grid = grid.after(2, stride=2, padding=0)
            block = DoubleConv(
                in_features,
                count,
                padding=padding,
                norm=norm,
                ndim=ndim,
                axis_name=axis_name,
                rngs=rngs,
            )
            setattr(self, f"level{stage}", block)
            grid = self.grids[stage] = grid if padding == "same" else _unpadded(grid)
            in_features = count

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        x = image if self.mirrored is None else mirror_pad(image, *self.mirrored)
        features = {}
        for stage in self.channels:
            if stage > 1:
                x = max_pool(x, window=2, stride=2, ceil=self.mirrored is None)
            x = features[stage] = getattr(self, f"level{stage}")(x, train=train)
        coarsest = max(features)
        features[coarsest] = dropout(x, self.dropout_rate, keys)
        return features


class UNetDecoder(nnx.Module):
    """The expanding path: from the coarsest features to the finest, one backbone stage at a time.

    Args:
        channels, grids: of the backbone's features, by stage (see `Backbone`).
        stages: those used, from coarse to fine.
        features: of each step, coarse to fine; None: the backbone's own at each stage, as in the
            paper.
        norm, padding, ndim: see `UNetEncoder`.
        axis_name, rngs: see `Backbone`.

    Attributes:
        channels, grids: of the results, by stage.
    """

    def __init__(
        self,
        channels: Mapping[int, int],
        grids: Mapping[int, Grid],
        *,
        stages: Sequence[int],
        features: Sequence[int] | None = None,
        norm: str = "batch",
        padding: str = "same",
        ndim: int = 2,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        coarsest, *finer = self.stages = tuple(stages)
        if features is None:
            features = [channels[stage] for stage in finer]
        if len(features) != len(finer):
            raise ArgumentError(
                "model.decoder_features",
                tuple(features),
                f"must have {len(finer)} numbers, for the strides {', '.join(map(str, finer))}",
            )
        self.channels = {coarsest: channels[coarsest]}
        self.grids = {coarsest: grids[coarsest]}
        self.crops: dict[int, int] = {}
        coarse = coarsest
        for stage, count in zip(finer, features, strict=True):
            grid, fine = self.grids[coarse], grids[stage]
            factor = grid.stride // fine.stride
            if padding == "valid":
                # Pixel on which the first position of the upsampled features is centred.
                offset = grid.offset - (grid.stride - fine.stride) / 2
                self.crops[stage] = round((offset - fine.offset) / fine.stride)
                fine = _unpadded(dataclasses.replace(fine, offset=offset))
            up = BlockUpsample(self.channels[coarse], count, stride=factor, ndim=ndim, rngs=rngs)
            block = DoubleConv(
                channels[stage] + count,
                count,
                padding=padding,
                norm=norm,
                ndim=ndim,
                axis_name=axis_name,
                rngs=rngs,
            )
            setattr(self, f"up{stage}", up)
            setattr(self, f"level{stage}", block)
            self.channels[stage], self.grids[stage] = count, fine
            coarse = stage

    def __call__(
        self, features: Mapping[int, FeatureMap], *, train: bool = False
    ) -> dict[int, FeatureMap]:
        """Computes the decoded features of every stage, those of the coarsest unchanged."""
        coarsest, *finer = self.stages
        x = features[coarsest]
        decoded = {coarsest: x}
        for stage in finer:
            up, skip = getattr(self, f"up{stage}"), features[stage]
            if stage in self.crops:
                skip = cropped(skip, self.crops[stage], up.stride, x)
            both = skip, up(x, like=skip)
            level = getattr(self, f"level{stage}")
            # What records the calls of modules, outside of training, takes a single feature map.
            x = decoded[stage] = level(both if train else concatenate(*both), train=train)
        return decoded


def _unpadded(grid: Grid) -> Grid:
    """The grid behind two 3×3 convolutions without padding."""
    return grid.after(3, padding=0).after(3, padding=0)


@recorded
def cropped(skip: FeatureMap, first: int, factor: int, coarse: FeatureMap) -> FeatureMap:
    """Crops a skip to the size of the upsampled coarse features, from position `first` on."""
    window = tuple(slice(first, first + factor * size) for size in coarse.spatial)
    field = dataclasses.replace(
        skip.field,
        first=skip.field.first + first * skip.field.stride,
        last=skip.field.last + first * skip.field.stride,
    )
    tile = skip.tile
    if tile is not None and coarse.tile is not None:
        tile = TilePosition(tile.start, factor * coarse.tile.whole)
    valid = None if coarse.valid is None else factor * coarse.valid
    return FeatureMap(skip.values[(slice(None), *window)], valid, tile, field=field)
