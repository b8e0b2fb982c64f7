"""Predicts the label maps of one image file, and writes them and their overlays."""

import contextlib
import dataclasses
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

from fcn_jax.data.channels import find_channel_files, read_with_channels
from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.errors import UserError
from fcn_jax.inference import output_digest
from fcn_jax.inference.options import WHOLE, Inference
from fcn_jax.inference.resume import UnfinishedTiles, part_of
from fcn_jax.inference.scenes import Picture, Scene, open_tiff, reduced_label, reduced_size
from fcn_jax.inference.tiles import Tile, Tiling, predict_tiles
from fcn_jax.inference.trained import Predictor
from fcn_jax.pictures import overlays
from fcn_jax.terminal.atomic_files import write_whole
from fcn_jax.terminal.progress import progress_bar, say
from fcn_jax.terminal.signals import StopSignal

MAX_OVERLAY_PX = 2000
"""Longer side of the overlay of an image that is predicted in tiles."""


def predict_file(
    predictor: Predictor, path: Path, target: Path, *, overlay: bool, inference: Inference = WHOLE
) -> None:
    """Predicts the label maps of an image file.

    The files contain a digest by which `is_up_to_date` knows them.

    Args:
        predictor: the network.
        path: the image.
        target: the file to write. Named label maps go to folders of their names next to it.
        overlay: also write a picture of the classes over the image.
        inference: windows, scales and mirror images to average over.

    Raises:
        UserError: the image or its extra channels cannot be read, or a file cannot be written.
    """
    image = read_input(predictor, path)
    digest = output_digest.digest_of(inputs_of(predictor, path, target, inference))
    text = output_digest.png_text(digest)
    for name, label in predictor.predict_maps(image, inference).items():
        map_path = label_map_path(target, name)
        overlays.save_label_map(map_path, label, predictor.palette, text)
        if overlay:
            _save_overlay(predictor, map_path, image[..., :3], label, name, text)


def predict_file_in_tiles(
    predictor: Predictor, path: Path, target: Path, cut: Tiling, *, overlay: bool, stop: StopSignal
) -> None:
    """Predicts the label maps of an image file in tiles, and resumes an interrupted call.

    If `target` ends in .tif, the image must be a TIFF, and both are read and written by window. The
    files contain a digest by which `is_up_to_date` knows them.

    Args:
        predictor, path, target, overlay: as in `predict_file`.
        cut: the tiling.
        stop: ends the call after the current tile.

    Raises:
        UserError: as in `predict_file`, or the disk or the device's memory is too small.
        SystemExit: `stop` was requested; the tiles that are done are kept.
    """
    with _open_scene(predictor, path, target) as scene:
        tiles = cut.tiles(scene.size)
        inputs = inputs_of(predictor, path, target, cut)
        digest = output_digest.digest_of(inputs)
        spans = [(tile.rows, tile.columns) for tile in tiles]
        with UnfinishedTiles(target, inputs, spans, tuple(predictor.label_maps)) as done:
            pixels = math.prod(scene.size) * len(predictor.label_maps)
            _check_room(done.bytes_left + pixels, target.parent)
            with progress_bar(path.name, len(tiles), "tiles", initial=done.count) as bar:
                for labels in _predict_scene(predictor, scene, cut, tiles[done.count :]):
                    done.append(labels)
                    bar.advance()
                    _end_if_requested(stop, done, len(tiles))
            for name in predictor.label_maps:
                map_path = label_map_path(target, name)
                pieces = functools.partial(_pieces, done, name, stop)
                scene.write(map_path, cut.tile, pieces, digest, predictor.palette)
                if overlay:
                    size, _ = reduced_size(scene.size, MAX_OVERLAY_PX)
                    label = reduced_label(scene.size, pieces, MAX_OVERLAY_PX)
                    text = output_digest.png_text(digest)
                    _save_overlay(predictor, map_path, scene.reduced(size), label, name, text)
            done.remove()


def label_map_path(target: Path, label_map: str) -> Path:
    """Returns the file of a label map: OUT/x.png, or OUT/MAP/x.png for a named one."""
    return target.parent / label_map / target.name


def overlay_path(map_path: Path) -> Path:
    """Returns overlay/x.png next to a label map x.png or x.tif."""
    return map_path.parent / "overlay" / f"{map_path.stem}.png"


