"""The networks that are measured, and how they are trained: fixed, so that numbers compare."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax.config import Config
from fcn_jax.models.backbones.resnet import ResNet
from fcn_jax.models.backbones.vgg import VGG16
from fcn_jax.models.build import abstract_model
from fcn_jax.models.heads import score_layer
from fcn_jax.models.pure_model import Network
from fcn_jax.models.upsampling import bilinear_kernel
from fcn_jax.parallel import data_parallel
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.training import optim
from fcn_jax.training.train_step import TrainState, create_train_state, make_train_step

NUM_CLASSES = 21


@dataclasses.dataclass(frozen=True)
class Workload:
    """A network and its training.

    name: of the network. canvas_px: height and width of the canvases that crops are cut from.
    for_gpu: whether a CPU would take minutes a step. small: see `shrink`.
    """

    name: str
    config: Config
    canvas_px: int
    for_gpu: bool
    small: bool
    num_classes: int = NUM_CLASSES

    @property
    def crop_px(self) -> tuple[int, int]:
        """Height and width of the training crops."""
        assert self.config.augment.crop_px is not None
        return self.config.augment.crop_px

    @property
    def title(self) -> str:
        crop = "×".join(map(str, self.crop_px))
        return f"{self.name} {crop} batch {self.config.train.batch_size} {self.dtype}"

    @property
    def dtype(self) -> str:
        return self.config.model.compute_dtype

    def changed(self, **settings: Any) -> "Workload":
        """The same with other settings, `model__compute_dtype` for config.model.compute_dtype."""
        config = self.config
        for name, value in settings.items():
            section, _, setting = name.partition("__")
            inner = dataclasses.replace(getattr(config, section), **{setting: value})
            config = dataclasses.replace(config, **{section: inner})
        config.check()
        return dataclasses.replace(self, config=config)

    def network(self) -> Network:
        """Its variables are shapes and types alone."""

        model = abstract_model(self.config.model, self.num_classes, axis_name=DATA_AXIS)
        if self.small:
            shrink(model)
        return Network(model)

    def optimizer(self, network: Network) -> Any:
        total_steps = self.config.train.total_steps(num_images=0)
        return optim.build_optimizer(self.config.optim, network.decay_mask, total_steps)

    def step(self, network: Network) -> data_parallel.ParallelStep:
        """The training step on all devices."""
        return data_parallel.parallelize(self.one_devices_step(network), donate_state=True)

    def one_devices_step(self, network: Network) -> Any:
        return make_train_step(network, self.optimizer(network), self.config)

    def traced(self, network: Network) -> Any:
        """One device's step as a traced program (jaxpr), on its share of the batch."""
        devices = jax.device_count()
        share = {
            name: jax.ShapeDtypeStruct((leaf.shape[0] // devices, *leaf.shape[1:]), leaf.dtype)
            for name, leaf in self.abstract_batch().items()
        }
        trace = jax.make_jaxpr(self.one_devices_step(network), axis_env=[(DATA_AXIS, devices)])
        return trace(self.abstract_state(network), share)

    def state(self, network: Network, variables: tuple[Any, Any]) -> TrainState:
        """On the device, from (params, batch_stats)."""
        on_device = jax.tree.map(jnp.asarray, variables)
        return create_train_state(on_device, self.optimizer(network))

    def abstract_state(self, network: Network) -> TrainState:
        """Its shapes and types."""
        optimizer = self.optimizer(network)
        return jax.eval_shape(lambda v: create_train_state(v, optimizer), network.variables)

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of `random_canvases`."""
        batch, side = self.config.train.batch_size, self.canvas_px
        return {
            "image": jax.ShapeDtypeStruct((batch, side, side, 3), np.uint8),
            "label": jax.ShapeDtypeStruct((batch, side, side), np.uint8),
            "size": jax.ShapeDtypeStruct((batch, 2), np.int32),
        }


def workloads(small: bool) -> Iterator[Workload]:
    """Those that the suites run, each of a batch for every device."""
    yield Workload("FCN-8s SqueezeNet", _squeezenet(small), 64 if small else 512, False, small)
    yield Workload("FCN-ResNet-50", _resnet50(small), 64 if small else 512, True, small)
    yield Workload("FCN-8s VGG16", _vgg16(small), 64 if small else 512, True, small)


def _squeezenet(small: bool) -> Config:
    config = Config()
    config.model.backbone = "squeezenet"
    return _trained(config, small, crop_px=320, batch_size=8)


def _resnet50(small: bool) -> Config:
    """torchvision's `fcn_resnet50`, trained as by configs/voc_fcn_resnet50.py."""
    config = Config()
    config.model.backbone = "resnet50"
    config.model.output_stride = 8
    config.model.skips = 0
    config.model.head = "hidden"
    config.model.auxiliary_weight = 0.5
    config.model.upsampling = "interpolate"
    config.model.dropout = 0.1
    config.model.compute_dtype = "bfloat16"
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.01
    config.optim.auxiliary_rate = 10.0
    return _trained(config, small, crop_px=480, batch_size=16)


def _vgg16(small: bool) -> Config:
    """The paper's network without its padding by 100, with upsampling that learns."""
    config = Config()
    config.model.backbone = "vgg16"
    config.model.compute_dtype = "bfloat16"
    config.optim.name = "sgd"
    config.optim.learning_rate = 1e-3
    return _trained(config, small, crop_px=500, batch_size=8)


def _trained(config: Config, small: bool, *, crop_px: int, batch_size: int) -> Config:
    config.augment.crop_px = (32, 32) if small else (crop_px, crop_px)
    config.train.batch_size = jax.device_count() * (2 if small else batch_size)
    config.train.steps = 1000
    config.optim.schedule = "constant"
    config.check()
    return config


def shrink(model: Any) -> None:
    """Takes away what would take minutes to compile, and shows nothing new at tiny sizes."""
    backbone = model.backbone
    if isinstance(backbone, ResNet):
        for layer, count in enumerate(backbone.depths, start=1):
            for index in range(1, count):
                delattr(backbone, f"layer{layer}_{index}")
        backbone.depths = (1, 1, 1, 1)
    if isinstance(backbone, VGG16):
        narrow = nnx.eval_shape(lambda: VGG16(fc_features=16, rngs=nnx.Rngs(0)))
        backbone.fc6, backbone.fc7 = narrow.fc6, narrow.fc7
        num_classes = model.head.score32.kernel.shape[-1]
        model.head.score32 = nnx.eval_shape(lambda: score_layer(16, num_classes, rngs=nnx.Rngs(0)))


def random_variables(network: Network) -> tuple[Any, Any]:
    """(params, batch_stats) as numpy arrays, none of them zero: scores differ between pixels.

    Drawn here, because each initializer of the network's own would be compiled.
    """
    random = np.random.default_rng(0)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        names = [str(entry.key) for entry in path]
        if names[-1] == "kernel" and any(name.startswith("upsample") for name in names):
            return bilinear_kernel(leaf.shape[0], leaf.shape[-1])
        if names[-1] == "kernel":
            spread = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return spread * random.standard_normal(leaf.shape, np.float32)
        if names[-1] in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        return 0.1 * random.standard_normal(leaf.shape, np.float32)

    params, batch_stats = network.variables
    return (
        jax.tree_util.tree_map_with_path(draw, params),
        jax.tree_util.tree_map_with_path(draw, batch_stats),
    )


def random_canvases(batch_size: int, canvas_px: int) -> dict[str, np.ndarray]:
    """A batch of noise, its labels in blocks of 16 pixels, that fills its canvases."""
    random = np.random.default_rng(0)
    blocks = random.integers(0, NUM_CLASSES, (batch_size, canvas_px // 16, canvas_px // 16))
    return {
        "image": random.integers(0, 256, (batch_size, canvas_px, canvas_px, 3), np.uint8),
        "label": blocks.repeat(16, axis=1).repeat(16, axis=2).astype(np.uint8),
        "size": np.full((batch_size, 2), canvas_px, np.int32),
    }
