"""The training step: a pure function that runs on each device, on its shard of the batch."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fcn_jax.config import Config
from fcn_jax.data.augment import Crop, augment
from fcn_jax.data.augment_volume import augment_volume
from fcn_jax.models.pure_model import PureModel
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.training.objective import Objective


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes. step: int32 scalar, the number of steps done."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


def create_train_state(
    variables: Any, optimizer: optax.GradientTransformation, members: int = 1
) -> TrainState:
    """Returns the state before the first step.

    Args:
        variables: (params, batch_stats); those of several members are stacked on the first axis.
        optimizer: see `optim.build_optimizer`.
        members: `train.members`.
    """
    params, batch_stats = variables
    init = optimizer.init if members == 1 else jax.vmap(optimizer.init)
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, init(params))


def draw_crop(config: Config, fill: tuple[float, ...]) -> Callable[..., Crop]:
    """Returns the augmentation of a canvas: (key, image, label, size) -> `Crop`.

    Args:
        config: the settings.
        fill: of pixels outside an image, see `augment`.
    """

    def draw(*canvas: jax.Array) -> Crop:
        if config.data.ndim == 3:
            return augment_volume(*canvas, config=config.volumes)
        return augment(*canvas, config=config.augment, fill=fill)

    return draw


def sample_keys(seed: jax.Array, step: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the keys of samples for augmentation and for dropout, (b,) each.

    Args:
        seed: the key of the run.
        step: number of the step, from 0.
        index: of each sample in the whole batch, int32 (b,), so that the keys are the same on any
            number of devices.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(seed, step), index)
    crop_keys, dropout_keys = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
    return crop_keys, dropout_keys


def make_train_step(
    network: PureModel,
    optimizer: optax.GradientTransformation,
    config: Config,
    class_weights: Mapping[str, jax.Array] | None = None,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the training step.

    Args:
        network: the network to train.
        optimizer: see `optim.build_optimizer`.
        config: the settings.
        class_weights: float32 (k,) by label map; a label map without an entry has no weights.

    Returns:
        A function (state, batch) -> (next state, metrics) for `parallelize`. The batch holds
        canvases: `image` uint8 (b, h, w, c), `label` uint8 (b, h, w), or (b, h, w, m) of several
        label maps, and `size` int32 (b, 2). The metrics are float32 scalars of the whole batch:
        `loss` (summed over the label maps; normalization=sum changes the gradient alone),
        `pixel_accuracy` of the first label map, and `gradient_norm`. Of several members
        (`train.members`), whose states are stacked, each metric is the mean.

    Raises:
        ArgumentError: the settings of the loss cannot be used.
    """
    steps = [
        _single_step(network, optimizer, config.of_member(number), class_weights or {})
        for number in range(config.train.members)
    ]
    if len(steps) == 1:
        return steps[0]

    # One member after the other. With `vmap`, a convolution of several kernels is a grouped one,
    # and several times slower.
    def members_step(state, batch):
        results = [step(_member(state, number), batch) for number, step in enumerate(steps)]
        states, metrics = zip(*results, strict=True)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        mean = jax.tree.map(lambda *values: sum(values) / len(values), *metrics)
        return dataclasses.replace(stacked, step=state.step + 1), mean

    return members_step


def _member(state: TrainState, number: int) -> TrainState:
    """Takes the state of a member from those that are stacked."""
    parts = jax.tree.map(
        lambda leaf: leaf[number], (state.params, state.batch_stats, state.opt_state)
    )
    return TrainState(state.step, *parts)


def _single_step(
    network: PureModel,
    optimizer: optax.GradientTransformation,
    config: Config,
    class_weights: Mapping[str, jax.Array],
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the training step of a single network, see `make_train_step`."""
    seed = jax.random.key(config.seed)
    fill = network.preprocessing.input_mean
    objective = Objective(network, config, class_weights)

    def train_step(state, batch):
        shard = batch["image"].shape[0]
        index = lax.axis_index(DATA_AXIS) * shard + jnp.arange(shard)
        crop_keys, dropout_keys = sample_keys(seed, state.step, index)
        crop = jax.vmap(draw_crop(config, fill))(
            crop_keys, batch["image"], batch["label"], batch["size"]
        )
        gradients, batch_stats, metrics = objective.gradients(
            state.params, state.batch_stats, crop, dropout_keys
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return train_step
