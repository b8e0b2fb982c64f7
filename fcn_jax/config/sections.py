"""Every setting of a run, in sections, with its default, help line and range."""

import dataclasses
import math
from dataclasses import field
from typing import Any, Literal

from fcn_jax.config.fields import MAX_INT, Pattern, Section, check_ranges, setting
from fcn_jax.errors import ArgumentError
from fcn_jax.registry import backbones, datasets, losses

RESERVED_FOLDERS = ("images", "classes", "train", "val", "test", "auxiliary")
"""No names of label maps or channels: the images, the lists in a folder, and the second head."""

SUB_FOLDER = Pattern(
    rf"(?!({'|'.join(RESERVED_FOLDERS)})$)[\w-]+",
    f"names of sub-folders (letters, digits, _ and -; not {', '.join(RESERVED_FOLDERS)})",
)

LOSS_OPTION = Pattern(
    r"([A-Za-z_]\w*\.)?[A-Za-z_]\w*=[-+.\w]+",
    'options name=number, such as ("alpha=0.3", "beta=0.7") in a config file',
)

DATA_SET_NAME = Pattern(r"(?![/.~])(?!.*\.\.)[^\s\\]+", "the name of a data set, which is no path")

MAX_SIDE_PX = 32_768
MAX_SEED = 2**32 - 1

VOLUMES = "volumes"
"""The name of the data set of three-dimensional images (`data/volumes.py`)."""


# The machinery reads the annotations as types: no `from __future__ import annotations` here.
@dataclasses.dataclass
class DataConfig(Section):
    """The data set, and how its images are read."""

    name: str = setting(
        "shapes", "data set (or any name of TFDS)", examples=datasets, pattern=DATA_SET_NAME
    )
    root: str | None = setting(None, "raw files: a VOCdevkit, a folder of archives, your own")
    prepared_dir: str | None = setting(
        None, "prepared records (None: $FCN_JAX_DATA, or ~/.cache/fcn_jax/data)"
    )
    train_split: str = setting("train", "split to train on")
    eval_split: str = setting("val", "split to score")
    validation_fraction: float = setting(
        0.2, "folder without lists: share of the images for validation", at_least=0, below=1
    )
    mask_palette: str | None = setting(
        None, "folder with colour masks: voc, or a file of 'R G B' lines"
    )
    extra_channels: tuple[str, ...] = setting(
        (), "folder: sub-folders of channels beside RGB: depth,…", pattern=SUB_FOLDER
    )
    label_maps: tuple[str, ...] = setting(
        ("masks",), "folder: sub-folders of masks, the main one first: a,b,…", pattern=SUB_FOLDER
    )
    image_feature: str = setting("image", "TFDS: name of the image feature")
    label_feature: str = setting("label", "TFDS: name of the mask feature")
    label_offset: int = setting(
        0, "TFDS: added to every label (-1 if classes start at 1)", at_least=-255, at_most=255
    )
    num_classes: int | None = setting(
        None, "TFDS: number of classes (None: from the data set)", at_least=1, at_most=255
    )
    canvas_px: tuple[int, int] | None = setting(
        None,
        "height,width of a training canvas (None: holds the largest image)",
        at_least=1,
        at_most=MAX_SIDE_PX,
    )
    cache: str = setting(
        "auto",
        "training images in device memory: if they fit, always, or never",
        choices=("auto", "device", "none"),
    )
    workers: int = setting(
        0, "processes that read and decode (0: threads of this one)", at_least=0, at_most=1024
    )

    plan: str | None = setting(
        None, "volumes: file of the plan (None: made from the volumes, and kept with the records)"
    )

    @property
    def ndim(self) -> int:
        """Number of spatial axes: 3 for volumes, 2 for images."""
        return 3 if self.name == VOLUMES else 2

    def label_map_names(self) -> tuple[str, ...]:
        """Returns the names of the label maps in the network; a single one is called ""."""
        return self.label_maps if len(self.label_maps) > 1 else ("",)


