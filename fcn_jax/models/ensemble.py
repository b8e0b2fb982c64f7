"""Several sets of weights of one network as one network, and a network with random dropout."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.models.fcn import FCN, suffix
from fcn_jax.models.pure_model import PureModel
from fcn_jax.models.row_blocks import RowBlocks


class Ensemble(PureModel):
    """The mean of the class probabilities of several members, as one network.

    Its logits are the logarithms of the mean probabilities, so their softmax is the mean
    (Lakshminarayanan et al. 2017, section 2.4). Members are computed one after the other.

    Args:
        member: the network that all members have.
        count: the number of members.

    Attributes:
        member, count: the arguments.
    """

    def __init__(self, member: PureModel, count: int):
        self.member, self.count = member, count
        self.preprocessing = member.preprocessing
        self.label_maps = member.label_maps
        self.num_classes = member.num_classes

    @property
    def variables(self) -> tuple[Any, Any]:
        """The shapes of (params, batch_stats) of all members, stacked on the first axis."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self.count, *x.shape), x.dtype), self.member.variables
        )

    @property
    def decay_mask(self) -> Any:
        return self.member.decay_mask

    def members(self, variables: tuple[Any, Any]) -> list[tuple[Any, Any]]:
        """Returns the (params, batch_stats) of each member."""
        return [jax.tree.map(lambda x, n=n: x[n], variables) for n in range(self.count)]

    def model(self, variables: tuple[Any, Any]) -> FCN:
        """Returns the first member's model: all have the same layers."""
        return self.member.model(self.members(variables)[0])

    def __call__(
        self, variables: tuple[Any, Any], image: jax.Array, **arguments: Any
    ) -> tuple[dict[str, jax.Array], Any]:
        """Computes the logits, and no other values; the batch statistics do not change."""

        def probabilities(member_variables: Any) -> dict[str, jax.Array]:
            values, _ = self.member(member_variables, image, **arguments)
            names = [f"logits{suffix(name)}" for name in self.label_maps]
            return {name: jax.nn.softmax(values[name]) for name in names}

        each = [probabilities(one) for one in self.members(variables)]
        logits = jax.tree.map(lambda *values: _log_of_mean(values), *each)
        return logits, variables[1]

    def logits_in_blocks(
        self, variables: tuple[Any, Any], image: jax.Array, *, train: bool = False, **arguments: Any
    ) -> tuple[dict[str, RowBlocks], Any]:
        """Prepares the logits; `train` must be False."""
        prepared: dict[str, RowBlocks] = {}

        def coarse(member_variables: Any) -> dict[str, tuple[Any, Any, Any]]:
            by_name, _ = self.member.logits_in_blocks(member_variables, image, **arguments)
            prepared.update(by_name)
            return {name: (b.shared, b.blocks, b.fixed) for name, b in by_name.items()}

        # Only the coarse scores of every member are held, from which the blocks are computed. The
        # members are not computed in a loop of XLA, in which convolutions are slow on a CPU.
        each = [coarse(one) for one in self.members(variables)]
        parts = jax.tree.map(lambda *values: jnp.stack(values), *each)
        by_name = {}
        for name, (shared, blocks, fixed) in parts.items():
            of_member = prepared[name]
            blocks, fixed = jax.tree.map(lambda x: x.swapaxes(0, 1), (blocks, fixed))
            make = partial(_mean_in_block, of_member.make, self.count)
            by_name[name] = RowBlocks(make, shared, blocks, fixed, of_member.layout)
        return by_name, variables[1]


def of_members(network: PureModel, count: int) -> PureModel:
    """Returns the ensemble of `count` members, or the network itself if there is only one."""
    return network if count == 1 else Ensemble(network, count)


def stacked(members: Sequence[Any]) -> Any:
    """Joins the variables of single networks to those of an `Ensemble`, on the host."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *members)


def _mean_in_block(make: Any, count: int, shared: Any, block: Any, fixed: Any) -> jax.Array:
    # One member after the other: with a batched product, and blocks of all members at once, four
    # members took 12 times as long as one on a CPU, and so 5.3 times.
    members = [jax.tree.map(lambda x, n=n: x[n], (shared, block, fixed)) for n in range(count)]
    return _log_of_mean([jax.nn.softmax(make(*member)) for member in members])


def _log_of_mean(probabilities: Sequence[jax.Array]) -> jax.Array:
    mean = sum(probabilities[1:], probabilities[0]) / len(probabilities)
    return jnp.log(jnp.maximum(mean, jnp.finfo(mean.dtype).tiny))


class DropoutModel(PureModel):
    """A network whose dropout stays on in prediction (Gal & Ghahramani 2016).

    Its variables are ((params, batch_stats), key): each key is a sample. Batch normalisation uses
    its running statistics.

    Args:
        network: a network of a single member.
    """

    def __init__(self, network: PureModel):
        self.network = network
        self.preprocessing = network.preprocessing
        self.label_maps = network.label_maps
        self.num_classes = network.num_classes

    def model(self, variables: tuple[Any, Any]) -> FCN:
        return self.network.model(variables[0])

    def __call__(
        self, variables: tuple[Any, Any], image: jax.Array, **arguments: Any
    ) -> tuple[dict[str, jax.Array], Any]:
        network_variables, key = variables
        keys = jax.random.split(key, image.shape[0])
        return self.network(network_variables, image, keys=keys, **arguments)


def has_dropout(network: PureModel) -> bool:
    """Returns whether dropout keys change the network's results. The network is traced, not run."""
    ndim = network.model(network.variables).ndim
    image = jnp.zeros((1, *(64,) * ndim, network.preprocessing.channels), jnp.uint8)
    model = DropoutModel(network)
    trace = jax.make_jaxpr(model)((network.variables, jax.random.key(0)), image)
    return "random_bits" in str(trace)
