"""Extra channels beyond RGB: depth, HHA (Long et al. 2015, section 5, NYUDv2), or any other bytes.

Each kind has files of its own, in a folder next to the folder of images, which gives it its name.
The channels follow RGB in the image's array.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fcn_jax.data.images import IMAGE_SUFFIXES, open_image, png_bits, read_bytes, read_image
from fcn_jax.errors import UserError, width_by_height


def read_channels(path: str | Path) -> np.ndarray:
    """Reads a file of extra channels, such as depth: uint8 (h, w, 1) if it is grey, else (h, w, 3).

    Raises:
      UserError: the file is missing, is no image, is damaged, or has more than 8 bits a channel.
    """
    return decode_channels(read_bytes(path), str(path))


def decode_channels(data: bytes, name: str) -> np.ndarray:
    """Decodes the bytes of a file as `read_channels` does; errors begin with `name`."""
    image = open_image(data, name)
    # Pillow keeps the upper 8 of 16 bits, and only 6 of these vary in a depth up to 10 m in mm.
    if image.mode.startswith("I") or image.mode == "F" or png_bits(data) == 16:
        raise UserError(
            f"{name}: more than 8 bits a channel; scale the range that matters (of depth in mm, "
            "say, 0 to 10000) to 0…255 and save it with 8"
        )
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"))[..., None]
    if image.mode == "P":
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of lost transparency
    return np.asarray(image.convert("RGB"))


def join_channels(
    image: np.ndarray, image_name: str, extra: Iterable[tuple[np.ndarray, str]]
) -> np.ndarray:
    """Concatenates RGB and extra channels: uint8 (h, w, c).

    Args:
      image: uint8 (h, w, 3).
      image_name: the image's name in errors.
      extra: pairs of channels, uint8 (h, w, n), and their name in errors.

    Raises:
      UserError: channels of another size than the image.
    """
    joined = [image]
    for channels, name in extra:
        if channels.shape[:2] != image.shape[:2]:
            raise UserError(
                f"{name}: is {width_by_height(channels.shape)}, but its image {image_name} is "
                f"{width_by_height(image.shape)}; bring it to that size"
            )
        joined.append(channels)
    return np.concatenate(joined, axis=-1) if len(joined) > 1 else image


def read_with_channels(path: Path, folders: Sequence[str]) -> np.ndarray:
    """Reads an image and its extra channels from the folders next to its own: uint8 (h, w, c).

    Raises:
      UserError: a file is missing or cannot be read.
    """
    files = find_channel_files(path, folders)
    extra = [(read_channels(file), str(file)) for file in files]
    return join_channels(read_image(path), str(path), extra)


def find_channel_files(image: Path, folders: Sequence[str]) -> list[Path]:
    """Finds the files of an image's extra channels: DIR/depth/a.png for DIR/images/a.jpg.

    Raises:
      UserError: a folder has no file of the image's stem, or more than one.
    """
    files = []
    for name in folders:
        folder = image.absolute().parent.parent / name
        found = [
            path
            for path in folder.glob("*")
            if path.stem == image.stem and path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if len(found) != 1:
            raise UserError(
                f"{image}: its {name} must be one file {folder / image.stem}.png (or another "
                f"image format); there {'is none' if not found else f'are {len(found)}'}"
            )
        files += found
    return files


def channel_feature(folder: str) -> str:
    """The name in a record of the channels from a folder."""
    return f"channels_{folder}"
