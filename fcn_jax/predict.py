"""Predicts label maps of images with a trained network.

    python -m fcn_jax.predict --workdir=DIR --output=OUT [--overlay] PATH...

Each PATH is an image, a folder of images, or a pattern such as 'photos/*.jpg'. The label map of
x.jpg is written to OUT/x.png, a palette PNG that has the size of the image, holds class indices and
shows them in VOC's colours. --overlay also writes OUT/overlay/x.png: the image with the classes
drawn over it, and a legend. If the network has several label maps, each is written to its own
folder, OUT/MAP. If it was trained with extra channels, each is read from its own folder next to the
images: with `depth`, the channel of photos/images/x.jpg is photos/depth/x.png. The command replaces
only files that it wrote itself. Started again, after an interruption or with more images, it skips
the label maps that are up to date with the image, the network and the flags.

    python -m fcn_jax.predict --workdir=DIR --output=OUT --shard=2/8 PATH...

predicts every eighth of the images, sorted by name, beginning with the third: 0/8 to 7/8 are the
jobs of a Slurm array or the pods of an indexed Kubernetes Job (launch/).

By default the network processes each image once, as a whole and at its own size. These flags
average predictions over several scales and mirror images, or over windows as other projects do
(see `inference/options.py`):

    --scales=0.5,0.75,1,1.25,1.5,1.75 --flip
    --windows=average|gaussian [--window_px=320,480] [--overlap=0.25]

    python -m fcn_jax.predict --workdir=DIR --output=OUT --tile=1024 scene.tif

predicts an image of any size in tiles, with constant memory. The label map equals that of the whole
image, because the network's input is each tile with its receptive field around it. TIFFs are read
and written by window (pip install rasterio). OUT/scene.tif is tiled and compressed, has VOC's
colours and the scene's georeference, and is 255 where the scene has no data. The same command
resumes after an interruption, within the scene. A smaller --halo makes prediction faster and
approximate. The overlay is at most 2000 pixels wide and high. An image that does not fit in memory
is predicted in tiles without this flag too.

    python -m fcn_jax.predict --workdir=DIR --output=OUT --voc_submission=VOCdevkit

predicts the test images of PASCAL VOC 2012 and packs OUT/results.tgz for its evaluation server; try
it with --split=val. See `inference/voc_server.py`.

    python -m fcn_jax.predict --workdir=A,B,C --output=OUT --uncertainty PATH...
    python -m fcn_jax.predict --workdir=DIR --output=OUT --uncertainty --dropout_samples=20 PATH...

also maps how sure the networks are (docs/how_sure.md). Several runs of one network, separated by
commas, are an ensemble: their class probabilities are averaged. OUT/entropy/x.png and, of an
ensemble or of samples of dropout, OUT/mutual_information/x.png are grey PNGs of 16 bits whose
largest value stands for ln k nats of k classes; OUT/uncertainty/x.png shows them in colours. The
label maps are the same as without --uncertainty.

A network that was trained on volumes (docs/volumes.md) predicts NIfTI files in overlapping tiles:

    python -m fcn_jax.predict --workdir=DIR --output=OUT [--flip] FOLDER

writes OUT/CASE.nii.gz, on the grid and with the header of the image.

From Python:

    import fcn_jax
    predictor = fcn_jax.load_run("runs/shapes")
    label_map = predictor(image)  # uint8 (h, w, 3) -> uint8 (h, w)

Extra channels follow the image's RGB, and several label maps are returned as a dictionary. Other
options, and the probability of each class:

    from fcn_jax.inference.options import Inference
    label_map = predictor(image, Inference(scales=(0.5, 1, 1.5), flip=True))
    probabilities = predictor.probabilities(image)  # float32 (h, w, k)
"""

from absl import flags

from fcn_jax.terminal import cli
from fcn_jax.terminal.view_flags import define_view_flags, view_arguments

