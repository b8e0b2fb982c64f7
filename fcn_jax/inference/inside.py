"""Computes intermediate results of a network, for pictures.

Feature maps after every layer, the scores of each skip before and after they are fused, and the
receptive field of a pixel: what it may depend on (from the layers' geometry) and what it does
depend on (from the gradient; Luo et al., Understanding the Effective Receptive Field, NIPS 2016).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax.config import ModelConfig
from fcn_jax.data.canvases import Size
from fcn_jax.errors import UserError
from fcn_jax.inference.trained import Predictor, load_run
from fcn_jax.models.build import abstract_model
from fcn_jax.models.fcn import FCN, suffix
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import Grid
from fcn_jax.models.pure_model import PureModel
from fcn_jax.models.recording import record_maps
from fcn_jax.pretrained import model_file, read, zeros

COLOURS = 3


@dataclasses.dataclass(frozen=True)
class Opened:
    """A network to look inside.

    Attributes:
        model: the network; where `class_names` is empty, only its backbone has weights.
        class_names: of the first label map; empty for the features of a classifier.
        description: origin of the weights, for people.
        palette: the colours of label maps, uint8 (256, 3); None for VOC's.
        canvases: heights and widths, in ascending order, that images are placed on; each is
            compiled once. An image that none holds is compiled at its own size.
        extra_channels: folders of the channels that follow RGB.
    """

    model: FCN
    class_names: tuple[str, ...]
    description: str
    palette: np.ndarray | None = None
    canvases: tuple[Size, ...] = ()
    extra_channels: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        return self.model.backbone.preprocessing.channels

    @property
    def has_skips(self) -> bool:
        """True if the network adds up scores of several stages. An FCN does, a U-Net does not."""
        return bool(self.class_names) and not self.model.has_decoder

    def on_canvas(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Places an image on the first canvas that holds it.

        Args:
            image: uint8 (h, w, c).

        Returns:
            The batch of this image, uint8 (1, h', w', c), and its valid size, int32 (1, 2), None at
            its own size.
        """
        height, width, channels = image.shape
        for canvas in self.canvases:
            if height <= canvas[0] and width <= canvas[1]:
                placed = np.zeros((1, *canvas, channels), image.dtype)
                placed[0, :height, :width] = image
                return placed, np.array([[height, width]], np.int32)
        return image[None], None

    @functools.cached_property
    def _maps_program(self) -> tuple[Callable[..., Any], list[str]]:
        """The program of `feature_maps`, and the names of its results after its first call."""
        graph, state = nnx.split(self.model.backbone)
        names: list[str] = []

        @jax.jit
        def run(state: Any, image: jax.Array, valid: jax.Array | None) -> list[FeatureMap]:
            backbone: Any = nnx.merge(graph, state)
            pixels = FeatureMap(backbone.preprocessing(image), valid)
            maps, _ = record_maps(backbone, lambda: backbone(pixels))
            names[:] = maps  # while the program is traced
            return list(maps.values())

        return functools.partial(run, state), names

    @functools.cached_property
    def _features_program(self) -> Callable[..., dict[str, FeatureMap]]:
        """The program of `skips`."""
        graph, state = nnx.split(self.model)
        run = jax.jit(
            lambda state, image, valid: nnx.merge(graph, state).features(image, valid=valid)
        )
        return functools.partial(run, state)

    @functools.cached_property
    def _gradient_program(self) -> Callable[..., Any]:
        """The program of `receptive_field`: gradient of a pixel's best score, and its class."""
        graph, state = nnx.split(self.model)

        def score(image: jax.Array, valid: Any, state: Any, pixel: jax.Array) -> Any:
            logits = nnx.merge(graph, state).features(image, valid=valid)[self.logits_name]
            scores = logits.values[0, pixel[0], pixel[1]]
            return jnp.max(scores), (jnp.argmax(scores), logits)

        run = jax.jit(jax.grad(score, has_aux=True))
        return lambda image, valid, pixel: run(image, valid, state, pixel)

    @property
    def logits_name(self) -> str:
        return f"logits{suffix(self.model.label_maps[0])}"


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
    return opened_network(predictor)


def opened_network(predictor: Predictor, canvases: Sequence[Size] = ()) -> Opened:
    """Opens a trained network; of an ensemble, its first member.

    Args:
        predictor: the network.
        canvases: see `Opened`.

    Raises:
        UserError: the network is for volumes.
    """
    predictor = predictor.member(0)
    config = predictor.config.data
    if config.ndim == 3:
        raise UserError("the network is for volumes: only networks for images are drawn")
    return Opened(
        predictor.network.model(predictor.variables),
        predictor.class_names,
        predictor.provenance.source,
        predictor.palette,
        tuple(sorted(canvases)),
        config.extra_channels,
    )


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
        # In late fusion, the first trunk sees the colours alone.
        if path and kernel is not None and kernel.shape[2:-1] in ((opened.channels,), (COLOURS,)):
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
    run, names = opened._maps_program
    maps = run(*opened.on_canvas(image))
    return {name: _cropped(x) for name, x in zip(names, maps, strict=True)}


def skips(opened: Opened, image: np.ndarray) -> list[Skip]:
    """Returns the scores of each stage of the first label map, coarse to fine.

    Args:
        opened: a whole network that has skips.
        image: uint8 (h, w, c).
    """
    model = opened.model
    ending = suffix(model.label_maps[0])
    values = opened._features_program(*opened.on_canvas(image))
    grids = dict(model.backbone.grids)
    if model.has_context:
        coarsest = max(grids)
        grids[2 * coarsest] = grids[coarsest].after(3, stride=2)
    found = []
    for stride in model.stages:
        own = values[f"score{stride}{ending}"]
        fused = values.get(f"fused{stride}{ending}", own)
        found.append(Skip(stride, _cropped(own), _cropped(fused), grids[stride]))
    return found


def _cropped(x: FeatureMap) -> np.ndarray:
    """Returns the part of the only canvas that is image, float32 (h, w, c)."""
    values = np.asarray(x.values[0], np.float32)
    if x.valid is None:
        return values
    height, width = np.asarray(x.valid[0])
    return values[:height, :width]


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
    placed, valid = opened.on_canvas(image)
    gradient, (label, logits) = opened._gradient_program(
        placed.astype(np.float32), valid, np.asarray(pixel)
    )
    field = logits.field
    height, width = image.shape[:2]

    def span(at: int, size: int) -> tuple[int, int]:
        if not field.is_bounded:
            return 0, size - 1
        return max(0, int(at + field.first)), min(size - 1, int(at + field.last))

    influence = np.abs(np.asarray(gradient[0]))[:height, :width].sum(-1)
    return Field(
        span(pixel[0], height), span(pixel[1], width), field.is_bounded, influence, int(label)
    )
