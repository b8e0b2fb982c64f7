"""Converts weights of another project to those of a network of ours."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from fcn_jax.config import Config
from fcn_jax.errors import ArgumentError, UserError
from fcn_jax.models.build import abstract_model
from fcn_jax.models.pure_model import PureModel
from fcn_jax.pretrained.provenance import Provenance
from fcn_jax.pretrained.weights import Weights, flatten, zeros


def convert(
    weights: Weights, score_scales: tuple[float, ...] = ()
) -> tuple[Provenance, dict[str, np.ndarray]]:
    """Gives weights our names, and checks them against the network that they fit.

    Args:
        weights: of any source but fcn_jax.
        score_scales: `config.model.score_scales` of a network whose file does not contain them
            (torchfcn's FCN-8s at once).

    Returns:
        The provenance, and float32 arrays by our name: all of a whole network, or the features of a
        classifier.

    Raises:
        UserError: the weights do not fit their network, or are ours already.
    """
    if not weights.origins:
        raise UserError(
            f"{weights.path} holds weights of fcn_jax already: use it as it is, as the init of a "
            "run for example"
        )
    provenance = weights.provenance
    class_counts = [t.shape[-1] for name, t in weights.tensors.items() if _is_score_bias(name)]
    num_classes = class_counts[0] if class_counts else 1
    if class_counts:
        provenance = _with_classes(provenance, num_classes)
    if score_scales:
        if not class_counts:
            raise ArgumentError(
                "score_scales",
                ",".join(map(str, score_scales)),
                f"is for whole networks, and {weights.path} holds a classifier",
            )
        model = dataclasses.replace(provenance.config.model, score_scales=score_scales)
        provenance = dataclasses.replace(provenance, config=Config(model=model))
    variables = empty_variables(provenance.config, num_classes)
    tensors = flatten(weights.apply(variables, strict_heads=True)[0])
    return provenance, {
        name: np.asarray(tensor) for name, tensor in tensors.items() if name in weights.tensors
    }


def empty_variables(
    config: Config, num_classes: int | Mapping[str, int], channels: int = 3
) -> tuple[Any, Any]:
    """Returns (params, batch_stats) of a network, all zero, without initialising it."""
    return zeros(PureModel(abstract_model(config.model, num_classes, channels=channels)))


def _is_score_bias(name: str) -> bool:
    return name.startswith("head") and name.endswith("/bias") and "/bn/" not in name


def _with_classes(provenance: Provenance, num_classes: int) -> Provenance:
    names = provenance.label_maps.get("", ())
    if len(names) != num_classes:
        names = tuple(f"class {index}" for index in range(num_classes))
    return dataclasses.replace(provenance, label_maps={"": names})