@dataclasses.dataclass
class AugmentConfig(Section):
    """Random changes of the training images."""

    crop_px: tuple[int, int] | None = setting(
        (320, 320),
        "height,width of the training crop (None: whole images)",
        at_least=1,
        at_most=MAX_SIDE_PX,
    )
    scale: tuple[float, float] = setting(
        (0.5, 1.5), "range of the random scale: smallest,largest", at_least=0.1, at_most=10
    )
    flip: bool = setting(True, "mirror half of the images left to right")
    rotate: bool = setting(False, "turn crops, which must be square, by a multiple of 90°")
    elastic_px: float = setting(
        0.0,
        "standard deviation of a smooth deformation by a grid of 3×3 vectors (U-Net: 10)",
        at_least=0,
        at_most=1000,
    )
    brightness: float = setting(0.0, "largest relative change", at_least=0, at_most=1)
    contrast: float = setting(0.0, "largest relative change", at_least=0, at_most=1)
    saturation: float = setting(0.0, "largest relative change", at_least=0, at_most=1)


@dataclasses.dataclass
class VolumesConfig(Section):
    """Random changes of the training patches of volumes, in place of those in `augment`."""

    patch: tuple[int, int, int] | None = setting(
        None, "size of the training patch, in voxels (None: the plan's)", at_least=1, at_most=1024
    )
    foreground_share: float = setting(
        1 / 3, "share of the patches with a foreground voxel in their middle", at_least=0, at_most=1
    )
    flip_axes: tuple[int, ...] = setting(
        (), "axes along which half of the patches are mirrored: 0,1,2", at_least=0, at_most=2
    )
    rotate_degrees: float = setting(
        0.0, "largest rotation about each axis", at_least=0, at_most=180
    )
    scale: tuple[float, float] = setting(
        (1.0, 1.0), "range of the random scale: smallest,largest", at_least=0.1, at_most=10
    )
    brightness: float = setting(0.0, "largest relative change", at_least=0, at_most=1)
    contrast: float = setting(0.0, "largest relative change", at_least=0, at_most=1)
    gamma: float = setting(
        0.0, "largest relative change of the exponent of intensities", at_least=0, below=1
    )
    noise: float = setting(
        0.0,
        "largest standard deviation of noise, of normalised intensities",
        at_least=0,
        at_most=10,
    )
    low_resolution: float = setting(
        1.0,
        "smallest share of the resolution that a quarter of the patches keep (1: none loses any)",
        at_least=0.1,
        at_most=1,
    )


