from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fcn_jax import registry
from fcn_jax.config import ModelConfig, OptimConfig
from fcn_jax.errors import ArgumentError
from fcn_jax.models.backbones.small import SmallNet
from fcn_jax.models.build import abstract_model
from fcn_jax.models.fcn import FCN
from fcn_jax.models.pure_model import PureModel
from fcn_jax.training.optim import POLY_POWER, build_optimizer, learning_rate_schedule

STEPS = 5


def parameters() -> dict[str, Any]:
    """One of each kind of parameter that a network has."""
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    return {
        "backbone": {
            "conv1": {"kernel": draw(3, 3, 2, 4), "bias": draw(4)},
            "bn1": {"scale": draw(4), "bias": draw(4)},
        },
        "context": {"conv1": {"kernel": draw(3, 3, 4, 4)}},
        "score8": {"kernel": draw(1, 1, 4, 3), "bias": draw(3)},
        "upsample8": {"kernel": draw(4, 4, 3, 3)},
    }


def gradients(step: int) -> dict[str, Any]:
    random = np.random.default_rng(step + 1)
    return jax.tree.map(lambda p: random.standard_normal(p.shape).astype(np.float32), parameters())


# The name of each parameter, its rate as (in the backbone?, a bias?), and whether it decays.
KINDS = {
    "backbone.conv1.kernel": (True, False, True),
    "backbone.conv1.bias": (True, True, False),
    "backbone.bn1.scale": (True, False, False),
    "backbone.bn1.bias": (True, True, False),
    # New layers, as the head's are: they are not part of any pretrained backbone.
    "context.conv1.kernel": (False, False, True),
    "score8.kernel": (False, False, True),
    "score8.bias": (False, True, False),
    "upsample8.kernel": (False, False, False),
}


def flat(tree: Any) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {".".join(entry.key for entry in path): np.asarray(leaf) for path, leaf in leaves}


def decay_mask() -> Any:
    def decays(path: Any, _: Any) -> bool:
        return KINDS[".".join(entry.key for entry in path)][2]

    return jax.tree_util.tree_map_with_path(decays, parameters())


def run(config: OptimConfig) -> dict[str, np.ndarray]:
    params = jax.tree.map(jnp.asarray, parameters())
    optimizer = build_optimizer(config, decay_mask(), total_steps=STEPS)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(STEPS):
        updates, state = update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return flat(params)


def run_in_pytorch(torch: ModuleType, config: OptimConfig) -> dict[str, np.ndarray]:
    """The same, with a parameter group for each parameter."""
    tensors = {name: torch.tensor(value.copy()) for name, value in flat(parameters()).items()}
    groups = []
    for name, (backbone, bias, decays) in KINDS.items():
        share = (config.backbone_rate if backbone else 1) * (config.bias_rate if bias else 1)
        groups.append(
            {
                "params": [tensors[name]],
                "lr": config.learning_rate * share,
                "weight_decay": config.weight_decay if decays else 0,
            }
        )
    if config.name == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov)
    else:
        optimizer = torch.optim.AdamW(groups)
    power = POLY_POWER if config.schedule == "poly" else 0
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 - step / STEPS) ** power
    )
    for step in range(STEPS):
        for name, gradient in flat(gradients(step)).items():
            tensors[name].grad = torch.tensor(gradient)
        optimizer.step()
        scheduler.step()
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "config",
    [
        OptimConfig(
            name="sgd",
            learning_rate=0.05,
            momentum=0.9,
            weight_decay=0.1,
            bias_rate=2.0,
            schedule="constant",
        ),
        OptimConfig(
            name="sgd", learning_rate=0.05, momentum=0.99, backbone_rate=0.1, weight_decay=0.1
        ),
        OptimConfig(name="sgd", learning_rate=0.05, momentum=0.99, nesterov=True),
        OptimConfig(
            name="adamw", learning_rate=0.01, weight_decay=0.5, backbone_rate=0.1, bias_rate=2.0
        ),
    ],
    ids=["sgd constant", "sgd poly", "sgd nesterov", "adamw poly"],
)
def test_the_optimizer_is_pytorchs_with_parameter_groups(
    torch: ModuleType, config: OptimConfig
) -> None:
    result, expected = run(config), run_in_pytorch(torch, config)
    assert result.keys() == expected.keys() == KINDS.keys()
    for name, value in result.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_without_a_gradient_only_kernels_of_convolutions_shrink(name: str) -> None:
    config = OptimConfig(name=name, learning_rate=0.1, weight_decay=0.5, schedule="constant")
    params = jax.tree.map(jnp.asarray, parameters())
    optimizer = build_optimizer(config, decay_mask(), total_steps=STEPS)
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    for path, update in flat(updates).items():
        # −rate · decay · value: 0.05 of each weight.
        share = 0.05 if KINDS[path][2] else 0.0
        np.testing.assert_allclose(update, -share * flat(params)[path], rtol=1e-5)


def test_schedule_numbers() -> None:
    poly = learning_rate_schedule(OptimConfig(learning_rate=0.4), 4)
    rates = [float(poly(step)) for step in range(6)]
    np.testing.assert_allclose(
        rates, [0.4, 0.4 * 0.75**0.9, 0.4 * 0.5**0.9, 0.4 * 0.25**0.9, 0, 0], atol=1e-7
    )
    warm = learning_rate_schedule(
        OptimConfig(learning_rate=0.4, schedule="constant", warmup_steps=4), 100
    )
    np.testing.assert_allclose([warm(step) for step in range(6)], [0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"optim.name \(=adam\) must be sgd or adamw"):
        build_optimizer(OptimConfig(name="adam"), decay_mask(), STEPS)


def test_the_decay_masks_of_all_networks_are_unchanged() -> None:
    """Earlier versions decayed parameters called kernel, except in layers called upsample…"""
    for backbone in registry.backbones.names:
        config = ModelConfig(backbone=backbone, head="hidden", auxiliary_weight=0.4)
        config.context_features = 8
        mask = flat(PureModel(abstract_model(config, {"a": 3, "b": 2})).decay_mask)
        assert {name for name, decays in mask.items() if decays} == {
            name for name in mask if name.endswith(".kernel") and ".upsample" not in name
        }
        assert any(".upsample" in name for name in mask)


class Scaled(nnx.Module):
    """A layer of a fork, with names of its own."""

    def __init__(self) -> None:
        self.weight = nnx.Param(jnp.ones((3, 3, 2, 2)))
        self.table = nnx.Param(jnp.ones((5, 2)), decay=False)
        self.upsample_weight = nnx.Param(jnp.ones((2, 2)))
        self.gain = nnx.Param(jnp.ones((2,)))


def test_what_decays_does_not_depend_on_names() -> None:
    def make() -> FCN:
        backbone = SmallNet(features=(4, 6), rngs=nnx.Rngs(0))
        backbone.scaled = Scaled()
        return FCN(backbone, 3, skips=0, rngs=nnx.Rngs(0))

    mask = PureModel(nnx.eval_shape(make)).decay_mask["backbone"]["scaled"]
    assert mask == {"weight": True, "table": False, "upsample_weight": True, "gain": False}
