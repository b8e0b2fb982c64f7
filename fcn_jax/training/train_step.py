"""The pure functions that run on the devices: one training step, one evaluation step.

Each sees one device's share of the batch under the mapped axis `DATA_AXIS`. Sums are added over the
devices, and divided by what all of them counted, so the numbers do not depend on how many devices
there are: means of means would, since devices hold different numbers of void pixels. With several
label maps that holds for each of them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fcn_jax.config import Config
from fcn_jax.data.augment import augment
from fcn_jax.data.labels import IGNORE_INDEX, by_map
from fcn_jax.models.pure_model import Network
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.training.losses import cross_entropy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes. step: int32 scalar, steps done."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


def create_train_state(variables: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, from (params, batch_stats)."""
    params, batch_stats = variables
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))


def make_train_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    config: Config,
    class_weights: Mapping[str, jax.Array] | None = None,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the training step.

    It takes the state and a batch of canvases, image uint8 (b, H, W, c), label uint8 (b, H, W), or
    (b, H, W, m) of several label maps, and size int32 (b, 2), and returns the next state and, as
    float32 scalars of the whole batch, `loss` (the mean over its valid pixels, whatever is
    minimised, summed over the label maps), `pixel_accuracy` of the first map, `gradient_norm`.

    class_weights: float32 (k,) by label map; None: 1 for every class.
    """
    parts = config.train.accumulation_steps
    seed = jax.random.key(config.seed)
    fill = network.preprocessing.input_mean
    auxiliary_weight = config.model.auxiliary_weight
    first = network.label_maps[0]
    weights_of = class_weights or {}

    def losses_of(params, batch_stats, crop, keys):
        """The sum of losses of each label map, (m,), and what else is to be known."""
        logits, batch_stats = network.logits_in_blocks(
            (params, batch_stats), crop.image, train=True, valid=crop.valid, keys=keys
        )
        labels = by_map(crop.label, network.label_maps)

        def total(name, label_map):
            def of_rows(rows, label):
                right = jnp.sum(jnp.argmax(rows, axis=-1) == label, dtype=jnp.float32)
                return cross_entropy(rows, label, weights_of.get(label_map))[0], right

            label = logits[name].layout.dealt(labels[label_map], IGNORE_INDEX)
            return logits[name].total(of_rows, label)

        totals = {name: total(name, name) for name in labels}
        losses = {name: loss for name, (loss, _) in totals.items()}
        if auxiliary_weight:
            losses[first] += auxiliary_weight * total("auxiliary", first)[0]
        _, right = totals[first]
        pixels = jnp.sum(labels[first] != IGNORE_INDEX, dtype=jnp.float32)
        return jnp.stack([*losses.values()]), (jnp.stack([right, pixels]), batch_stats)

    def train_step(state, batch):
        share = batch["image"].shape[0]
        # A key for each image by its place in the whole batch: devices do not change what is drawn.
        places = lax.axis_index(DATA_AXIS) * share + jnp.arange(share)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(seed, state.step), places)
        crop_keys, dropout_keys = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
        crop = jax.vmap(lambda *canvas: augment(*canvas, config=config.augment, fill=fill))(
            crop_keys, batch["image"], batch["label"], batch["size"]
        )
        # What each map's loss is divided by, over all devices and parts. It is known before the
        # network has run, so that the gradient of all maps' means is one backward pass.
        weights = lax.psum(
            jnp.stack(
                [
                    total_weight(label, weights_of.get(name))
                    for name, label in by_map(crop.label, network.label_maps).items()
                ]
            ),
            DATA_AXIS,
        )
        shares = 1 / jnp.maximum(weights, 1e-9)
        scales = shares if config.loss.normalization == "mean" else jnp.ones_like(shares)

        def objective(params, batch_stats, crop, keys):
            losses, (counts, batch_stats) = losses_of(params, batch_stats, crop, keys)
            return jnp.sum(losses * scales), (losses, counts, batch_stats)

        def add_part(carry, part):
            gradients, losses, counts, batch_stats = carry
            (_, (part_losses, part_counts, batch_stats)), part_gradients = jax.value_and_grad(
                objective, has_aux=True
            )(state.params, batch_stats, *part)
            gradients = jax.tree.map(jnp.add, gradients, part_gradients)
            return (gradients, losses + part_losses, counts + part_counts, batch_stats), None

        split = jax.tree.map(
            lambda x: x.reshape(parts, share // parts, *x.shape[1:]), (crop, dropout_keys)
        )
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        carry = (zeros, jnp.zeros_like(weights), jnp.zeros((2,), jnp.float32), state.batch_stats)
        if parts == 1 or jax.default_backend() == "cpu":
            # XLA's CPU backend runs convolutions inside a loop many times slower.
            for part in range(parts):
                carry, _ = add_part(carry, jax.tree.map(itemgetter(part), split))
        else:
            carry, _ = lax.scan(add_part, carry, split)
        *sums, batch_stats = carry
        gradients, losses, (right, pixels) = lax.psum(sums, DATA_AXIS)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": jnp.sum(losses * shares),
            "pixel_accuracy": right / jnp.maximum(pixels, 1),
            "gradient_norm": optax.tree.norm(gradients),
        }
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return train_step


def total_weight(label: jax.Array, class_weights: jax.Array | None) -> jax.Array:
    """The sum of weights that `cross_entropy` gives labels, whatever the logits."""
    _, weight = cross_entropy(jnp.zeros((*label.shape, 1)), label, class_weights)
    return weight
