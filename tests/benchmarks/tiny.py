"""A workload that compiles in a second or two, and its network in PyTorch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.workloads import Workload
from fcn_jax.config import Config
from fcn_jax.models.backbones.preprocess import TORCHVISION
from fcn_jax.models.fcn import FCN
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import Grid
from fcn_jax.models.layers import Conv, relu
from fcn_jax.models.pure_model import PureModel


class TwoLayers(nnx.Module):
    """Features at strides 2 and 4."""

    def __init__(self, rngs: nnx.Rngs):
        self.preprocessing = TORCHVISION
        self.channels = {2: 4, 4: 6}
        self.grids = {2: Grid(2), 4: Grid(4)}
        self.conv1 = Conv(3, 4, (3, 3), stride=2, rngs=rngs)
        self.conv2 = Conv(4, 6, (3, 3), stride=2, rngs=rngs)

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        fine = relu(self.conv1(image))
        return {2: fine, 4: relu(self.conv2(fine))}


class TinyWorkload(Workload):
    @functools.cached_property
    def network(self) -> PureModel:
        def build() -> FCN:
            rngs = nnx.Rngs(0)
            dtype = jnp.dtype(self.dtype)
            return FCN(TwoLayers(rngs), self.num_classes, skips=1, dtype=dtype, rngs=rngs)

        return PureModel(nnx.eval_shape(build))


def tiny_workload(**fields: Any) -> TinyWorkload:
    config = Config()
    config.model.backbone = "small"
    config.augment.crop_px = (32, 32)
    config.train.batch_size = 2
    config.train.steps = 1000
    return TinyWorkload(**{"name": "tiny", "config": config, "canvas_px": 64, **fields})


def torch_two_layers(workload: Workload) -> Any:
    from torch import nn

    from benchmarks.torch_networks import SkipFcn

    layers = {
        "conv1": nn.Conv2d(3, 4, 3, stride=2, padding=1),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(4, 6, 3, stride=2, padding=1),
        "relu2": nn.ReLU(),
    }
    scored = {"relu1": (2, 4), "relu2": (4, 6)}
    return SkipFcn(layers, scored, workload.num_classes, on_pixels=True)