@dataclasses.dataclass
class ModelConfig(Section):
    """The network."""

    backbone: str = setting("small", "feature extractor", choices=backbones)
    features: tuple[int, ...] | None = setting(
        None,
        "features of each level of small or unet, fine to coarse (None: the backbone's own)",
        at_least=1,
        at_most=65_536,
    )
    norm: str = setting(
        "batch",
        "normalisation in unet and in a U-Net decoder; group and instance see the whole image",
        choices=("batch", "group", "instance", "none"),
    )
    padding: str = setting(
        "same",
        "padding of each layer; paper: of the image by 100 (FCN); valid: by its mirror (U-Net)",
        choices=("same", "paper", "valid"),
    )
    output_stride: int = setting(
        32, "stride of a dilated ResNet's last features", choices=(32, 16, 8)
    )
    preprocessing: str = setting(
        "auto",
        "normalisation of pixels (auto: as the weights of `init`, or the backbone, need it)",
        choices=("auto", "caffe", "torchvision", "inception", "none"),
    )
    fusion: str = setting(
        "early",
        "channels beyond RGB enter the first layer, or a backbone of their own",
        choices=("early", "late"),
    )
    decoder: str = setting(
        "fcn",
        "fusion of the stages: fcn sums scores, unet concatenates features and convolves them",
        choices=("fcn", "unet"),
    )
    decoder_features: tuple[int, ...] | None = setting(
        None,
        "decoder=unet: features of each step, coarse to fine (None: a step to each stage, as wide)",
        at_least=1,
        at_most=65_536,
    )
    skips: int = setting(
        2,
        "decoder=fcn: finer stages fused: 0 is FCN-32s, 1 FCN-16s, 2 FCN-8s",
        at_least=0,
        at_most=16,
    )
    head: str = setting(
        "linear",
        "coarsest scores: 1×1, or after the hidden 3×3 layers of torchvision or mmsegmentation",
        choices=("linear", "hidden", "mmseg"),
    )
    head_dilation: int = setting(
        1, "dilation of the hidden layers of head=mmseg", at_least=1, at_most=64
    )
    auxiliary_weight: float = setting(
        0.0,
        "weight of the loss of a second head, on the stage before the last (0: no such head)",
        at_least=0,
        at_most=100,
    )
    deep_supervision: int = setting(
        0,
        "decoder=unet: further steps that are scored in training, weights 1, 1/2, 1/4, … over sum",
        at_least=0,
        at_most=16,
    )
    context_features: int | None = setting(
        None,
        "features of two context layers at twice the coarsest stride (None: no such layers)",
        at_least=1,
        at_most=65_536,
    )
    score_scales: tuple[float, ...] | None = setting(
        None, "factors of the features before they are scored, coarse to fine (None: 1)", above=0
    )
    score_init: str = setting(
        "zero",
        "initial weights of the score layers: zero in FCN's paper, normal (He) in U-Net's",
        choices=("zero", "normal"),
    )
    upsampling: str = setting(
        "learned",
        "bilinear filters, or interpolation to the image's size",
        choices=("learned", "fixed", "interpolate"),
    )
    alignment: str = setting(
        "geometry",
        "position of upsampled scores: from the layers' geometry, or always half a pixel",
        choices=("geometry", "half_pixel"),
    )
    dropout: float = setting(
        0.5,
        "rate in fc6, fc7, the end of SqueezeNet and unet, the hidden layer",
        at_least=0,
        below=1,
    )
    compute_dtype: str = setting("float32", "dtype of activations", choices=("float32", "bfloat16"))
    remat: bool = setting(
        False, "save device memory: run the backbone's blocks again in the backward pass"
    )


@dataclasses.dataclass
class LossConfig(Section):
    """The training loss."""

    names: tuple[str, ...] = setting(
        ("cross_entropy",), "losses that are added up, built in or registered", choices=losses
    )
    weights: tuple[float, ...] | None = setting(
        None, "weight of each loss in the sum: a,b,… (None: 1)", at_least=0
    )
    options: tuple[str, ...] = setting(
        (), "options of the losses: name=number,… (gamma=2, or focal.gamma=2)", pattern=LOSS_OPTION
    )
    normalization: str = setting(
        "mean", "mean over valid pixels, or the paper's sum", choices=("mean", "sum")
    )
    class_weights: Literal["balanced"] | tuple[float, ...] | None = setting(
        None,
        "balanced: ENet's 1/ln(1.02 + share of the training pixels); or numbers a,b,c,…",
        at_least=0,
    )
    border_class: int | None = setting(
        None,
        "class between touching objects, whose narrow pixels weigh more, as U-Net's",
        at_least=0,
        below=255,
    )
    border_weight: float = setting(
        10.0, "border_class: the weight w0 that is added at most", at_least=0, at_most=1000
    )
    border_sigma_px: float = setting(
        5.0, "border_class: σ of the sum of distances to two objects", at_least=0.5, at_most=100
    )


@dataclasses.dataclass
class OptimConfig(Section):
    """The optimizer and its learning rate."""

    name: str = setting("adamw", "optimizer", choices=("adamw", "sgd"))
    learning_rate: float = setting(1e-3, "learning rate of the head", above=0)
    backbone_rate: float = setting(
        1.0, "rate of the backbone, as a multiple of the head's", at_least=0, at_most=1000
    )
    auxiliary_rate: float = setting(
        1.0, "rate of the auxiliary head, as a multiple of the head's", at_least=0, at_most=1000
    )
    bias_rate: float = setting(
        1.0, "rate of biases, as a multiple (the paper's: 2)", at_least=0, at_most=1000
    )
    momentum: float = setting(0.9, "momentum of sgd", at_least=0, below=1)
    nesterov: bool = setting(False, "Nesterov's momentum in sgd")
    weight_decay: float = setting(
        1e-4, "decay of kernels; biases and norms do not decay", at_least=0, at_most=1
    )
    schedule: str = setting(
        "poly", "rate · (1 − step/steps)^0.9, or a constant rate", choices=("poly", "constant")
    )
    warmup_steps: int = setting(0, "steps in which the rate rises from zero", at_least=0)


