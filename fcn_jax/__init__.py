"""Fully convolutional networks for semantic segmentation, in JAX.

From the terminal:

    python -m fcn_jax.train      # without arguments: a small network on drawn images, two minutes
    python -m fcn_jax.evaluate --workdir=DIR
    python -m fcn_jax.predict  --workdir=DIR --output=OUT PATH...

From Python:

    import fcn_jax

    predictor = fcn_jax.load_run("runs/shapes")
    label_map = predictor(image)  # uint8 (h, w, 3), RGB -> uint8 (h, w)

`import fcn_jax` takes milliseconds: each public name is imported when it is first used.
`fcn_jax.train` and `fcn_jax.evaluate` are the modules of those commands, and can be called.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcn_jax import evaluate as evaluate
    from fcn_jax import train as train
    from fcn_jax.config import Config as Config
    from fcn_jax.data.datasets import open_dataset as open_dataset
    from fcn_jax.inference.trained import Predictor as Predictor
    from fcn_jax.inference.trained import load_run as load_run
    from fcn_jax.inference.trained import load_weights as load_weights
    from fcn_jax.models.build import build_model as build_model
    from fcn_jax.models.build import init_model as init_model
    from fcn_jax.registry import register_backbone as register_backbone
    from fcn_jax.registry import register_dataset as register_dataset
    from fcn_jax.registry import register_loss as register_loss
    from fcn_jax.training import losses as losses

__version__ = "0.1.0"

_PUBLIC = {
    "Config": "fcn_jax.config:Config",
    "Predictor": "fcn_jax.inference.trained:Predictor",
    "build_model": "fcn_jax.models.build:build_model",
    "evaluate": "fcn_jax.evaluate",
    "init_model": "fcn_jax.models.build:init_model",
    "load_run": "fcn_jax.inference.trained:load_run",
    "load_weights": "fcn_jax.inference.trained:load_weights",
    "losses": "fcn_jax.training.losses",
    "open_dataset": "fcn_jax.data.datasets:open_dataset",
    "register_backbone": "fcn_jax.registry:register_backbone",
    "register_dataset": "fcn_jax.registry:register_dataset",
    "register_loss": "fcn_jax.registry:register_loss",
    "train": "fcn_jax.train",
}
"""Public name -> "module" or "module:attribute"."""


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fcn_jax' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    imported = importlib.import_module(module)
    return getattr(imported, attribute) if attribute else imported


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
