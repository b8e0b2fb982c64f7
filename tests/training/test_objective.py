"""The gradient of the objective is that of the loss, however the batch is divided.

Run as a program it takes gradients on two and on four fake devices: their number is fixed when JAX
starts.
"""

import json
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.config import Config
from fcn_jax.data.augment import Crop
from fcn_jax.data.labels import by_map
from fcn_jax.errors import ArgumentError
from fcn_jax.models import row_blocks
from fcn_jax.models.backbones.preprocess import TORCHVISION
from fcn_jax.models.fcn import FCN, suffix
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import Grid
from fcn_jax.models.layers import Conv, relu
from fcn_jax.models.pure_model import PureModel
from fcn_jax.models.unet import UNetDecoder
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.registry import register_loss
from fcn_jax.training.losses import Loss, PixelLoss, build_losses
from fcn_jax.training.objective import Objective
from tests.fake_devices import output_on_four_devices

CLASSES = {"": 4, "things": 4, "ground": 3}
ONE_MAP, TWO_MAPS = ("",), ("things", "ground")
CLASS_WEIGHTS = {"": [0.5, 1, 2, 3], "things": [0.5, 1, 2, 3], "ground": [1, 0.25, 4]}
AUXILIARY_WEIGHT = 0.4
NOT_OPTIMISED = {"xla_backend_optimization_level": 0}
"""Compiling takes longer than running."""

BATCH, SIDE = 4, 24


@register_loss("squared_error")
class SquaredError(PixelLoss):
    """A loss of a fork: the squared error of the probabilities, with a factor as its option."""

    def __init__(self, class_weights: jax.Array | None = None, *, factor: float = 1.0):
        super().__init__(class_weights)
        self.factor = factor

    def per_pixel(self, logits: jax.Array, target: jax.Array) -> jax.Array:
        truth = jax.nn.one_hot(target, logits.shape[-1])
        return self.factor * jnp.sum((jax.nn.softmax(logits) - truth) ** 2, axis=-1)


@register_loss("confident")
class Confident(Loss):
    """Another: cross-entropy over the pixels that are predicted with less than 0.6, on average.

    Its weight depends on the logits.
    """

    def sums(self, logits: jax.Array, label: jax.Array) -> dict[str, jax.Array]:
        picked = jnp.where(label == 255, 0, label)[..., None]
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), picked, axis=-1)[..., 0]
        chosen = (label != 255) & (losses > -np.log(0.6))
        return {
            "loss": jnp.sum(jnp.where(chosen, losses, 0)),
            "pixels": jnp.sum(chosen.astype(jnp.float32)),
        }

    def value(self, sums: dict[str, jax.Array]) -> jax.Array:
        return sums["loss"] / jnp.maximum(sums["pixels"], 1)


OVER_THE_BATCH = "cross_entropy+dice+generalized_dice+tversky+ohem+topk+lovasz"
PER_IMAGE = "focal+dice+jaccard+lovasz+confident"
LOSSES = ["cross_entropy", "cross_entropy+squared_error", OVER_THE_BATCH, PER_IMAGE]
ON_DEVICES = [("cross_entropy", 2), (OVER_THE_BATCH, 4), (PER_IMAGE, 4)]
OPTIONS = {
    "cross_entropy+squared_error": ("factor=3", "label_smoothing=0.2"),
    OVER_THE_BATCH: ("ohem.thresh=0.2", "min_kept=100", "share=0.3"),
    PER_IMAGE: ("per_image=true", "smooth=1"),
}
"""The sum of the losses joined by +, whose weights are 1, 1.5, 2 and so on."""


class Plain(nnx.Module):
    """A backbone without batch normalisation, which would differ from part to part."""

    def __init__(self) -> None:
        self.preprocessing = TORCHVISION
        self.channels = {2: 6, 4: 8}
        self.grids = {2: Grid(2), 4: Grid(4)}
        self.conv1 = Conv(3, 6, (3, 3), stride=2, rngs=nnx.Rngs(0))
        self.conv2 = Conv(6, 8, (3, 3), stride=2, rngs=nnx.Rngs(1))

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        x = relu(self.conv1(image))
        return {2: x, 4: relu(self.conv2(x))}


