"""The pure functions that run on the devices: one training step, one evaluation step.

Each sees one device's share of the batch under the mapped axis `DATA_AXIS`. Sums are added over the
devices, and divided by what all of them counted, so the numbers do not depend on how many devices
there are: means of means would, since devices hold different numbers of void pixels. With several
label maps that holds for each of them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from fcn_jax.config import Config
from fcn_jax.data.augment import augment
from fcn_jax.data.labels import VOID_LABEL, by_map
from fcn_jax.losses import cross_entropy
from fcn_jax.metrics import confusion_matrix
from fcn_jax.models.fcn import DATA_AXIS, FCN
from fcn_jax.models.feature_map import Part
from fcn_jax.models.interpolation import resized
from fcn_jax.models.row_blocks import RowBlocks


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
    """A model as a pure function of its parameters and batch statistics (nested dicts).

    label_maps: their names; ("",) of a single one.
    """

    def __init__(self, model: FCN):
        # The type of `split` does not say how many parts its filters make.
        parts: Any = nnx.split(model, nnx.Param, nnx.BatchStat)
        self._graph, self._params, self._batch_stats = parts
        self.preprocessing = model.backbone.preprocessing
        self.label_maps = model.label_maps

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
        return values, _batch_stats_of(model)

    def logits_in_blocks(
        self, variables: tuple[Any, Any], image: jax.Array, *, train: bool = False, **arguments: Any
    ) -> tuple[dict[str, RowBlocks], Any]:
        """`FCN.logits_in_blocks`, and the batch statistics after it."""
        model = self.model(variables)
        features = model.features(image, train=train, **arguments)
        return model.logits_in_blocks(features, train=train), _batch_stats_of(model)


def _batch_stats_of(model: FCN) -> Any:
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def _filled(state: nnx.State, values: Any) -> nnx.State:
    state = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(state, values)
    return state


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

            label = logits[name].layout.dealt(labels[label_map], VOID_LABEL)
            return logits[name].total(of_rows, label)

        totals = {name: total(name, name) for name in labels}
        losses = {name: loss for name, (loss, _) in totals.items()}
        if auxiliary_weight:
            losses[first] += auxiliary_weight * total("auxiliary", first)[0]
        _, right = totals[first]
        pixels = jnp.sum(labels[first] != VOID_LABEL, dtype=jnp.float32)
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
        if parts == 1:
            carry, _ = add_part(carry, jax.tree.map(lambda x: x[0], split))
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


def make_eval_step(
    network: Network, num_classes: Mapping[str, int]
) -> Callable[[Any, Any], tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
    """Builds the step that scores a batch of canvases.

    It takes (params, batch_stats) and a batch as above, and returns by label map

    - the confusion matrix of each image of the whole batch, int32 (b, k, k), the same everywhere,
    - the classes of each pixel of this device's share, uint8 (b, H, W).

    Each image is seen as if alone on its canvas. In a batch with `label_size`, int32 (b, 2), the
    logits are interpolated from the size of the image to that of its label.
    """

    def eval_step(variables, batch):
        like = None
        if "label_size" in batch:
            like = batch["label_size"], batch["label"].shape[1:3]
        predictions = predict(network, variables, batch["image"], batch["size"], like=like)
        labels = by_map(batch["label"], network.label_maps)
        confusions = {
            name: jax.vmap(partial(confusion_matrix, num_classes=num_classes[name]))(
                labels[name][:, None], prediction[:, None]
            )
            for name, prediction in predictions.items()
        }
        confusions = jax.tree.map(
            lambda share: lax.all_gather(share, DATA_AXIS, tiled=True), confusions
        )
        return confusions, {name: labels.astype(jnp.uint8) for name, labels in predictions.items()}

    return eval_step


def predict(
    network: Network,
    variables,
    image: jax.Array,
    size: jax.Array | None,
    *,
    like: tuple[jax.Array, tuple[int, int]] | None = None,
    part: Part | None = None,
) -> dict[str, jax.Array]:
    """The class of each pixel by label map: int32 (b, h, w); outside `size` it means nothing.

    like: where the logits are brought to other sizes before, these, int32 (b, 2), and the canvas
    that they lie on then. part: see `FCN`.
    """
    logits, _ = network.logits_in_blocks(variables, image, valid=size, part=part)

    def classes(rows: jax.Array) -> jax.Array:
        return jnp.argmax(rows, axis=-1)

    if like is None:
        return {name: of_map.each(classes) for name, of_map in logits.items()}
    new_size, canvas_px = like
    assert size is not None
    return {
        name: classes(resized(of_map.whole(), size, new_size, canvas_px))
        for name, of_map in logits.items()
    }
