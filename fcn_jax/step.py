"""The pure functions that run on the devices: one training step, one evaluation step.

Each sees one device's share of the batch under the mapped axis `DATA_AXIS`. Sums and counts are
added over the devices and divided once, so the numbers do not depend on how many devices there are:
means of means would, since devices hold different numbers of void pixels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from fcn_jax.config import Config
from fcn_jax.data.augment import augment
from fcn_jax.losses import cross_entropy
from fcn_jax.metrics import confusion_matrix
from fcn_jax.models.fcn import DATA_AXIS, FCN


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


class Network:
    """A model as a pure function of its parameters and batch statistics (nested dicts)."""

    def __init__(self, model: FCN):
        # The type of `split` does not say how many parts its filters make.
        parts: Any = nnx.split(model, nnx.Param, nnx.BatchStat)
        self._graph, self._params, self._batch_stats = parts
        self.preprocessing = model.backbone.preprocessing

    @property
    def variables(self) -> tuple[Any, Any]:
        """(params, batch_stats) as the model holds them."""
        return nnx.to_pure_dict(self._params), nnx.to_pure_dict(self._batch_stats)

    def model(self, variables: tuple[Any, Any]) -> FCN:
        """The model with these (params, batch_stats)."""
        params, batch_stats = variables
        return nnx.merge(
            self._graph, _filled(self._params, params), _filled(self._batch_stats, batch_stats)
        )

    def __call__(
        self, variables: tuple[Any, Any], image: jax.Array, **arguments: Any
    ) -> tuple[dict[str, jax.Array], Any]:
        """The values of `FCN.features`, logits among them, and the batch statistics after it."""
        model = self.model(variables)
        features = model.features(image, **arguments)
        values = {name: feature.values for name, feature in features.items()}
        return values, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def _filled(state: nnx.State, values: Any) -> nnx.State:
    state = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(state, values)
    return state


def make_train_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    config: Config,
    class_weights: jax.Array | None = None,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the training step.

    It takes the state and a batch of canvases, image uint8 (b, H, W, 3), label uint8 (b, H, W) and
    size int32 (b, 2), and returns the next state and, as float32 scalars of the whole batch, `loss`
    (the mean over its valid pixels, whatever is minimised), `pixel_accuracy`, `gradient_norm`.
    """
    parts = config.train.accumulation_steps
    seed = jax.random.key(config.seed)
    fill = network.preprocessing.input_mean
    auxiliary_weight = config.model.auxiliary_weight

    def sum_of_losses(params, batch_stats, batch, keys):
        crop_keys, dropout_keys = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
        crop = jax.vmap(lambda *canvas: augment(*canvas, config=config.augment, fill=fill))(
            crop_keys, batch["image"], batch["label"], batch["size"]
        )
        values, batch_stats = network(
            (params, batch_stats), crop.image, train=True, valid=crop.valid, keys=dropout_keys
        )
        logits = values["logits"]
        loss, weight = cross_entropy(logits, crop.label, class_weights)
        if auxiliary_weight:
            auxiliary, _ = cross_entropy(values["logits_auxiliary"], crop.label, class_weights)
            loss = loss + auxiliary_weight * auxiliary
        right = jnp.sum(jnp.argmax(logits, axis=-1) == crop.label)
        pixels = jnp.sum(crop.label < logits.shape[-1])
        return loss, (weight, right, pixels, batch_stats)

    def add_part(carry, part):
        state, gradients, sums, batch_stats = carry
        batch, keys = part
        (loss, (weight, right, pixels, batch_stats)), part_gradients = jax.value_and_grad(
            sum_of_losses, has_aux=True
        )(state.params, batch_stats, batch, keys)
        gradients = jax.tree.map(jnp.add, gradients, part_gradients)
        counts = jnp.stack([loss, weight, right.astype(jnp.float32), pixels.astype(jnp.float32)])
        return (state, gradients, sums + counts, batch_stats), None

    def train_step(state, batch):
        share = batch["image"].shape[0]
        # A key for each image by its place in the whole batch: devices do not change what is drawn.
        places = lax.axis_index(DATA_AXIS) * share + jnp.arange(share)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(seed, state.step), places)
        split = jax.tree.map(
            lambda x: x.reshape(parts, share // parts, *x.shape[1:]), (batch, keys)
        )
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        carry = (state, zeros, jnp.zeros((4,), jnp.float32), state.batch_stats)
        if parts == 1:
            carry, _ = add_part(carry, jax.tree.map(lambda x: x[0], split))
        else:
            carry, _ = lax.scan(add_part, carry, split)
        _, gradients, sums, batch_stats = carry
        gradients, sums = lax.psum((gradients, sums), DATA_AXIS)
        loss, weight, right, pixels = sums
        mean_loss = loss / jnp.maximum(weight, 1e-9)
        if config.loss.normalization == "mean":
            gradients = jax.tree.map(lambda g: g / jnp.maximum(weight, 1e-9), gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": mean_loss,
            "pixel_accuracy": right / jnp.maximum(pixels, 1),
            "gradient_norm": optax.tree.norm(gradients),
        }
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return train_step


def make_eval_step(network: Network, num_classes: int) -> Callable[[Any, Any], jax.Array]:
    """Builds the step that scores a batch of canvases at their native size.

    It takes (params, batch_stats) and a batch as above, and returns the confusion matrix of the
    whole batch, int32 (k, k). Each image is seen as if alone on its canvas.
    """

    def eval_step(variables, batch):
        prediction = predict(network, variables, batch["image"], batch["size"])
        return lax.psum(confusion_matrix(batch["label"], prediction, num_classes), DATA_AXIS)

    return eval_step


def predict(network: Network, variables, image: jax.Array, size: jax.Array | None) -> jax.Array:
    """The class of each pixel: int32 (b, h, w); outside `size` it means nothing."""
    values, _ = network(variables, image, valid=size)
    return jnp.argmax(values["logits"], axis=-1)
