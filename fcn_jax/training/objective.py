"""The objective of a training step: the losses of all heads, over blocks, parts and devices.

Sums over pixels are added over blocks of rows, accumulation parts and devices (`psum` over
`DATA_AXIS`), and turned into the loss once. So the loss does not depend on how the batch is
divided, whereas a mean of the devices' means would: their shards have different numbers of ignored
pixels. With several label maps this holds for each.
"""

import dataclasses
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fcn_jax.config import Config
from fcn_jax.data.augment import Crop
from fcn_jax.data.borders import LEVELS
from fcn_jax.data.labels import IGNORE_INDEX, by_map
from fcn_jax.errors import ArgumentError
from fcn_jax.models.pure_model import PureModel
from fcn_jax.models.row_blocks import RowBlocks
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.parallel.target import target_platform
from fcn_jax.training.loss_check import find_problem
from fcn_jax.training.losses import (
    Loss,
    PixelLoss,
    RankedLoss,
    WeightedLosses,
    build_losses,
)


class Term(NamedTuple):
    """A loss of a head, and its factor in the objective."""

    loss: Loss
    factor: float


class Head(NamedTuple):
    """A head of the network: its label map, and the losses whose weighted sum it minimises."""

    label_map: str
    terms: tuple[Term, ...]


class Output(NamedTuple):
    """The logits of a head for a part of the batch, and its labels.

    Attributes:
        logits: in blocks of rows that are not computed yet.
        label: int32 (b, h, w).
        label_blocks: the same in the blocks of the logits, 255 outside the images.
        image_blocks: the index of each pixel's image in the part, −1 outside the images; None if
            no loss is taken of each image by its sums.
        border_blocks: the further weights of pixels in the blocks of the logits, float32; None if
            there are none.
    """

    logits: RowBlocks
    label: jax.Array
    label_blocks: jax.Array
    image_blocks: jax.Array | None
    border_blocks: jax.Array | None


