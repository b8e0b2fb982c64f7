"""Loads trained networks, and predicts label maps with them.

predictor = load_run("runs/voc")
label_map = predictor(image)      # uint8 (h, w, 3) -> uint8 (h, w)
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fcn_jax import pretrained
from fcn_jax.config import Config
from fcn_jax.data.canvases import Size, choose_canvases
from fcn_jax.errors import ArgumentError, UserError, listed
from fcn_jax.inference.options import WHOLE, Inference
from fcn_jax.inference.temperature import FittedTemperature, temperature_path
from fcn_jax.inference.views import ViewPredictor
from fcn_jax.models.build import abstract_model
from fcn_jax.models.ensemble import Ensemble, of_members, stacked
from fcn_jax.models.fcn import FCN
from fcn_jax.models.pure_model import PureModel
from fcn_jax.parallel import agreement
from fcn_jax.pictures.colours import palette_of
from fcn_jax.pretrained import Provenance, Weights, model_file
from fcn_jax.pretrained.weights import MAX_LISTED, replace_leaves
from fcn_jax.runs import PLAN, read_settings
from fcn_jax.terminal.progress import say
from fcn_jax.training.checkpoint import CheckpointReader, DamagedError


class Predictor:
    """A trained network that predicts the label maps of images.

    `load_run` makes one from a run's folder or a model file, `from_model` from a model of your own
    training loop.

    Args:
        network: the network as a pure function.
        variables: its (params, batch_stats).
        provenance: settings, classes and origin of its weights. The attributes `config`,
            `channels`, `label_maps` (class names by label map), `step` and `metrics` read it.

    Attributes:
        temperatures: by label map, of the probabilities (see `temperature.py`); 1 for those that it
            lacks. Label maps do not depend on it.
        canvases: heights and widths that images are placed on; see `use_canvases`.
    """

    def __init__(self, network: PureModel, variables: Any, provenance: Provenance):
        self.network = network
        self.variables = variables
        self.provenance = provenance
        self.temperatures: Mapping[str, float] = {}
        self.canvases: list[Size] = []
        self._view_predictors: dict[Inference, ViewPredictor] = {}

    @classmethod
    def from_model(
        cls,
        model: FCN,
        *,
        config: Config,
        label_maps: Mapping[str, Sequence[str]],
        step: int = 0,
    ) -> "Predictor":
        """Makes a predictor of a model that was trained in a loop of your own.

            predictor = Predictor.from_model(model, config=config, label_maps=dataset.label_maps)
            predictor.save("mine.safetensors")

        Args:
            model: a network of `init_model` or `build_model`.
            config: the settings; `config.model` must be those that the model was built with.
            label_maps: class names by label map, such as `Dataset.label_maps`; {"": names} for a
                single label map.
            step: number of training steps, for people.

        Raises:
            ValueError: `config.model` and `label_maps` describe another network.
        """
        provenance = Provenance(
            config,
            {name: tuple(class_names) for name, class_names in label_maps.items()},
            model.backbone.preprocessing.channels,
            source="a training loop of its own",
            step=step,
        )
        network, variables = _network(provenance), PureModel(model).variables
        shapes, expected = (
            {name: leaf.shape for name, leaf in pretrained.flatten(tree).items()}
            for tree in (variables, network.variables)
        )
        differing = sorted(
            name
            for name in shapes.keys() | expected.keys()
            if shapes.get(name) != expected.get(name)
        )
        if differing:
            raise ValueError(
                "`config.model` and `label_maps` do not describe `model`: they differ in "
                f"{listed(differing, MAX_LISTED)}"
            )
        return cls(network, variables, provenance)

    def save(self, path: str | Path) -> None:
        """Writes a model file, which `load_run` and the commands' `--workdir` accept.

        Args:
            path: a name that ends in .safetensors; a .json of the same name describes the file.

        Raises:
            ValueError: the name ends in something else.
            UserError: the file cannot be written, or would replace one that is not a model file.
        """
        path = Path(path)
        if path.suffix != model_file.SUFFIX:
            raise ValueError(f"`path` (={path}) must end in {model_file.SUFFIX}")
        model_file.save(path, self.tensors(), self.provenance.portable())

    def tensors(self) -> dict[str, np.ndarray]:
        """Returns parameters and batch statistics by path, such as "backbone/conv1/kernel"."""
        return {
            name: np.asarray(value) for name, value in pretrained.flatten(self.variables).items()
        }

    @property
    def num_members(self) -> int:
        """The number of networks whose probabilities are averaged."""
        return self.network.count if isinstance(self.network, Ensemble) else 1

    def member(self, number: int) -> "Predictor":
        """Returns a single network of an ensemble, by its number from 0.

        Raises:
            ArgumentError: there is no such member.
        """
        if not 0 <= number < self.num_members:
            raise ArgumentError("member", number, f"must be in 0…{self.num_members - 1}")
        if not isinstance(self.network, Ensemble):
            return self
        provenance = self.provenance
        if self.config.train.members > 1:
            provenance = dataclasses.replace(
                provenance,
                config=self.config.of_member(number),
                source=f"{provenance.source}, member {number} of {self.num_members}",
                metrics={},
            )
        variables = jax.tree.map(lambda leaf: leaf[number], self.variables)
        return Predictor(self.network.member, variables, provenance)

    @property
    def config(self) -> Config:
        return self.provenance.config

    @property
    def channels(self) -> int:
        return self.provenance.channels

    @property
    def label_maps(self) -> Mapping[str, tuple[str, ...]]:
        return self.provenance.label_maps

    @property
    def palette(self) -> np.ndarray:
        """The colours of label maps, uint8 (256, 3), of the data set if it has any, or VOC's."""
        return palette_of(self.provenance.colours)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names of the first label map."""
        return next(iter(self.label_maps.values()))

    @property
    def step(self) -> int:
        """The training step of the weights; 0 if they come from another project."""
        return self.provenance.step or 0

    @property
    def metrics(self) -> Mapping[str, Any]:
        return self.provenance.metrics

    def __call__(
        self, image: np.ndarray, inference: Inference = WHOLE
    ) -> np.ndarray | dict[str, np.ndarray]:
        """Predicts the class of each pixel.

        The image is placed on a canvas whose sides are multiples of 64. This does not change the
        result, and images of similar size share one compilation; see also `choose_canvases`.

        Args:
            image: uint8 (h, w, c) of any size: RGB, then the extra channels of the training images.
            inference: windows, scales and mirror images to average over.

        Returns:
            Class indices, uint8 (h, w). If the network has several label maps, a dictionary of such
            arrays by name.

        Raises:
            ValueError: the image has another dtype or number of channels.
            ArgumentError: the network cannot be used with this `inference`.
        """
        return _unwrap(self.predict_maps(image, inference))

    def predict_maps(
        self, image: np.ndarray, inference: Inference = WHOLE
    ) -> dict[str, np.ndarray]:
        """Predicts label maps as `__call__` does, but always returns a dictionary.

        A single label map is called "".
        """
        self._check_image(image)
        return self._view_predictor(inference).predict_maps(self.variables, image)

    def probabilities(
        self, image: np.ndarray, inference: Inference = WHOLE
    ) -> np.ndarray | dict[str, np.ndarray]:
        """Predicts the probability of each class: float32 (h, w, k), with sum 1.

        If a temperature was fitted for the run, they are softmax(logits / temperature).

        Args and Raises are those of `__call__`; see also `ViewPredictor.probabilities`.
        """
        self._check_image(image)
        views = self._view_predictor(inference)
        return _unwrap(views.probabilities(self.variables, image, self.temperatures))

    def estimated_bytes(self, size: Size, inference: Inference = WHOLE) -> int:
        """Estimates the memory that the prediction of an image needs on the device, in bytes.

        Args:
            size: height and width of the image.
            inference: windows, scales and mirror images to average over.
        """
        return self._view_predictor(inference).estimated_bytes(self.variables, size)

    def choose_canvases(self, sizes: np.ndarray) -> None:
        """Limits the number of compilations for images of these sizes to `config.eval.canvases`.

        Args:
            sizes: heights and widths, int (n, 2).
        """
        self.use_canvases(choose_canvases(sizes, max_canvases=self.config.eval.canvases))

    def use_canvases(self, canvases: Sequence[Size]) -> None:
        """Places images on these canvases, each of which is compiled once.

        Args:
            canvases: heights and widths. An image that none holds gets a canvas of its own.
        """
        self.canvases = list(canvases)
        self._view_predictors = {}

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the weights and the model settings; identifies the network."""
        model = dataclasses.asdict(self.config.model)
        model["preprocessing"] = self.provenance.preprocessing
        return self._digest_of(json.dumps(model, sort_keys=True).encode())

    @functools.cached_property
    def weights_digest(self) -> str:
        """SHA-256 of the weights alone, which later versions with more settings do not change."""
        return self._digest_of(b"")

    def _digest_of(self, start: bytes) -> str:
        digest = hashlib.sha256(start)
        for name, tensor in sorted(pretrained.flatten(self.variables).items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor).tobytes())
        return digest.hexdigest()

    def _view_predictor(self, inference: Inference) -> ViewPredictor:
        if inference not in self._view_predictors:
            self._view_predictors[inference] = ViewPredictor(self.network, inference, self.canvases)
        return self._view_predictors[inference]

    def _check_image(self, image: np.ndarray) -> None:
        if self.config.data.ndim == 3:
            raise ValueError(
                "the network is for volumes, which fcn_jax.inference.volumes.VolumePredictor "
                "predicts"
            )
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != self.channels:
            channels = " and ".join(["RGB", *self.config.data.extra_channels])
            raise ValueError(
                f"`image` (={image.dtype} of shape {image.shape}) must be uint8 "
                f"(h, w, {self.channels}), {channels}"
            )


