"""Predicts label maps as an `Inference` describes: whole images, windows, scales and mirror images.

An image is placed on a larger canvas, so that images of similar size share one compilation. The
network receives the image's size (argument `valid` of `FCN`), so the canvas does not change the
logits.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.data.canvases import Size, round_up, smallest_first
from fcn_jax.errors import UserError
from fcn_jax.inference.options import WHOLE, Inference
from fcn_jax.inference.windows import window_starts, window_weights
from fcn_jax.models.confidence import packed_confidence, tempered
from fcn_jax.models.fcn import suffix
from fcn_jax.models.interpolation import resized
from fcn_jax.models.pure_model import PureModel, predict
from fcn_jax.parallel.memory_estimate import estimated_bytes

CANVAS_MULTIPLE_PX = 64
WINDOW_BATCH_SIZE = 4
MAX_WINDOWS = 4096
"""Limit for one image. More windows would take hours and suggest a mistake in the options."""

Variables = tuple[Any, Any]
"""The (params, batch_stats) of a network."""

_resized = jax.jit(resized, static_argnames="canvas_px")


class ViewPredictor:
    """Predicts label maps as an `Inference` describes.

    The network is compiled once for each canvas size. With windows it is compiled only once.

    Args:
        network: the network.
        inference: windows, scales and mirror images to average over.
        canvases: heights and widths. An image is placed on the smallest canvas that holds it. If
            none is large enough, its sides are rounded up to multiples of 64.

    Raises:
        ArgumentError: the network cannot be used with this `inference`.
    """

    def __init__(
        self, network: PureModel, inference: Inference = WHOLE, canvases: Sequence[Size] = ()
    ):
        inference.check_fits(network)
        self.inference = inference
        self._canvases = smallest_first(canvases)
        self._label_maps = network.label_maps
        self._network = network
        self._classes = jax.jit(functools.partial(_classes, network))
        self._logits = jax.jit(functools.partial(_logits, network))

    def predict_maps(self, variables: Variables, image: np.ndarray) -> dict[str, np.ndarray]:
        """Predicts the class of each pixel.

        Args:
            variables: (params, batch_stats).
            image: uint8 (h, w, c) of any size.

        Returns:
            Label maps by name, uint8 (h, w), writable.
        """
        if self.inference == WHOLE:
            canvas, size = on_canvas(image, self._canvases)
            by_name = self._classes(variables, canvas, size)
        else:
            by_name = {
                name: _best(scores) for name, scores in self._scores(variables, image).items()
            }
        height, width, _ = image.shape
        return {
            name: np.asarray(by_name[name])[:height, :width].copy()  # arrays of JAX are read-only
            for name in self._label_maps
        }

    def packed(
        self, variables: Variables, image: np.ndarray, temperatures: Mapping[str, float]
    ) -> dict[str, np.ndarray]:
        """Predicts the classes with their probabilities.

        Args:
            variables: (params, batch_stats).
            image: uint8 (h, w, c) of any size.
            temperatures: by label map; 1 for those that it lacks.

        Returns:
            int32 (h, w) by label map, see `models.confidence.unpacked`.
        """
        height, width, _ = image.shape
        are_logits = self.inference.views == 1
        packed = {
            name: _packed(scores, temperatures.get(name, 1.0), are_logits=are_logits)
            for name, scores in self._scores(variables, image).items()
        }
        return {name: np.asarray(packed[name])[:height, :width] for name in self._label_maps}

    def probabilities(
        self,
        variables: Variables,
        image: np.ndarray,
        temperatures: Mapping[str, float] = MappingProxyType({}),
    ) -> dict[str, np.ndarray]:
        """Predicts the probability of each class.

        The softmax is averaged over the views. Within a view, the logits of overlapping windows are
        averaged before the softmax.

        Args:
            variables: (params, batch_stats).
            image: uint8 (h, w, c) of any size.
            temperatures: by label map, see `packed_confidence`; 1 for those that it lacks.

        Returns:
            Probabilities by label map, float32 (h, w, k).
        """
        by_name = self._scores(variables, image)
        for name, scores in by_name.items():
            temperature = temperatures.get(name, 1.0)
            if self.inference.views == 1 or temperature != 1:
                are_logits = self.inference.views == 1
                by_name[name] = tempered(scores, temperature, are_logits=are_logits)
        height, width, _ = image.shape
        return {name: np.asarray(by_name[name])[:height, :width] for name in self._label_maps}

    def estimated_bytes(
        self, variables: Variables, size: Size, *, whole_logits: bool = False
    ) -> int:
        """Estimates the memory that `predict_maps` needs for an image of this size, in bytes.

        Args:
            variables: (params, batch_stats).
            size: height and width of the image.
            whole_logits: estimate what `probabilities` needs instead.
        """
        by_block = self.inference == WHOLE and not whole_logits

        def shape(count: int, sides: Sequence[float]) -> jax.ShapeDtypeStruct:
            height, width = (round_up(math.ceil(side), CANVAS_MULTIPLE_PX) for side in sides)
            kind = np.uint8 if by_block else np.float32
            channels = self._network.preprocessing.channels
            return jax.ShapeDtypeStruct((count, height, width, channels), kind)

        def needed(function: Any, image: jax.ShapeDtypeStruct) -> int:
            valid = jax.ShapeDtypeStruct((image.shape[0], 2), np.int32)
            return estimated_bytes(function, variables, image, valid)

        if by_block:
            return needed(self._classes, shape(1, size))
        # The logits of the whole image are kept: those of a view, their sum, and a copy.
        kept = (
            3
            * 4
            * math.prod(size)
            * max(self._network.num_classes.values())
            * (1 + self.inference.flip)
        )
        if self.inference.windows:
            return kept + needed(self._logits, shape(WINDOW_BATCH_SIZE, self.inference.window_px))
        scale = max(self.inference.scales)
        views = shape(1 + self.inference.flip, [side * scale for side in size])
        return kept + needed(self._logits, views)

    def _scores(self, variables: Variables, image: np.ndarray) -> dict[str, jax.Array]:
        """Returns the logits of a single view, or the mean softmax of several: (H, W, k)."""
        canvas, size = on_canvas(image, self._canvases)
        sums: dict[str, jax.Array] = {}
        for scale in self.inference.scales:
            for name, logits in self._logits_at(scale, variables, canvas, size).items():
                scores = logits[0] if self.inference.views == 1 else _summed_softmax(logits)
                sums[name] = sums[name] + scores if name in sums else scores
        return {name: total / self.inference.views for name, total in sums.items()}

    def _logits_at(
        self, scale: float, variables: Variables, canvas: np.ndarray, size: np.ndarray
    ) -> dict[str, Any]:
        """Returns the logits of one scale's views, resized to the canvas: (1 or 2, H, W, k)."""
        canvas_px = canvas.shape[1:3]
        views: Any = canvas
        view_size = size
        if scale != 1:
            # The view's size is rounded as in mmsegmentation. Its canvas depends on the image's
            # canvas alone: it holds the view of any image there, and all share one compilation.
            view_size = np.maximum(np.floor(size * scale + 0.5).astype(np.int32), 1)
            view_canvas_px = tuple(
                round_up(math.ceil(side * scale), CANVAS_MULTIPLE_PX) for side in canvas_px
            )
            views = _resized(views, size, view_size, view_canvas_px)
        if self.inference.flip:
            views = jnp.concatenate([views, _mirrored(views, view_size)])
        if self.inference.windows:
            by_name = self._logits_of_windows(variables, np.asarray(views), view_size)
        else:
            by_name = self._logits(variables, views, np.repeat(view_size, len(views), axis=0))
        for name, logits in by_name.items():
            if self.inference.flip:
                logits = jnp.concatenate([logits[:1], _mirrored(logits[1:], view_size)])
            if scale != 1:
                logits = _resized(logits, view_size, size, canvas_px)
            by_name[name] = logits
        return by_name

    def _logits_of_windows(
        self, variables: Variables, views: np.ndarray, size: np.ndarray
    ) -> dict[str, Any]:
        """Returns the weighted mean of windows' logits: float32 (b, H, W, k), 0 outside `size`."""
        height, width = size[0]
        window_height, window_width = self.inference.window_px
        rows, columns = min(height, window_height), min(width, window_width)
        # An image smaller than the window gets the weights of the window's middle, as in MONAI.
        top_margin, left_margin = (window_height - rows) // 2, (window_width - columns) // 2
        assert self.inference.windows is not None
        weights = window_weights(self.inference.windows, self.inference.window_px)
        weights = weights[top_margin:, left_margin:][:rows, :columns, None]
        positions = [
            (view, slice(top, top + rows), slice(left, left + columns))
            for view in range(len(views))
            for top in window_starts(height, window_height, self.inference.overlap)
            for left in window_starts(width, window_width, self.inference.overlap)
        ]
        if len(positions) > MAX_WINDOWS:
            raise UserError(
                f"window_px (={window_height},{window_width}) and overlap "
                f"(={self.inference.overlap:g}) cut this image of {height}×{width} into "
                f"{len(positions)} windows: give larger ones, or less overlap"
            )
        valid = np.tile(np.asarray([[rows, columns]], np.int32), (WINDOW_BATCH_SIZE, 1))
        weight_sum = np.zeros((*views.shape[:3], 1), np.float32)
        sums: dict[str, np.ndarray] = {}
        for first in range(0, len(positions), WINDOW_BATCH_SIZE):
            batch = positions[first : first + WINDOW_BATCH_SIZE]
            # The last batch is padded with empty windows, so that there is one compilation.
            windows = np.zeros(
                (WINDOW_BATCH_SIZE, window_height, window_width, views.shape[-1]), np.float32
            )
            for window, position in zip(windows, batch, strict=False):
                window[:rows, :columns] = views[position]
                weight_sum[position] += weights
            for name, logits in self._logits(variables, windows, valid).items():
                if name not in sums:
                    sums[name] = np.zeros((*views.shape[:3], logits.shape[-1]), np.float32)
                for window_logits, position in zip(np.asarray(logits), batch, strict=False):
                    sums[name][position] += weights * window_logits[:rows, :columns]
        outside = weight_sum == 0
        return {name: total / (weight_sum + outside) for name, total in sums.items()}