class Objective:
    """Σ factor·value(sums) over the losses of the heads, on a device's shard of the batch.

    Its gradient is that of the linear Σ slopes·sums, where the slopes are the derivatives of
    factor·value at the sums over the whole batch. The slopes of a `PixelLoss` follow from the
    labels. For other losses the sums are added up first, without a gradient; with accumulation that
    takes a forward pass of all parts. What is not summed over the pixels, but kept for each image
    or each pixel, is written into zeros for the whole batch, so that it adds up in the same way.
    """

    def __init__(self, network: PureModel, config: Config, class_weights: Mapping[str, jax.Array]):
        self._network = network
        self._parts = config.train.accumulation_steps
        self._minimises_sum = config.loss.normalization == "sum"
        losses = build_losses(config.loss, network.label_maps, class_weights)
        for label_map, built in losses.items():
            for name, loss in zip(config.loss.names, built.losses, strict=True):
                problem = find_problem(loss, network.num_classes[label_map])
                if problem:
                    raise ArgumentError("loss.names", name, f"cannot be used: {problem}")
        self._first, *_ = network.label_maps
        self._border_weight: float | None = None
        if config.loss.border_class is not None:
            classes = network.num_classes[self._first]
            if config.loss.border_class >= classes:
                raise ArgumentError(
                    "loss.border_class", config.loss.border_class, f"must be in 0…{classes - 1}"
                )
            if not any(isinstance(loss, PixelLoss) for loss in losses[self._first].losses):
                raise ArgumentError(
                    "loss.border_class",
                    config.loss.border_class,
                    "needs a loss of single pixels, such as cross_entropy",
                )
            self._border_weight = config.loss.border_weight
        factors = dict.fromkeys(network.label_maps, 1.0)
        label_maps = {name: name for name in network.label_maps}
        if config.model.auxiliary_weight:
            factors["auxiliary"] = config.model.auxiliary_weight
            label_maps["auxiliary"] = self._first
        # Weights 1/2^i over their sum, as nnU-Net's (Isensee et al. 2021, supplementary note 4).
        # nnU-Net compares coarse scores with coarse labels, here they are upsampled.
        shares = [0.5**number for number in range(1 + len(network.deep_heads))]
        factors[self._first] /= sum(shares)
        for name, share in zip(network.deep_heads, shares[1:], strict=True):
            factors[name], label_maps[name] = share / sum(shares), self._first
        self._heads = {
            name: Head(label_map, _terms(losses[label_map], factors[name]))
            for name, label_map in label_maps.items()
        }
        terms = self._heads[self._first].terms
        self._per_pixel = all(isinstance(term.loss, PixelLoss) for term in terms)

    def gradients(
        self, params: Any, batch_stats: Any, crop: Crop, dropout_keys: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """Returns the gradients of the whole batch, the next batch statistics and the metrics.

        Args:
            params: parameters of the network.
            batch_stats: batch statistics of the network.
            crop: this device's crops, (b, …).
            dropout_keys: a PRNG key for each crop, (b,).
        """
        labels, borders = self._labels(crop)
        shard = len(dropout_keys)
        index = lax.axis_index(DATA_AXIS) * shard + jnp.arange(shard)
        parts = jax.tree.map(
            lambda x: x.reshape(self._parts, len(x) // self._parts, *x.shape[1:]),
            (crop, dropout_keys, index),
        )
        slopes: dict[str, list[Any]] | None = None
        values: dict[str, list[Any]] = {}
        if self._per_pixel:
            weights = {
                name: [
                    term.loss.weight_sum(labels[head.label_map], borders.get(head.label_map))
                    for term in head.terms
                    if isinstance(term.loss, PixelLoss)
                ]
                for name, head in self._heads.items()
            }
            weights = lax.psum(weights, DATA_AXIS)
            totals = {name: [(0.0, w) for w in ws] for name, ws in weights.items()}
            _, slopes = self._values_and_slopes(totals)
        elif self._parts > 1:
            totals = self._totals_of_parts(params, batch_stats, parts)
            values, slopes = self._values_and_slopes(totals)

        def add_part(batch_stats: Any, part: Any) -> tuple[Any, Any]:
            (_, (batch_stats, *others)), gradients = jax.value_and_grad(self._linear, has_aux=True)(
                params, batch_stats, part, slopes
            )
            return batch_stats, (gradients, *others)

        batch_stats, (*results, values_of_part) = self._over_parts(add_part, batch_stats, parts)
        gradients, sums, correct = lax.psum(results, DATA_AXIS)
        valid = jnp.sum(labels[self._first] != IGNORE_INDEX, dtype=jnp.float32)
        if self._per_pixel:
            for name, head in self._heads.items():
                of_head = zip(head.terms, sums[name], weights[name], strict=True)
                values[name] = [
                    term.factor * term.loss.batch_value((loss, weight))
                    for term, loss, weight in of_head
                ]
        metrics = {
            "loss": jnp.sum(jnp.stack(jax.tree.leaves(values or values_of_part))),
            "pixel_accuracy": correct / jnp.maximum(lax.psum(valid, DATA_AXIS), 1),
        }
        return gradients, batch_stats, metrics

    def _labels(self, crop: Crop) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """The labels by label map, and the further weights of pixels of those that have any."""
        maps = self._network.label_maps
        if self._border_weight is None:
            return by_map(crop.label, maps), {}
        *labels, border = jnp.unstack(crop.label, axis=-1)
        share = jnp.where(border == IGNORE_INDEX, 0, border / LEVELS)
        weights = self._border_weight * share.astype(jnp.float32)
        return dict(zip(maps, labels, strict=True)), {self._first: weights}

    def _values_and_slopes(
        self, totals: dict[str, list[Any]]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Each term's factor·value at its sums over the whole batch, and its derivatives there.

        Both at once, because Lovász-Softmax and OHEM sort all pixels for either.
        """

        def both(term: Term, total: Any) -> tuple[Any, Any]:
            if self._minimises_sum:
                return term.factor * term.loss.batch_value(total), (term.factor, 0.0)
            if isinstance(term.loss, RankedLoss):
                ranked, label = total
                value, slopes = jax.value_and_grad(
                    lambda ranked: term.loss.batch_value((ranked, label))
                )(ranked)
            else:
                value, slopes = jax.value_and_grad(term.loss.batch_value)(total)
            return term.factor * value, jax.tree.map(lambda slope: term.factor * slope, slopes)

        pairs = {
            name: list(map(both, head.terms, totals[name])) for name, head in self._heads.items()
        }
        values = {name: [value for value, _ in of_head] for name, of_head in pairs.items()}
        return values, {name: [slopes for _, slopes in of_head] for name, of_head in pairs.items()}

    def _outputs(
        self, params: Any, batch_stats: Any, part: tuple[Crop, jax.Array, jax.Array]
    ) -> tuple[dict[str, Output], Any]:
        """The output of each head for a part of the batch, and new batch statistics."""
        crop, keys, _ = part
        logits, batch_stats = self._network.logits_in_blocks(
            (params, batch_stats), crop.image, train=True, valid=crop.valid, keys=keys
        )
        labels, borders = self._labels(crop)

        def output(name: str, head: Head) -> Output:
            label, to_blocks = labels[head.label_map], logits[name].layout.to_blocks
            image = None
            if any(loss.per_image and not isinstance(loss, RankedLoss) for loss, _ in head.terms):
                image = jnp.arange(len(label)).reshape(-1, *[1] * (label.ndim - 1))
                image = to_blocks(jnp.broadcast_to(image, label.shape), -1)
            border = borders.get(head.label_map)
            border = None if border is None else to_blocks(border, 0)
            return Output(logits[name], label, to_blocks(label, IGNORE_INDEX), image, border)

        return {name: output(name, head) for name, head in self._heads.items()}, batch_stats

    def _linear(
        self, params: Any, batch_stats: Any, part: Any, slopes: dict[str, list[Any]] | None
    ) -> tuple[jax.Array, Any]:
        """Σ slopes·sums of a part.

        Also returns new batch statistics, the sums of losses if all are over pixels, the correct
        pixels, and the values of the whole batch if the slopes were not given.
        """
        outputs, batch_stats = self._outputs(params, batch_stats, part)
        values: dict[str, list[Any]] = {}
        if slopes is None:
            totals = lax.psum(self._totals(outputs, part[-1]), DATA_AXIS)
            values, slopes = self._values_and_slopes(totals)
        products, sums, correct = [], {}, {}
        for name, output in outputs.items():
            terms = self._heads[name].terms
            factors = [
                _of_part(term.loss, slope, part[-1], output.logits)
                for term, slope in zip(terms, slopes[name], strict=True)
            ]
            # The slope of a single sum is multiplied once, instead of with each pixel.
            outer = factors[0][0][0] if self._per_pixel and len(terms) == 1 else None

            def of_rows(
                rows: jax.Array,
                label: jax.Array,
                image: jax.Array | None,
                border: jax.Array | None,
                of_pixels: list[jax.Array | None],
                terms: tuple[Term, ...] = terms,
                factors: list[Any] = factors,
                outer: Any = outer,
                batch: int = len(output.label),
            ) -> tuple[jax.Array, Any]:
                right = jnp.sum(jnp.argmax(rows, axis=-1) == label, dtype=jnp.float32)
                products, losses = [], []
                for (loss, _), (slope, _), of_pixel in zip(terms, factors, of_pixels, strict=True):
                    if of_pixel is not None:
                        products.append(jnp.sum(of_pixel * _values(loss, rows, label)))
                        continue
                    sums = _sums(loss, rows, label, image, border, batch)
                    if self._per_pixel:
                        losses.append(sums[0])
                        products.append(sums[0] if outer is not None else slope[0] * sums[0])
                    else:
                        by_sum = jax.tree.map(lambda a, b: jnp.sum(a * b), slope, sums)
                        products.append(jnp.sum(jnp.stack(jax.tree.leaves(by_sum))))
                return jnp.sum(jnp.stack(products)), (losses, right)

            of_pixels = [of_pixel for _, of_pixel in factors]
            product, (sums[name], correct[name]) = output.logits.total(
                of_rows, output.label_blocks, output.image_blocks, output.border_blocks, of_pixels
            )
            products.append(product if outer is None else outer * product)
        aux = batch_stats, sums, correct[self._first], values
        return jnp.sum(jnp.stack(products)), aux

    def _totals(self, outputs: dict[str, Output], index: jax.Array) -> dict[str, list[Any]]:
        """Returns what a part adds to the sums of each loss, without a gradient."""

        def placed(values: jax.Array) -> jax.Array:
            size = self._parts * len(index) * lax.psum(1, DATA_AXIS)
            zeros = jnp.zeros((size, *values.shape[1:]), values.dtype)
            return lax.dynamic_update_slice_in_dim(zeros, values, index[0], axis=0)

        def total(output: Output, loss: Loss) -> Any:
            shared, blocks = lax.stop_gradient((output.logits.shared, output.logits.blocks))
            logits = dataclasses.replace(output.logits, shared=shared, blocks=blocks)
            if isinstance(loss, RankedLoss):
                values = logits.map(loss.pixel_values, output.label_blocks)
                return jax.tree.map(placed, (values, output.label.astype(jnp.int32)))

            def of_rows(
                rows: jax.Array,
                label: jax.Array,
                image: jax.Array | None,
                border: jax.Array | None,
            ) -> tuple[jax.Array, Any]:
                return jnp.zeros(()), _sums(loss, rows, label, image, border, len(index))

            _, sums = logits.total(
                of_rows, output.label_blocks, output.image_blocks, output.border_blocks
            )
            return jax.tree.map(placed, sums) if loss.per_image else sums

        return {
            name: [total(output, term.loss) for term in self._heads[name].terms]
            for name, output in outputs.items()
        }

    def _totals_of_parts(self, params: Any, batch_stats: Any, parts: Any) -> dict[str, list[Any]]:
        def add_part(batch_stats: Any, part: Any) -> tuple[Any, Any]:
            outputs, batch_stats = self._outputs(params, batch_stats, part)
            return batch_stats, self._totals(outputs, part[-1])

        _, totals = self._over_parts(add_part, batch_stats, parts)
        return lax.psum(totals, DATA_AXIS)

    def _over_parts(
        self, function: Callable[[Any, Any], tuple[Any, Any]], state: Any, parts: Any
    ) -> tuple[Any, Any]:
        """Hands `state` from part to part; returns the last one, and the sum of the results."""
        if self._parts == 1 or target_platform() == "cpu":
            # XLA's CPU backend runs convolutions inside a loop many times slower.
            state, sums = function(state, jax.tree.map(itemgetter(0), parts))
            for index in range(1, self._parts):
                state, results = function(state, jax.tree.map(itemgetter(index), parts))
                sums = jax.tree.map(jnp.add, sums, results)
            return state, sums

        def add(carry: Any, part: Any) -> tuple[Any, None]:
            state, sums = carry
            state, results = function(state, part)
            return (state, jax.tree.map(jnp.add, sums, results)), None

        first = jax.tree.map(itemgetter(0), parts)
        _, shapes = jax.eval_shape(function, state, first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return lax.scan(add, (state, zeros), parts)[0]


def _terms(losses: WeightedLosses, factor: float) -> tuple[Term, ...]:
    pairs = zip(losses.losses, losses.weights, strict=True)
    return tuple(Term(loss, factor * weight) for loss, weight in pairs)


def _sums(
    loss: Loss,
    rows: jax.Array,
    label: jax.Array,
    image: jax.Array | None,
    border: jax.Array | None,
    batch: int,
) -> Any:
    """Returns the sums over a block of rows, of each image (batch, …) if `loss.per_image`."""
    if isinstance(loss, PixelLoss) and border is not None:
        return loss.sums(rows, label, border)
    if not loss.per_image:
        return loss.sums(rows, label)
    assert image is not None
    of_rows = jax.vmap(loss.sums)(rows, label)
    image_of_row = jnp.max(image.reshape(len(image), -1), axis=1)
    is_of_image = (image_of_row == jnp.arange(batch)[:, None]).astype(jnp.float32)
    return jax.tree.map(
        lambda x: jnp.tensordot(is_of_image, x, 1, precision=lax.Precision.HIGHEST), of_rows
    )


def _values(loss: Loss, rows: jax.Array, label: jax.Array) -> jax.Array:
    assert isinstance(loss, RankedLoss)
    return loss.pixel_values(rows, label)


def _of_part(
    loss: Loss, slopes: Any, index: jax.Array, logits: RowBlocks
) -> tuple[Any, jax.Array | None]:
    """The slopes of a part's sums, or of its pixels in the blocks of the logits."""
    if not (loss.per_image or isinstance(loss, RankedLoss)):
        return slopes, None
    slopes = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, index[0], len(index)), slopes)
    if isinstance(loss, RankedLoss):
        return None, logits.layout.to_blocks(slopes, 0)
    return slopes, None
