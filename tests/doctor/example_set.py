"""Functions that put faults into a data set and examine it."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fcn_jax.config import Config, default_config
from fcn_jax.doctor import __main__
from fcn_jax.doctor.kinds import Finding
from fcn_jax.doctor.subject import open_subject

TRAIN = [f"train_{index:03}" for index in range(8)]
VAL = [f"val_{index:03}" for index in range(6)]
FIRST = "masks/train_000.png"


def settings(root: Path | None, name: str = "folder", **data) -> Config:
    config = default_config()
    config.data.name, config.data.root = name, root and str(root)
    for setting, value in data.items():
        setattr(config.data, setting, value)
    return config


def examine(root: Path, name: str = "folder", **data) -> dict[str, Finding]:
    config = settings(root, name, **data)
    with open_subject(config.data) as subject:
        _, findings = __main__.examine(subject, config)
    return {finding.kind: finding for finding in findings}


def faults(root: Path, **data) -> dict[str, tuple[str, ...]]:
    """The places of each kind of fault."""
    found = examine(root, **data)
    return {kind: finding.places for kind, finding in found.items() if finding.is_fault}


def remarks(root: Path, **data) -> dict[str, tuple[str, ...]]:
    """The places of each kind of remark, in a set that must have no fault."""
    found = examine(root, **data)
    assert not any(finding.is_fault for finding in found.values())
    return {kind: finding.places for kind, finding in found.items()}


def edit_masks(root: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in (root / "masks").iterdir():
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


def edit_mask(root: Path, change: Callable[[np.ndarray], np.ndarray], name: str = FIRST) -> None:
    Image.fromarray(change(np.asarray(Image.open(root / name)))).save(root / name)


def as_jpeg(pixels: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file))


def resized(pixels: np.ndarray, method: Image.Resampling) -> np.ndarray:
    """Doubles the size and halves it again, as a labelling tool may do."""
    image = Image.fromarray(pixels)
    large = image.resize((2 * image.width, 2 * image.height), method)
    return np.asarray(large.resize(image.size, method))


def binary(label: np.ndarray) -> np.ndarray:
    """Turns all classes except 0 into 255, as programs for a single class do."""
    return np.where(label == 0, 0, 255).astype(np.uint8)
