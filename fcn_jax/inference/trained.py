"""A run's folder: the settings that made it, its checkpoints, and what was written about it.

DIR/run.json            settings, channels of the images, class names
DIR/checkpoints/STEP    see `checkpoint.py`
DIR/log.jsonl           a line of numbers every few steps
DIR/tensorboard         the same as curves, with pictures of predictions
DIR/evaluation          SPLIT.json, SPLIT_images.npz, SPLIT_confusion.png, SPLIT_sheet.png
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax import pretrained
from fcn_jax.config import from_dict
from fcn_jax.data.canvases import Size, choose_canvases
from fcn_jax.errors import UserError
from fcn_jax.inference.options import WHOLE, Inference
from fcn_jax.inference.views import ViewPredictor
from fcn_jax.models.build import abstract_model, preprocessing_name
from fcn_jax.models.pure_model import Network
from fcn_jax.pretrained import Weights, saved
from fcn_jax.runs import RunSettings, read_settings
from fcn_jax.training.checkpoint import CheckpointReader


class Predictor:
    """A trained network, ready to label images.

    config, channels, label_maps: as trained (see `RunSettings`). variables: (params, batch_stats).
    step: of the checkpoint. metrics: of an exported run, its scores by split.
    """

    def __init__(
        self,
        made_with: RunSettings,
        network: Network,
        variables: Any,
        step: int,
        metrics: Mapping[str, Any] | None = None,
    ):
        self.config, self.channels, self.label_maps = made_with
        self.network = network
        self.variables = variables
        self.step = step
        self.metrics = metrics or {}
        self._canvases: list[Size] = []
        self._labellers: dict[Inference, ViewPredictor] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the first label map."""
        return next(iter(self.label_maps.values()))

    @property
    def about(self) -> saved.About:
        """What is known of its weights beside their numbers."""
        config = dataclasses.asdict(self.config)
        config["model"]["preprocessing"] = preprocessing_name(self.config.model)
        source = f"fcn_jax on {self.config.data.name}, step {self.step}"
        return saved.About(source, config, self.label_maps, self.channels, self.step, self.metrics)

    def __call__(
        self, image: np.ndarray, inference: Inference = WHOLE
    ) -> np.ndarray | dict[str, np.ndarray]:
        """Labels one image: uint8 (h, w, c) of any size to class indices, uint8 (h, w).

        With several label maps it gives each of them by name. The channels are RGB and then those
        that the run was trained with beside it.

        The image is run on a canvas whose sides are multiples of 64, which changes nothing in the
        result and lets images of similar size share one compilation; see also `prepare_for`.

        Raises:
            ValueError: an image of another type or number of channels.
            UserError: an `inference` that the network does not go with.
        """
        return _only(self.label(image, inference))

    def prepare_for(self, sizes: np.ndarray) -> None:
        """Chooses a few canvases for images of these sizes, int (n, 2): as many compilations.

        As many as `config.eval.canvases` allows; the labels do not depend on them.
        """
        self._canvases = choose_canvases(sizes, max_canvases=self.config.eval.canvases)
        self._labellers = {}

    def label(self, image: np.ndarray, inference: Inference = WHOLE) -> dict[str, np.ndarray]:
        """The same by label map, also where there is but one, whose name is ""."""
        self._check_image(image)
        return self._labeller(inference).labels(self.variables, image)

    def probabilities(
        self, image: np.ndarray, inference: Inference = WHOLE
    ) -> np.ndarray | dict[str, np.ndarray]:
        """As when called, but of each class: float32 (h, w, k), with the sum 1 (see `Labeller`)."""
        self._check_image(image)
        return _only(self._labeller(inference).probabilities(self.variables, image))

    def _labeller(self, inference: Inference) -> ViewPredictor:
        if inference not in self._labellers:
            self._labellers[inference] = ViewPredictor(self.network, inference, self._canvases)
        return self._labellers[inference]

    def _check_image(self, image: np.ndarray) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != self.channels:
            beside = ", RGB" if self.channels == 3 else f": {self._channel_names()}"
            raise ValueError(
                f"`image` (={image.dtype} of shape {image.shape}) must be uint8 "
                f"(h, w, {self.channels}){beside}"
            )

    @functools.cached_property
    def digest(self) -> str:
        """Tells these weights, and what is computed with them, from others: 64 letters."""
        digest = hashlib.sha256(json.dumps(self.about.config["model"], sort_keys=True).encode())
        for name, tensor in sorted(pretrained.flat(self.variables).items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor).tobytes())
        return digest.hexdigest()

    def _channel_names(self) -> str:
        return " and ".join(["RGB", *self.config.data.extra_channels])


