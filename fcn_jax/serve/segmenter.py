"""Predicts a decoded image, and describes the prediction as a PNG, as JSON, or for the page."""

import base64
import functools
import io
import math
import zlib
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fcn_jax.inference.details import DetailPredictor
from fcn_jax.inference.output_digest import png_text
from fcn_jax.inference.trained import Predictor
from fcn_jax.pictures.overlays import palette_picture
from fcn_jax.serve.uploads import Limits, Upload

if TYPE_CHECKING:
    from fcn_jax.inference.inside import Opened

JPEG_QUALITY = 90


class Segmenter:
    """A trained network, and what a server says about it and its predictions.

    Args:
        predictor: the network; it must see RGB images without extra channels.
        limits: their canvases are the ones that the network is compiled for.
    """

    def __init__(self, predictor: Predictor, limits: Limits):
        self.predictor = predictor
        self.limits = limits
        predictor.use_canvases(limits.canvases)
        self._details = DetailPredictor(predictor, list(limits.canvases))

    def warm_up(self, after_each: Callable[[], None] = lambda: None) -> None:
        """Compiles the network for all canvases."""
        for canvas in self.limits.canvases:
            image = np.zeros((*canvas, self.predictor.channels), np.uint8)
            self.predictor.predict_maps(image)
            self._details(image)
            after_each()

    def png(self, upload: Upload, label_map: str) -> bytes:
        """Returns the label map as a palette PNG of the upload's size.

        For an image that was neither turned nor shrunk it is the file that predict writes, but for
        the digest in its text entry.
        """
        return _png(self._labels(upload)[label_map], upload, self.predictor.palette)

    def shares(self, upload: Upload, label_map: str) -> dict[str, Any]:
        """Returns the classes of the image with their pixels, for JSON."""
        started = perf_counter()
        label = self._labels(upload)[label_map]
        return self._description(label, upload, label_map, perf_counter() - started)

    def layers(self, upload: Upload, label_map: str) -> dict[str, Any]:
        """Returns what the page draws, for JSON.

        Arrays are compressed by zlib and encoded in base64: `classes` and `probabilities` have
        `shown` planes of height × width bytes, `entropy` has one (see `PixelDetails`).
        """
        started = perf_counter()
        details = self._details(upload.image)[label_map]
        label = np.ascontiguousarray(details.classes[..., 0])
        answer = self._description(label, upload, label_map, perf_counter() - started)
        height, width = label.shape
        return answer | {
            "png": _base64(_png(label, upload, self.predictor.palette)),
            "layers": {
                "width": width,
                "height": height,
                "shown": details.classes.shape[-1],
                "picture": _base64(_jpeg(upload.image)),
                "classes": _planes(details.classes),
                "probabilities": _planes(details.probabilities),
                "entropy": _planes(details.entropy[..., None]),
            },
        }

    def inside(self, upload: Upload, pixel: tuple[int, int]) -> dict[str, Any]:
        """Returns pictures of what the network computes on the way, for JSON.

        Args:
            upload: the image.
            pixel: row and column, of `upload.image`, whose receptive field is drawn.
        """
        from fcn_jax.inference.inside_pictures import inside_pictures, shrunk

        height, width = upload.image.shape[:2]
        inner = min(pixel[0], height - 1), min(pixel[1], width - 1)
        image, small_pixel = shrunk(upload.image, inner)
        return {
            "pictures": [
                {
                    "title": picture.title,
                    "caption": picture.caption,
                    "width": picture.pixels.shape[1],
                    "picture": _base64(_jpeg(picture.pixels)),
                }
                for picture in inside_pictures(self._opened, image, small_pixel)
            ]
        }

    @functools.cached_property
    def _opened(self) -> "Opened":
        from fcn_jax.inference.inside import opened_network
        from fcn_jax.inference.inside_pictures import MAX_SIDE_PX

        sides = ((min(h, MAX_SIDE_PX), min(w, MAX_SIDE_PX)) for h, w in self.limits.canvases)
        return opened_network(self.predictor, sorted(set(sides)))

    def model(self) -> dict[str, Any]:
        """Returns classes, network, training step, scores and limits, for JSON."""
        predictor = self.predictor
        config = predictor.config.model
        return {
            "source": predictor.provenance.source,
            "backbone": config.backbone,
            "skips": config.skips,
            "step": predictor.step or None,
            "label_maps": {
                name: [
                    self._class_entry(index, class_name) for index, class_name in enumerate(names)
                ]
                for name, names in predictor.label_maps.items()
            },
            "metrics": _finite(predictor.metrics),
            "limits": {
                "bytes": self.limits.max_bytes,
                "pixels": self.limits.max_pixels,
                "canvases": [list(canvas) for canvas in self.limits.canvases],
                "seconds": self.limits.time_limit_s,
            },
        }

    def _class_entry(self, index: int, name: str) -> dict[str, Any]:
        colour = self.predictor.palette[index].tobytes().hex()
        return {"index": index, "name": name, "colour": f"#{colour}"}

    def _labels(self, upload: Upload) -> dict[str, np.ndarray]:
        return self.predictor.predict_maps(upload.image)

    def _description(
        self, label: np.ndarray, upload: Upload, label_map: str, seconds: float
    ) -> dict[str, Any]:
        height, width = upload.size
        names = self.predictor.label_maps[label_map]
        counts = np.bincount(label.ravel(), minlength=len(names))
        present = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
        return {
            "label_map": label_map,
            "width": width,
            "height": height,
            "computed_width": label.shape[1],
            "computed_height": label.shape[0],
            "seconds": round(seconds, 4),
            "classes": [
                self._class_entry(int(index), names[index])
                | {"pixels": int(counts[index]), "share": float(counts[index] / label.size)}
                for index in present
            ],
        }


def _png(label: np.ndarray, upload: Upload, palette: np.ndarray) -> bytes:
    height, width = upload.size
    picture = Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST)
    file = io.BytesIO()
    palette_picture(np.asarray(picture), palette).save(file, "PNG", pnginfo=png_text(""))
    return file.getvalue()


def _jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _planes(values: np.ndarray) -> str:
    planes = np.ascontiguousarray(np.moveaxis(values, -1, 0))
    return _base64(zlib.compress(planes.tobytes(), 1))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _finite(values: Any) -> Any:
    """Replaces numbers that JSON does not have by None."""
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    if isinstance(values, float) and not math.isfinite(values):
        return None
    return values
