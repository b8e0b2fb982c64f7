"""The networks that are measured, and how they are trained: fixed, so that numbers compare."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import cost
from fcn_jax.config import Config
from fcn_jax.models.backbones.resnet import ResNet
from fcn_jax.models.backbones.vgg import VGG16
from fcn_jax.models.build import abstract_model
from fcn_jax.models.heads import score_layer
from fcn_jax.models.pure_model import PureModel
from fcn_jax.parallel import data_parallel
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.training import optim
from fcn_jax.training.train_step import TrainState, create_train_state, make_train_step

NUM_CLASSES = 21

UNET_FEATURES = (16, 32, 64, 128)


@dataclasses.dataclass(frozen=True)
class Workload:
    """A network and its training.

    Attributes:
        name: name of the network.
        config: its model, crops, optimizer and batch size.
        canvas_px: height and width of the canvases that the crops are cut from.
        for_gpu: whether a step takes minutes on a CPU.
        for_cpu: whether it is too small for a GPU.
        small: whether layers are left out, see `shrink`.
        num_classes: k.
    """

    name: str
    config: Config
    canvas_px: int
    for_gpu: bool = False
    for_cpu: bool = False
    small: bool = False
    num_classes: int = NUM_CLASSES

    @property
    def crop_px(self) -> tuple[int, int]:
        """Height and width of the training crops."""
        assert self.config.augment.crop_px is not None
        return self.config.augment.crop_px

    @property
    def title(self) -> str:
        """The name with crop, batch size and dtype."""
        crop = "×".join(map(str, self.crop_px))
        return f"{self.name} {crop} batch {self.config.train.batch_size} {self.dtype}"

    @property
    def dtype(self) -> str:
        return self.config.model.compute_dtype

    def changed(self, **settings: Any) -> "Workload":
        """Returns the workload with other settings: `model__remat=True` sets model.remat."""
        config = self.config
        for name, value in settings.items():
            section, _, setting = name.partition("__")
            inner = dataclasses.replace(getattr(config, section), **{setting: value})
            config = dataclasses.replace(config, **{section: inner})
        config.check()
        return dataclasses.replace(self, config=config)

    @functools.cached_property
    def network(self) -> PureModel:
        """The network with shapes in place of weights."""
        model = abstract_model(self.config.model, self.num_classes, axis_name=DATA_AXIS)
        if self.small:
            shrink(model)
        return PureModel(model)

    @functools.cached_property
    def optimizer(self) -> Any:
        total_steps = self.config.train.total_steps(num_images=0)
        return optim.build_optimizer(self.config.optim, self.network.decay_mask, total_steps)

    def device_step(self) -> Any:
        """Builds the training step of a single device."""
        return make_train_step(self.network, self.optimizer, self.config)

    def step(self) -> data_parallel.ParallelStep:
        """Builds the training step on all devices."""
        return data_parallel.parallelize(self.device_step(), donate_state=True)

    def state(self) -> TrainState:
        """Returns the state before the first step, with `random_variables`, on the device."""
        variables = jax.tree.map(jnp.asarray, random_variables(self.network))
        return create_train_state(variables, self.optimizer)

    def batch(self) -> dict[str, np.ndarray]:
        """Returns noise that fills its canvases, with labels in blocks of 16 pixels."""
        random = np.random.default_rng(0)
        batch_size, side = self.config.train.batch_size, self.canvas_px
        blocks = random.integers(0, self.num_classes, (batch_size, side // 16, side // 16))
        return {
            "image": random.integers(0, 256, (batch_size, side, side, 3), np.uint8),
            "label": blocks.repeat(16, axis=1).repeat(16, axis=2).astype(np.uint8),
            "size": np.full((batch_size, 2), side, np.int32),
        }

    def lowered(self, step: data_parallel.ParallelStep) -> jax.stages.Lowered:
        """Returns the step's program, traced with the shapes of the state and the batch."""
        return step.lower(self._abstract_state(), self.batch())

    def step_cost(self, step: data_parallel.ParallelStep) -> cost.Cost:
        """Returns what a step costs on one device."""
        batch = self.batch()
        traced = jax.make_jaxpr(lambda state: step(state, batch))(self._abstract_state())
        return cost.program_cost(self.lowered(step), traced)

    def _abstract_state(self) -> TrainState:
        create = functools.partial(create_train_state, optimizer=self.optimizer)
        return jax.eval_shape(create, self.network.variables)


def workloads(small: bool) -> tuple[Workload, ...]:
    """Returns the networks of the suites: batches for all devices, tiny sizes if `small`."""

    def workload(
        name: str,
        crop_px: int | tuple[int, int],
        batch_size: int,
        *,
        for_cpu: bool = False,
        **settings: Any,
    ) -> Workload:
        config = Config()
        sides = (crop_px, crop_px) if isinstance(crop_px, int) else crop_px
        config.augment.crop_px = (32, 32) if small else sides
        config.train.batch_size = jax.device_count() * (2 if small else batch_size)
        config.train.steps = 1000
        config.optim.schedule = "constant"
        for_gpu = settings.setdefault("model__compute_dtype", "float32") == "bfloat16"
        canvas_px = 64 if small else 512
        made = Workload(name, config, canvas_px, for_gpu, for_cpu, small)
        return made.changed(**settings)

    return (
        workload(
            "FCN-8s SqueezeNet",
            crop_px=320,
            batch_size=8,
            model__backbone="squeezenet",
        ),
        workload(
            "FCN-32s ResNet-18",
            crop_px=(320, 480),
            batch_size=8,
            for_cpu=True,
            model__backbone="resnet18",
            model__skips=0,
        ),
        workload(
            "FCN-8s VGG16 small crops",
            crop_px=224,
            batch_size=2,
            for_cpu=True,
            model__backbone="vgg16",
            optim__name="sgd",
            optim__learning_rate=1e-3,
        ),
        workload(
            "U-Net",
            crop_px=256,
            batch_size=4,
            for_cpu=True,
            model__backbone="unet",
            model__decoder="unet",
            model__features=UNET_FEATURES,
        ),
        # torchvision's `fcn_resnet50`, trained as in configs/voc_fcn_resnet50.py.
        workload(
            "FCN-ResNet-50",
            crop_px=480,
            batch_size=16,
            model__backbone="resnet50",
            model__output_stride=8,
            model__skips=0,
            model__head="hidden",
            model__auxiliary_weight=0.5,
            model__upsampling="interpolate",
            model__dropout=0.1,
            model__compute_dtype="bfloat16",
            optim__name="sgd",
            optim__learning_rate=0.01,
            optim__auxiliary_rate=10.0,
        ),
        # The paper's network without its padding by 100, and with learned upsampling.
        workload(
            "FCN-8s VGG16",
            crop_px=500,
            batch_size=8,
            model__backbone="vgg16",
            model__compute_dtype="bfloat16",
            optim__name="sgd",
            optim__learning_rate=1e-3,
        ),
    )


def shrink(model: Any) -> None:
    """Removes layers that would take minutes to compile and show nothing new at tiny sizes."""
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


def random_variables(network: PureModel) -> tuple[Any, Any]:
    """Returns (params, batch_stats) as NumPy arrays without zeros: logits differ between pixels.

    NumPy draws them, because each of the network's own initializers would be compiled.
    """
    random = np.random.default_rng(0)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        deviation = np.sqrt(2 / np.prod(leaf.shape[:-1])) if name == "kernel" else 0.1
        return (deviation * random.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, network.variables)