def _unwrap(by_name: dict[str, np.ndarray]) -> np.ndarray | dict[str, np.ndarray]:
    """Unwraps the dictionary if it holds a single, unnamed label map."""
    return by_name[""] if tuple(by_name) == ("",) else by_name


def load_run(workdir: str | Path, checkpoint: str | int = "latest") -> Predictor:
    """Loads the network of a run's folder, of an exported folder or of a model file.

    Args:
        workdir: the `--workdir` of `fcn_jax.train`, the `--output` of `fcn_jax.export`, or the
            `--output` of `fcn_jax.pretrained` if it holds a whole segmentation network.
        checkpoint: "latest", "best" (by mIoU on the split that training evaluates), or a step.

    Raises:
        UserError: there is no run or no such checkpoint, a file cannot be read, or the backbone or
            loss of the run is not known. If your own code registers it, import that module first.
    """
    return _with_temperature(_load_run(Path(workdir), str(checkpoint)), [str(workdir)])


def _with_temperature(predictor: Predictor, workdirs: list[str]) -> Predictor:
    """Takes the temperature that was fitted for a network, if there is one."""
    path = temperature_path(workdirs)
    if path.exists():
        fitted = FittedTemperature.load(path)
        if fitted.weights == predictor.weights_digest[: len(fitted.weights)]:
            predictor.temperatures = fitted.temperatures
        else:
            say(
                f"note: {path} is not used: it was fitted for other weights, of step "
                f"{fitted.step}; fit it again, or remove it"
            )
    return predictor


