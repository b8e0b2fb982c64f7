"""Reads an image from the body of a request, within limits. Nothing is written to disk."""

import asyncio
import dataclasses
import io
import math

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from starlette.requests import ClientDisconnect, Request

from fcn_jax.data.canvases import Size
from fcn_jax.data.images import RASTER_FORMATS, image_pixels, open_image
from fcn_jax.errors import UserError, printable, width_by_height

NAME = "the upload"
"""How errors call the image."""


class RequestError(Exception):
    """A request that is refused, with one sentence for whoever sent it.

    Args:
        status: of HTTP, 4xx or 5xx.
        sentence: what is wrong, and the remedy.
        retry_after_s: seconds after which the same request may succeed; None if never.
    """

    def __init__(self, status: int, sentence: str, retry_after_s: int | None = None):
        super().__init__(sentence)
        self.status = status
        self.retry_after_s = retry_after_s


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of requests.

    Args:
        max_bytes: bytes of an upload.
        max_pixels: pixels of an upload that is decoded.
        canvases: heights and widths on which the network runs, the smallest first.
        waiting: number of uploads that are received, wait or are computed at the same time.
        time_limit_s: seconds for an upload to arrive, and again for its answer.
    """

    max_bytes: int
    max_pixels: int
    canvases: tuple[Size, ...]
    waiting: int
    time_limit_s: float


async def read_body(request: Request, limits: Limits) -> bytes:
    """Receives the body of a request.

    Raises:
        RequestError: it is empty, too large, too slow, or not the plain bytes of a file.
    """
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise RequestError(
            415,
            "send the image's bytes as the body of the request, not a form: "
            "curl --data-binary @photo.jpg",
        )
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError(415, "send the image's bytes as they are, without Content-Encoding")
    too_large = RequestError(
        413, f"the upload has more than this server's limit of {limits.max_bytes / 1e6:g} MB"
    )
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal():
        raise RequestError(400, "the header Content-Length is not a number")
    body = bytearray()
    excess = int(announced[:20]) > limits.max_bytes
    received = 0
    try:
        async with asyncio.timeout(limits.time_limit_s):
            async for chunk in request.stream():
                # A client reads the answer only after it has sent its body, so that a moderate
                # excess is received and dropped.
                received += len(chunk)
                excess = excess or received > limits.max_bytes
                if not excess:
                    body += chunk
                elif received > 2 * limits.max_bytes:
                    break
    except TimeoutError:
        raise RequestError(
            408, f"the upload did not arrive within {limits.time_limit_s:g} seconds"
        ) from None
    except ClientDisconnect:
        raise RequestError(400, "the client left before its upload was complete") from None
    if excess:
        raise too_large
    if not body:
        raise RequestError(400, "the body is empty: send an image, curl --data-binary @photo.jpg")
    return bytes(body)


def check_header(data: bytes, limits: Limits, *, fit: bool) -> None:
    """Checks format and size of an image before its pixels are decoded.

    Args:
        data: the bytes of the image file.
        limits: the limits.
        fit: whether an image larger than the largest canvas is shrunk.

    Raises:
        RequestError: the bytes are no image of `RASTER_FORMATS`, or too large an image.
    """
    bomb = f"the image has more than this server's limit of {limits.max_pixels / 1e6:g} megapixels"
    try:
        with Image.open(io.BytesIO(data), formats=tuple(RASTER_FORMATS)) as image:
            width, height = image.size
    except UnidentifiedImageError:
        raise RequestError(
            415, f"the upload is not an image that is read here ({', '.join(RASTER_FORMATS)})"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RequestError(413, bomb) from None
    except Exception as error:  # Pillow's decoders raise errors of many types on damaged headers
        raise RequestError(
            400, f"the header of the upload is damaged ({printable(str(error))[:200]})"
        ) from None
    if width * height > limits.max_pixels:
        raise RequestError(413, f"{bomb}: {width} × {height}")
    long_side, largest = max(width, height), max(limits.canvases[-1])
    if long_side > largest and not fit:
        raise RequestError(
            413,
            f"the image of {width} × {height} is larger than this server's largest canvas, "
            f"{width_by_height(limits.canvases[-1])}: send a smaller one, or add ?fit=1, which "
            "shrinks it for the network",
        )


@dataclasses.dataclass(frozen=True)
class Upload:
    """A decoded image.

    Attributes:
        image: uint8 (h, w, 3), RGB, turned upright, and shrunk to the largest canvas if larger.
        size: height and width before shrinking.
    """

    image: np.ndarray
    size: Size


def decode(data: bytes, limits: Limits) -> Upload:
    """Decodes an image that `check_header` has accepted.

    A rotation that a camera noted in the file (EXIF) is applied, as browsers do.

    Raises:
        RequestError: the image is damaged or of an unusual kind.
    """
    try:
        opened = open_image(data, NAME)
        try:
            upright = ImageOps.exif_transpose(opened)
        except Exception:  # damaged EXIF, which browsers ignore too
            upright = opened
        image = image_pixels(upright, NAME)
    except UserError as error:
        raise RequestError(400, printable(str(error))[:500]) from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many types
        raise RequestError(
            400, f"{NAME}: the image is damaged ({printable(str(error))[:200]})"
        ) from None
    height, width, _ = image.shape
    shrink = min(1.0, max(limits.canvases[-1]) / max(height, width))
    if shrink < 1:
        small = max(1, math.floor(width * shrink)), max(1, math.floor(height * shrink))
        resized = Image.fromarray(image).resize(small, Image.Resampling.BILINEAR, reducing_gap=3)
        image = np.asarray(resized)
    return Upload(np.ascontiguousarray(image), (height, width))
