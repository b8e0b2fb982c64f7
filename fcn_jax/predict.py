"""Predicts label maps of images with a trained network.

    python -m fcn_jax.predict --workdir=DIR --output=OUT [--overlay] PATH...

Each PATH is an image, a folder of images, or a pattern such as 'photos/*.jpg'. For x.jpg it writes
OUT/x.png, a palette PNG of class indices in VOC's colours and of the size of the image; with
--overlay also OUT/overlay/x.png, the classes drawn over the image, with a legend. A network with
several label maps writes each to its own folder, OUT/MAP. If the network was trained with extra
channels, for example from a folder depth, those of DIR/images/x.jpg are read from DIR/depth/x.png.
A file that this command has not written is never replaced.

By default the network sees each image whole and once. To average over several scales and mirror
images, or over windows as other projects do (see `inference/options.py`):

    --scales=0.5,0.75,1,1.25,1.5,1.75 --flip
    --windows=average|gaussian [--window_px=320,480] [--overlap=0.25]

    python -m fcn_jax.predict --workdir=DIR --output=OUT --tile=1024 scene.tif

predicts an image of any size in tiles, with constant memory. The label map equals that of the whole
image, because the network is run on each tile and its receptive field around it. TIFFs are read and
written by window (pip install rasterio): OUT/scene.tif is tiled, compressed, in VOC's colours, with
the scene's georeference, and 255 where the scene has no data. The same command resumes after an
interruption and skips label maps that are up to date with the image, the network and the flags. A
smaller --halo is faster and approximate. --overlay is at most 2000 pixels wide and high.

    python -m fcn_jax.predict --workdir=DIR --output=OUT --voc_submission=VOCdevkit

predicts the test images of PASCAL VOC 2012 and packs OUT/results.tgz for its evaluation server; try
it with --split=val. See `inference/voc_server.py`.

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
    flags.DEFINE_string("workdir", None, "folder of the run, or model file")
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
    flags.DEFINE_string("voc_submission", None, "a VOCdevkit: pack its test images' label maps")
    flags.DEFINE_string("split", "test", "with --voc_submission: the list of images")
    flags.DEFINE_enum(
        "competition",
        "comp6",
        ["comp5", "comp6"],
        "with --voc_submission: comp5 for a network that was trained on VOC's data alone",
    )
    cli.begin()

import glob
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from fcn_jax.data.images import IMAGE_SUFFIXES, header_size, is_tiff
from fcn_jax.errors import UserError
from fcn_jax.inference.image_files import (
    is_up_to_date,
    label_map_path,
    overlay_path,
    predict_file,
    predict_file_in_tiles,
)
from fcn_jax.inference.options import WHOLE, Inference
from fcn_jax.inference.output_digest import read_digest
from fcn_jax.inference.tiles import Tiling, receptive_field, tiling
from fcn_jax.inference.trained import Predictor, load_run
from fcn_jax.terminal.progress import progress_bar, say
from fcn_jax.terminal.signals import StopSignal


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    if not options.workdir or not options.output or not (arguments or options.voc_submission):
        raise UserError("--workdir=DIR, --output=OUT and at least one PATH are needed (see --help)")
    if options.voc_submission and (arguments or options.overlay):
        raise UserError("--voc_submission uses VOC's own list: give no PATH and no --overlay")
    for name in ("split", "competition"):
        if options[name].present and not options.voc_submission:
            raise UserError(f"--{name} needs --voc_submission=VOCdevkit")
    if options.halo is not None and options.tile is None:
        raise UserError(f"--halo (={options.halo}) needs --tile, such as --tile=1024")
    inference = Inference(**view_arguments())
    if options.tile is not None and inference != WHOLE:
        raise UserError(
            "--tile gives the label map of the whole image: give no --windows, --scales, --flip"
        )
    if options.voc_submission:
        _submit(inference)
        return
    paths = find_images(arguments)
    predictor = load_run(options.workdir, options.checkpoint)
    inference.check_fits(predictor.network)
    predict_files(
        predictor,
        paths,
        Path(options.output),
        overlay=options.overlay,
        inference=inference,
        cut=_tiling(predictor) if options.tile is not None else None,
    )


def _submit(inference: Inference) -> None:
    from fcn_jax.inference import voc_server

    options = flags.FLAGS
    predictor = load_run(options.workdir, options.checkpoint)
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
    field = receptive_field(predictor.network, predictor.variables)
    cut = tiling(field, options.tile, options.halo)
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
) -> None:
    """Writes the label maps of image files.

    Args:
        predictor: the network.
        paths: the images.
        output: the folder to write to.
        overlay: also draw the classes over the images.
        inference: windows, scales and mirror images to average over.
        cut: predict in tiles.

    Raises:
        UserError: an image cannot be read, or a file cannot be written or would replace another
            one. The other images are predicted all the same.
    """
    targets = _targets(paths, output, tiled=cut is not None)
    _check_outputs(predictor, targets, output, overlay=overlay)
    done: set[Path] = set()
    if cut is None:
        sizes = [size for path in paths if (size := header_size(path))]
        if sizes:
            predictor.choose_canvases(np.array(sizes))
    else:
        done = {x for x in paths if is_up_to_date(predictor, x, targets[x], cut, overlay=overlay)}
        if done:
            say(f"{len(done)} of {len(paths)} are up to date")
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
                if cut is None:
                    predict_file(predictor, path, target, overlay=overlay, inference=inference)
                else:
                    predict_file_in_tiles(predictor, path, target, cut, overlay=overlay, stop=stop)
            except UserError as error:
                failures.append(str(error))
            bar.advance()
            if stop.requested:
                say(f"stopped after {bar.completed} of {len(paths)} images")
                break
    folders = ", ".join(str(output / name) for name in predictor.label_maps)
    written = bar.completed - len(failures)
    say(f"{written} label map{'' if written == 1 else 's'} in {folders}")
    stop.end_if_requested()
    if failures:
        listed = "\n  ".join(failures)
        raise UserError(f"{len(failures)} of {len(paths)} images failed:\n  {listed}")


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
    predictor: Predictor, targets: Mapping[Path, Path], output: Path, *, overlay: bool
) -> None:
    """Refuses to write among the images, and to replace files that predict has not written."""
    files = []
    for target in targets.values():
        maps = [label_map_path(target, name) for name in predictor.label_maps]
        files += maps + [overlay_path(map_path) for map_path in maps if overlay]
    folders = {folder.resolve(): folder for folder in (output, *(file.parent for file in files))}
    for path in targets:
        # A link to an image counts for its own folder and for that of the image.
        for folder in (path.parent.resolve(), path.resolve().parent):
            if folder in folders:
                raise UserError(
                    f"{folders[folder]} is the folder of {path}, and label maps among the images "
                    "would be read as images the next time: give another --output"
                )
        siblings = path.absolute().parent.parent.resolve()
        if len(predictor.label_maps) > 1 and siblings == output.resolve():
            raise UserError(
                f"--output={output} contains the folder of {path}, and perhaps folders of masks "
                "with the names of label maps: give another"
            )
    for file in files:
        if file.exists() and read_digest(file) is None:
            raise UserError(
                f"{file} exists and was not written by predict: remove it, or give another --output"
            )


if __name__ == "__main__":
    cli.run(main)
