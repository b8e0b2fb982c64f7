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
from fcn_jax.data.labels import IGNORE_INDEX, by_map
from fcn_jax.errors import ArgumentError
from fcn_jax.models.pure_model import PureModel
from fcn_jax.models.row_blocks import RowBlocks
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.parallel.target import target_platform
from fcn_jax.training.loss_check import find_problem
from fcn_jax.training.losses import Loss, PixelLoss, build_losses


class Head(NamedTuple):
    """A head of the network: its label map, its loss, and the factor of its loss."""

    label_map: str
    loss: Loss
    factor: float


class Objective:
    """Σ factor·value(sums) over the heads of a network, on a device's shard of the batch.

    Its gradient is that of the linear Σ slopes·sums, where the slopes are the derivatives of
    factor·value at the sums over the whole batch. The slopes of a `PixelLoss` follow from the
    labels. For other losses the sums are added up first, without a gradient; with accumulation that
    takes a forward pass of all parts.
    """

    def __init__(self, network: PureModel, config: Config, class_weights: Mapping[str, jax.Array]):
        self._network = network
        self._parts = config.train.accumulation_steps
        self._minimises_sum = config.loss.normalization == "sum"
        losses = build_losses(config.loss, network.label_maps, class_weights)
        for name, loss in losses.items():
            problem = find_problem(loss, network.num_classes[name])
            if problem:
                raise ArgumentError("loss.name", config.loss.name, f"cannot be used: {problem}")
        self._first, *_ = network.label_maps
        self._heads = {name: Head(name, loss, 1.0) for name, loss in losses.items()}
        if config.model.auxiliary_weight:
            self._heads["auxiliary"] = Head(
                self._first, losses[self._first], config.model.auxiliary_weight
            )
        self._per_pixel = isinstance(losses[self._first], PixelLoss)

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
        labels = by_map(crop.label, self._network.label_maps)
        parts = jax.tree.map(
            lambda x: x.reshape(self._parts, len(x) // self._parts, *x.shape[1:]),
            (crop, dropout_keys),
        )
        slopes, weights = None, {}
        if self._per_pixel:
            weights = {
                name: head.loss.weight_sum(labels[head.label_map])
                for name, head in self._heads.items()
                if isinstance(head.loss, PixelLoss)
            }
            weights = lax.psum(weights, DATA_AXIS)
            slopes = self._slopes({name: (0.0, weight) for name, weight in weights.items()})
        elif self._parts > 1:
            slopes = self._slopes(self._sums_of_parts(params, batch_stats, parts))

        def add_part(batch_stats: Any, part: Any) -> tuple[Any, Any]:
            (_, (batch_stats, *counts)), gradients = jax.value_and_grad(self._linear, has_aux=True)(
                params, batch_stats, part, slopes
            )
            return batch_stats, (gradients, *counts)

        batch_stats, results = self._over_parts(add_part, batch_stats, parts)
        gradients, sums, correct = lax.psum(results, DATA_AXIS)
        valid = jnp.sum(labels[self._first] != IGNORE_INDEX, dtype=jnp.float32)
        if self._per_pixel:
            sums = {name: (loss_sum, weights[name]) for name, loss_sum in sums.items()}
        values = [head.factor * head.loss.value(sums[name]) for name, head in self._heads.items()]
        metrics = {
            "loss": jnp.sum(jnp.stack(values)),
            "pixel_accuracy": correct / jnp.maximum(lax.psum(valid, DATA_AXIS), 1),
        }
        return gradients, batch_stats, metrics

    def _slopes(self, sums: Any) -> dict[str, Any]:
        """The derivatives of each head's factor·value at its sums over the whole batch."""
        if self._minimises_sum:
            return {name: (head.factor, 0.0) for name, head in self._heads.items()}
        return {
            name: jax.tree.map(
                lambda slope, factor=head.factor: factor * slope,
                jax.grad(head.loss.value)(sums[name]),
            )
            for name, head in self._heads.items()
        }

    def _outputs(
        self, params: Any, batch_stats: Any, part: tuple[Crop, jax.Array]
    ) -> tuple[dict[str, tuple[RowBlocks, jax.Array]], Any]:
        """Logits and labels of each head, in the same blocks of rows, and new batch statistics."""
        crop, keys = part
        logits, batch_stats = self._network.logits_in_blocks(
            (params, batch_stats), crop.image, train=True, valid=crop.valid, keys=keys
        )
        labels = by_map(crop.label, self._network.label_maps)
        outputs = {
            name: (
                logits[name],
                logits[name].layout.to_blocks(labels[head.label_map], IGNORE_INDEX),
            )
            for name, head in self._heads.items()
        }
        return outputs, batch_stats

    def _linear(
        self, params: Any, batch_stats: Any, part: Any, slopes: dict[str, Any] | None
    ) -> tuple[jax.Array, Any]:
        """Σ slopes·sums of a part; new batch statistics, the sums, and the correct pixels."""
        outputs, batch_stats = self._outputs(params, batch_stats, part)
        if slopes is None:
            slopes = self._slopes(lax.psum(self._sums(outputs), DATA_AXIS))
        terms, sums, correct = [], {}, {}
        for name, (logits, label) in outputs.items():
            loss, slope = self._heads[name].loss, slopes[name]

            def of_rows(
                rows: jax.Array, label: jax.Array, loss: Loss = loss, slope: Any = slope
            ) -> tuple[jax.Array, Any]:
                right = jnp.sum(jnp.argmax(rows, axis=-1) == label, dtype=jnp.float32)
                of_loss = loss.sums(rows, label)
                if self._per_pixel:
                    return of_loss[0], (of_loss[0], right)
                products = jax.tree.map(lambda a, b: jnp.sum(a * b), slope, of_loss)
                return jnp.sum(jnp.stack(jax.tree.leaves(products))), (of_loss, right)

            term, (sums[name], correct[name]) = logits.total(of_rows, label)
            terms.append(slope[0] * term if self._per_pixel else term)
        return jnp.sum(jnp.stack(terms)), (batch_stats, sums, correct[self._first])

    def _sums(self, outputs: dict[str, tuple[RowBlocks, jax.Array]]) -> dict[str, Any]:
        """The sums of each head's loss, without a gradient."""
        sums = {}
        for name, (logits, label) in outputs.items():
            loss = self._heads[name].loss

            def of_rows(
                rows: jax.Array, label: jax.Array, loss: Loss = loss
            ) -> tuple[jax.Array, Any]:
                return jnp.zeros(()), loss.sums(rows, label)

            shared, blocks = lax.stop_gradient((logits.shared, logits.blocks))
            fixed = dataclasses.replace(logits, shared=shared, blocks=blocks)
            sums[name] = fixed.total(of_rows, label)[1]
        return sums

    def _sums_of_parts(self, params: Any, batch_stats: Any, parts: Any) -> dict[str, Any]:
        def add_part(batch_stats: Any, part: Any) -> tuple[Any, Any]:
            outputs, batch_stats = self._outputs(params, batch_stats, part)
            return batch_stats, self._sums(outputs)

        _, sums = self._over_parts(add_part, batch_stats, parts)
        return lax.psum(sums, DATA_AXIS)

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
