"""A model as a pure function: parameters and images in, logits or classes out."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.models.fcn import FCN
from fcn_jax.models.feature_map import TilePosition
from fcn_jax.models.interpolation import resized
from fcn_jax.models.row_blocks import RowBlocks


class PureModel:
    """A model as a pure function of its parameters and batch statistics (nested dicts).

        model = PureModel(init_model(config.model, 21, seed=0))
        values, batch_stats = model(model.variables, image)
        values["logits"]  # float32 (b, h, w, 21)

    Attributes:
        preprocessing: see `Backbone`.
        label_maps: names of the label maps; ("",) for a single, unnamed one.
        num_classes: number of classes by label map.
        deep_heads: names of the heads of deep supervision, from fine to coarse.
    """

    def __init__(self, model: FCN):
        # The annotation of `split` does not say how many parts its filters give.
        parts: Any = nnx.split(model, nnx.Param, nnx.BatchStat)
        self._graph, self._params, self._batch_stats = parts
        self.preprocessing = model.backbone.preprocessing
        self.label_maps = model.label_maps
        self.num_classes = dict(model.num_classes)
        self.deep_heads = tuple(model.deep_stages)

    @property
    def variables(self) -> tuple[Any, Any]:
        """The (params, batch_stats) of the given model."""
        return nnx.to_pure_dict(self._params), nnx.to_pure_dict(self._batch_stats)

    @property
    def decay_mask(self) -> Any:
        """A tree of bool in the structure of the parameters: True if weight decay applies.

        Weight decay applies to all parameters with more than one axis, so neither to biases nor to
        the scales of normalisation. `nnx.Param(value, decay=False)` exempts a parameter.
        """

        def decays(_: Any, param: Any) -> bool:
            return param.get_metadata("decay", param.ndim > 1)

        return nnx.to_pure_dict(nnx.map_state(decays, self._params))

    def model(self, variables: tuple[Any, Any]) -> FCN:
        """Returns the model with these (params, batch_stats)."""
        params, batch_stats = variables
        return nnx.merge(
            self._graph, _filled(self._params, params), _filled(self._batch_stats, batch_stats)
        )

    def __call__(
        self, variables: tuple[Any, Any], image: jax.Array, **arguments: Any
    ) -> tuple[dict[str, jax.Array], Any]:
        """Computes the values of `FCN.features`, including the logits.

        Returns:
            The values by name, and the batch statistics after this batch.
        """
        model = self.model(variables)
        features = model.features(image, **arguments)
        values = {name: feature.values for name, feature in features.items()}
        return values, _batch_stats_of(model)

    def logits_in_blocks(
        self, variables: tuple[Any, Any], image: jax.Array, *, train: bool = False, **arguments: Any
    ) -> tuple[dict[str, RowBlocks], Any]:
        """Computes the features, and prepares the logits (`FCN.logits_in_blocks`).

        Returns:
            The logits by name, and the batch statistics after this batch.
        """
        model = self.model(variables)
        features = model.features(image, train=train, **arguments)
        return model.logits_in_blocks(features, train=train), _batch_stats_of(model)


def _batch_stats_of(model: FCN) -> Any:
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def _filled(state: nnx.State, values: Any) -> nnx.State:
    state = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(state, values)
    return state


def most_probable(_: str, logits: jax.Array) -> jax.Array:
    """Returns the class of the largest logit: (…, k) to int32 (…)."""
    return jnp.argmax(logits, axis=-1)


def predict(
    network: PureModel,
    variables: tuple[Any, Any],
    image: jax.Array,
    size: jax.Array | None,
    *,
    resize_to: tuple[jax.Array, tuple[int, int]] | None = None,
    tile: TilePosition | None = None,
    decide: Callable[[str, jax.Array], jax.Array] = most_probable,
) -> dict[str, jax.Array]:
    """Predicts the class of every pixel.

    Args:
        network: the model.
        variables: its (params, batch_stats).
        image: canvases, uint8 (b, h, w, c).
        size: height and width of the image on each canvas, int32 (b, 2); None if the images fill
            their canvases. `resize_to` requires it.
        resize_to: sizes of the images, int32 (b, 2), and of the canvases, to which the logits are
            interpolated first; None for the given sizes.
        tile: see `FCN.features`.
        decide: (label map, logits (…, k)) -> (…), what is predicted of each pixel.

    Returns:
        Classes by label map, int32 (b, h, w), or what `decide` returns; undefined outside the
        images.
    """
    logits, _ = network.logits_in_blocks(variables, image, valid=size, tile=tile)
    if resize_to is None:
        return {name: scores.map(partial(decide, name)) for name, scores in logits.items()}
    new_size, canvas_px = resize_to
    assert size is not None
    return {
        name: decide(name, resized(scores.whole(), size, new_size, canvas_px))
        for name, scores in logits.items()
    }
