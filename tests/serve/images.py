"""Image files as bytes: good ones, and ones that a stranger may send; a network for the demo."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from examples.digits import DigitClassifier
from fcn_jax.data import shapes
from fcn_jax.pretrained import flatten


def drawn(width: int, height: int, name: str = "val_000") -> np.ndarray:
    """An image of this size, uint8 (h, w, 3)."""
    image, _ = shapes.draw(name)
    return np.asarray(Image.fromarray(image).resize((width, height)))


def write_untrained(path: Path) -> None:
    """Writes LeNet with its first weights, as the demo of digits stores it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = nnx.to_pure_dict(nnx.state(DigitClassifier(rngs=nnx.Rngs(0))))
    save_file({name: np.asarray(value) for name, value in flatten((weights, {})).items()}, path)


def encoded(image: np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format, **options)
    return file.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises this size and ends after a few pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels)


def png_with_text_bomb() -> bytes:
    """A small PNG with a text of 100 MB, compressed."""
    good = encoded(drawn(32, 32))
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9))
    return good[:33] + bomb + good[33:]


def tiff_header(width: int, height: int) -> bytes:
    """A TIFF that promises this size and holds no pixels."""
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1)]
    entries += [(262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height)]
    entries += [(279, 4, 1, 10)]
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4)
