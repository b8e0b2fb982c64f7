"""Weights of another project as those of a network of ours, all of whose layers they fit."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from fcn_jax.config import Config, from_dict
from fcn_jax.errors import UserError
from fcn_jax.models.build import abstract_model
from fcn_jax.models.pure_model import Network
from fcn_jax.pretrained import saved
from fcn_jax.pretrained.load import Weights, flat, zeros


def convert(
    weights: Weights, score_scales: tuple[float, ...] = ()
) -> tuple[saved.About, dict[str, np.ndarray]]:
    """Weights under our names, each with the shape that its network has for it.

    Args:
        weights: of any source.
        score_scales: of a network whose file does not tell them: torchfcn's FCN-8s at once.

    Returns:
        What is known of them, and float32 arrays by our name: of a whole network all of it, of a
        classifier the features.

    Raises:
        UserError: they do not fit the network that they are named for, or are ours already.
    """
    about = weights.about
    if not weights.origins:
        raise UserError(
            f"{weights.path} holds weights of fcn_jax already: --config.init takes it as it is, "
            "and python -m fcn_jax.export makes one folder of a run"
        )
    heads = {name: tensor for name, tensor in weights.tensors.items() if _scores(name)}
    if heads:
        num_classes = next(tensor.shape[-1] for tensor in heads.values())
        about = _with_classes(about, num_classes)
    else:
        num_classes = 1
    if score_scales:
        if not heads:
            raise UserError(f"--score_scales is for whole networks; {weights.path} is a classifier")
        model = {**about.config["model"], "score_scales": score_scales}
        about = dataclasses.replace(about, config={**about.config, "model": model})
    variables = empty_variables(from_dict(about.config), num_classes)
    tensors = flat(weights.apply(variables, whole=True)[0])
    taken = {name: np.asarray(tensors[name]) for name in tensors if name in weights.tensors}
    return about, taken


def empty_variables(
    config: Config, num_classes: int | Mapping[str, int], channels: int = 3
) -> tuple[Any, Any]:
    """(params, batch_stats) of a network, all zero: nothing is drawn."""
    return zeros(Network(abstract_model(config.model, num_classes, channels=channels)))


def _scores(name: str) -> bool:
    return name.startswith("head") and name.endswith("/bias") and "/bn/" not in name


def _with_classes(about: saved.About, num_classes: int) -> saved.About:
    names = about.classes.get("", ())
    if len(names) != num_classes:
        names = tuple(f"class {index}" for index in range(num_classes))
    return dataclasses.replace(about, classes={"": names})
