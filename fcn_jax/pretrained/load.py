"""Reads a weight file of a known source and gives its tensors our names and layout."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fcn_jax.config import Config, ModelConfig
from fcn_jax.errors import UserError
from fcn_jax.pretrained import model_file
from fcn_jax.pretrained.provenance import Provenance
from fcn_jax.pretrained.source import WeightSource
from fcn_jax.pretrained.tables import sources
from fcn_jax.pretrained.weight_files import read_weights
from fcn_jax.pretrained.weights import Weights


def read(path: str | Path) -> Weights:
    """Reads a weight file of a known source: .npz, .safetensors, .pth or .caffemodel.

    Raises:
        UserError: there is no such file, it cannot be read, or its source is unknown.
    """
    path = Path(path)
    tensors = read_weights(path)
    provenance = model_file.read_provenance(path, tensors)
    if provenance is not None:
        return Weights(path, provenance, tensors, problems=_not_finite(tensors))
    return _rename(path, tensors, _recognize(path, tensors))


def _recognize(path: Path, tensors: Mapping[str, np.ndarray]) -> WeightSource:
    for source in sources():
        if source.recognizes(tensors):
            return source
    titles = "; ".join(source.title for source in sources())
    first = ", ".join(list(tensors)[:3])
    raise UserError(f"{path} is of no known source (it begins with {first}); known are: {titles}")


def _rename(path: Path, theirs: Mapping[str, np.ndarray], source: WeightSource) -> Weights:
    tensors, origins, problems = {}, {}, []
    for name, (key, layout) in source.table.items():
        if key not in theirs:
            # An auxiliary head may be absent, as it often is in torchvision's files.
            if not name.startswith("auxiliary"):
                problems.append(f"missing {key}")
            continue
        tensor = theirs[key]
        try:
            tensors[name] = layout(tensor).astype(np.float32)
        except ValueError:
            tensors[name] = tensor  # `Weights.apply` reports its shape
        origins[name] = (key, tensor.shape)
    in_table = {key for key, _ in source.table.values()}
    problems += [
        f"unexpected {key}"
        for key in sorted(theirs)
        if key not in in_table and not source.ignores(key)
    ]
    problems += _not_finite({key: theirs[key] for key in in_table if key in theirs})
    has_auxiliary = any(name.startswith("auxiliary") for name in tensors)
    model = ModelConfig(
        backbone=source.backbone,
        preprocessing=source.preprocessing,
        auxiliary_weight=0.5 if has_auxiliary else 0.0,
        **source.model,
    )
    return Weights(
        path,
        Provenance(Config(model=model), source.label_maps, source=source.title),
        tensors,
        origins,
        extra_tensors={key: tensor for key, tensor in theirs.items() if key not in in_table},
        problems=tuple(problems),
        missing_layers=source.missing_layers,
        caveat=source.caveat,
    )


def _not_finite(tensors: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    return tuple(
        f"{name} is not finite"
        for name, tensor in tensors.items()
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all()
    )
