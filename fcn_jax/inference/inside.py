"""Computes intermediate results of a network, for pictures.

Feature maps after every layer, the scores of each skip before and after they are fused, and the
receptive field of a pixel: what it may depend on (from the layers' geometry) and what it does
depend on (from the gradient; Luo et al., Understanding the Effective Receptive Field, NIPS 2016).
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax.config import ModelConfig
from fcn_jax.errors import UserError
from fcn_jax.inference.trained import load_run
from fcn_jax.models.build import abstract_model
from fcn_jax.models.fcn import FCN, suffix
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import Grid
from fcn_jax.models.pure_model import PureModel
from fcn_jax.models.recording import record_maps
from fcn_jax.pretrained import model_file, read, zeros


@dataclasses.dataclass(frozen=True)
class Opened:
    """A network to look inside.

    Attributes:
        model: the network; where `class_names` is empty, only its backbone has weights.
        class_names: of the first label map; empty for the features of a classifier.
        description: origin of the weights, for people.
        palette: the colours of label maps, uint8 (256, 3); None for VOC's.
    """

    model: FCN
    class_names: tuple[str, ...]
    description: str
    palette: np.ndarray | None = None

    @property
    def channels(self) -> int:
        return self.model.backbone.preprocessing.channels


@dataclasses.dataclass(frozen=True)
class Skip:
    """The scores of a stage.

    Attributes:
        stride: of the stage.
        own: scores of this stage alone, float32 (h, w, k).
        fused: with those of the coarser stages; `own` for the coarsest.
        grid: positions of the scores in pixels.
    """

    stride: int
    own: np.ndarray
    fused: np.ndarray
    grid: Grid


@dataclasses.dataclass(frozen=True)
class Field:
    """The receptive field of the scores of a pixel.

    Attributes:
        rows, columns: first and last pixel that the scores may depend on, within the image.
        is_bounded: False if a layer sees the whole image.
        influence: absolute gradient of the best score, summed over channels: float32 (h, w).
        label: the class with the best score.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    is_bounded: bool
    influence: np.ndarray
    label: int


def open_network(path: str | Path) -> Opened:
    """Opens a run, an exported folder, a model file, or published weights of a classifier.

    Raises:
        UserError: there is no such file, or it holds no network that is known.
    """
    path = Path(path)
    if path.is_file() and path.suffix != model_file.SUFFIX:
        return _open_weights(path)
    predictor = load_run(path)
    model = predictor.network.model(predictor.variables)
    return Opened(model, predictor.class_names, predictor.provenance.source, predictor.palette)


def _open_weights(path: Path) -> Opened:
    weights = read(path)
    provenance = weights.provenance
    config = ModelConfig(backbone=provenance.backbone, preprocessing=provenance.preprocessing)
    network = PureModel(abstract_model(config, 1))
    variables, _ = weights.apply(zeros(network))
    return Opened(network.model(variables), (), provenance.source)


def first_filters(opened: Opened) -> np.ndarray:
    """Returns the kernels of the first convolution, float32 (h, w, in, out).

    Raises:
        UserError: the backbone does not begin with a convolution.
    """
    backbone: Any = opened.model.backbone
    for path, module in nnx.iter_modules(backbone):
        kernel = getattr(module, "kernel", None)
        if path and kernel is not None and kernel.shape[2:-1] == (opened.channels,):
            return np.asarray(kernel[...], np.float32)
    raise UserError("no convolution of this backbone sees the image's channels")


def feature_maps(opened: Opened, image: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the maps after every layer, activation and pooling of the backbone, by name.

    Args:
        opened: the network.
        image: uint8 (h, w, c).

    Returns:
        Maps, float32 (h', w', c').
    """
    graph, state = nnx.split(opened.model.backbone)
    names: list[str] = []

    @jax.jit
    def run(state: Any, image: jax.Array) -> list[jax.Array]:
        backbone: Any = nnx.merge(graph, state)
        pixels = FeatureMap(backbone.preprocessing(image))
        maps, _ = record_maps(backbone, lambda: backbone(pixels))
        names[:] = maps  # once, while the program is traced
        return [x.values[0].astype(jnp.float32) for x in maps.values()]

    values = run(state, image[None])
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}


def skips(opened: Opened, image: np.ndarray) -> list[Skip]:
    """Returns the scores of each stage of the first label map, coarse to fine.

    Args:
        opened: a whole network.
        image: uint8 (h, w, c).
    """
    model = opened.model
    ending = suffix(model.label_maps[0])
    graph, state = nnx.split(model)

    @jax.jit
    def run(state: Any, image: jax.Array) -> dict[str, jax.Array]:
        features = nnx.merge(graph, state).features(image)
        return {name: x.values[0] for name, x in features.items()}

    values = run(state, image[None])
    grids = dict(model.backbone.grids)
    if model.has_context:
        coarsest = max(grids)
        grids[2 * coarsest] = grids[coarsest].after(3, stride=2)
    found = []
    for stride in model.stages:
        own = np.asarray(values[f"score{stride}{ending}"])
        fused = np.asarray(values.get(f"fused{stride}{ending}", own))
        found.append(Skip(stride, own, fused, grids[stride]))
    return found


def at_pixels(values: np.ndarray, grid: Grid, size: tuple[int, int]) -> np.ndarray:
    """Interpolates a map between the centres of its positions.

    Args:
        values: float32 (h', w', k).
        grid: positions of the map in pixels.
        size: height and width of the image.

    Returns:
        float32 (h, w, k).
    """
    from scipy.ndimage import map_coordinates

    places = np.meshgrid(
        *((np.arange(pixels) - grid.offset) / grid.stride for pixels in size), indexing="ij"
    )
    channels = [
        map_coordinates(channel, places, order=1, mode="nearest")
        for channel in np.moveaxis(values, -1, 0)
    ]
    return np.stack(channels, axis=-1)


def receptive_field(opened: Opened, image: np.ndarray, pixel: tuple[int, int]) -> Field:
    """Computes the receptive field of the best score of a pixel.

    Args:
        opened: a whole network.
        image: uint8 (h, w, c).
        pixel: row and column.
    """
    model = opened.model
    graph, state = nnx.split(model)
    name = f"logits{suffix(model.label_maps[0])}"

    def score(image: jax.Array, state: Any, pixel: jax.Array) -> tuple[jax.Array, Any]:
        logits = nnx.merge(graph, state).features(image)[name]
        scores = logits.values[0, pixel[0], pixel[1]]
        return jnp.max(scores), jnp.argmax(scores)

    differentiated = jax.jit(jax.grad(score, has_aux=True))
    gradient, label = differentiated(
        jnp.asarray(image, jnp.float32)[None], state, jnp.asarray(pixel)
    )
    features = jax.eval_shape(
        lambda state, image: nnx.merge(graph, state).features(image), state, image[None]
    )
    field = features[name].field
    height, width = image.shape[:2]

    def span(at: int, size: int) -> tuple[int, int]:
        if not field.is_bounded:
            return 0, size - 1
        return max(0, int(at + field.first)), min(size - 1, int(at + field.last))

    influence = np.abs(np.asarray(gradient[0])).sum(-1)
    return Field(
        span(pixel[0], height), span(pixel[1], width), field.is_bounded, influence, int(label)
    )
