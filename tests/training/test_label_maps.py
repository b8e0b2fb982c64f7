"""The loss of several label maps: each is divided by its own valid pixels."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fcn_jax.config import Config
from fcn_jax.data.labels import by_map
from fcn_jax.models.backbones.preprocess import TORCHVISION
from fcn_jax.models.backbones.small import SmallNet
from fcn_jax.models.build import QUICKLY_COMPILED
from fcn_jax.models.fcn import FCN
from fcn_jax.models.pure_model import PureModel
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.training.train_step import create_train_state, make_train_step

MAPS = {"things": 4, "ground": 3}
AUXILIARY_WEIGHT = 0.4
CLASS_WEIGHTS = {
    "things": np.array([0.5, 1, 2, 3], np.float32),
    "ground": np.array([1, 0.25, 4], np.float32),
}


def canvases() -> dict[str, np.ndarray]:
    """Three canvases; of the second label map but a tenth of the pixels are valid."""
    random = np.random.default_rng(0)
    label = np.stack([random.integers(0, count, (3, 12, 16)) for count in MAPS.values()], axis=-1)
    label[random.random((3, 12, 16)) < 0.3, 0] = 255
    label[random.random((3, 12, 16)) < 0.9, 1] = 255
    return {
        "image": random.integers(0, 256, (3, 12, 16, 4)).astype(np.uint8),
        "label": label.astype(np.uint8),
        "size": np.array([[12, 16]] * 3, np.int32),
    }


def cross_entropy(
    logits: np.ndarray, label: np.ndarray, class_weights: np.ndarray
) -> tuple[float, np.ndarray, float]:
    """The sum over valid pixels, its gradient in the logits, and the sum of weights."""
    valid = label != 255
    weights = np.where(valid, class_weights[np.where(valid, label, 0)], 0)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    shares = exponentials / exponentials.sum(-1, keepdims=True)
    truth = np.eye(logits.shape[-1])[np.where(valid, label, 0)]
    loss = -(weights * np.log((shares * truth).sum(-1))).sum()
    return loss, weights[..., None] * (shares - truth), weights.sum()


@pytest.fixture(scope="module")
def model() -> PureModel:
    backbone = SmallNet(
        features=(4, 6), preprocessing=TORCHVISION.for_channels(4), rngs=nnx.Rngs(0)
    )
    model = FCN(backbone, MAPS, skips=1, auxiliary=True, rngs=nnx.Rngs(0))
    random = np.random.default_rng(1)
    for head in (model.head_things, model.head_ground):
        for stage in model.stages:
            kernel = getattr(head, f"score{stage}").kernel
            kernel[...] = random.standard_normal(kernel.shape).astype(np.float32)
    return PureModel(model)


@pytest.fixture(scope="module")
def logits(model: PureModel) -> tuple[dict[str, np.ndarray], Any]:
    """The logits of every head for `canvases`, and the function that pulls gradients back."""
    params, batch_stats = model.variables
    batch = canvases()

    def logits(params):
        values, _ = model((params, batch_stats), batch["image"], train=True, valid=batch["size"])
        return {name: values[f"logits_{name}"] for name in (*MAPS, "auxiliary")}

    values, pull_back = jax.vjp(jax.jit(logits), params)
    return {name: np.asarray(value) for name, value in values.items()}, pull_back


@pytest.mark.parametrize(("normalization", "weighted"), [("mean", True), ("sum", False)])
def test_each_map_counts_by_its_own_pixels(
    model: PureModel,
    logits: tuple[dict[str, np.ndarray], Any],
    normalization: Literal["mean", "sum"],
    weighted: bool,
) -> None:
    """One step of rate 1 against NumPy's loss, whose gradient is pulled back by the network."""
    values, pull_back = logits
    params, _ = model.variables
    batch = canvases()
    labels = {**by_map(batch["label"], tuple(MAPS)), "auxiliary": batch["label"][..., 0]}
    cotangents, mean_loss = {}, 0.0
    for name, value in values.items():
        label_map = "things" if name == "auxiliary" else name
        weights = CLASS_WEIGHTS[label_map] if weighted else np.ones(MAPS[label_map])
        loss, gradient, weight = cross_entropy(value, labels[name], weights)
        share = AUXILIARY_WEIGHT if name == "auxiliary" else 1.0
        mean_loss += share * loss / weight
        scale = share / weight if normalization == "mean" else share
        cotangents[name] = (scale * gradient).astype(np.float32)
    (expected,) = pull_back(cotangents)

    config = Config()
    config.augment.crop_px, config.augment.scale, config.augment.flip = None, (1.0, 1.0), False
    config.loss.normalization = normalization
    config.model.auxiliary_weight = AUXILIARY_WEIGHT
    optimizer = optax.sgd(1.0)
    step = make_train_step(
        model, optimizer, config, jax.tree.map(jnp.asarray, CLASS_WEIGHTS) if weighted else None
    )
    one_device = jax.vmap(step, in_axes=(None, 0), axis_name=DATA_AXIS)
    results = jax.jit(one_device, compiler_options=QUICKLY_COMPILED)(
        create_train_state(model.variables, optimizer), jax.tree.map(lambda x: x[None], batch)
    )
    state, metrics = jax.tree.map(lambda x: x[0], results)
    np.testing.assert_allclose(metrics["loss"], mean_loss, rtol=1e-5)
    leaves, _ = jax.tree_util.tree_flatten_with_path(expected)
    stepped = jax.tree.leaves(jax.tree.map(lambda a, b: a - np.asarray(b), params, state.params))
    largest = max(np.abs(leaf).max() for _, leaf in leaves)
    for (path, leaf), change in zip(leaves, stepped, strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(change, leaf, atol=1e-5 * largest, rtol=1e-4, err_msg=name)
    things, truth = values["things"], labels["things"]
    right = (things.argmax(-1) == truth).sum() / (truth != 255).sum()
    np.testing.assert_allclose(metrics["pixel_accuracy"], right, rtol=1e-6)