def _load_run(workdir: Path, checkpoint: str) -> Predictor:
    exported = workdir if workdir.suffix == model_file.SUFFIX else workdir / model_file.FILE
    if exported == workdir or (exported.exists() and not (workdir / "run.json").exists()):
        if checkpoint != "latest":
            raise UserError(
                f"{workdir} was exported: it holds a single step and has no checkpoint {checkpoint}"
            )
        return _load_model_file(exported)
    if workdir.is_file():
        raise UserError(
            f"{workdir} is not the folder of a run: convert it first, "
            f"python -m fcn_jax.pretrained {workdir} --output={workdir.stem}{model_file.SUFFIX}"
        )
    provenance = read_settings(workdir)
    network = _network(provenance)
    checkpoints = CheckpointReader(workdir / "checkpoints")
    held = ", ".join(map(str, checkpoints.steps)) or "none"
    try:
        step = checkpoints.find(checkpoint)
        if step is None:
            raise UserError(f"{workdir} has no checkpoint {checkpoint} (it holds: {held})")
        agreement.check_same({"the checkpoint": step}, "start again")
        variables = checkpoints.restore_model(network.variables, step)
    except DamagedError as error:
        problem = f"cannot be loaded: {error}; choose another of the run's checkpoints {held}"
        raise ArgumentError("checkpoint", checkpoint, problem) from error
    source = f"fcn_jax on {provenance.config.data.name}, step {step}"
    return Predictor(network, variables, dataclasses.replace(provenance, source=source, step=step))


