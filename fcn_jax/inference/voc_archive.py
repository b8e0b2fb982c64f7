"""The label maps of a VOC submission: what the server accepts, and the archive."""

import gzip
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fcn_jax.data.canvases import Size
from fcn_jax.data.images import open_image, png_bits, read_bytes
from fcn_jax.data.palettes import voc_palette
from fcn_jax.data.voc import VOC_CLASSES
from fcn_jax.errors import UserError, listed, width_by_height
from fcn_jax.terminal.progress import progress_bar

MAX_SHOWN = 3
"""Number of names in a message."""

PNG_END = b"IEND\xaeB`\x82"


def check_all(pngs: Mapping[str, Path], sizes: Mapping[str, Size]) -> None:
    """Raises UserError if a label map is not what the server accepts."""
    flaws = []
    with progress_bar("checking", len(pngs)) as bar:
        for name, png in pngs.items():
            flaw = flaw_of(png, sizes[name])
            flaws += [flaw] if flaw else []
            bar.advance()
    if flaws:
        raise UserError(
            f"{len(flaws)} of {len(pngs)} label maps are not what the server accepts, and nothing "
            f"was packed: {listed(flaws, MAX_SHOWN)}"
        )


def flaw_of(png: Path, size: Size) -> str:
    """Returns what is wrong with a label map, or "" if nothing is.

    Args:
        png: the file.
        size: height and width of its image.
    """
    try:
        data = read_bytes(png)
        image = open_image(data, str(png))
    except UserError as error:
        return str(error)
    if image.mode != "P" or png_bits(data) != 8 or not data.endswith(PNG_END):
        return f"{png}: not a whole indexed PNG of 8 bits"
    png_size = image.height, image.width
    if png_size != size:
        sizes = f"{width_by_height(png_size)} pixels, but its image has {width_by_height(size)}"
        return f"{png}: {sizes}"
    highest = int(np.asarray(image).max())
    if highest >= len(VOC_CLASSES):
        return f"{png}: class {highest}, but VOC's last is {len(VOC_CLASSES) - 1}"
    if image.getpalette() != voc_palette().flatten().tolist():
        return f"{png}: other colours than VOC's"
    return ""


def pack(part: Path, output: Path, results: str) -> None:
    """Packs like `tar -czf results.tgz results`, but without times and owners.

    So the same label maps give the same bytes.

    Args:
        part: the archive to write.
        output: the folder that holds results/.
        results: the folder of the label maps in it.
    """
    folders = [Path(results), *Path(results).parents][-2::-1]  # results, results/VOC2012, …
    with (
        part.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for folder in folders:
            entry = tarfile.TarInfo(folder.as_posix())
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for png in sorted((output / results).glob("*.png")):
            entry = tarfile.TarInfo(f"{results}/{png.name}")
            entry.size, entry.mode = png.stat().st_size, 0o644
            with png.open("rb") as content:
                tar.addfile(entry, content)
