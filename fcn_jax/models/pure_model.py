"""The pure functions that run on the devices: one training step, one evaluation step.

Each sees one device's share of the batch under the mapped axis `DATA_AXIS`. Sums are added over the
devices, and divided by what all of them counted, so the numbers do not depend on how many devices
there are: means of means would, since devices hold different numbers of void pixels. With several
label maps that holds for each of them.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.models.fcn import FCN
from fcn_jax.models.feature_map import TilePosition
from fcn_jax.models.interpolation import resized
from fcn_jax.models.row_blocks import RowBlocks


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

    @property
    def decay_mask(self) -> Any:
        """Tree of bool in the structure of the parameters: True if weight decay applies to them.

        It applies to parameters of more than one axis, whatever their name: not to biases and the
        scales of normalisation. `nnx.Param(value, decay=False)` exempts a parameter.
        """

        def decays(_: Any, param: Any) -> bool:
            return param.get_metadata("decay", param.ndim > 1)

        return nnx.to_pure_dict(nnx.map_state(decays, self._params))

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


def predict(
    network: Network,
    variables,
    image: jax.Array,
    size: jax.Array | None,
    *,
    like: tuple[jax.Array, tuple[int, int]] | None = None,
    tile: TilePosition | None = None,
) -> dict[str, jax.Array]:
    """The class of each pixel by label map: int32 (b, h, w); outside `size` it means nothing.

    like: where the logits are brought to other sizes before, these, int32 (b, 2), and the canvas
    that they lie on then. tile: see `FCN`.
    """
    logits, _ = network.logits_in_blocks(variables, image, valid=size, tile=tile)

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
