"""Every setting of a run, as dataclasses that check themselves.

A config file returns a `Config` from `get_config()`; the terminal changes single settings with
`--config.section.key=value`. `python -m fcn_jax.train --help` lists them all.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

from fcn_jax.errors import UserError


def setting(default: Any, help: str, choices: tuple[Any, ...] = ()) -> Any:
    """A dataclass field with the line that `--help` shows and, where given, its only values."""
    return field(default=default, metadata={"help": help, "choices": choices})


RESERVED_FOLDERS = ("images", "classes", "train", "val", "test", "auxiliary")
"""No label map or further channels: the images, the lists in a folder, and the second head."""


# ml_collections reads the annotations as types: no `from __future__ import annotations` here.
@dataclasses.dataclass
class DataConfig:
    name: str = setting("shapes", "shapes, voc, voc/trainaug, folder, or any TFDS name")
    root: str = setting("", "where the raw files are: a VOCdevkit, a folder of archives, your own")
    prepared_dir: str = setting("", "where prepared records are kept (~/.cache/fcn_jax/data)")
    train_split: str = setting("train", "split to train on")
    eval_split: str = setting("val", "split to score")
    validation_fraction: float = setting(0.2, "folder without lists: share kept for validation")
    mask_palette: str = setting("", "folder with colour masks: voc, or a file of 'R G B' lines")
    # Not tuples of names: ml_collections reads a,b as one name.
    extra_channels: str = setting("", "folder: sub-folders of channels beside RGB: depth,…")
    label_maps: str = setting("masks", "folder: sub-folders of masks, the main one first: a,b,…")
    image_feature: str = setting("image", "TFDS: name of the image feature")
    label_feature: str = setting("label", "TFDS: name of the mask feature")
    label_offset: int = setting(0, "TFDS: added to every label (-1 where classes start at 1)")
    num_classes: int = setting(0, "TFDS without class names: how many (0: as the data set says)")
    canvas_px: tuple[int, int] = setting((0, 0), "height,width of a canvas (0,0: largest image)")
    cache: str = setting(
        "auto",
        "whether training's images lie on the device: where they fit, or yes, or no",
        choices=("auto", "device", "none"),
    )
    workers: int = setting(0, "processes that read and decode (0: threads of this one)")

    def channel_folders(self) -> tuple[str, ...]:
        """The sub-folders of further channels. Raises UserError for what cannot be one."""
        return self._folders("extra_channels")

    def mask_folders(self) -> tuple[str, ...]:
        """The sub-folders of masks, one for each label map. Raises UserError as above."""
        folders = self._folders("label_maps")
        if not folders:
            raise UserError("config.data.label_maps is empty: name a sub-folder of masks")
        return folders

    def label_map_names(self) -> tuple[str, ...]:
        """What the label maps are called in the network and the run: a single one has no name."""
        folders = self.mask_folders()
        return folders if len(folders) > 1 else ("",)

    def _folders(self, setting_name: str) -> tuple[str, ...]:
        value = getattr(self, setting_name)
        names = tuple(name.strip() for name in value.split(",") if name.strip())
        for name in names:
            if (
                not re.fullmatch(r"[\w-]+", name)
                or name in RESERVED_FOLDERS
                or names.count(name) > 1
            ):
                raise UserError(
                    f"config.data.{setting_name} (={value!r}) must list different names of "
                    f"sub-folders, of letters, digits, _ and -, none of them "
                    f"{', '.join(RESERVED_FOLDERS)}: {name!r} does not do"
                )
        return names


@dataclasses.dataclass
class AugmentConfig:
    crop_px: tuple[int, int] = setting(
        (320, 320), "height,width of the training crop (0,0: whole images)"
    )
    scale: tuple[float, float] = setting((0.5, 1.5), "random scale, smallest,largest")
    flip: bool = setting(True, "mirror left and right, half of the time")
    brightness: float = setting(0.0, "largest relative change of brightness")
    contrast: float = setting(0.0, "largest relative change of contrast")
    saturation: float = setting(0.0, "largest relative change of saturation")


BACKBONES = (
    "small",
    "alexnet",
    "alexnet_caffe",
    "vgg16",
    "vgg16_bn",
    "googlenet",
    "squeezenet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "mobilenet_v3_large",
    "efficientnet_lite0",
)


@dataclasses.dataclass
class ModelConfig:
    backbone: str = setting("small", "feature extractor", choices=BACKBONES)
    padding: str = setting(
        "same", "every layer alike, or the image by 100 as in the paper", choices=("same", "paper")
    )
    output_stride: int = setting(32, "of a dilated ResNet's last features", choices=(32, 16, 8))
    preprocessing: str = setting(
        "auto",
        "of pixels: as the weights of `init` want it, or the backbone's own",
        choices=("auto", "caffe", "torchvision", "inception"),
    )
    fusion: str = setting(
        "early",
        "of channels beyond RGB: in the first layer, or from a trunk of their own",
        choices=("early", "late"),
    )
    skips: int = setting(2, "finer stages fused: 0 is FCN-32s, 1 FCN-16s, 2 FCN-8s")
    head: str = setting(
        "linear",
        "coarsest scores: 1×1, or behind a hidden 3×3 layer as in torchvision",
        choices=("linear", "hidden"),
    )
    auxiliary_weight: float = setting(
        0.0, "of the loss of a second head, on the stage before the last (0: none)"
    )
    context_features: int = setting(
        0, "features of a wider, coarser view before the scores (0: none)"
    )
    score_scales: tuple[float, ...] = setting(
        (), "factors of the features before they are scored, coarse to fine (none: 1)"
    )
    upsampling: str = setting(
        "learned",
        "bilinear filters, or interpolation to the image's size",
        choices=("learned", "fixed", "interpolate"),
    )
    alignment: str = setting(
        "geometry",
        "where upsampled scores lie: as the layers' geometry says, or always half a pixel",
        choices=("geometry", "half_pixel"),
    )
    dropout: float = setting(0.5, "rate in fc6, fc7, SqueezeNet's end and the hidden layer")
    compute_dtype: str = setting("float32", "of activations", choices=("float32", "bfloat16"))
    remat: bool = setting(
        False, "save an accelerator's memory: run the backbone's blocks again in the backward pass"
    )


@dataclasses.dataclass
class LossConfig:
    normalization: str = setting(
        "mean", "over valid pixels: mean, or the paper's sum", choices=("mean", "sum")
    )
    class_weights: str = setting(
        "", "'balanced': ENet's 1/ln(1.02 + share of the training pixels); or numbers a,b,c,…"
    )


@dataclasses.dataclass
class OptimConfig:
    name: str = setting("adamw", "optimizer", choices=("adamw", "sgd"))
    learning_rate: float = setting(1e-3, "rate of the head")
    backbone_rate: float = setting(1.0, "rate of the backbone, as a share of the head's")
    auxiliary_rate: float = setting(1.0, "rate of the auxiliary head, as a share of the head's")
    bias_rate: float = setting(1.0, "rate of biases, as a share (the paper's: 2)")
    momentum: float = setting(0.9, "of sgd")
    weight_decay: float = setting(1e-4, "of kernels; biases and norms are spared")
    schedule: str = setting("poly", "of the rate", choices=("poly", "constant"))
    poly_power: float = setting(0.9, "rate · (1 − step/steps)^power")
    warmup_steps: int = setting(0, "steps in which the rate rises from zero")


@dataclasses.dataclass
class TrainConfig:
    batch_size: int = setting(8, "images a step, over all devices")
    accumulation_steps: int = setting(1, "parts in which a batch is run, to save memory")
    epochs: float = setting(0.0, "passes over the training split (instead of steps)")
    steps: int = setting(0, "steps (instead of epochs)")
    steps_per_dispatch: int = setting(
        1, "steps in one call, of images on the device; more suits small steps on a GPU, no CPU"
    )
    log_every_steps: int = setting(10, "between lines of the log")
    eval_every_steps: int = setting(0, "between evaluations (0: ten in a run)")
    checkpoint_every_steps: int = setting(0, "between checkpoints (0: as evaluations)")
    keep_checkpoints: int = setting(2, "newest checkpoints kept, beside the best")


@dataclasses.dataclass
class EvalConfig:
    batch_size: int = setting(
        0, "images a step, over all devices (0: one on each CPU, eight on each GPU or TPU)"
    )
    canvases: int = setting(4, "most shapes that images are put on, each of which is compiled")


@dataclasses.dataclass
class Config:
    seed: int = setting(0, "fixes a run")
    init: str = setting("", "weights to start from: a file, or the folder of another run")
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def check(self) -> None:
        """Raises UserError at the first setting that cannot be, naming it and what can."""
        for name, value, metadata in settings(self):
            choices = metadata.get("choices")
            if choices and value not in choices:
                raise UserError(
                    f"config.{name} (={value!r}) must be one of {', '.join(map(str, choices))}"
                )
        _positive(self.train, "train", "batch_size", "accumulation_steps", "log_every_steps")
        _positive(self.train, "train", "keep_checkpoints", "steps_per_dispatch")
        _positive(self.eval, "eval", "canvases")
        if self.eval.batch_size < 0:
            raise UserError(f"config.eval.batch_size (={self.eval.batch_size}) must not be below 0")
        _positive(self.optim, "optim", "learning_rate")
        if (self.train.epochs > 0) == (self.train.steps > 0):
            raise UserError(
                f"give one of config.train.epochs (={self.train.epochs:g}) and config.train.steps "
                f"(={self.train.steps}); the other must be 0"
            )
        if not 0 < self.augment.scale[0] <= self.augment.scale[1]:
            raise UserError(
                f"config.augment.scale (={self.augment.scale}) must be smallest,largest, above 0"
            )
        if self.augment.crop_px == (0, 0) and self.augment.scale != (1.0, 1.0):
            raise UserError(
                f"config.augment.scale (={self.augment.scale}) must be 1,1 where whole images are "
                "trained on (config.augment.crop_px is 0,0)"
            )
        if self.model.auxiliary_weight < 0:
            weight = self.model.auxiliary_weight
            raise UserError(f"config.model.auxiliary_weight (={weight}) must not be below 0")
        if self.model.padding == "paper":
            # Those two place scores as if an image began where its features begin.
            for name, value in (("alignment", "half_pixel"), ("upsampling", "interpolate")):
                if getattr(self.model, name) == value:
                    raise UserError(f"config.model.{name}={value} does not go with padding=paper")
        if not 0 <= self.model.dropout < 1:
            raise UserError(f"config.model.dropout (={self.model.dropout}) must lie in [0, 1)")
        if not 0 < self.data.validation_fraction < 1:
            raise UserError(
                f"config.data.validation_fraction (={self.data.validation_fraction}) must lie "
                "between 0 and 1"
            )
        if self.data.workers < 0:
            raise UserError(f"config.data.workers (={self.data.workers}) must not be below 0")
        if self.train.batch_size % self.train.accumulation_steps:
            raise UserError(
                f"config.train.batch_size (={self.train.batch_size}) must be divisible by "
                f"config.train.accumulation_steps (={self.train.accumulation_steps})"
            )


def _positive(section: Any, section_name: str, *names: str) -> None:
    for name in names:
        if not getattr(section, name) > 0:
            raise UserError(
                f"config.{section_name}.{name} (={getattr(section, name)}) must be above 0"
            )


def settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Every setting as (dotted name, value, metadata), in the order of `--help`."""
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", value, entry.metadata


def from_dict(values: Mapping[str, Any]) -> Config:
    """The inverse of `dataclasses.asdict`, for what JSON made of it; unknown keys are an error."""
    config = Config()
    known = {name for name, _, _ in settings(config)}
    for section, inner in values.items():
        for name, value in inner.items() if isinstance(inner, Mapping) else [(None, inner)]:
            dotted = section if name is None else f"{section}.{name}"
            if dotted not in known:
                raise UserError(f"config.{dotted} is not a setting of this version of fcn_jax")
            holder = config if name is None else getattr(config, section)
            setattr(holder, name or section, tuple(value) if isinstance(value, list) else value)
    return config


def default_config() -> Config:
    """What `python -m fcn_jax.train` alone runs: a small FCN-8s on drawn shapes, on any machine."""
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