if __name__ == "__main__":  # --help and mistakes in flags do not wait for the imports below
    flags.DEFINE_string(
        "workdir", None, "folder of the run, or model file; A,B,C for the mean of several runs"
    )
    flags.DEFINE_string("output", None, "folder to write to")
    flags.DEFINE_bool("overlay", False, "also draw the classes over the image")
    flags.DEFINE_integer(
        "tile",
        None,
        "predict in tiles with sides of this many pixels, rounded down to a multiple of the "
        "network's largest stride (usually 32)",
    )
    flags.DEFINE_integer(
        "halo",
        None,
        "pixels around each tile, for a faster, approximate result (default: as many as an exact "
        "result needs)",
        lower_bound=0,
    )
    flags.DEFINE_string("checkpoint", "latest", "latest, best (by mIoU), or a step")
    define_view_flags()
    flags.DEFINE_bool("uncertainty", False, "also map the entropy and the mutual information")
    flags.DEFINE_integer(
        "dropout_samples", None, "with --uncertainty: samples of dropout for each network"
    )
    flags.DEFINE_string("shard", None, "i/n: only shard i, from 0, of n that share the images")
    flags.DEFINE_string(
        "voc_submission", None, "VOCdevkit folder: predict its test images and pack a submission"
    )
    flags.DEFINE_string("split", "test", "with --voc_submission: VOC's list of images to predict")
    flags.DEFINE_enum(
        "competition",
        "comp6",
        ["comp5", "comp6"],
        "with --voc_submission: comp5 for a network that was trained on VOC's data alone",
    )
    cli.begin()

import glob
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from fcn_jax.data.images import IMAGE_SUFFIXES, header_size, is_tiff
from fcn_jax.data.plan import Plan
from fcn_jax.data.shard import Shard
from fcn_jax.errors import UserError, width_by_height
from fcn_jax.inference import uncertainty_files
from fcn_jax.inference.image_files import (
    is_up_to_date,
    label_map_path,
    overlay_path,
    predict_file,
    predict_file_in_tiles,
)
from fcn_jax.inference.options import WHOLE, Inference
from fcn_jax.inference.output_digest import read_digest
from fcn_jax.inference.tiles import (
    MIN_TILE_PX,
    MIN_TILE_VOXELS,
    Tiling,
    receptive_field,
    tiling,
)
from fcn_jax.inference.trained import Predictor, load_ensemble, split_workdirs
from fcn_jax.inference.uncertainty import Draws, UncertaintyPredictor, draws_of
from fcn_jax.inference.volume_files import predict_volume_files
from fcn_jax.parallel.memory import free_bytes
from fcn_jax.runs import PLAN
from fcn_jax.terminal.progress import progress_bar, say
from fcn_jax.terminal.signals import StopSignal

SURELY_FITS_PX = 2_000_000
"""Images with fewer pixels are predicted as a whole without an estimate of the memory."""

SAFE_SHARE = 0.75
"""An image whose estimate is above this share of the free memory is predicted in tiles: XLA takes
up to 1.2 times the estimate, and the host holds the image."""

DEFAULT_TILE_PX = 1024
"""Side of the tiles of an image that does not fit in memory as a whole."""


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    if not options.workdir or not options.output or not (arguments or options.voc_submission):
        raise UserError("--workdir=DIR, --output=OUT and at least one PATH are needed (see --help)")
    if options.voc_submission and (arguments or options.overlay or options.shard):
        raise UserError(
            "--voc_submission uses VOC's own list and packs all of it: give no PATH, no --overlay "
            "and no --shard"
        )
    for name in ("split", "competition"):
        if options[name].present and not options.voc_submission:
            raise UserError(f"--{name} needs --voc_submission=VOCdevkit")
    if options.dropout_samples is not None and not options.uncertainty:
        raise UserError("--dropout_samples needs --uncertainty")
    if options.uncertainty and (options.tile is not None or options.voc_submission):
        other = "--voc_submission" if options.voc_submission else "--tile"
        raise UserError(
            f"--uncertainty cannot be combined with {other}: it predicts images as a whole, or in "
            "windows (--windows=gaussian)"
        )
    if options.halo is not None and options.tile is None:
        raise UserError(f"--halo (={options.halo}) needs --tile, such as --tile=1024")
    inference = Inference(**view_arguments())
    shard = Shard.parse(options.shard) if options.shard else None
    if options.tile is not None and inference != WHOLE:
        raise UserError(
            "--tile cannot be combined with --windows, --scales or --flip: it reproduces the label "
            "map of the whole image"
        )
    if options.voc_submission:
        _submit(inference)
        return
    predictor = load_ensemble(split_workdirs(options.workdir), options.checkpoint)
    if predictor.config.data.ndim == 3:
        _predict_volumes(predictor, arguments, inference)
        return
    paths = find_images(arguments)
    inference.check_fits(predictor.network)
    uncertain = None
    if options.uncertainty:
        uncertain = UncertaintyPredictor(predictor, inference, options.dropout_samples)
        _say_what_is_mapped(uncertain.draws)
    predict_files(
        predictor,
        paths,
        Path(options.output),
        overlay=options.overlay,
        inference=inference,
        cut=_tiling(predictor) if options.tile is not None else None,
        shard=shard,
        uncertain=uncertain,
    )