@cache
def network(label_maps: tuple[str, ...], auxiliary: bool, deep: bool) -> PureModel:
    """A tiny FCN with weights drawn by NumPy, for which nothing is compiled.

    deep: with a decoder of one step, whose coarser features are supervised too.
    """
    classes = {name: CLASSES[name] for name in label_maps}
    model = nnx.eval_shape(
        lambda: FCN(
            Plain(),
            classes,
            skips=1,
            decoder=partial(UNetDecoder, norm="none") if deep else None,
            auxiliary=auxiliary,
            deep_supervision=int(deep),
            rngs=nnx.Rngs(0),
        )
    )
    random = np.random.default_rng(1)
    net = PureModel(model)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        fan_in = max(1, math.prod(leaf.shape[:-1]))
        return jnp.asarray(random.normal(0, (2 / fan_in) ** 0.5, leaf.shape), jnp.float32)

    return PureModel(net.model(jax.tree.map(draw, net.variables)))


def crops(label_maps: tuple[str, ...]) -> Crop:
    """Each has fewer valid pixels than the one before."""
    random = np.random.default_rng(0)
    shape = (BATCH, SIDE, SIDE)
    label = np.stack([random.integers(0, CLASSES[name], shape) for name in label_maps], axis=-1)
    label[random.random(label.shape) < np.arange(BATCH)[:, None, None, None] / BATCH] = 255
    return Crop(
        random.integers(0, 256, (*shape, 3)).astype(np.float32),
        (label if len(label_maps) > 1 else label[..., 0]).astype(np.int32),
        np.array([[SIDE, SIDE]] * BATCH, np.int32),
    )


def weights_of(label_maps: tuple[str, ...]) -> dict[str, jax.Array]:
    return {name: jnp.asarray(CLASS_WEIGHTS[name], jnp.float32) for name in label_maps}


def settings(loss: str, *, parts: int = 1, auxiliary: bool = False) -> Config:
    config = Config()
    config.loss.names = tuple(loss.split("+"))
    config.loss.weights = tuple(1 + place / 2 for place in range(len(config.loss.names)))
    config.loss.options = OPTIONS.get(loss, ())
    config.model.auxiliary_weight = AUXILIARY_WEIGHT if auxiliary else 0.0
    config.train.accumulation_steps = parts
    return config


def extra_heads(config: Config) -> tuple[bool, bool]:
    """Whether there is an auxiliary head, and deep supervision."""
    return config.model.auxiliary_weight > 0, config.model.deep_supervision > 0