def _only(by_name: dict[str, np.ndarray]) -> np.ndarray | dict[str, np.ndarray]:
    """Of a single label map, which has no name, it alone."""
    return by_name[""] if tuple(by_name) == ("",) else by_name


def load_run(workdir: str | Path, checkpoint: str = "latest") -> Predictor:
    """Loads the network of a run's folder, of an exported one, or of a converted file.

    Args:
        workdir: the `--workdir` of `fcn_jax.train`, the `--output` of `fcn_jax.export`, or that of
            `fcn_jax.pretrained` where it holds a whole segmentation network.
        checkpoint: latest, best (by mIoU on the split that training scored), or a step.

    Raises:
        UserError: no run, no such checkpoint, or one of another network.
    """
    workdir = Path(workdir)
    exported = workdir if workdir.suffix == saved.SUFFIX else workdir / saved.FILE
    if exported == workdir or (exported.exists() and not (workdir / "run.json").exists()):
        if checkpoint != "latest":
            raise UserError(f"{workdir} was exported: it holds no checkpoint {checkpoint} but one")
        return _load_exported(exported)
    if workdir.is_file():
        raise UserError(
            f"{workdir} is no folder of a run: convert it first, "
            f"python -m fcn_jax.pretrained {workdir} --output={workdir.stem}{saved.SUFFIX}"
        )
    made_with = read_settings(workdir)
    network = _network(made_with)
    checkpoints = CheckpointReader(workdir / "checkpoints")
    steps = {"latest": checkpoints.latest, "best": checkpoints.best}
    step = int(checkpoint) if checkpoint.isdigit() else steps.get(checkpoint)
    if step is None or step not in checkpoints.steps:
        held = ", ".join(map(str, checkpoints.steps)) or "none"
        raise UserError(f"{workdir} has no checkpoint {checkpoint} (it holds: {held})")
    variables = checkpoints.restore_model(network.variables, step)
    return Predictor(made_with, network, variables, step)


def load_weights(init: str | Path) -> Weights:
    """Reads weights to start from.

    Args:
        init: a weight file of a known source (see `pretrained.read`), an exported folder, or the
            folder of a run, whose latest checkpoint is taken. For late fusion two of them, "a,b":
            the colours' trunk, then the other one.

    Raises:
        UserError: the file is missing, damaged or of no known source.
    """
    path = Path(init)
    first, comma, second = str(init).partition(",")
    if comma and not path.exists():
        return dataclasses.replace(load_weights(first), other=load_weights(second))
    if not path.is_dir():
        return pretrained.read(path)
    run = load_run(path)
    tensors = {name: np.asarray(value) for name, value in pretrained.flat(run.variables).items()}
    return Weights(path, run.about, tensors)


def _load_exported(path: Path) -> Predictor:
    weights = pretrained.read(path)
    about = weights.about
    if not about.classes:
        raise UserError(
            f"{path} holds the features of a classifier, not a whole network: train from it, "
            f"--config.model.backbone={about.backbone} --config.init={path}"
        )
    made_with = RunSettings(from_dict(about.config), about.channels, dict(about.classes))
    network = _network(made_with)
    missing = pretrained.flat(network.variables).keys() - weights.tensors.keys()
    if missing:
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}: export the run again")
    variables, _ = weights.apply(pretrained.zeros(network), whole=True)
    return Predictor(made_with, network, variables, about.step, about.metrics)


def _network(made_with: RunSettings) -> Network:
    """The network of these settings, with shapes in place of weights: nothing is drawn."""
    config, channels, label_maps = made_with
    num_classes = {name: len(class_names) for name, class_names in label_maps.items()}
    return Network(abstract_model(config.model, num_classes, channels=channels))
