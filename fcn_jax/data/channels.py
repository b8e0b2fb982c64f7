"""Channels beside RGB: depth, HHA (Long et al. 2015, section 5, NYUDv2), whatever is kept as bytes.

They lie in files of their own, in folders named for them beside the images' folder, and are put
behind the image's RGB.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fcn_jax.data.images import IMAGE_SUFFIXES, open_image, png_bits, read_bytes
from fcn_jax.errors import UserError, width_by_height


def read_channels(path: str | Path) -> np.ndarray:
    """Channels beside RGB in a file, such as depth: uint8 (h, w, 1) of a grey one, else (h, w, 3).

    Raises:
      UserError: the file is missing, is no image, is damaged, or has more than 8 bits a channel.
    """
    return decode_channels(read_bytes(path), str(path))


def decode_channels(data: bytes, name: str) -> np.ndarray:
    """`read_channels` for bytes in memory; `name` stands for them in errors."""
    image = open_image(data, name)
    # Of 16 bits Pillow would keep the upper 8, and a depth of up to 10 m in mm has but 6 there.
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
    image: np.ndarray, image_name: str, further: Iterable[tuple[np.ndarray, str]]
) -> np.ndarray:
    """RGB and further channels side by side: uint8 (h, w, c).

    Args:
      image: uint8 (h, w, 3); `image_name` stands for it in errors.
      further: uint8 (h, w, n) each, with its name.

    Raises:
      UserError: channels of another size than the image.
    """
    joined = [image]
    for channels, name in further:
        if channels.shape[:2] != image.shape[:2]:
            raise UserError(
                f"{name}: is {width_by_height(channels.shape)}, but its image {image_name} is "
                f"{width_by_height(image.shape)}; bring it to that size"
            )
        joined.append(channels)
    return np.concatenate(joined, axis=-1) if len(joined) > 1 else image


def beside(image: Path, folders: Sequence[str]) -> list[Path]:
    """The files of an image's further channels: DIR/depth/a.png of DIR/images/a.jpg.

    Raises:
      UserError: there is none of the image's stem, or more than one.
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
                f"{image}: its {name} is wanted as one file {folder / image.stem}.png (or another "
                f"image format); there {'is none' if not found else f'are {len(found)}'}"
            )
        files += found
    return files


def channel_feature(folder: str) -> str:
    """What a record calls the channels of a folder."""
    return f"channels_{folder}"
