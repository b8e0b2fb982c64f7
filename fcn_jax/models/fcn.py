"""Fully convolutional networks: a backbone's features, scored, fused and brought to full size.

FCN-32s scores the coarsest features and upsamples the scores; FCN-16s first doubles them and adds
scores of the next finer features; FCN-8s does that once more (Long, Shelhamer & Darrell 2015,
section 4). On a backbone whose coarsest stride is not 32 the same holds from its own stride on.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.errors import ArgumentError
from fcn_jax.models.backbones.contract import Backbone
from fcn_jax.models.feature_map import FeatureMap, TilePosition, scaled
from fcn_jax.models.heads import SkipHead
from fcn_jax.models.layers import Conv, max_pool, relu
from fcn_jax.models.row_blocks import RowBlocks


class FCN(nnx.Module):
    """A backbone, score layers on the fused stages, and upsampling to the image's size.

    Score layers start at zero; upsampling starts, or stays, bilinear.

    Args:
        backbone: see `models/backbones`.
        num_classes: scores per pixel, background among them; or, by name, those of several label
            maps that are predicted from the one trunk, each by a head of its own (section 5, SIFT
            Flow).
        skips: finer stages fused: 0, 1, 2 for FCN-32s, 16s, 8s.
        hidden: whether a 3×3 convolution comes before the coarsest scores, as in torchvision.
        auxiliary: whether a second head of that kind scores the stage before the last, to be
            trained beside the first; it is not run otherwise.
        context_features: where above 0, `Context` adds a stride twice the backbone's coarsest.
        score_scales: factors of the features before they are scored, or widened by `Context`,
            coarse to fine; 1 for those beyond. The at-once FCN-8s has (1, 0.01, 0.0001); features
            of about unit size let all score layers learn at one rate.
        upsampling: learned, fixed (both start bilinear), or interpolate (`Interpolate`).
        half_pixel: upsample as if each coarse position were centred on the block of pixels that it
            stands for (PyTorch's `align_corners=False`, d2l's padding of stride/2), instead of
            where the backbone's layers put it.
        dropout_rate: of hidden features.
        dtype: of the backbone's activations; scores and logits are float32.
        axis_name: see `BatchNorm`.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | Mapping[str, int],
        *,
        skips: int,
        hidden: bool = False,
        auxiliary: bool = False,
        context_features: int | None = None,
        score_scales: Sequence[float] | None = None,
        upsampling: str = "learned",
        half_pixel: bool = False,
        dropout_rate: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone
        self.dtype = dtype
        channels, grids = dict(backbone.channels), dict(backbone.grids)
        self.has_context = context_features is not None
        if context_features is not None:
            coarsest = max(channels)
            self.context = Context(channels[coarsest], context_features, rngs=rngs)
            channels[2 * coarsest] = context_features
            grids[2 * coarsest] = grids[coarsest].after(3, stride=2)
        coarse_to_fine = sorted(channels, reverse=True)
        if not 0 <= skips < len(coarse_to_fine):
            raise ArgumentError(
                "model.skips",
                skips,
                f"must be in 0…{len(coarse_to_fine) - 1}: the backbone has features at strides "
                f"{', '.join(map(str, coarse_to_fine))}",
            )
        self.stages = tuple(coarse_to_fine[: skips + 1])
        score_scales = score_scales or ()
        if score_scales and len(score_scales) < len(self.stages):
            raise ArgumentError(
                "model.score_scales",
                tuple(score_scales),
                f"must have at least {len(self.stages)} factors, for the strides "
                f"{', '.join(map(str, self.stages))}",
            )
        self.scales = dict.fromkeys(channels, 1.0) | dict(
            zip(coarse_to_fine, score_scales, strict=False)
        )

        def head(num_classes: int, stages: Sequence[int], *, hidden: bool) -> SkipHead:
            return SkipHead(
                channels,
                grids,
                num_classes,
                stages=stages,
                hidden=hidden,
                dropout_rate=dropout_rate,
                upsampling=upsampling,
                half_pixel=half_pixel,
                axis_name=axis_name,
                rngs=rngs,
            )

        by_name = num_classes if isinstance(num_classes, Mapping) else {"": num_classes}
        self.label_maps = tuple(by_name)
        self.num_classes = dict(by_name)
        for name, count in by_name.items():
            setattr(self, f"head{suffix(name)}", head(count, self.stages, hidden=hidden))
        self.has_auxiliary = auxiliary
        if auxiliary:
            first = next(iter(by_name.values()))
            self.auxiliary = head(first, coarse_to_fine[1:2], hidden=True)

    def __call__(
        self,
        image: jax.Array,
        *,
        train: bool = False,
        valid: jax.Array | None = None,
        keys: jax.Array | None = None,
    ) -> jax.Array | dict[str, jax.Array]:
        """Scores every pixel.

        Args:
            image: channels in 0…255 in any dtype, also float32, never 0…1; (b, h, w, c) of any
                size: RGB, then the extra channels that the backbone was built for.
            train: whether batch normalisation uses, and updates by, the batch's statistics, and
                dropout is on where `keys` are given.
            valid: int32 (b, 2), rows and columns of each canvas that are image; None: all. The
                logits inside are those of the image alone; outside they mean nothing.
            keys: PRNG keys for dropout, (b,): one for each image.

        Returns:
            logits: float32 (b, h, w, k), or by name where there are several label maps.

        Raises:
            ValueError: the image has no batch axis, or another number of channels.
        """
        named = self.features(image, train=train, valid=valid, keys=keys)
        if self.label_maps == ("",):
            return named["logits"].values
        return {name: named[f"logits{suffix(name)}"].values for name in self.label_maps}

    def features(
        self,
        image: jax.Array,
        *,
        train: bool = False,
        valid: jax.Array | None = None,
        tile: TilePosition | None = None,
        keys: jax.Array | None = None,
    ) -> dict[str, FeatureMap]:
        """Everything in between, by name: pixels, backbone2 …, score32 …, fused16 …, logits.

        With several label maps the heads' names end in theirs: score32_geometric; of an auxiliary
        head, in training, in `auxiliary`.

        tile: where the canvases were cut out of larger images (see `tiles.py`).
        """
        if image.ndim < 4:
            raise ValueError(
                f"`image` (of shape {image.shape}) must have a batch axis: (b, h, w, c); "
                "for a single image, image[None]"
            )
        pixels = FeatureMap(self.backbone.preprocessing(image, self.dtype), valid, tile)
        by_stage = self.backbone(pixels, train=train, keys=keys)
        named = {"pixels": pixels} | {f"backbone{stage}": x for stage, x in by_stage.items()}
        to_score = {stage: scaled(x, self.scales[stage]) for stage, x in by_stage.items()}
        if self.has_context:
            named["context"] = self.context(to_score[max(by_stage)])
            to_score[2 * max(by_stage)] = scaled(named["context"], self.scales[2 * max(by_stage)])
        for index, (name, head) in enumerate(self._heads(train=train).items(), start=1):
            sees = by_stage if name == "auxiliary" else to_score
            # Keys of its own: the backbone has drawn from the given ones.
            head_keys = (
                None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, index)
            )
            scores = head(sees, pixels, train=train, keys=head_keys)
            named |= {f"{key}{suffix(name)}": x for key, x in scores.items()}
        return named

    def logits_in_blocks(
        self, features: Mapping[str, FeatureMap], *, train: bool = False
    ) -> dict[str, RowBlocks]:
        """By label map the logits, float32 (b, h, w, k), in blocks of rows that are not yet made.

        In training also of the `auxiliary` head. features: what `features` has returned.
        """
        blocks = {}
        for name, head in self._heads(train=train).items():
            ending = suffix(name)
            own = {
                key.removesuffix(ending): x for key, x in features.items() if key.endswith(ending)
            }
            blocks[name] = head.logits_in_blocks(own, features["pixels"])
        return blocks

    def _heads(self, *, train: bool) -> dict[str, SkipHead]:
        heads = {name: getattr(self, f"head{suffix(name)}") for name in self.label_maps}
        if self.has_auxiliary and train:
            heads["auxiliary"] = self.auxiliary
        return heads


def suffix(label_map: str) -> str:
    """What the names of a label map's head and features end in; the only one has no name."""
    return f"_{label_map}" if label_map else ""


class Context(nnx.Module):
    """What fc6 and fc7 are to VGG16, for backbones that have no such layers: a wider view.

    A 3×3 pooling of stride 2, then two 3×3 convolutions. Each adds 64 pixels to the field of view
    where the backbone's coarsest stride is 16.
    """

    def __init__(self, in_features: int, features: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv(in_features, features, (3, 3), rngs=rngs)
        self.conv2 = Conv(features, features, (3, 3), rngs=rngs)

    def __call__(self, x: FeatureMap) -> FeatureMap:
        x = max_pool(x, window=3, stride=2, padding=1)
        return relu(self.conv2(relu(self.conv1(x))))