def _pieces(
    done: UnfinishedTiles, label_map: str, stop: StopSignal
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    for piece in done.pieces(label_map):
        _end_if_requested(stop, done, done.count)
        yield piece


def _end_if_requested(stop: StopSignal, done: UnfinishedTiles, tiles: int) -> None:
    if stop.requested:
        kept = "is kept" if done.count == 1 else "are kept"
        say(f"{done.count} of {tiles} tiles {kept}: the same command resumes")
    stop.end_if_requested()


def is_up_to_date(
    predictor: Predictor, path: Path, target: Path, method: Tiling | Inference, *, overlay: bool
) -> bool:
    """Returns whether the label maps and overlays of an image exist and depend on the same inputs.

    method: how the image is predicted, in tiles (`predict_file_in_tiles`) or not (`predict_file`).
    """
    maps = [label_map_path(target, name) for name in predictor.label_maps]
    files = maps + [overlay_path(map_path) for map_path in maps if overlay]
    if part_of(target).exists() or not all(file.exists() for file in files):
        return False
    try:
        digest = output_digest.digest_of(inputs_of(predictor, path, target, method))
    except (OSError, UserError):  # reported when the image is read
        return False
    return all(output_digest.read_digest(file) == digest for file in files)


def _by_window(target: Path) -> bool:
    return target.suffix == ".tif"


def inputs_of(
    predictor: Predictor, path: Path, target: Path, method: Tiling | Inference
) -> dict[str, Any]:
    """Returns everything that the label maps of an image and their overlays depend on."""
    if isinstance(method, Tiling):
        settings: dict[str, Any] = {"tile": method.tile, "halo": [method.before, method.after]}
    else:
        settings = {"inference": dataclasses.asdict(method)}
    image = path.stat()
    folders = () if _by_window(target) else predictor.config.data.extra_channels
    extra = find_channel_files(path, folders)
    return {
        "image": str(path.resolve()),
        "bytes": image.st_size,
        "changed": image.st_mtime_ns,
        "channels": [[str(x.resolve()), x.stat().st_size, x.stat().st_mtime_ns] for x in extra],
        "weights": predictor.digest,
        "step": predictor.step,
        "classes": {name: list(names) for name, names in predictor.label_maps.items()},
        **({"colours": predictor.provenance.colours} if predictor.provenance.colours else {}),
        **settings,
    }


@contextlib.contextmanager
def _open_scene(predictor: Predictor, path: Path, target: Path) -> Iterator[Scene]:
    if _by_window(target):
        with open_tiff(path, predictor.channels) as scene:
            yield scene
    else:
        yield Picture(read_input(predictor, path))


def _predict_scene(
    predictor: Predictor, scene: Scene, cut: Tiling, tiles: list[Tile]
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the label maps of each tile by name, `IGNORE_INDEX` where the scene has no data."""
    predicted = predict_tiles(
        predictor.network, predictor.variables, cut, scene.size, tiles, scene.read
    )
    try:
        for tile, labels in zip(tiles, predicted, strict=True):
            nothing = scene.no_data(tile.rows, tile.columns)
            if nothing is not None:
                labels = {name: np.where(nothing, IGNORE_INDEX, x) for name, x in labels.items()}
            yield labels
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"{cut} do not fit in the device's memory: give a smaller tile") from error


def _check_room(needed_bytes: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise UserError(
            f"{folder} has {free / 1e6:.0f} MB free, and up to {needed_bytes / 1e6:.0f} MB are "
            "needed, half of them until the label maps are written: free some, or give another "
            "output folder"
        )


def _save_overlay(
    predictor: Predictor,
    map_path: Path,
    image: np.ndarray,
    label: np.ndarray,
    label_map: str,
    text: PngInfo,
) -> None:
    class_names = predictor.label_maps[label_map]
    picture = Image.fromarray(overlays.overlay(image, label, class_names, predictor.palette))
    path = overlay_path(map_path)
    write_whole(path, lambda part: picture.save(part, "PNG", pnginfo=text))


def read_input(predictor: Predictor, path: Path) -> np.ndarray:
    """Reads an image and its extra channels, uint8 (h, w, c).

    Raises:
        UserError: a file cannot be read, or the network was trained on another number of channels.
    """
    folders = predictor.config.data.extra_channels
    image = read_with_channels(path, folders)
    if image.shape[-1] != predictor.channels:
        files = find_channel_files(path, folders)
        raise UserError(
            f"{path} has {image.shape[-1]} channels with {', '.join(map(str, files))}, but the "
            f"network was trained on {predictor.channels}"
        )
    return image
