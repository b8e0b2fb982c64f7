"""Writes the uncertainty of an image: exact maps as 16-bit grey PNGs, and a picture of them."""

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fcn_jax.inference import output_digest
from fcn_jax.inference.image_files import inputs_of, read_input
from fcn_jax.inference.trained import Predictor
from fcn_jax.inference.uncertainty import UncertaintyPredictor
from fcn_jax.pictures.uncertainty import uncertainty_picture
from fcn_jax.terminal.atomic_files import write_whole

ENTROPY, INFORMATION, PICTURE = "entropy", "mutual_information", "uncertainty"
"""Folders of the maps and of the picture, next to the label maps."""

FULL_SCALE = 65535
"""The value of a 16-bit map that stands for ln k nats, the largest entropy of k classes."""

SCALE_TAG = "FCN_JAX_SCALE"
"""Name of the text in a map's PNG that states its scale."""


def save_uncertainty(
    predictor: Predictor, uncertain: UncertaintyPredictor, path: Path, target: Path
) -> None:
    """Predicts the uncertainty of an image file and writes its maps and picture.

    Args:
        predictor: the network.
        uncertain: predicts its uncertainty.
        path: the image.
        target: the file of its label map; see `uncertainty_paths`.

    Raises:
        UserError: the image cannot be read, or a file cannot be written.
    """
    image = read_input(predictor, path)
    digest = _digest(predictor, uncertain, path, target)
    for name, maps in uncertain(image).items():
        nats = math.log(max(2, len(predictor.label_maps[name])))
        files = _files(target, name, uncertain)
        save_map(files[ENTROPY], maps.entropy, nats, digest)
        if maps.mutual_information is not None:
            save_map(files[INFORMATION], maps.mutual_information, nats, digest)
        picture = uncertainty_picture(image[..., :3], *maps, nats)
        text = output_digest.png_text(digest)
        write_whole(files[PICTURE], functools.partial(picture.save, format="PNG", pnginfo=text))


def save_map(path: Path, values: np.ndarray, full_scale_nats: float, digest: str) -> None:
    """Writes a map in nats as a 16-bit grey PNG: value · full_scale_nats / 65535 is in nats.

    Args:
        path: the file to write.
        values: float (h, w) in 0…full_scale_nats.
        full_scale_nats: what the value 65535 stands for.
        digest: see `output_digest`.

    Raises:
        UserError: the file cannot be written.
    """
    share = np.clip(values / full_scale_nats, 0, 1)
    picture = Image.fromarray(np.rint(FULL_SCALE * share).astype(np.uint16))
    text = output_digest.png_text(digest)
    text.add_text(SCALE_TAG, f"nats = value * {full_scale_nats:.9g} / {FULL_SCALE}")
    write_whole(path, functools.partial(picture.save, format="PNG", pnginfo=text))


def uncertainty_paths(
    predictor: Predictor, target: Path, uncertain: UncertaintyPredictor
) -> list[Path]:
    """Returns the files that `save_uncertainty` writes for an image.

    They are entropy/x.png, mutual_information/x.png (of several draws) and uncertainty/x.png, in
    the folder of the label map.
    """
    return [
        path for name in predictor.label_maps for path in _files(target, name, uncertain).values()
    ]


def is_up_to_date(
    predictor: Predictor, uncertain: UncertaintyPredictor, path: Path, target: Path
) -> bool:
    """Returns whether all files exist and depend on the same inputs."""
    files = uncertainty_paths(predictor, target, uncertain)
    if not all(file.exists() for file in files):
        return False
    try:
        digest = _digest(predictor, uncertain, path, target)
    except OSError:  # reported when the image is read
        return False
    return all(output_digest.read_digest(file) == digest for file in files)


def _files(target: Path, label_map: str, uncertain: UncertaintyPredictor) -> dict[str, Path]:
    kinds = [ENTROPY, *[INFORMATION] * (len(uncertain.draws.variables) > 1), PICTURE]
    folder = target.parent / label_map
    return {kind: folder / kind / f"{target.stem}.png" for kind in kinds}


def _digest(predictor: Predictor, uncertain: UncertaintyPredictor, path: Path, target: Path) -> str:
    inputs: dict[str, Any] = inputs_of(predictor, path, target, uncertain.inference)
    inputs |= {
        "dropout_samples": uncertain.draws.dropout_samples,
        "temperatures": dict(predictor.temperatures),
    }
    return output_digest.digest_of(inputs)
