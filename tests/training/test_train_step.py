"""The program of the training step."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from fcn_jax.config import Config
from fcn_jax.models.backbones.small import SmallNet
from fcn_jax.models.fcn import FCN
from fcn_jax.models.pure_model import PureModel
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.training.train_step import create_train_state, make_train_step

CLASSES = 3


def network() -> PureModel:
    return PureModel(
        FCN(SmallNet(features=(4, 6), rngs=nnx.Rngs(0)), CLASSES, skips=1, rngs=nnx.Rngs(0))
    )


def batch(size: int = 4) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "image": random.integers(0, 256, (size, 16, 16, 3)).astype(np.uint8),
        "label": random.integers(0, CLASSES, (size, 16, 16)).astype(np.uint8),
        "size": np.array([[16, 16]] * size, np.int32),
    }


def settings(**train: Any) -> Config:
    config = Config()
    config.augment.crop_px, config.augment.scale, config.augment.flip = None, (1.0, 1.0), False
    for name, value in train.items():
        setattr(config.train, name, value)
    return config


def inner_jaxprs(equation: Any) -> Iterator[Any]:
    for leaf in jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
        if hasattr(leaf, "eqns"):
            yield leaf
        elif hasattr(leaf, "jaxpr"):
            yield leaf.jaxpr


def primitives(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation):
            yield from primitives(inner)


@pytest.mark.parametrize(("platform", "in_loops"), [("cpu", False), ("gpu", True)])
def test_no_convolution_is_in_a_loop_on_a_cpu(
    platform: str, in_loops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XLA's CPU backend runs convolutions in loops many times slower; others save a compilation."""
    net, optimizer = network(), optax.sgd(0.1)
    step = make_train_step(net, optimizer, settings(accumulation_steps=2))
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    program = jax.make_jaxpr(step, axis_env=[(DATA_AXIS, 1)])(
        create_train_state(net.variables, optimizer), batch()
    )
    loops = [e for e in primitives(program.jaxpr) if e.primitive.name in ("scan", "while")]
    looped = {e.primitive.name for loop in loops for j in inner_jaxprs(loop) for e in primitives(j)}
    assert loops  # over blocks of rows, which have no convolutions
    assert ("conv_general_dilated" in looped) == in_loops
