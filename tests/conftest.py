from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

M = TypeVar("M", bound=nnx.Module)


@pytest.fixture
def torch() -> ModuleType:
    """PyTorch, the peer that layers, losses and optimizers are compared with."""
    return pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.fixture
def randomised() -> Callable[[Callable[[], M]], M]:
    """Builds a network whose weights are all random: also those that begin at zero or one."""

    def build(network: Callable[[], M]) -> M:
        # Without running the initializers, each of which would be compiled for each shape.
        graph, state = nnx.split(nnx.eval_shape(network))
        random = np.random.default_rng(0)

        def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
            name = path[-1].key
            if name == "kernel":
                values = random.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
            elif name in ("scale", "var"):
                values = random.uniform(0.5, 1.5, leaf.shape)
            else:
                values = 0.1 * random.standard_normal(leaf.shape)
            return jnp.asarray(values, leaf.dtype)

        values = jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state))
        nnx.replace_by_pure_dict(state, values)
        return nnx.merge(graph, state)

    return build