@dataclasses.dataclass
class TrainConfig(Section):
    """The training loop. Assigning one of `epochs` and `steps` removes the other."""

    batch_size: int = setting(8, "images per step, over all devices", at_least=1)
    accumulation_steps: int = setting(
        1, "parts in which a batch is run, to save memory", at_least=1
    )
    epochs: float | None = setting(
        None, "passes over the training split (or give steps)", above=0, at_most=1_000_000
    )
    steps: int | None = setting(None, "training steps (or give epochs)", at_least=1)
    steps_per_dispatch: int = setting(
        1,
        "steps per call, of images in device memory; more suits small steps on a GPU, not a CPU",
        at_least=1,
    )
    log_every_steps: int = setting(10, "steps between lines of the log", at_least=1)
    eval_every_steps: int | None = setting(
        None, "steps between evaluations (None: a tenth of the run)", at_least=1
    )
    checkpoint_every_steps: int | None = setting(
        None, "steps between checkpoints (None: as evaluations)", at_least=1
    )
    keep_checkpoints: int = setting(2, "newest checkpoints kept, beside the best", at_least=1)
    members: int = setting(
        1,
        "networks of an ensemble, trained at once on the same images: seed, seed + 1, …",
        at_least=1,
        at_most=100,
    )

    def __setattr__(self, name: str, value: Any) -> None:
        is_set = "steps" in vars(self)  # __init__ sets it after `epochs`, and removes neither
        super().__setattr__(name, value)
        if is_set and value is not None and name in ("epochs", "steps"):
            super().__setattr__("steps" if name == "epochs" else "epochs", None)

    def total_steps(self, num_images: int) -> int:
        """Returns the number of training steps for a split of `num_images` images.

        Raises:
            ArgumentError: so many epochs are more steps than can be counted.
        """
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        steps = math.ceil(self.epochs * num_images / self.batch_size)
        if steps > MAX_INT:
            raise ArgumentError("train.epochs", self.epochs, f"is more than {MAX_INT} steps")
        return steps


@dataclasses.dataclass
class EvalConfig(Section):
    """The evaluation of a split."""

    batch_size: int | None = setting(
        None, "images per step, over all devices (None: 1 per CPU, 8 per GPU or TPU)", at_least=1
    )
    canvases: int = setting(
        4, "most canvas sizes that images are grouped into; each is compiled", at_least=1
    )