def _say_what_is_mapped(draws: Draws) -> None:
    if len(draws.variables) > 1:
        say(f"uncertainty: entropy and mutual information over {draws.description}")
    else:
        say(
            "uncertainty: entropy only; mutual information needs several runs (--workdir=A,B) or "
            "--dropout_samples=20"
        )


def _predict_volumes(predictor: Predictor, arguments: list[str], inference: Inference) -> None:
    options = flags.FLAGS
    for name in ("overlay", "shard", "windows"):
        if options[name].present:
            raise UserError(f"--{name} is for images, and this network was trained on volumes")
    if inference.scales != WHOLE.scales:
        raise UserError("--scales is for images, and this network was trained on volumes")
    path = Path(split_workdirs(options.workdir)[0]) / PLAN
    if not path.exists():
        raise UserError(
            f"{path}: missing; volumes are predicted with the folder that training wrote"
        )
    draws = None
    if options.uncertainty:
        draws = draws_of(predictor, options.dropout_samples)
        _say_what_is_mapped(draws)
    predict_volume_files(
        predictor,
        Plan.load(path),
        arguments,
        Path(options.output),
        mirror=inference.flip,
        draws=draws,
        cut=_tiling(predictor) if options.tile is not None else None,
    )


def _submit(inference: Inference) -> None:
    from fcn_jax.inference import voc_server

    options = flags.FLAGS
    predictor = load_ensemble(split_workdirs(options.workdir), options.checkpoint)
    voc_server.submit(
        predictor,
        Path(options.voc_submission),
        Path(options.output),
        split=options.split,
        competition=options.competition,
        predict=lambda image: predictor.predict_maps(image, inference)[""],
        method=inference.description,
    )


def _tiling(predictor: Predictor) -> Tiling:
    options = flags.FLAGS
    ndim = predictor.config.data.ndim
    field = receptive_field(predictor.network, predictor.variables, ndim)
    smallest = MIN_TILE_PX if ndim == 2 else MIN_TILE_VOXELS
    cut = tiling(field, options.tile, options.halo, min_tile=smallest)
    rounded = f"; --tile is rounded down to a multiple of {cut.multiple}"
    say(f"predicting in {cut}{rounded if cut.tile != options.tile else ''}")
    return cut


