"""Labels images with a network, in the way that an `Inference` says.

Images lie on canvases, with how much of each is image (`valid` of `FCN`): that changes nothing in
the logits and lets images of similar size share one compilation.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.data.canvases import Size, round_up, smallest_first
from fcn_jax.errors import UserError
from fcn_jax.inference.options import WHOLE, Inference
from fcn_jax.inference.windows import window_starts, window_weights
from fcn_jax.models.fcn import suffix
from fcn_jax.models.interpolation import resized
from fcn_jax.models.pure_model import Network, predict

CANVAS_MULTIPLE_PX = 64
WINDOWS_AT_ONCE = 4
MAX_WINDOWS = 4096
"""Of one image; more are a mistake, which would go on for hours."""


_resized = jax.jit(resized, static_argnames="canvas_px")


class ViewPredictor:
    """Labels images with a network in the way of an `Inference`.

    The network is compiled for each size of canvas once, and for windows once in all.

    canvases: those to put images on, each on the smallest that holds it; where none does, on one
    whose sides are multiples of 64.

    Raises:
        UserError: the network and the way do not go together.
    """

    def __init__(
        self, network: Network, inference: Inference = WHOLE, canvases: Sequence[Size] = ()
    ):
        inference.check_fits(network)
        self.inference = inference
        self._canvases = smallest_first(canvases)
        self._label_maps = network.label_maps
        self._classes = jax.jit(functools.partial(_classes, network))
        self._logits = jax.jit(functools.partial(_logits, network))

    def labels(self, variables: Any, image: np.ndarray) -> dict[str, np.ndarray]:
        """The class of each pixel by label map, uint8 (h, w).

        variables: (params, batch_stats). image: uint8 (h, w, c) of any size.
        """
        if self.inference == WHOLE:
            canvas, size = self._on_canvas(image)
            by_name = self._classes(variables, canvas, size)
        else:
            by_name = {
                name: _best(scores) for name, scores in self._scores(variables, image).items()
            }
        height, width, _ = image.shape
        return {
            name: np.asarray(by_name[name])[:height, :width].copy()  # for callers to write into
            for name in self._label_maps
        }

    def probabilities(self, variables: Any, image: np.ndarray) -> dict[str, np.ndarray]:
        """The softmax of the logits, averaged over the views, by label map: float32 (h, w, k).

        Of windows the logits are averaged, not their softmax.
        """
        by_name = self._scores(variables, image)
        if self.inference.views == 1:
            by_name = {name: jax.nn.softmax(logits) for name, logits in by_name.items()}
        height, width, _ = image.shape
        return {name: np.asarray(by_name[name])[:height, :width] for name in self._label_maps}

    def _scores(self, variables: Any, image: np.ndarray) -> dict[str, jax.Array]:
        """On the image's canvas, (H, W, k): logits of a single view, or the mean probabilities."""
        canvas, size = self._on_canvas(image)
        sums: dict[str, jax.Array] = {}
        for scale in self.inference.scales:
            for name, logits in self._logits_at(scale, variables, canvas, size).items():
                scores = logits[0] if self.inference.views == 1 else _summed_softmax(logits)
                sums[name] = sums[name] + scores if name in sums else scores
        return {name: total / self.inference.views for name, total in sums.items()}

    def _on_canvas(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The image at the top left of a canvas, (1, H, W, c), and its size, int32 (1, 2)."""
        height, width, channels = image.shape
        holding = (
            canvas for canvas in self._canvases if height <= canvas[0] and width <= canvas[1]
        )
        own = round_up(height, CANVAS_MULTIPLE_PX), round_up(width, CANVAS_MULTIPLE_PX)
        canvas_px = next(holding, own)
        canvas = np.zeros((1, *canvas_px, channels), image.dtype)
        canvas[0, :height, :width] = image
        return canvas, np.asarray([[height, width]], np.int32)

    def _logits_at(
        self, scale: float, variables: Any, canvas: np.ndarray, size: np.ndarray
    ) -> dict[str, Any]:
        """Of the views of one scale, brought back to the image: (b, H, W, k), b of 1 or 2."""
        canvas_px = canvas.shape[1:3]
        views: Any = canvas
        view_size = size
        if scale != 1:
            # Rounded as in mmsegmentation. The largest image of this canvas fits its view's.
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
        self, variables: Any, views: np.ndarray, size: np.ndarray
    ) -> dict[str, Any]:
        """As `_logits`, out of windows: float32 (b, H, W, k), zero outside the image."""
        height, width = size[0]
        window_height, window_width = self.inference.window_px
        rows, columns = min(height, window_height), min(width, window_width)
        # Of a window that is larger than the image, the middle lies on it, as in MONAI.
        above, left_of = (window_height - rows) // 2, (window_width - columns) // 2
        weights = window_weights(self.inference.windows, self.inference.window_px)
        weights = weights[above : above + rows, left_of : left_of + columns, None]
        places = [
            (view, slice(top, top + rows), slice(left, left + columns))
            for view in range(len(views))
            for top in window_starts(height, window_height, self.inference.overlap)
            for left in window_starts(width, window_width, self.inference.overlap)
        ]
        if len(places) > MAX_WINDOWS:
            raise UserError(
                f"window_px (={window_height},{window_width}) and overlap "
                f"(={self.inference.overlap:g}) cut this image of {height}×{width} into "
                f"{len(places)} windows: give larger ones, or less overlap"
            )
        valid = np.tile(np.asarray([[rows, columns]], np.int32), (WINDOWS_AT_ONCE, 1))
        weight_sum = np.zeros((*views.shape[:3], 1), np.float32)
        sums: dict[str, np.ndarray] = {}
        for first in range(0, len(places), WINDOWS_AT_ONCE):
            batch = places[first : first + WINDOWS_AT_ONCE]
            # Of as many windows as ever, so that there is one compilation.
            windows = np.zeros(
                (WINDOWS_AT_ONCE, window_height, window_width, views.shape[-1]), np.float32
            )
            for window, place in zip(windows, batch, strict=False):
                window[:rows, :columns] = views[place]
                weight_sum[place] += weights
            for name, logits in self._logits(variables, windows, valid).items():
                if name not in sums:
                    sums[name] = np.zeros((*views.shape[:3], logits.shape[-1]), np.float32)
                for window_logits, place in zip(np.asarray(logits), batch, strict=False):
                    sums[name][place] += weights * window_logits[:rows, :columns]
        outside = weight_sum == 0
        return {name: total / (weight_sum + outside) for name, total in sums.items()}


def _classes(network: Network, variables: Any, image: jax.Array, size: jax.Array):
    """Of a single image: uint8 (H, W), a quarter of what the host would get as int32."""
    classes = predict(network, variables, image, size)
    return {name: label[0].astype(jnp.uint8) for name, label in classes.items()}


def _logits(network: Network, variables: Any, image: jax.Array, size: jax.Array):
    values, _ = network(variables, image, valid=size)
    return {name: values[f"logits{suffix(name)}"] for name in network.label_maps}


@jax.jit
def _mirrored(values: jax.Array, size: jax.Array) -> jax.Array:
    """Left and right exchanged within the image: (1, h, w, c) and int32 (1, 2)."""
    column = jnp.arange(values.shape[2])
    width = size[0, 1]
    return values[:, :, jnp.where(column < width, width - 1 - column, column)]


@jax.jit
def _summed_softmax(logits: jax.Array) -> jax.Array:
    return jnp.sum(jax.nn.softmax(logits), axis=0)


@jax.jit
def _best(scores: jax.Array) -> jax.Array:
    return jnp.argmax(scores, axis=-1).astype(jnp.uint8)
