"""Predicts the label maps of NIfTI files: OUT/CASE.nii.gz, on the grid of the image."""

import dataclasses
import glob
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fcn_jax.data import nifti
from fcn_jax.data.plan import Plan
from fcn_jax.data.resample import resample_image, resample_label
from fcn_jax.data.volume_folder import CHANNEL, read_channels
from fcn_jax.errors import UserError, printable
from fcn_jax.inference.output_digest import digest_of
from fcn_jax.inference.resume import UnfinishedTiles
from fcn_jax.inference.tiles import Tiling
from fcn_jax.inference.trained import Predictor
from fcn_jax.inference.uncertainty import Draws, UncertaintySums
from fcn_jax.inference.volumes import ExactVolumePredictor, VolumePredictor, joined
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
    draws: Draws | None = None,
    cut: Tiling | None = None,
) -> None:
    """Writes the label maps of volumes, except those that are up to date.

    With `draws`, OUT/entropy/CASE.nii.gz and, of several draws, OUT/mutual_information/
    CASE.nii.gz are written too, float32 in nats (see `uncertainty.py`).

    Args:
        predictor: the network.
        plan: of its training set.
        patterns: names of files, of folders, or glob patterns.
        output: the folder to write to.
        mirror: also average over mirror images along `volumes.flip_axes`.
        draws: also write maps of the uncertainty over these; None for none.
        cut: exact tiles with a halo in place of overlapping ones.

    Raises:
        UserError: before any prediction, if no volume is found, or `output` contains files that
            predict did not write. After all predictions, if some failed.
    """
    volumes = find_volumes(patterns, predictor.channels, output)
    axes = predictor.config.volumes.flip_axes if mirror else ()
    if mirror and not axes:
        raise UserError("--flip needs a network that was trained with config.volumes.flip_axes")
    writer = _Writer(predictor, plan, axes, draws, cut)
    for file in (file for volume in volumes for file in writer.files(volume).values()):
        if file.exists() and not _description(file).startswith(MADE_BY):
            raise UserError(
                f"{printable(str(file))} exists and was not written by predict: remove "
                "it, or give another --output"
            )
    failures: list[str] = []
    done = 0
    with (
        StopSignal("row of tiles") as stop,
        progress_bar("predicting", len(volumes), "volumes") as bar,
    ):
        for volume in volumes:
            try:
                done += not writer.write(volume, stop)
            except _StoppedError as error:
                say(f"stopped: {error}; start again to go on")
                break
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


LABEL, ENTROPY, INFORMATION = "label", "entropy", "mutual_information"
"""What is written; the last two are also the names of folders."""


class _StoppedError(Exception):
    """Ends the prediction of a volume after an interruption.

    Its message says which part of the volume is kept.
    """


