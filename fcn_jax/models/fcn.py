"""Fully convolutional networks: backbone, score layers, fusion and upsampling to full size.

FCN-32s scores the coarsest features and upsamples the scores. FCN-16s first upsamples the scores by
two and adds the scores of the next finer features; FCN-8s does so twice (Long, Shelhamer & Darrell
2015, section 4). If the coarsest stride of a backbone is not 32, the fusion begins at that stride.

With a decoder (`models/unet.py`) the stages are fused as features, and the finest is scored.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.errors import ArgumentError
from fcn_jax.models.backbones.contract import Backbone, spatial_axes
from fcn_jax.models.feature_map import FeatureMap, TilePosition, scaled
from fcn_jax.models.heads import ZEROS, SkipHead
from fcn_jax.models.layers import Conv, max_pool, relu
from fcn_jax.models.row_blocks import RowBlocks
from fcn_jax.models.unet import UNetDecoder


class FCN(nnx.Module):
    """A backbone, score layers on the fused stages, and upsampling to the size of the image.

    Score layers start at zero unless `score_init` is given. Learned upsampling starts bilinear;
    fixed upsampling is bilinear.

    Args:
        backbone: see `models/backbones`.
        num_classes: scores per pixel, the background class included; or their number by label map,
            if several label maps are predicted from one backbone, each by its own head (section 5,
            SIFT Flow).
        skips: number of finer stages to fuse: 0, 1, 2 for FCN-32s, FCN-16s, FCN-8s.
        decoder: builds a decoder that fuses those stages. It is called with `channels` and `grids`,
            and with `stages`, `ndim`, `axis_name` and `rngs` by name. None: their scores are added.
        hidden: whether a 3×3 convolution precedes the coarsest score layer, as in torchvision.
        mmseg_dilation: dilation of the hidden layers of mmsegmentation (`MMSegScore`), which then
            take the place of torchvision's; None for no such layers.
        auxiliary: whether training adds a second head with a hidden layer, on the stage before the
            coarsest, or with a decoder on its stage before the finest. It is used in training only.
        deep_supervision: number of stages of the decoder before the finest that also get a head,
            for the first label map. These heads are used in training only.
        context_features: features of a `Context` that adds a stage at twice the coarsest stride of
            the backbone; None for no `Context`.
        score_scales: factors of the features before a score layer or `Context`, from coarse to
            fine; 1 for the stages that are not listed. The at-once FCN-8s has (1, 0.01, 0.0001).
            Features of about unit size let all score layers learn at the same rate.
        upsampling: "learned", "fixed" (both start bilinear) or "interpolate" (`Interpolate`).
        half_pixel: whether upsampling assumes that each coarse position is centred on its block of
            pixels (PyTorch's `align_corners=False`, d2l's padding of stride/2). If False, it uses
            the centres that follow from the backbone's layers (its grids).
        score_init: initialiser of the score layers' kernels; without a hidden layer before them.
        dropout_rate: dropout of the hidden features, in 0…1.
        dtype: dtype of the backbone's activations; scores and logits are float32.
        axis_name: see `BatchNorm`.
        rngs: streams of random keys for the initial weights.

    Raises:
        ArgumentError: the backbone has fewer stages than `skips` needs, or `score_scales` is
            shorter than the fused stages.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | Mapping[str, int],
        *,
        skips: int,
        decoder: Callable[..., UNetDecoder] | None = None,
        hidden: bool = False,
        mmseg_dilation: int | None = None,
        auxiliary: bool = False,
        deep_supervision: int = 0,
        context_features: int | None = None,
        score_scales: Sequence[float] | None = None,
        upsampling: str = "learned",
        half_pixel: bool = False,
        score_init: nnx.Initializer = ZEROS,
        dropout_rate: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone
        self.dtype = dtype
        ndim = self.ndim = spatial_axes(backbone)
        channels, grids = dict(backbone.channels), dict(backbone.grids)
        self.has_context = context_features is not None
        if context_features is not None:
            coarsest = max(channels)
            self.context = Context(channels[coarsest], context_features, ndim=ndim, rngs=rngs)
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
        self.has_decoder = decoder is not None
        scored, second = self.stages, coarse_to_fine[1:2]
        if decoder is not None:
            self.decoder = decoder(
                channels, grids, stages=self.stages, ndim=ndim, axis_name=axis_name, rngs=rngs
            )
            channels, grids = self.decoder.channels, self.decoder.grids
            scored, second = self.stages[-1:], list(self.stages[-2:-1])
        coarser = self.stages[-2::-1]
        if deep_supervision > len(coarser):
            raise ArgumentError(
                "model.deep_supervision",
                deep_supervision,
                f"must be at most {len(coarser)}, the stages of the decoder before the finest",
            )

        def head(num_classes: int, stages: Sequence[int], *, hidden: bool) -> SkipHead:
            return SkipHead(
                channels,
                grids,
                num_classes,
                stages=stages,
                hidden=hidden,
                mmseg_dilation=mmseg_dilation,
                dropout_rate=dropout_rate,
                upsampling=upsampling,
                half_pixel=half_pixel,
                score_init=score_init,
                ndim=ndim,
                axis_name=axis_name,
                rngs=rngs,
            )

        by_name = num_classes if isinstance(num_classes, Mapping) else {"": num_classes}
        self.label_maps = tuple(by_name)
        self.num_classes = dict(by_name)
        for name, count in by_name.items():
            setattr(self, f"head{suffix(name)}", head(count, scored, hidden=hidden))
        self.has_auxiliary = auxiliary
        if auxiliary:
            first = next(iter(by_name.values()))
            self.auxiliary = head(first, second, hidden=True)
        self.deep_stages = {f"deep{stage}": stage for stage in coarser[:deep_supervision]}
        for name, stage in self.deep_stages.items():
            setattr(self, name, head(next(iter(by_name.values())), [stage], hidden=False))

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
            image: canvases (b, h, w, c) of any size and dtype. The channels are RGB and then the
                extra channels that the backbone was built for, with values in 0…255 (also in
                float32; never 0…1).
            train: whether batch normalisation uses the statistics of the batch and updates the
                running ones.
            valid: height and width of the image on each canvas, int32 (b, 2); None if the images
                fill their canvases. The logits inside are those of the image alone; those outside
                are undefined.
            keys: PRNG keys for dropout, (b,), one for each image; None for no dropout.

        Returns:
            Logits, float32 (b, h, w, k); a dictionary of them if there are several label maps.

        Raises:
            ValueError: the image has no batch axis or the wrong number of channels.
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
        """Computes all intermediate features and the logits.

        Args:
            image, train, valid, keys: see `__call__`.
            tile: the place of each canvas in the larger image that it was cut out of (see
                `inference/tiles.py`); None if the canvases hold whole images.

        Returns:
            Features by name: pixels, backbone2, …, context, decoder16, …, score32, …, fused16, …,
            logits. If there are several label maps, the names of a head's features end in the name
            of its map (score32_geometric). Those of the heads of training end in `_auxiliary`, and
            in `_deep2`, `_deep4`, … for deep supervision.

        Raises:
            ValueError: the image has no batch axis or the wrong number of channels.
        """
        if image.ndim != self.ndim + 2:
            axes = ", ".join("dhw"[-self.ndim :])
            raise ValueError(
                f"`image` (of shape {image.shape}) must have a batch axis: (b, {axes}, c); "
                "for a single image, image[None]"
            )
        pixels = FeatureMap(self.backbone.preprocessing(image, self.dtype), valid, tile)
        by_stage = self.backbone(pixels, train=train, keys=keys)
        named = {"pixels": pixels} | {f"backbone{stage}": x for stage, x in by_stage.items()}
        to_score = {stage: self._scaled(stage, x) for stage, x in by_stage.items()}
        if self.has_context:
            named["context"] = self.context(to_score[max(by_stage)])
            to_score[2 * max(by_stage)] = self._scaled(2 * max(by_stage), named["context"])
        if self.has_decoder:
            by_stage = to_score = self.decoder(to_score, train=train)
            named |= {f"decoder{stage}": x for stage, x in by_stage.items()}
        for index, (name, head) in enumerate(self._heads(train=train).items(), start=1):
            inputs = by_stage if name == "auxiliary" else to_score
            # The backbone has used the given keys, so every head derives its own.
            head_keys = (
                None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, index)
            )
            scores = head(inputs, pixels, train=train, keys=head_keys)
            named |= {f"{key}{suffix(name)}": x for key, x in scores.items()}
        return named

    def logits_in_blocks(
        self, features: Mapping[str, FeatureMap], *, train: bool = False
    ) -> dict[str, RowBlocks]:
        """Prepares the logits in blocks of rows.

        Args:
            features: the result of `features`, called with the same `train`.
            train: whether the result includes the logits of the heads of training.

        Returns:
            Logits by label map (and "auxiliary", "deep2", …), float32 (b, h, w, k), in blocks that
            are not computed yet.
        """
        blocks = {}
        for name, head in self._heads(train=train).items():
            ending = suffix(name)
            own = {
                key.removesuffix(ending): x for key, x in features.items() if key.endswith(ending)
            }
            blocks[name] = head.logits_in_blocks(own, features["pixels"])
        return blocks

    def _scaled(self, stage: int, x: FeatureMap) -> FeatureMap:
        factor = self.scales[stage]
        # A product with 1 would be stored for the backward pass besides `x`.
        return x if factor == 1.0 else scaled(x, factor)

    def _heads(self, *, train: bool) -> dict[str, SkipHead]:
        heads = {name: getattr(self, f"head{suffix(name)}") for name in self.label_maps}
        if self.has_auxiliary and train:
            heads["auxiliary"] = self.auxiliary
        if train:
            heads |= {name: getattr(self, name) for name in self.deep_stages}
        return heads


def suffix(label_map: str) -> str:
    """Returns the ending of the names of a label map's head and features; "" for an unnamed map."""
    return f"_{label_map}" if label_map else ""


class Context(nnx.Module):
    """A coarser stage with a larger receptive field, for backbones without VGG16's fc6 and fc7.

    It is a 3×3 max pooling of stride 2 and two 3×3 convolutions. After a coarsest stride of 16,
    each convolution adds 64 pixels to the width of the receptive field.
    """

    def __init__(self, in_features: int, features: int, *, ndim: int = 2, rngs: nnx.Rngs):
        self.conv1 = Conv(in_features, features, (3,) * ndim, rngs=rngs)
        self.conv2 = Conv(features, features, (3,) * ndim, rngs=rngs)

    def __call__(self, x: FeatureMap) -> FeatureMap:
        """Computes features (b, ceil(h / 2), ceil(w / 2), features)."""
        x = max_pool(x, window=3, stride=2, padding=1)
        return relu(self.conv2(relu(self.conv1(x))))
