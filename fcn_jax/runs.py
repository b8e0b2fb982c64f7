"""A run's folder: the settings that made it, its checkpoints, and what was written about it.

DIR/run.json            settings, class names
DIR/checkpoints/STEP    see `checkpoint.py`
DIR/log.jsonl           a line of numbers every few steps
DIR/tensorboard         the same as curves, with pictures of predictions
DIR/evaluation          SPLIT.json, SPLIT_confusion.png, SPLIT_sheet.png
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from fcn_jax.checkpoint import Checkpoints
from fcn_jax.config import Config, from_dict, settings
from fcn_jax.errors import UserError
from fcn_jax.models.build import build
from fcn_jax.step import Network, predict

FREE_TO_CHANGE = (
    "data.prepared_dir",
    "train.log_every_steps",
    "train.eval_every_steps",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "eval.batch_size",
)
"""Settings that a resumed run may change: they do not touch its numbers."""


class Run:
    """A trained network, ready to label images.

    config, class_names: as trained. variables: (params, batch_stats). step: of the checkpoint.
    """

    def __init__(
        self,
        config: Config,
        class_names: tuple[str, ...],
        network: Network,
        variables: Any,
        step: int,
    ):
        self.config = config
        self.class_names = class_names
        self.network = network
        self.variables = variables
        self.step = step
        self._predict = jax.jit(functools.partial(predict, network))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Labels one image: uint8 RGB (h, w, 3) of any size to class indices, uint8 (h, w).

        The image is run on a canvas whose sides are multiples of 64, which changes nothing in the
        result and lets images of similar size share one compilation.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"`image` (={image.dtype} of shape {image.shape}) must be uint8 (h, w, 3), RGB"
            )
        height, width = image.shape[:2]
        canvas = np.zeros((1, -(-height // 64) * 64, -(-width // 64) * 64, 3), np.uint8)
        canvas[0, :height, :width] = image
        labels = self._predict(self.variables, canvas, np.asarray([[height, width]], np.int32))
        return np.asarray(labels[0, :height, :width]).astype(np.uint8)


def load_run(workdir: str | Path, checkpoint: str = "latest") -> Run:
    """Loads the network of a run's folder.

    Args:
        workdir: the `--workdir` of `fcn_jax.train`.
        checkpoint: latest, best (by mean IU on the split that training scored), or a step.

    Raises:
        UserError: no run, no such checkpoint, or one of another network.
    """
    workdir = Path(workdir)
    config, class_names = read_settings(workdir)
    model = build(config.model, len(class_names), rngs=nnx.Rngs(0))
    network = Network(model)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        steps = {"latest": checkpoints.latest, "best": checkpoints.best}
        step = int(checkpoint) if checkpoint.isdigit() else steps.get(checkpoint)
        if step is None or step not in checkpoints.steps:
            held = ", ".join(map(str, checkpoints.steps)) or "none"
            raise UserError(f"{workdir} has no checkpoint {checkpoint} (it holds: {held})")
        variables = checkpoints.restore_model(network.variables, step)
    return Run(config, class_names, network, variables, step)


def read_settings(workdir: Path) -> tuple[Config, tuple[str, ...]]:
    """The settings and class names of a run's folder."""
    path = workdir / "run.json"
    try:
        stored = json.loads(path.read_text())
        return from_dict(stored["config"]), tuple(stored["class_names"])
    except FileNotFoundError:
        raise UserError(
            f"{workdir} is not the folder of a run: it has no run.json (give the --workdir that "
            "fcn_jax.train was given)"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def claim(workdir: Path, config: Config, class_names: tuple[str, ...]) -> None:
    """Makes the folder of this run, or checks that it holds a run of the same settings.

    A run that stopped before its first checkpoint, by a wrong path say, does not bind its folder.

    Raises:
        UserError: the folder cannot be written, or holds a run of other settings.
    """
    path = workdir / "run.json"
    if path.exists() and any((workdir / "checkpoints").glob("[0-9]*/")):
        held, held_names = read_settings(workdir)
        differences = [
            f"config.{name} is {old!r} there and {new!r} now"
            for (name, old, _), (_, new, _) in zip(settings(held), settings(config), strict=True)
            if old != new and name not in FREE_TO_CHANGE
        ]
        if held_names != class_names:
            differences.append(f"its classes are {', '.join(held_names)}")
        if differences:
            raise UserError(
                f"{workdir} holds a run of other settings ({'; '.join(differences)}): "
                "give another --workdir, or the same settings to go on with it"
            )
        return
    text = json.dumps({"config": dataclasses.asdict(config), "class_names": class_names}, indent=2)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(text + "\n")
        unfinished.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write to --workdir={workdir} ({error.strerror}): give a folder that you may "
            "write to"
        ) from error
