"""What a finished label map was made with, kept in its own file, so that none is made twice.

A digest alone: the file may be passed on, and where the image lay is nobody's business.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngInfo

from fcn_jax.data.images import is_tiff, read_header

TAG = "FCN_JAX_MADE_WITH"
"""Of a TIFF's metadata, and of a PNG's text."""


def digest_of(made_with: Mapping[str, Any]) -> str:
    """Tells a making from any other: 64 letters."""
    return hashlib.sha256(json.dumps(made_with, sort_keys=True).encode()).hexdigest()


def png_text(digest: str) -> PngInfo:
    text = PngInfo()
    text.add_text(TAG, digest)
    return text


def read_digest(path: Path) -> str | None:
    """That of a file, without reading its pixels; None: it has none, or cannot be read."""
    if is_tiff(path):
        return _read_tag(path)
    return read_header(path, lambda image: image.info.get(TAG))


def _read_tag(path: Path) -> str | None:
    try:
        import rasterio

        # A slide lies nowhere on Earth.
        with warnings.catch_warnings(action="ignore"), rasterio.open(path) as dataset:
            return dataset.tags().get(TAG)
    except (ImportError, OSError):
        return None