def load_ensemble(workdirs: Sequence[str | Path], checkpoint: str | int = "latest") -> Predictor:
    """Loads runs of one network as an ensemble, whose probabilities are the mean of the runs'.

    Args:
        workdirs: what `load_run` takes, for each member.
        checkpoint: of each run, as for `load_run`.

    Raises:
        UserError: as for `load_run`, or the runs have different networks or classes.
    """
    if len(workdirs) == 1:
        return load_run(workdirs[0], checkpoint)
    first, *others = runs = [_load_run(Path(name), str(checkpoint)) for name in workdirs]
    for workdir, other in zip(workdirs[1:], others, strict=True):
        ours, theirs = _kind(first, workdirs[0]), _kind(other, workdir)
        for name, value in ours.items():
            if value != theirs[name]:
                raise UserError(
                    f"{workdirs[0]} and {workdir} differ in {name}: the members of an ensemble "
                    "have one network and the same classes"
                )
    members = [run.member(number) for run in runs for number in range(run.num_members)]
    provenance = dataclasses.replace(
        members[0].provenance, source=f"an ensemble of {', '.join(map(str, workdirs))}"
    )
    ensemble = Predictor(
        Ensemble(members[0].network, len(members)),
        stacked([member.variables for member in members]),
        provenance,
    )
    return _with_temperature(ensemble, list(map(str, workdirs)))


def split_workdirs(text: str) -> list[str]:
    """Splits "A,B,C" into names of runs, unless a file or folder is called so."""
    return [text] if Path(text).exists() else text.split(",")


def _kind(predictor: Predictor, workdir: str | Path) -> dict[str, Any]:
    """Returns what the members of an ensemble have in common."""
    config, plan = predictor.config, Path(workdir) / PLAN
    return {
        "config.model": dataclasses.replace(config.model, preprocessing="", remat=False),
        "extra channels": config.data.extra_channels,
        "axes": config.data.ndim,
        "preprocessing": predictor.provenance.preprocessing,
        "classes": dict(predictor.label_maps),
        "the plan of volumes": plan.read_text() if plan.exists() else "",
    }


def load_weights(init: str | Path) -> Weights:
    """Reads weights to start training from.

    Args:
        init: a weight file of a known source (see `pretrained.read`), an exported folder, or the
            folder of a run, whose latest checkpoint is used. For late fusion, "a,b" reads the
            colour trunk from a and the other trunk from b.

    Raises:
        UserError: the file is missing, damaged or of no known source.
    """
    path = Path(init)
    first, comma, second = str(init).partition(",")
    if comma and not path.exists():
        return dataclasses.replace(load_weights(first), other=load_weights(second))
    if not path.is_dir():
        return pretrained.read(path)
    predictor = load_run(path)
    check_single(predictor, path)
    return Weights(path, predictor.provenance, predictor.tensors())


def _load_model_file(path: Path) -> Predictor:
    weights = pretrained.read(path)
    provenance = weights.provenance
    if weights.origins:
        raise UserError(
            f"{path} holds weights of {provenance.source}: convert it first, "
            f"python -m fcn_jax.pretrained {path} --output={path.stem}_converted{path.suffix}"
        )
    if not provenance.label_maps:
        raise UserError(
            f"{path} holds the features of a classifier, not a whole network: train a run with "
            f"model.backbone={provenance.backbone} and init={path}"
        )
    network = _network(provenance)
    # The settings may come from a stranger. Nothing of the size that they describe is allocated
    # until the tensors in the file are known to have that size.
    shapes = {name: leaf.shape for name, leaf in pretrained.flatten(network.variables).items()}
    problems = list(weights.problems)
    for name, shape in shapes.items():
        tensor = weights.tensors.get(name)
        if tensor is None:
            problems.append(f"{name} is missing")
        elif tensor.shape != shape or tensor.dtype != np.float32:
            problems.append(f"{name} is {tensor.dtype} {tensor.shape}, not float32 {shape}")
    if problems:
        raise UserError(
            f"the tensors of {path} do not fit its settings ({listed(problems, MAX_LISTED)}): "
            "export the run again"
        )
    return Predictor(network, replace_leaves(network.variables, weights.tensors), provenance)


def check_single(predictor: Predictor, workdir: str | Path) -> None:
    """Raises UserError if a run holds several members, where a single network is needed."""
    if predictor.num_members > 1:
        raise UserError(
            f"{workdir} holds {predictor.num_members} members, and this needs a single network: "
            f"take one, python -m fcn_jax.export --workdir={workdir} --member=0 --output=OUT"
        )


def _network(provenance: Provenance) -> PureModel:
    """Builds the network with abstract variables: shapes and dtypes, no weights.

    Its blocks are plain ones: rematerialisation saves memory of a training step's backward pass.
    """
    num_classes = {name: len(names) for name, names in provenance.label_maps.items()}
    member = PureModel(
        abstract_model(
            dataclasses.replace(provenance.config.model, remat=False),
            num_classes,
            channels=provenance.channels,
            ndim=provenance.config.data.ndim,
        )
    )
    return of_members(member, provenance.config.train.members)
