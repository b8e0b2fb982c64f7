"""Registries of backbones, losses and data sets: names that settings take, and their code.

A name is looked up in this order:

1. code that has called the decorator: `@register_backbone("mine")` in a config file, in a module
   that it imports, or in one that a command is given by `--import`;
2. fcn_jax itself: the tables at the end of this file hold "module:attribute" strings, so that
   nothing is imported before it is used;
3. installed packages: the entry points of the groups `fcn_jax.backbones`, `fcn_jax.losses` and
   `fcn_jax.datasets`.
"""

import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fcn_jax.errors import ArgumentError, UserError, suggestion

T = TypeVar("T", bound=Callable[..., Any])

IMPORT_FIRST = "import its module first"
"""The remedy for an unknown name, in terms of the API; `terminal/cli.py` names the flag instead."""


class UnregisteredError(ArgumentError):
    """A setting names code that is neither built in, nor installed, nor imported."""


class Registry:
    """Names of one kind of code.

    Args:
        setting: the setting that takes the name, such as "model.backbone"; for error messages.
        group: the entry-point group of installed packages.
        builtin: name -> "module:attribute".
    """

    def __init__(self, setting: str, group: str, builtin: Mapping[str, str]):
        self._setting = setting
        self._group = group
        self._builtin = dict(builtin)
        self._registered: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a function or class under `name`.

        Raises:
            ValueError: the name is registered for other code.
        """

        def decorate(code: T) -> T:
            known = self._registered.get(name)
            # A config file may be executed twice.
            is_other = known is not None and _origin(known) != _origin(code)
            if name in self._builtin or is_other:
                raise ValueError(f"{name!r} is already registered for {self._setting}")
            self._registered[name] = code
            return code

        return decorate

    @property
    def names(self) -> tuple[str, ...]:
        """Every known name: built in, of installed packages, then registered ones."""
        return tuple(dict.fromkeys([*self._builtin, *self._entry_points(), *self._registered]))

    def __contains__(self, name: str) -> bool:
        return name in self._registered or name in self._builtin or name in self._entry_points()

    def __getitem__(self, name: str) -> Any:
        """Returns the registered function or class, imported on first use.

        Raises:
            UnregisteredError: the name is unknown; suggests the nearest one.
            UserError: the installed package that has the name cannot be imported.
        """
        self.check(name)
        if name in self._registered:
            return self._registered[name]
        if name in self._builtin:
            module, _, attribute = self._builtin[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        entry = self._entry_points()[name]
        try:
            return entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist else entry.value
            raise UserError(
                f"{self._setting} (={name}): the package {package} cannot be imported "
                f"({type(error).__name__}: {error})"
            ) from error

    def check(self, name: str) -> None:
        """Raises UnregisteredError for an unknown name, with the nearest known one."""
        if name not in self:
            names = self.names
            raise UnregisteredError(
                self._setting,
                name,
                f"must be one of {', '.join(names)}; if your own code registers it, "
                f"{IMPORT_FIRST}{suggestion(str(name), names)}",
            )

    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        return {entry.name: entry for entry in importlib.metadata.entry_points(group=self._group)}


def _origin(code: Any) -> tuple[str, str]:
    """Returns the module and name of the code, of a partial function of the underlying one."""
    while isinstance(code, functools.partial):
        code = code.func
    return code.__module__, code.__qualname__


_BACKBONES = "fcn_jax.models.backbones"

backbones = Registry(
    "model.backbone",
    "fcn_jax.backbones",
    {
        "small": f"{_BACKBONES}.small:SmallNet",
        "alexnet": f"{_BACKBONES}.alexnet:AlexNet",
        "alexnet_caffe": f"{_BACKBONES}.alexnet:alexnet_caffe",
        "vgg16": f"{_BACKBONES}.vgg:VGG16",
        "vgg16_bn": f"{_BACKBONES}.vgg:vgg16_bn",
        "googlenet": f"{_BACKBONES}.googlenet:GoogLeNet",
        "squeezenet": f"{_BACKBONES}.squeezenet:SqueezeNet",
        "resnet18": f"{_BACKBONES}.resnet:resnet18",
        "resnet34": f"{_BACKBONES}.resnet:resnet34",
        "resnet50": f"{_BACKBONES}.resnet:resnet50",
        "resnet101": f"{_BACKBONES}.resnet:resnet101",
        "resnet152": f"{_BACKBONES}.resnet:resnet152",
        "resnet50c": f"{_BACKBONES}.resnet:resnet50c",
        "resnet101c": f"{_BACKBONES}.resnet:resnet101c",
        "mobilenet_v3_large": f"{_BACKBONES}.mobilenet:MobileNetV3Large",
        "efficientnet_lite0": f"{_BACKBONES}.efficientnet:EfficientNetLite0",
        "unet": "fcn_jax.models.unet:UNetEncoder",
    },
)
losses = Registry(
    "loss.names",
    "fcn_jax.losses",
    {
        "cross_entropy": "fcn_jax.training.losses:CrossEntropy",
        "focal": "fcn_jax.training.losses:Focal",
        "dice": "fcn_jax.training.losses:Dice",
        "generalized_dice": "fcn_jax.training.losses:GeneralizedDice",
        "jaccard": "fcn_jax.training.losses:Jaccard",
        "tversky": "fcn_jax.training.losses:Tversky",
        "ohem": "fcn_jax.training.losses:OnlineHardExamples",
        "topk": "fcn_jax.training.losses:TopK",
        "lovasz": "fcn_jax.training.losses:LovaszSoftmax",
    },
)
datasets = Registry(
    "data.name",
    "fcn_jax.datasets",
    {
        "shapes": "fcn_jax.data.shapes:raw_dataset",
        "voc": "fcn_jax.data.voc:raw_dataset",
        "voc/trainaug": "fcn_jax.data.voc:raw_dataset",
        "folder": "fcn_jax.data.layouts:raw_dataset",
        "volumes": "fcn_jax.data.volumes:open_volumes",
        "isbi2012": "fcn_jax.data.isbi:raw_dataset",
    },
)

register_backbone = backbones.register
register_loss = losses.register
register_dataset = datasets.register