def on_canvas(image: np.ndarray, canvases: Sequence[Size]) -> tuple[np.ndarray, np.ndarray]:
    """Places an image at the top left of the first canvas that holds it.

    Args:
        image: uint8 (h, w, c).
        canvases: heights and widths, the smallest first. If none is large enough, the image's sides
            are rounded up to multiples of 64.

    Returns:
        The canvas, (1, H, W, c), and the height and width of the image on it, int32 (1, 2).
    """
    height, width, channels = image.shape
    large_enough = (canvas for canvas in canvases if height <= canvas[0] and width <= canvas[1])
    rounded = round_up(height, CANVAS_MULTIPLE_PX), round_up(width, CANVAS_MULTIPLE_PX)
    canvas_px = next(large_enough, rounded)
    canvas = np.zeros((1, *canvas_px, channels), image.dtype)
    canvas[0, :height, :width] = image
    return canvas, np.asarray([[height, width]], np.int32)


def _classes(network: PureModel, variables: Variables, image: jax.Array, size: jax.Array):
    """Returns the classes of a single image, uint8 (H, W): a quarter of int32's bytes to copy."""
    classes = predict(network, variables, image, size)
    return {name: label[0].astype(jnp.uint8) for name, label in classes.items()}


def _logits(network: PureModel, variables: Variables, image: jax.Array, size: jax.Array):
    values, _ = network(variables, image, valid=size)
    return {name: values[f"logits{suffix(name)}"] for name in network.label_maps}


@jax.jit
def _mirrored(values: jax.Array, size: jax.Array) -> jax.Array:
    """Mirrors an image (1, h, w, c) of size int32 (1, 2) left to right within its canvas."""
    column = jnp.arange(values.shape[2])
    width = size[0, 1]
    return values[:, :, jnp.where(column < width, width - 1 - column, column)]


@jax.jit
def _summed_softmax(logits: jax.Array) -> jax.Array:
    return jnp.sum(jax.nn.softmax(logits), axis=0)


@jax.jit
def _best(scores: jax.Array) -> jax.Array:
    return jnp.argmax(scores, axis=-1).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames="are_logits")
def _packed(scores: jax.Array, temperature: float, *, are_logits: bool) -> jax.Array:
    logits = scores if are_logits else jnp.log(scores)
    return packed_confidence(logits, temperature, jnp.argmax(scores, axis=-1))