@dataclasses.dataclass
class Config(Section):
    """All settings of a run."""

    seed: int = setting(0, "seed of weights, order and augmentation", at_least=0, at_most=MAX_SEED)
    order_seed: int | None = setting(
        None, "seed of the order of the images (None: seed)", at_least=0, at_most=MAX_SEED
    )
    init: str | None = setting(None, "weights to start from: a file, or the folder of another run")
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    volumes: VolumesConfig = field(default_factory=VolumesConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    @property
    def seed_of_order(self) -> int:
        """The seed of the order of the images, and of their windows on smaller canvases."""
        return self.seed if self.order_seed is None else self.order_seed

    def of_member(self, number: int) -> "Config":
        """Returns the settings of the run that equals a member of this one, from 0.

        Its weights, crops and dropout are those of its own seed; all members share the order of
        the images.
        """
        return dataclasses.replace(
            self,
            seed=self.seed + number,
            order_seed=self.seed_of_order,
            train=dataclasses.replace(self.train, members=1),
        )

    def check(self) -> None:
        """Checks every setting by itself, then those that depend on each other.

        Raises:
            ArgumentError: the first setting whose value cannot be used.
        """
        check_ranges(self)
        if self.seed + self.train.members - 1 > MAX_SEED:
            raise ArgumentError("seed", self.seed, f"and those of the members end at {MAX_SEED}")
        train, augment, model, loss = self.train, self.augment, self.model, self.loss
        if loss.weights is not None and (
            len(loss.weights) != len(loss.names) or not any(loss.weights)
        ):
            raise ArgumentError(
                "loss.weights",
                loss.weights,
                f"must be {len(loss.names)} numbers, one for each of loss.names "
                f"(={','.join(loss.names)}) and not all 0",
            )
        if train.epochs is None and train.steps is None:
            raise ArgumentError("train.steps", None, "must be given, or train.epochs")
        if train.epochs is not None and train.steps is not None:
            raise ArgumentError(
                "train.steps",
                train.steps,
                f"must be None if train.epochs (={train.epochs:g}) is given: TrainConfig(...) "
                "takes one of them",
            )
        if train.batch_size % train.accumulation_steps:
            raise ArgumentError(
                "train.batch_size",
                train.batch_size,
                f"must be divisible by train.accumulation_steps (={train.accumulation_steps})",
            )
        for name, scale in (("augment", augment.scale), ("volumes", self.volumes.scale)):
            if scale[0] > scale[1]:
                raise ArgumentError(f"{name}.scale", scale, "must be smallest,largest")
        if model.head_dilation != 1 and model.head != "mmseg":
            raise ArgumentError(
                "model.head_dilation", model.head_dilation, "must be 1 without model.head=mmseg"
            )
        if augment.crop_px is None and augment.scale != (1.0, 1.0):
            raise ArgumentError(
                "augment.scale",
                augment.scale,
                "must be 1,1 for whole images (augment.crop_px=None)",
            )
        if model.padding != "same":
            # Both place scores as if an image began where its features begin.
            for name, value in (("alignment", "half_pixel"), ("upsampling", "interpolate")):
                if getattr(model, name) == value:
                    raise ArgumentError(
                        f"model.{name}", value, f"cannot be used with model.padding={model.padding}"
                    )
        if augment.rotate and (augment.crop_px is None or len(set(augment.crop_px)) > 1):
            raise ArgumentError(
                "augment.rotate",
                True,
                f"needs a square crop, not augment.crop_px={augment.crop_px}",
            )
        if augment.elastic_px and augment.crop_px is None:
            raise ArgumentError(
                "augment.elastic_px", augment.elastic_px, "needs a crop (augment.crop_px)"
            )
        if loss.border_class is not None and self.data.ndim == 3:
            raise ArgumentError("loss.border_class", loss.border_class, "is for images")
        self._check_decoder()

    def _check_decoder(self) -> None:
        """Raises ArgumentError for settings of the one decoder that the other does not use."""
        model, default = self.model, ModelConfig()
        if model.decoder == "fcn":
            if model.decoder_features is not None:
                raise ArgumentError(
                    "model.decoder_features", model.decoder_features, "needs model.decoder=unet"
                )
            if model.deep_supervision:
                raise ArgumentError(
                    "model.deep_supervision", model.deep_supervision, "needs model.decoder=unet"
                )
            return
        for name in ("skips", "score_scales"):
            value = getattr(model, name)
            if value != getattr(default, name):
                raise ArgumentError(
                    f"model.{name}",
                    value,
                    "is not used with model.decoder=unet, which has a step for each number in "
                    "model.decoder_features",
                )
        if model.padding == "paper":
            raise ArgumentError(
                "model.padding",
                "paper",
                "cannot be used with model.decoder=unet: use same or valid",
            )
        if model.padding == "valid" and model.context_features is not None:
            raise ArgumentError(
                "model.context_features",
                model.context_features,
                "cannot be used with model.padding=valid",
            )


def default_config() -> Config:
    """Returns the config of `python -m fcn_jax.train` alone: a small FCN-8s on drawn shapes."""
    config = Config()
    config.data.name = "shapes"
    config.model.backbone = "small"
    config.augment.crop_px = (128, 128)
    config.augment.scale = (1.0, 1.0)
    config.model.upsampling = "fixed"
    config.optim.learning_rate = 6e-3
    config.optim.warmup_steps = 50
    config.train.batch_size = 8
    config.train.epochs = 24
    config.train.eval_every_steps = 300
    return config