def predict_files(
    predictor: Predictor,
    paths: list[Path],
    output: Path,
    *,
    overlay: bool = False,
    inference: Inference = WHOLE,
    cut: Tiling | None = None,
    shard: Shard | None = None,
    uncertain: UncertaintyPredictor | None = None,
) -> None:
    """Writes the label maps of image files, except those that are up to date.

    Args:
        predictor: the network.
        paths: the images.
        output: the folder to write to.
        overlay: also draw the classes over the images.
        inference: windows, scales and mirror images to average over.
        cut: sizes of the tiles; None to predict whole images.
        shard: the share of the images, sorted by name, to predict; None for all.
        uncertain: also write maps of the uncertainty, without `cut`; see `uncertainty_files`.

    Raises:
        UserError: before any prediction, if two images have the same label-map file, or `output`
            contains the images or files that would be replaced and predict did not write. After all
            predictions, if images could not be read or label maps could not be written.
    """
    targets = _targets(paths, output, tiled=cut is not None)
    _check_outputs(predictor, targets, output, overlay=overlay, uncertain=uncertain)
    if shard is not None:
        images = len(paths)
        paths = list(shard.of(sorted(paths, key=lambda path: targets[path].name)))
        say(f"shard {shard}: {len(paths)} of {images} images")
    methods: dict[Path, Tiling | Inference] = dict.fromkeys(
        paths, inference if cut is None else cut
    )
    sizes: dict[Path, tuple[int, int]] = {}
    too_large: dict[Path, str] = {}
    if cut is None:
        sizes = {path: size for path in paths if (size := header_size(path))}
        too_large = find_too_large(predictor, sizes, inference, uncertain)
        if too_large and inference == WHOLE and uncertain is None:
            field = receptive_field(predictor.network, predictor.variables)
            if field.is_bounded:
                methods |= dict.fromkeys(too_large, tiling(field, DEFAULT_TILE_PX))
    labelled = {
        path
        for path, method in methods.items()
        if is_up_to_date(predictor, path, targets[path], method, overlay=overlay)
    }
    done = {
        path
        for path in labelled
        if uncertain is None
        or uncertainty_files.is_up_to_date(predictor, uncertain, path, targets[path])
    }
    if done:
        say(f"{len(done)} of {len(paths)} are up to date")
    if fitting := [sizes[path] for path in sizes if path not in (*done, *too_large)]:
        predictor.choose_canvases(np.array(fitting))
    failures = []
    with (
        StopSignal("image" if cut is None else "tile") as stop,
        progress_bar("predicting", len(paths), initial=len(done)) as bar,
    ):
        for path in paths:
            if path in done:
                continue
            target = targets[path]
            try:
                with stop.abandoned(lambda: None):  # files are whole or absent, tiles are kept
                    method = methods[path]
                    if path in too_large:
                        _report_too_large(too_large[path], method, uncertain)
                    if path not in labelled:
                        if isinstance(method, Tiling):
                            predict_file_in_tiles(
                                predictor, path, target, method, overlay=overlay, stop=stop
                            )
                        else:
                            predict_file(predictor, path, target, overlay=overlay, inference=method)
                    if uncertain is not None:
                        uncertainty_files.save_uncertainty(predictor, uncertain, path, target)
            except UserError as error:
                named = "" if str(path) in str(error) else f"{path}: "
                failures.append(f"{named}{error}")
            bar.advance()
            if stop.requested:
                say(f"stopped after {bar.completed} of {len(paths)} images")
                break
    folders = ", ".join(str(output / name) for name in predictor.label_maps)
    written = bar.completed - len(failures)
    say(f"{written} label map{'' if written == 1 else 's'} in {folders}")
    stop.end_if_requested()
    if failures:
        raise UserError(f"{len(failures)} of {len(paths)} images failed: {'; '.join(failures)}")


def find_too_large(
    predictor: Predictor,
    sizes: Mapping[Path, tuple[int, int]],
    inference: Inference,
    uncertain: UncertaintyPredictor | None = None,
) -> dict[Path, str]:
    """Returns the images whose prediction as a whole does not fit in memory, each with the reason.

    Args:
        predictor: the network.
        sizes: height and width of each image.
        inference: windows, scales and mirror images to average over.
        uncertain: predicts the uncertainty as well; None if it is not wanted.
    """
    free = free_bytes()
    # Tiles give the same label map, so the whole image gets a margin. Other views cannot be tiled.
    limit = math.inf if free is None else free * (SAFE_SHARE if inference == WHOLE else 1)
    found: dict[Path, str] = {}
    largest_fitting = 0
    for path, size in sorted(sizes.items(), key=lambda item: math.prod(item[1])):
        pixels = math.prod(size)
        if free is None or pixels < SURELY_FITS_PX or pixels == largest_fitting:
            continue
        needed = predictor.estimated_bytes(size, inference)
        if uncertain is not None:
            needed = max(needed, uncertain.estimated_bytes(size))
        if needed <= limit:
            largest_fitting = pixels
        else:
            found[path] = (
                f"{path} has {width_by_height(size)} pixels: as a whole it needs about "
                f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
            )
    return found


