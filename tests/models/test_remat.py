"""Rematerialised blocks give the same numbers with less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.config import Config, ModelConfig
from fcn_jax.errors import ArgumentError
from fcn_jax.models.build import build_model, init_model
from fcn_jax.models.feature_map import FeatureMap, add
from fcn_jax.models.layers import Conv, relu
from fcn_jax.models.pure_model import PureModel
from fcn_jax.models.remat import remat_block, remat_blocks
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.testing.recording import UNOPTIMISED
from fcn_jax.training.optim import build_optimizer
from fcn_jax.training.train_step import create_train_state, make_train_step


def network(backbone: str, *, remat: bool) -> PureModel:
    config = ModelConfig(backbone=backbone, dropout=0.0, remat=remat)
    return PureModel(init_model(config, 5, seed=0, axis_name=DATA_AXIS))


def abstract_network(backbone: str) -> tuple[nnx.GraphDef, nnx.State]:
    config = ModelConfig(backbone=backbone, remat=True)
    return nnx.split(nnx.eval_shape(lambda: build_model(config, 5, rngs=nnx.Rngs(0))))


@pytest.mark.parametrize(
    ("backbone", "blocks"),
    [
        ("small", 5),
        ("vgg16_bn", 5),
        ("squeezenet", 8),
        ("googlenet", 9),
        ("resnet18", 8),
        ("resnet50", 16),
        ("mobilenet_v3_large", 15),
        ("efficientnet_lite0", 16),
    ],
)
def test_every_block_is_recomputed(backbone: str, blocks: int) -> None:
    graph, state = abstract_network(backbone)
    traced = jax.make_jaxpr(
        lambda state, image: nnx.merge(graph, state).features(image)["pixels"].values
    )(state, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8))
    again = [
        equation
        for equation in traced.eqns
        if equation.primitive.name in ("checkpoint", "remat", "remat2")
    ]
    # Poolings and normalisations outside blocks are always recomputed.
    assert sum("conv_general_dilated" in str(equation) for equation in again) == blocks


def test_training_steps_are_the_same() -> None:
    random = np.random.default_rng(0)
    batch = {
        "image": random.integers(0, 256, (1, 2, 48, 48, 3)).astype(np.uint8),
        "label": random.integers(0, 5, (1, 2, 48, 48)).astype(np.uint8),
        "size": np.full((1, 2, 2), 48, np.int32),
    }
    config = Config()
    config.augment.crop_px = (32, 32)
    config.train.steps = 10

    def stepped(*, remat: bool):
        net = network("small", remat=remat)
        optimizer = build_optimizer(config.optim, net.decay_mask, 10)
        step = jax.vmap(
            make_train_step(net, optimizer, config),
            axis_name=DATA_AXIS,
            in_axes=(None, 0),
            out_axes=None,
        )
        step = jax.jit(step, compiler_options=UNOPTIMISED)
        state = create_train_state(net.variables, optimizer)
        for _ in range(3):
            state, metrics = step(state, batch)
        return state.params, state.batch_stats, metrics

    expected = jax.tree.leaves_with_path(stepped(remat=False))
    found = jax.tree.leaves(stepped(remat=True))
    for (path, wanted), leaf in zip(expected, found, strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=2e-3, atol=2e-4, err_msg=str(path))


class Wide(nnx.Module):
    """A block with sixteen times as many features inside as at its ends."""

    def __init__(self, rngs: nnx.Rngs):
        self.expand = Conv(8, 128, (1, 1), rngs=rngs)
        self.contract = Conv(128, 8, (1, 1), rngs=rngs)

    @remat_block
    def __call__(self, x: FeatureMap) -> FeatureMap:
        return add(x, self.contract(relu(self.expand(x))))


def test_less_is_stored_for_the_backward_pass() -> None:
    def bytes_kept(*, remat: bool) -> int:
        model = nnx.List([Wide(nnx.Rngs(0)) for _ in range(6)])
        if remat:
            remat_blocks(model)
        graph, state = nnx.split(model)

        def loss(state, values):
            x = FeatureMap(values)
            for block in nnx.merge(graph, state):
                x = block(x)
            return x.values.sum()

        def keep(state, values):
            return jax.vjp(loss, state, values)[1]

        kept = jax.eval_shape(keep, state, jnp.zeros((1, 64, 64, 8)))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))

    # Six blocks store their inside, which has sixteen times the features, or their input only.
    input_bytes, parameter_bytes = 64 * 64 * 8 * 4, 6 * (2 * 8 * 128 + 136) * 4
    assert bytes_kept(remat=False) > 6 * 16 * input_bytes
    assert bytes_kept(remat=True) <= 6 * input_bytes + parameter_bytes


def test_a_backbone_without_blocks_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"model.remat \(=True\) needs a backbone with blocks"):
        network("alexnet", remat=True)
