"""The model file of fcn_jax: a .safetensors with its provenance, and a .json that shows it.

It holds an exported run or the converted weights of another project.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fcn_jax.errors import UserError
from fcn_jax.pretrained.provenance import Provenance
from fcn_jax.registry import UnregisteredError
from fcn_jax.terminal.atomic_files import write_text, write_whole

FORMAT = "fcn_jax"
"""Name of the metadata entry that holds the provenance."""

CHECKSUM = "fcn_jax_sha256"
"""Name of the metadata entry that holds the SHA-256 of the provenance and the tensors."""

SUFFIX = ".safetensors"

FILE = f"model{SUFFIX}"
"""Name of the model file in the folder of an exported run."""


def save(path: Path, tensors: Mapping[str, np.ndarray], provenance: Provenance) -> None:
    """Writes a model file and the .json of the same name, each whole or not at all.

    Args:
        path: a name that ends in .safetensors.
        tensors: parameters and batch statistics by path, such as "backbone/conv1/kernel".
        provenance: what the network was trained with.

    Raises:
        UserError: a file cannot be written, or would replace one that is not a model file.
    """
    check_replaceable(path)
    values = provenance.to_json()
    if provenance.step is None:  # another project's weights: the settings of its run are unknown
        values["config"] = {"model": values["config"]["model"]}
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    # The provenance is inside the file too, so that the file alone is enough.
    metadata = {"format": FORMAT, FORMAT: text, CHECKSUM: _checksum(text, contiguous)}
    write_whole(path, lambda part: save_file(contiguous, part, metadata=metadata))
    write_text(path.with_suffix(".json"), text)


def check_replaceable(path: Path) -> None:
    """Raises UserError if `save` would replace a file that it has not written."""
    description = path.with_suffix(".json")
    if path.exists() and not _is_model_file(path):
        raise UserError(f"{path} exists and is not a model file of fcn_jax: give another output")
    if description.exists() and not _describes_model(description):
        raise UserError(
            f"{description} exists and does not describe a model of fcn_jax, and would be "
            "replaced: give another output"
        )


def read_provenance(path: Path, tensors: Mapping[str, np.ndarray]) -> Provenance | None:
    """Reads the provenance in a model file, which may come from a stranger.

    Paths in it are removed. A data set of a namespace ("kubric:name") is refused, because TFDS
    would download and execute its code.

    Args:
        path: the file.
        tensors: the tensors in it, to be compared with the checksum. Files of earlier versions have
            none.

    Returns:
        The provenance, or None if the file is not a model file of fcn_jax.

    Raises:
        UserError: the file is damaged, or its metadata cannot be used.
    """
    metadata = _metadata(path)
    text = metadata.get(FORMAT)
    if text is None:
        return None
    if metadata.get(CHECKSUM) not in (None, _checksum(text, tensors)):
        raise UserError(
            f"{path} is damaged: its content does not match its checksum; fetch it again"
        )
    try:
        provenance = Provenance.from_json(json.loads(text)).without_paths()
        name = provenance.config.data.name
        if ":" in re.sub(r":[\d.]+$", "", name):  # a version may follow a colon
            raise ValueError(f"the data set {name} has a namespace")
        return provenance
    except UnregisteredError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, UserError, RecursionError) as error:
        raise UserError(
            f"{path} holds metadata that this version of fcn_jax cannot use ({error}): export the "
            "run again, or convert the weights again"
        ) from error


def _checksum(text: str, tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def _metadata(path: Path) -> dict[str, str]:
    if path.suffix != SUFFIX:
        return {}
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def _is_model_file(path: Path) -> bool:
    try:
        return FORMAT in _metadata(path)
    except (OSError, SafetensorError):
        return False


def _describes_model(path: Path) -> bool:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and {"config", "channels"} <= values.keys()