def _report_too_large(
    reason: str, method: Tiling | Inference, uncertain: UncertaintyPredictor | None
) -> None:
    """Says that an image is predicted in tiles, or raises UserError if it cannot be."""
    if uncertain is not None:
        raise UserError(f"{reason}: --uncertainty does not predict in tiles; cut the image first")
    if isinstance(method, Tiling):
        say(f"note: {reason}; predicting in {method}")
    elif method == WHOLE:
        raise UserError(f"{reason}: give --tile=1024 --halo=256, which is approximate here")
    else:
        raise UserError(f"{reason}: use --tile=1024 instead of --windows, --scales and --flip")


def find_images(patterns: Iterable[str]) -> list[Path]:
    """Returns the files that the patterns match, each once, in order.

    Args:
        patterns: names of files, names of folders for the images in them, or glob patterns.

    Raises:
        UserError: a pattern matches nothing, a folder has no images, or a path is a device or pipe.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            inside = sorted(
                entry
                for entry in path.iterdir()
                if entry.suffix.lower() in IMAGE_SUFFIXES and entry.is_file()
            )
            if not inside:
                raise UserError(f"{path} holds no images")
        elif path.exists():
            if not path.is_file():
                raise UserError(f"{path} is not a regular file")
            inside = [path]
        else:
            inside = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
            if not inside:
                raise UserError(f"{pattern}: no such file, folder or pattern")
        found |= dict.fromkeys(entry for entry in inside if entry.is_file())
    return list(found)


def _targets(paths: list[Path], output: Path, *, tiled: bool = False) -> dict[Path, Path]:
    """Returns the label-map file of each image; no two images have the same one."""
    targets = {
        path: output / f"{path.stem}{'.tif' if tiled and is_tiff(path) else '.png'}"
        for path in paths
    }
    claimed: dict[str, Path] = {}
    for path, target in targets.items():
        if target.stem in claimed:
            raise UserError(
                f"{claimed[target.stem]} and {path} would both be written to {target}: predict "
                "them into two folders"
            )
        claimed[target.stem] = path
    return targets


def _check_outputs(
    predictor: Predictor,
    targets: Mapping[Path, Path],
    output: Path,
    *,
    overlay: bool,
    uncertain: UncertaintyPredictor | None,
) -> None:
    """Raises UserError if label maps would be written to a folder of the images or replace files.

    Files that predict wrote may be replaced.
    """
    files = []
    for target in targets.values():
        maps = [label_map_path(target, name) for name in predictor.label_maps]
        files += maps + [overlay_path(map_path) for map_path in maps if overlay]
        if uncertain is not None:
            files += uncertainty_files.uncertainty_paths(predictor, target, uncertain)
    folders = {folder.resolve(): folder for folder in (output, *(file.parent for file in files))}
    for path in targets:
        # For a symbolic link, its own folder and that of the image are both refused.
        for folder in (path.parent.resolve(), path.resolve().parent):
            if folder in folders:
                raise UserError(
                    f"{folders[folder]} is the folder of {path}, and the next run would read label "
                    "maps there as images: give another --output"
                )
        siblings = path.absolute().parent.parent.resolve()
        if len(predictor.label_maps) > 1 and siblings == output.resolve():
            raise UserError(
                f"--output={output} contains the folder of {path}, and perhaps folders of masks "
                "that are named like the label maps: give another folder"
            )
    for file in files:
        if file.exists() and read_digest(file) is None:
            raise UserError(
                f"{file} exists and was not written by predict: remove it, or give another --output"
            )


if __name__ == "__main__":
    cli.run(main)
