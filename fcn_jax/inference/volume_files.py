"""Predicts the label maps of NIfTI files: OUT/CASE.nii.gz, on the grid of the image."""

import dataclasses
import glob
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.data import nifti
from fcn_jax.data.plan import Plan
from fcn_jax.data.resample import resample_image, resample_label
from fcn_jax.data.volume_folder import CHANNEL, read_channels
from fcn_jax.errors import UserError, printable
from fcn_jax.inference.output_digest import digest_of
from fcn_jax.inference.trained import Predictor
from fcn_jax.inference.volumes import VolumePredictor
from fcn_jax.terminal.progress import progress_bar, say
from fcn_jax.terminal.signals import StopSignal

MADE_BY = "fcn_jax "
"""Begins the description in the header of a label map; a digest of 64 letters follows."""


@dataclasses.dataclass(frozen=True)
class VolumeFile:
    """The files of a volume, one for each channel, and the label map to write."""

    name: str
    channels: tuple[Path, ...]
    target: Path


def predict_volume_files(
    predictor: Predictor,
    plan: Plan,
    patterns: Iterable[str],
    output: Path,
    *,
    mirror: bool = False,
) -> None:
    """Writes the label maps of volumes, except those that are up to date.

    Args:
        predictor: the network.
        plan: of its training set.
        patterns: names of files, of folders, or glob patterns.
        output: the folder to write to.
        mirror: also average over mirror images along `volumes.flip_axes`.

    Raises:
        UserError: before any prediction, if no volume is found, or `output` contains files that
            predict did not write. After all predictions, if some failed.
    """
    volumes = find_volumes(patterns, predictor.channels, output)
    axes = predictor.config.volumes.flip_axes if mirror else ()
    if mirror and not axes:
        raise UserError("--flip needs a network that was trained with config.volumes.flip_axes")
    for volume in volumes:
        if volume.target.exists() and not _description(volume.target).startswith(MADE_BY):
            raise UserError(
                f"{printable(str(volume.target))} exists and was not written by predict: remove "
                "it, or give another --output"
            )
    predict = VolumePredictor(predictor.network, plan.patch, axes)
    failures: list[str] = []
    done = 0
    with (
        StopSignal("volume") as stop,
        progress_bar("predicting", len(volumes), "volumes") as bar,
    ):
        for volume in volumes:
            try:
                done += not _predict_file(predictor, predict, plan, volume, axes)
            except UserError as error:
                failures.append(str(error))
            bar.advance()
            if stop.requested:
                say(
                    f"stopped after {bar.completed} of {len(volumes)} volumes: start again to go on"
                )
                break
    if done:
        say(f"{done} of {len(volumes)} were up to date")
    say(f"{bar.completed - len(failures)} label maps in {output}")
    stop.end_if_requested()
    if failures:
        listed = "\n  ".join(failures)
        raise UserError(f"{len(failures)} of {len(volumes)} volumes failed:\n  {listed}")


def find_volumes(patterns: Iterable[str], channels: int, output: Path) -> list[VolumeFile]:
    """Finds the volumes that patterns match, with all channels of each.

    Raises:
        UserError: nothing matches, or a volume has another number of channels.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            inside = nifti.find_files(path)
        else:
            inside = [path] if path.exists() else sorted(map(Path, glob.glob(pattern)))
        inside = [file for file in inside if file.name.endswith(nifti.SUFFIXES)]
        if not inside:
            raise UserError(f"{printable(pattern)}: no NIfTI file (*.nii.gz or *.nii) there")
        files |= dict.fromkeys(inside)
    by_volume: dict[tuple[Path, str], list[Path]] = {}
    for file in files:
        match = CHANNEL.fullmatch(nifti.stem(file))
        name = match[1] if match else nifti.stem(file)
        by_volume.setdefault((file.parent, name), []).append(file)
    volumes = []
    for (folder, name), paths in by_volume.items():
        if len(paths) != channels:
            raise UserError(
                f"{printable(str(folder / name))}: has {len(paths)} channel files, but the network "
                f"was trained on {channels}"
            )
        if folder.resolve() == output.resolve():
            raise UserError(f"--output={output} is the folder of {name}: give another one")
        volumes.append(VolumeFile(name, tuple(sorted(paths)), output / f"{name}.nii.gz"))
    if len({volume.target for volume in volumes}) < len(volumes):
        raise UserError(
            "two volumes of one name would be written to one file: predict them separately"
        )
    return volumes


def _predict_file(
    predictor: Predictor, predict: VolumePredictor, plan: Plan, volume: VolumeFile, axes: Any
) -> bool:
    """Predicts a volume; returns False if its label map is up to date."""
    description = MADE_BY + _digest(predictor, plan, volume, axes)
    if volume.target.exists() and _description(volume.target) == description:
        return False
    image, header = read_channels(volume.channels, plan.orientation, plan.spacing_mm)
    shape = plan.resampled_shape(header.shape, header.spacing_mm)
    if shape != header.shape:
        image = resample_image(image, shape)
    image = plan.normalise(image)
    label = np.empty(shape, np.uint8)
    with progress_bar(printable(volume.name), predict.num_tiles(shape), "tiles") as bar:
        for start, block in predict.blocks(predictor.variables, image, bar.advance):
            label[start : start + len(block)] = block
    label = resample_label(label, header.shape)
    nifti.write_label(volume.target, label, header, description)
    return True


def _digest(predictor: Predictor, plan: Plan, volume: VolumeFile, axes: Any) -> str:
    states = [path.stat() for path in volume.channels]
    return digest_of(
        {
            "files": [[state.st_size, state.st_mtime_ns] for state in states],
            "paths": [str(path.resolve()) for path in volume.channels],
            "weights": predictor.digest,
            "plan": plan.to_json(),
            "axes": list(axes),
        }
    )


def _description(path: Path) -> str:
    """Reads the description in a header; empty if the file cannot be read."""
    try:
        return bytes(nifti.read_header(path).nifti["descrip"]).decode("latin-1").rstrip("\0")
    except UserError:
        return ""