class _Writer:
    """Predicts volumes and writes their files, except those that are up to date."""

    def __init__(
        self,
        predictor: Predictor,
        plan: Plan,
        axes: Sequence[int],
        draws: Draws | None,
        cut: Tiling | None,
    ):
        self._predictor, self._plan, self._axes = predictor, plan, axes
        self._draws, self._cut = draws, cut
        self._predict: VolumePredictor | ExactVolumePredictor
        if cut is None:
            self._predict = VolumePredictor(predictor.network, plan.patch, axes)
        else:
            self._predict = ExactVolumePredictor(predictor.network, cut)

    def files(self, volume: VolumeFile) -> dict[str, Path]:
        """Returns the files of a volume: its label map, and the maps of uncertainty."""
        kinds = []
        if self._draws is not None:
            kinds = [ENTROPY, INFORMATION][: min(2, len(self._draws.variables))]
        folder, name = volume.target.parent, volume.target.name
        return {LABEL: volume.target} | {kind: folder / kind / name for kind in kinds}

    def write(self, volume: VolumeFile, stop: StopSignal) -> bool:
        """Writes the files of a volume; returns False if all were up to date.

        Raises:
            _StoppedError: an interruption was requested, and the label map is not complete.
        """
        digests = {kind: MADE_BY + self._digest(volume, kind) for kind in self.files(volume)}
        left = {
            kind: path
            for kind, path in self.files(volume).items()
            if not path.exists() or _description(path) != digests[kind]
        }
        if not left:
            return False
        plan = self._plan
        image, header = read_channels(volume.channels, plan.orientation, plan.spacing_mm)
        shape = plan.resampled_shape(header.shape, header.spacing_mm)
        if shape != header.shape:
            image = resample_image(image, shape)
        image = plan.normalise(image)
        if LABEL in left:
            target = left.pop(LABEL)
            blocks = self._predict.spans(image.shape[:3])
            voxels = math.prod(image.shape[1:3])
            tiles = [(rows, slice(0, voxels)) for rows in blocks]
            with UnfinishedTiles(target, {"digest": digests[LABEL]}, tiles, [LABEL]) as parts:
                self._predict_blocks(volume, image, parts, stop)
                pieces = ((rows.start, part) for rows, _, part in parts.pieces(LABEL))
                label = joined(pieces, len(image)).reshape(image.shape[:3])
                label = resample_label(label, header.shape)
                nifti.write_label(target, label, header, digests[LABEL])
                parts.remove()
        if left:
            for kind, values in self._uncertainty(volume, image).items():
                values = resample_label(values, header.shape)
                nifti.write_values(self.files(volume)[kind], values, header, digests[kind])
        return True

    def _predict_blocks(
        self, volume: VolumeFile, image: np.ndarray, parts: UnfinishedTiles, stop: StopSignal
    ) -> None:
        """Predicts the blocks of the label map that are not in `parts` yet."""
        tiles, blocks = self._predict.num_tiles(image.shape[:3]), len(parts.tiles)
        done = parts.count * tiles // blocks
        name = printable(volume.name)
        if done:
            say(f"{name}: {parts.count} of {blocks} rows of tiles are there already")
        with progress_bar(name, tiles, "tiles", initial=done) as bar:
            if parts.count == blocks:
                return
            predicted = self._predict.blocks(
                self._predictor.variables, image, bar.advance, parts.count
            )
            for _, block in predicted:
                parts.append({LABEL: block})
                if stop.requested and parts.count < blocks:
                    raise _StoppedError(
                        f"{parts.count} of {blocks} rows of tiles of {name} are kept"
                    )

    def _uncertainty(self, volume: VolumeFile, image: np.ndarray) -> dict[str, np.ndarray]:
        assert self._draws is not None
        predict = VolumePredictor(self._draws.network, self._plan.patch, self._axes)
        kinds = [kind for kind in self.files(volume) if kind != LABEL]
        maps = {kind: np.empty(image.shape[:3], np.float32) for kind in kinds}
        temperature = self._predictor.temperatures.get("", 1.0)
        tiles = predict.num_tiles(image.shape[:3])
        with progress_bar(f"{printable(volume.name)}, uncertainty", tiles, "tiles") as bar:
            for start, by_draw in predict.probability_blocks(
                self._draws.variables, image, bar.advance
            ):
                sums = UncertaintySums()
                for probabilities in by_draw:
                    sums.add(probabilities)
                for kind, values in zip(kinds, sums.result(temperature), strict=False):
                    assert values is not None
                    maps[kind][start : start + len(values)] = values
        return maps

    def _digest(self, volume: VolumeFile, kind: str) -> str:
        states = [path.stat() for path in volume.channels]
        inputs = {
            "files": [[state.st_size, state.st_mtime_ns] for state in states],
            "paths": [str(path.resolve()) for path in volume.channels],
            "weights": self._predictor.digest,
            "plan": self._plan.to_json(),
            "axes": list(self._axes),
        }
        if self._cut is not None:
            inputs["tiles"] = str(self._cut)
        if kind != LABEL and self._draws is not None:
            inputs |= {
                "map": kind,
                "dropout_samples": self._draws.dropout_samples,
                "temperatures": dict(self._predictor.temperatures),
            }
        return digest_of(inputs)


def _description(path: Path) -> str:
    """Reads the description in a header; empty if the file cannot be read."""
    try:
        return bytes(nifti.read_header(path).nifti["descrip"]).decode("latin-1").rstrip("\0")
    except UserError:
        return ""
