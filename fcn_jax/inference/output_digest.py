"""A digest in each label-map file that shows whether the file is up to date.

The digest covers everything that the label map depends on. Only the digest is stored, because the
file may be passed on, and the location of the image should stay private.
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
"""Name of the entry in a TIFF's metadata and in a PNG's text."""


def digest_of(inputs: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of JSON values, 64 letters."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def png_text(digest: str) -> PngInfo:
    """Returns a PNG's text entry that holds the digest."""
    text = PngInfo()
    text.add_text(TAG, digest)
    return text


def read_digest(path: Path) -> str | None:
    """Reads the digest in a PNG or TIFF without decoding its pixels; None if there is none."""
    if is_tiff(path):
        return _read_tag(path)
    return read_header(path, lambda image: image.info.get(TAG))


def _read_tag(path: Path) -> str | None:
    try:
        import rasterio

        # rasterio warns of every TIFF without a georeference.
        with warnings.catch_warnings(action="ignore"), rasterio.open(path) as dataset:
            return dataset.tags().get(TAG)
    except (ImportError, OSError):
        return None
