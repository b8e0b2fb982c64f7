"""Labels one image file: reads it as a run wants it, writes its label maps and overlays."""

import contextlib
import functools
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fcn_jax.data.channels import find_channel_files, join_channels, read_channels
from fcn_jax.data.images import is_tiff, read_image
from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.errors import UserError
from fcn_jax.inference import made_with
from fcn_jax.inference.options import WHOLE, Inference
from fcn_jax.inference.resume import UnfinishedTiles, part_of
from fcn_jax.inference.scenes import Picture, Scene, open_tiff, reduced_label, reduced_size
from fcn_jax.inference.tiles import Tile, Tiling, label_tiles
from fcn_jax.inference.trained import Predictor
from fcn_jax.pictures import overlays
from fcn_jax.terminal.atomic_files import write_whole
from fcn_jax.terminal.progress import progress_bar, say
from fcn_jax.terminal.signals import StopSignal

LONGEST_OVERLAY_PX = 2000
"""Of an image that is labelled in tiles."""


def label_image(
    run: Predictor, path: Path, target: Path, *, overlay: bool, inference: Inference = WHOLE
) -> None:
    """Writes the label map of one image to `target`, and where wanted its overlay.

    Of several label maps, each goes to a folder of its name beside `target`.

    Raises:
        UserError: the image or its further channels cannot be read, or a target not written.
    """
    image = read_channelled(run, path)
    for name, label in run.label(image, inference).items():
        place = target.parent / name / target.name
        overlays.save_label_map(place, label)
        if overlay:
            _save_overlay(place, image[..., :3], label, run.label_maps[name])


def label_in_tiles(
    run: Predictor, path: Path, target: Path, cut: Tiling, *, overlay: bool, stop: StopSignal
) -> None:
    """The same as `label_image`, in tiles; of a TIFF to a TIFF. Goes on where it was interrupted.

    The files tell what they were made with, by which `is_labelled` knows them.

    Raises:
        UserError: as there, or too little room on the disk or in the device's memory.
        SystemExit: `stop` was requested; the tiles that are done are kept.
    """
    with _open_scene(run, path) as scene:
        tiles = cut.tiles(scene.size)
        making = _making(run, path, cut)
        digest = made_with.digest_of(making)
        spans = [(tile.rows, tile.columns) for tile in tiles]
        with UnfinishedTiles(target, making, spans, tuple(run.label_maps)) as done:
            pixels = math.prod(scene.size) * len(run.label_maps)
            _check_room(done.bytes_left + pixels, target.parent)
            with progress_bar(path.name, len(tiles), "tiles", initial=done.count) as bar:
                for labels in _labels_of(run, scene, cut, tiles[done.count :]):
                    done.append(labels)
                    bar.advance()
                    _end_if_requested(stop, done, len(tiles))
            for name, class_names in run.label_maps.items():
                place = target.parent / name / target.name
                pieces = functools.partial(_pieces, done, name, stop)
                scene.write(place, cut.tile, pieces, digest)
                if overlay:
                    size, _ = reduced_size(scene.size, LONGEST_OVERLAY_PX)
                    label = reduced_label(scene.size, pieces, LONGEST_OVERLAY_PX)
                    _save_overlay(
                        place, scene.reduced(size), label, class_names, made_with.png_text(digest)
                    )
            done.remove()


def _pieces(
    done: UnfinishedTiles, label_map: str, stop: StopSignal
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    for piece in done.pieces(label_map):
        _end_if_requested(stop, done, done.count)
        yield piece


def _end_if_requested(stop: StopSignal, done: UnfinishedTiles, tiles: int) -> None:
    if stop.requested:
        kept = "is kept" if done.count == 1 else "are kept"
        say(f"{done.count} of {tiles} tiles {kept}: the same command goes on")
    stop.end_if_requested()


def is_labelled(run: Predictor, path: Path, target: Path, cut: Tiling, *, overlay: bool) -> bool:
    """Whether all that `label_in_tiles` would write is there, and of the same making."""
    places = [target.parent / name / target.name for name in run.label_maps]
    files = places + [_overlay_of(place) for place in places if overlay]
    if part_of(target).exists() or not all(file.exists() for file in files):
        return False
    try:
        digest = made_with.digest_of(_making(run, path, cut))
    except (OSError, UserError):  # told of where it is labelled
        return False
    return all(made_with.read_digest(file) == digest for file in files)


def _making(run: Predictor, path: Path, cut: Tiling) -> dict[str, Any]:
    """All that the label maps of an image and their overlays depend on."""
    image = path.stat()
    further = [] if is_tiff(path) else find_channel_files(path, run.config.data.extra_channels)
    return {
        "image": str(path.resolve()),
        "bytes": image.st_size,
        "changed": image.st_mtime_ns,
        "channels": [[str(x.resolve()), x.stat().st_size, x.stat().st_mtime_ns] for x in further],
        "weights": run.digest,
        "step": run.step,
        "classes": {name: list(names) for name, names in run.label_maps.items()},
        "tile": cut.tile,
        "halo": [cut.before, cut.after],
    }


@contextlib.contextmanager
def _open_scene(run: Predictor, path: Path) -> Iterator[Scene]:
    if is_tiff(path):
        with open_tiff(path, run.channels) as scene:
            yield scene
    else:
        yield Picture(read_channelled(run, path))


def _labels_of(
    run: Predictor, scene: Scene, cut: Tiling, tiles: list[Tile]
) -> Iterator[dict[str, np.ndarray]]:
    """The label maps of each tile by name, void where the scene holds nothing."""
    labelled = label_tiles(run.network, run.variables, cut, scene.size, tiles, scene.read)
    try:
        for tile, labels in zip(tiles, labelled, strict=True):
            nothing = scene.no_data(tile.rows, tile.columns)
            if nothing is not None:
                labels = {name: np.where(nothing, IGNORE_INDEX, x) for name, x in labels.items()}
            yield labels
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"{cut} do not fit in the device's memory: give a smaller --tile"
        ) from error


def _check_room(wanted_bytes: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted_bytes:
        raise UserError(
            f"{folder} has {free / 1e6:.0f} MB free, and up to {wanted_bytes / 1e6:.0f} MB are "
            "wanted, half of them for as long as it takes: free some, or give another --output"
        )


def _save_overlay(
    place: Path,
    image: np.ndarray,
    label: np.ndarray,
    class_names: tuple[str, ...],
    text: PngInfo | None = None,
) -> None:
    """Writes overlay/x.png beside x.png or x.tif."""
    picture = Image.fromarray(overlays.overlay(image, label, class_names))
    write_whole(_overlay_of(place), lambda part: picture.save(part, "PNG", pnginfo=text))


def _overlay_of(place: Path) -> Path:
    return place.parent / "overlay" / f"{place.stem}.png"


def read_channelled(run: Predictor, path: Path) -> np.ndarray:
    """The image in a file as the run wants it: uint8 (h, w, c).

    Raises:
        UserError: it or its further channels cannot be read, or are not as many as in training.
    """
    files = find_channel_files(path, run.config.data.extra_channels)
    further = [(read_channels(file), str(file)) for file in files]
    image = join_channels(read_image(path), str(path), further)
    if image.shape[-1] != run.channels:
        raise UserError(
            f"{path} has {image.shape[-1]} channels with {', '.join(map(str, files))}, but the "
            f"network was trained on {run.channels}"
        )
    return image
