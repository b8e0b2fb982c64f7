"""Networks whose exports are compared with what they compute here."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from fcn_jax import pretrained
from fcn_jax.config import ModelConfig
from fcn_jax.models.backbones.alexnet import local_response_normalization
from fcn_jax.models.backbones.preprocess import CAFFE
from fcn_jax.models.build import QUICKLY_COMPILED, abstract_model
from fcn_jax.models.fcn import FCN
from fcn_jax.models.feature_map import FeatureMap, add, concatenate, multiply
from fcn_jax.models.geometry import PIXELS
from fcn_jax.models.layers import (
    BatchNorm,
    Conv,
    average_pool,
    max_pool,
    relu,
    spatial_mean,
)
from fcn_jax.models.pure_model import PureModel

SIZES = ((31, 33), (1, 1), (48, 80))


class EveryLayer(nnx.Module):
    """A backbone that calls every layer and every function of single positions that there is."""

    def __init__(self, rngs: nnx.Rngs):
        self.preprocessing = CAFFE
        self.channels = {1: 8, 2: 16}
        self.grids = {1: PIXELS, 2: PIXELS.after(2, stride=2, padding=0)}
        self.conv1 = Conv(3, 8, (4, 4), padding=(1, 2), rngs=rngs)
        self.grouped = Conv(8, 8, (3, 3), dilation=2, groups=4, rngs=rngs)
        self.bn = BatchNorm(8, epsilon=1e-3)
        self.gate = Conv(8, 8, (1, 1), rngs=rngs)

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        x = self.conv1(image).map(local_response_normalization).map(jax.nn.hard_swish)
        gate = self.gate(spatial_mean(x)).map(jax.nn.hard_sigmoid)
        x = add(x, multiply(self.bn(self.grouped(x)), gate))
        pooled = max_pool(average_pool(x, (1, 1)).map(jax.nn.relu6), window=2, stride=2, ceil=True)
        swapped = concatenate(pooled.map(lambda v: v[..., 4:]), pooled.map(lambda v: v[..., :4]))
        return {1: relu(x), 2: concatenate(pooled, max_pool(swapped, 3, 1, 1))}


def every_layer(
    upsampling: str, num_classes: int | Mapping[str, int] = 5, **settings: Any
) -> PureModel:
    def make() -> FCN:
        rngs = nnx.Rngs(0)
        return FCN(EveryLayer(rngs), num_classes, upsampling=upsampling, rngs=rngs, **settings)

    return with_random_weights(nnx.eval_shape(make))


def with_random_weights(model: FCN) -> PureModel:
    """Draws all weights: also scores, which start at zero, and statistics."""
    network = PureModel(model)
    random = np.random.default_rng(0)

    def draw(path: tuple[object, ...], leaf: jax.Array) -> np.ndarray:
        name = jax.tree_util.keystr(path)
        if "kernel" in name:
            fan_in = math.prod(leaf.shape[:-1]) if "upsample" not in name else 4
            values = random.normal(0, (2 / fan_in) ** 0.5, leaf.shape)
            return values.astype(np.float32)
        if "scale" in name or "var" in name:
            return random.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return random.normal(0, 0.1, leaf.shape).astype(np.float32)

    params, batch_stats = jax.tree_util.tree_map_with_path(draw, network.variables)
    return PureModel(network.model((params, batch_stats)))


def with_statistics_of_an_image(network: PureModel) -> PureModel:
    """Replaces the batch statistics by those of an image, as training would, so that none explodes.

    With statistics drawn at random the features of MobileNetV3 reach 1e5, and rounding shows.
    """
    params, drawn = network.variables
    run = jax.jit(partial(network, train=True), compiler_options=QUICKLY_COMPILED)
    _, after = run((params, drawn), image_of((64, 64), network.preprocessing.channels))
    keep = BatchNorm(1).momentum
    measured = jax.tree.map(lambda new, old: (new - keep * old) / (1 - keep), after, drawn)
    return PureModel(network.model((params, measured)))


def of_config(**settings: object) -> PureModel:
    config = ModelConfig()
    for name, value in settings.items():
        setattr(config, name, value)
    return with_random_weights(abstract_model(config, 5))


def tensors_of(network: PureModel) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in pretrained.flatten(network.variables).items()}


def image_of(size: tuple[int, int], channels: int = 3) -> np.ndarray:
    random = np.random.default_rng(size)
    return random.integers(0, 256, (1, *size, channels), dtype=np.uint8)


class Difference(NamedTuple):
    """How far an export's logits are from ours.

    Attributes:
        logits: the largest difference, as a share of the range of the logits.
        classes: number of pixels with another class.
        margin: the largest difference between our two best classes at such a pixel, as that share.
    """

    logits: float
    classes: int
    margin: float


def difference(
    network: PureModel,
    run: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    sizes: tuple[tuple[int, int], ...] = SIZES,
) -> Difference:
    """Compares logits (n, h, w, k) by label map with ours, on images of these sizes."""
    run_ours = jax.jit(lambda *given: network(*given)[0], compiler_options=QUICKLY_COMPILED)
    differences, margins = [], []
    for size in sizes:
        image = image_of(size, network.preprocessing.channels)
        named = run_ours(network.variables, image)
        for label_map, logits in run(image).items():
            expected = np.asarray(named[f"logits_{label_map}" if label_map else "logits"])
            assert logits.shape == expected.shape
            differences.append(np.abs(logits - expected).max() / np.ptp(expected))
            second, best = np.moveaxis(np.sort(expected, axis=-1)[..., -2:], -1, 0)
            others = logits.argmax(-1) != expected.argmax(-1)
            margins += list((best - second)[others] / np.ptp(expected))
    return Difference(max(differences), len(margins), max(margins, default=0.0))


def compare(
    network: PureModel,
    run: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    sizes: tuple[tuple[int, int], ...] = SIZES,
) -> None:
    """Checks that the logits differ by at most 1e-4 of their range, and no class."""
    found = difference(network, run, sizes)
    assert found.logits < 1e-4
    assert found.classes == 0