def gradients(
    config: Config,
    label_maps: tuple[str, ...] = ONE_MAP,
    *,
    devices: int,
    mapped: Callable[..., Any],
    crop: Crop | None = None,
) -> tuple[Any, float]:
    """Returns the gradient and the loss of a batch, divided over devices by `pmap` or `vmap`."""
    net = network(label_maps, *extra_heads(config))
    objective = Objective(net, config, weights_of(label_maps))

    def on_device(variables: Any, crop: Crop, keys: jax.Array) -> tuple[Any, jax.Array]:
        gradient, _, metrics = objective.gradients(*variables, crop, keys)
        return gradient, metrics["loss"]

    keys = jax.random.split(jax.random.key(0), BATCH)
    shards = jax.tree.map(
        lambda x: x.reshape(devices, BATCH // devices, *x.shape[1:]),
        (crop or crops(label_maps), keys),
    )
    run = mapped(on_device, axis_name=DATA_AXIS, in_axes=(None, 0, 0), out_axes=None)
    gradient, loss = run(net.variables, *shards)
    return jax.tree.map(np.asarray, gradient), float(loss)


def vmapped(function: Callable[..., Any], **axes: Any) -> Callable[..., Any]:
    """Stands for several devices on one."""
    return jax.jit(jax.vmap(function, **axes), compiler_options=NOT_OPTIMISED)


@cache
def backward(
    label_maps: tuple[str, ...], auxiliary: bool, deep: bool
) -> tuple[dict[str, jax.Array], Any]:
    """All logits of the whole batch at once, and the function from their gradients to that."""
    net, crop = network(label_maps, auxiliary, deep), crops(label_maps)
    params, batch_stats = net.variables
    names = [f"logits{suffix(name)}" for name in label_maps]
    names += ["logits_auxiliary"] * auxiliary + ["logits_deep4"] * deep

    def logits(params: Any) -> dict[str, jax.Array]:
        values, _ = net((params, batch_stats), crop.image, train=True, valid=crop.valid)
        return {name: values[name] for name in names}

    forward = jax.jit(partial(jax.vjp, logits), compiler_options=NOT_OPTIMISED)
    values, to_params = forward(params)
    apply = jax.jit(lambda function, gradient: function(gradient)[0])
    return values, partial(apply, to_params)


@cache
def expected_of(loss: str) -> tuple[Any, float]:
    return expected(settings(loss))


def expected(config: Config, label_maps: tuple[str, ...] = ONE_MAP) -> tuple[Any, float]:
    """The gradient and the loss of the whole batch's logits at once."""
    logits, to_params = backward(label_maps, *extra_heads(config))
    labels = by_map(crops(label_maps).label, label_maps)
    losses = build_losses(config.loss, label_maps, weights_of(label_maps))
    first, *_ = label_maps

    def total(logits: dict[str, jax.Array]) -> jax.Array:
        loss = sum(losses[name](logits[f"logits{suffix(name)}"], labels[name]) for name in labels)
        if config.model.auxiliary_weight:
            loss += AUXILIARY_WEIGHT * losses[first](logits["logits_auxiliary"], labels[first])
        if config.model.deep_supervision:
            loss = 2 / 3 * loss + 1 / 3 * losses[first](logits["logits_deep4"], labels[first])
        return loss

    both = jax.jit(jax.value_and_grad(total), compiler_options=NOT_OPTIMISED)
    loss, gradient = both(logits)
    return jax.tree.map(np.asarray, to_params(gradient)), float(loss)


def assert_close(gradient: Any, wanted: Any) -> None:
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    assert largest > 1e-3
    leaves, _ = jax.tree_util.tree_flatten_with_path(wanted)
    for (path, leaf), value in zip(leaves, jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(
            value, leaf, atol=2e-6 * largest, rtol=1e-4, err_msg=jax.tree_util.keystr(path)
        )


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_that_of_the_loss_of_the_whole_batch(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Divided in every way at once: two devices, two accumulation parts, blocks of a few rows."""
    wanted, wanted_loss = expected_of(loss)
    monkeypatch.setitem(row_blocks.BLOCK_BYTES, "cpu", 4 * SIDE * 4 * 5)
    gradient, value = gradients(settings(loss, parts=2), devices=2, mapped=vmapped)
    assert value == pytest.approx(wanted_loss, rel=1e-5)
    assert_close(gradient, wanted)


def test_several_label_maps_and_an_auxiliary_head() -> None:
    """With a loss that is no mean over pixels; test_label_maps.py has cross-entropy."""
    config = settings("dice", auxiliary=True)
    wanted, wanted_loss = expected(config, TWO_MAPS)
    gradient, value = gradients(config, TWO_MAPS, devices=1, mapped=vmapped)
    assert value == pytest.approx(wanted_loss, rel=1e-5)
    assert_close(gradient, wanted)


@pytest.mark.parametrize("loss", ["cross_entropy", "cross_entropy+dice"])
def test_deep_supervision_weights_each_coarser_head_by_half(loss: str) -> None:
    config = settings(loss)
    config.model.decoder = "unet"
    config.model.deep_supervision = 1
    wanted, wanted_loss = expected(config)
    gradient, value = gradients(config, devices=2, mapped=vmapped)
    assert value == pytest.approx(wanted_loss, rel=1e-5)
    assert_close(gradient, wanted)


def test_parts_in_a_loop_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerators accumulate in a `lax.scan`."""
    wanted, _ = expected_of("dice")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert_close(gradients(settings("dice", parts=2), devices=1, mapped=vmapped)[0], wanted)


def test_the_papers_sum_scales_the_gradient_and_not_the_loss() -> None:
    wanted, wanted_loss = expected_of("cross_entropy")
    config = settings("cross_entropy")
    config.loss.normalization = "sum"
    gradient, value = gradients(config, devices=1, mapped=vmapped)
    assert value == pytest.approx(wanted_loss, rel=1e-5)
    label = crops(ONE_MAP).label
    weight = np.array(CLASS_WEIGHTS[""])[label[label != 255]].sum()
    assert_close(gradient, jax.tree.map(lambda x: x * weight, wanted))


@pytest.mark.parametrize("loss", ["cross_entropy", "cross_entropy+dice"])
def test_pixels_between_objects_weigh_more(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(loss, parts=2)
    config.loss.border_class, config.loss.border_weight = 1, 3.0
    plain = crops(ONE_MAP)
    border = np.random.default_rng(3).integers(0, 255, plain.label.shape).astype(np.int32)
    border[plain.label == 255] = 255  # as outside an image
    crop = plain._replace(label=np.stack([plain.label, border], axis=-1))
    monkeypatch.setitem(row_blocks.BLOCK_BYTES, "cpu", 4 * SIDE * 4 * 5)
    gradient, value = gradients(config, devices=2, mapped=vmapped, crop=crop)

    valid = plain.label != 255
    target = np.where(valid, plain.label, 0)
    weights = valid * (np.array(CLASS_WEIGHTS[""])[target] + 3 * border / 254)

    def total(logits: dict[str, jax.Array]) -> jax.Array:
        log_p = jax.nn.log_softmax(logits["logits"])
        losses = -jnp.take_along_axis(log_p, target[..., None], axis=-1)[..., 0]
        mean = (weights * losses).sum() / weights.sum()
        others = build_losses(config.loss, ONE_MAP, weights_of(ONE_MAP))[""].losses[1:]
        return mean + sum(1.5 * other(logits["logits"], plain.label) for other in others)

    logits, to_params = backward(ONE_MAP, False, False)
    wanted_value, of_logits = jax.value_and_grad(total)(logits)
    assert value == pytest.approx(float(wanted_value), rel=1e-5)
    assert_close(gradient, jax.tree.map(np.asarray, to_params(of_logits)))


def test_weights_of_borders_need_a_loss_of_pixels() -> None:
    config = settings("dice")
    config.loss.border_class = 1
    with pytest.raises(ArgumentError, match=r"loss\.border_class .*needs a loss of single pixels"):
        Objective(network(ONE_MAP, False, False), config, {})
    config.loss.border_class = CLASSES[""]
    with pytest.raises(ArgumentError, match=r"loss\.border_class .*must be in 0…3"):
        Objective(network(ONE_MAP, False, False), config, {})


@pytest.mark.slow
def test_two_and_four_devices_give_the_same_as_one() -> None:
    on_devices = output_on_four_devices(__file__)
    for (loss, _), (leaves, value) in zip(ON_DEVICES, on_devices, strict=True):
        wanted, wanted_loss = expected_of(loss)
        assert value == pytest.approx(wanted_loss, rel=1e-5)
        structure = jax.tree.structure(wanted)
        assert_close(jax.tree.unflatten(structure, map(np.array, leaves)), wanted)


if __name__ == "__main__":
    results = []
    for loss, devices in ON_DEVICES:
        mapped = partial(jax.pmap, devices=jax.local_devices()[:devices])
        gradient, value = gradients(settings(loss), devices=devices, mapped=mapped)
        results.append(([leaf.tolist() for leaf in jax.tree.leaves(gradient)], value))
    print(json.dumps(results))
