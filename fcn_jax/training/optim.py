"""Optimizers: the paper's SGD, and AdamW with poly decay; a rate of its own for each part."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fcn_jax.config import OptimConfig
from fcn_jax.errors import UserError

POLY_POWER = 0.9
"""Exponent of the poly schedule (Chen et al., DeepLab, 2017)."""


def build_optimizer(config: OptimConfig, params, total_steps: int) -> optax.GradientTransformation:
    """The optimizer that a config names, for parameters of this structure.

    The rate is `learning_rate` for the head, times `backbone_rate` in the backbone,
    `auxiliary_rate` in the auxiliary head, and `bias_rate` for biases. Only kernels of convolutions
    decay: no biases, no norms, no upsampling. In SGD the decay enters the momentum, as in Caffe and
    PyTorch; AdamW decouples it.
    """
    decays = jax.tree_util.tree_map_with_path(lambda path, _: _decays(_names(path)), params)
    rates = jax.tree_util.tree_map_with_path(lambda path, _: _rate(config, _names(path)), params)
    by_part = optax.stateless(
        lambda updates, _: jax.tree.map(lambda update, rate: update * rate, updates, rates)
    )
    rate = optax.scale_by_learning_rate(learning_rate_schedule(config, total_steps))
    decay = optax.add_decayed_weights(config.weight_decay, mask=decays)
    match config.name:
        case "sgd":
            return optax.chain(decay, optax.trace(decay=config.momentum), by_part, rate)
        case "adamw":
            return optax.chain(optax.scale_by_adam(), decay, by_part, rate)
        case unknown:
            raise UserError(f"config.optim.name (={unknown!r}) must be sgd or adamw")


def learning_rate_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Step (int, from 0) to the head's learning rate (float32 scalar)."""

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        rate = jnp.asarray(config.learning_rate, jnp.float32)
        if config.schedule == "poly":
            rate = rate * jnp.maximum(1 - step / total_steps, 0) ** POLY_POWER
        if config.warmup_steps:
            rate = rate * jnp.minimum((step + 1) / config.warmup_steps, 1)
        return rate

    return schedule


def _names(path) -> list[str]:
    return [str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path]


def _decays(names: list[str]) -> bool:
    return "kernel" in names and not any(name.startswith("upsample") for name in names)


def _rate(config: OptimConfig, names: list[str]) -> np.float32:
    shares = {
        "backbone": config.backbone_rate,
        "auxiliary": config.auxiliary_rate,
    }
    rate = shares.get(names[0], 1.0)
    return np.float32(rate * config.bias_rate if "bias" in names else rate)
