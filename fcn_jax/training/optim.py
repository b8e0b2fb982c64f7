"""Optimizers: the paper's SGD, and AdamW; with learning rates by the role of a parameter."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fcn_jax.config import OptimConfig
from fcn_jax.errors import ArgumentError

POLY_POWER = 0.9
"""Exponent of the poly schedule (Chen et al., DeepLab, 2017)."""


def build_optimizer(
    config: OptimConfig, decay_mask: Any, total_steps: int
) -> optax.GradientTransformation:
    """Builds the optimizer of a config.

    The learning rate is that of `learning_rate_schedule`, times `backbone_rate` in the backbone,
    `auxiliary_rate` in the auxiliary head, and `bias_rate` for parameters called "bias". In SGD the
    weight decay enters the momentum, as in Caffe and PyTorch; AdamW decouples it.

    Args:
        config: the settings `optim`.
        decay_mask: bool in the structure of the parameters, True if weight decay applies to them:
            `PureModel.decay_mask`.
        total_steps: steps after which the poly schedule reaches 0.

    Raises:
        ArgumentError: no optimizer has this name.
    """
    rates = jax.tree_util.tree_map_with_path(lambda path, _: _rate(config, path), decay_mask)
    by_role = optax.stateless(
        lambda updates, _: jax.tree.map(lambda update, rate: update * rate, updates, rates)
    )
    rate = optax.scale_by_learning_rate(learning_rate_schedule(config, total_steps))
    decay = optax.add_decayed_weights(config.weight_decay, mask=decay_mask)
    match config.name:
        case "sgd":
            return optax.chain(decay, optax.trace(config.momentum, config.nesterov), by_role, rate)
        case "adamw":
            return optax.chain(optax.scale_by_adam(), decay, by_role, rate)
        case unknown:
            raise ArgumentError("optim.name", unknown, "must be sgd or adamw")


def learning_rate_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Returns the schedule of the head: step (int, from 0) -> learning rate (float32 scalar).

    rate · (1 − step/total_steps)^0.9 for poly, else rate; times (step + 1)/warmup_steps during the
    warmup.
    """

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        rate = jnp.asarray(config.learning_rate, jnp.float32)
        if config.schedule == "poly":
            rate = rate * jnp.maximum(1 - step / total_steps, 0) ** POLY_POWER
        if config.warmup_steps:
            rate = rate * jnp.minimum((step + 1) / config.warmup_steps, 1)
        return rate

    return schedule


def _rate(config: OptimConfig, path: Sequence[Any]) -> np.float32:
    first, last = path[0].key, path[-1].key
    rates = {"backbone": config.backbone_rate, "auxiliary": config.auxiliary_rate}
    rate = rates.get(first, 1.0)
    return np.float32(rate * config.bias_rate if last == "bias" else rate)
