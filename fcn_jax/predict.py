"""Labels images with a trained network.

    python -m fcn_jax.predict --workdir=DIR --output=OUT [--overlay] PATH...

Each PATH is an image, a folder of images, or a pattern such as 'photos/*.jpg'. For x.jpg writes
OUT/x.png: a palette PNG of class indices in VOC's colours, of the image's own size; with --overlay
also OUT/overlay/x.png, the classes drawn over the picture, with a legend. A network of several
label maps writes each to a folder of its own, OUT/MAP. Of a network that was trained with further
channels, say of a folder depth, those of DIR/images/x.jpg are read from DIR/depth/x.png.

Each image is seen whole and once; to average over several sizes and mirror images, or over windows
as in other people's code (see `inference.py`):

    --scales=0.5,0.75,1,1.25,1.5,1.75 --flip
    --windows=average|gaussian [--window_px=320,480] [--overlap=0.25]

    python -m fcn_jax.predict --workdir=DIR --output=OUT --tile=1024 scene.tif

labels an image of any size in tiles, in memory that does not grow with it: the label map is that of
the whole image, since each tile is run with all around it that its pixels' scores depend on. TIFFs
are read and written by window (pip install rasterio): OUT/scene.tif is tiled, compressed, in VOC's
colours, with the scene's georeference, and 255 where the scene holds no data. The same command goes
on where it was interrupted, and leaves label maps that are finished as they are, unless the image,
the network or the settings are others. A smaller --halo is faster, and approximate. --overlay shows
the whole at no more than 2000 pixels a side.

    python -m fcn_jax.predict --workdir=DIR --output=OUT --voc_submission=VOCdevkit

labels the test images of PASCAL VOC 2012 and packs OUT/results.tgz for its evaluation server; try
it with --split=val. See `submission.py`.

From Python:

    from fcn_jax.predict import load_run
    run = load_run("runs/shapes")
    label_map = run(image)           # uint8 (h, w, 3) -> uint8 (h, w)

The image has further channels behind its RGB where the network was trained with such, and of
several label maps `run` gives each by name. In other ways, and with the probability of each class:

    from fcn_jax.inference import Inference
    label_map = run(image, Inference(scales=(0.5, 1, 1.5), flip=True))
    probabilities = run.probabilities(image)  # float32 (h, w, k)
"""

from absl import flags

from fcn_jax.inference.options import define_inference_flags
from fcn_jax.terminal import cli

if __name__ == "__main__":  # --help and mistakes in flags do not wait for what is imported below
    flags.DEFINE_string("workdir", None, "folder of the run")
    flags.DEFINE_string("output", None, "folder to write to")
    flags.DEFINE_bool("overlay", False, "also draw the classes over the picture")
    flags.DEFINE_integer(
        "tile",
        None,
        "label in tiles of so many pixels a side, rounded down to a multiple of the network's "
        "largest stride (of most: 32)",
    )
    flags.DEFINE_integer(
        "halo", None, "pixels seen beyond a tile, where less than exact shall do", lower_bound=0
    )
    flags.DEFINE_string("checkpoint", "latest", "latest, best (by mIoU), or a step")
    define_inference_flags()
    flags.DEFINE_string("voc_submission", None, "a VOCdevkit: pack its test images' label maps")
    flags.DEFINE_string("split", "test", "with --voc_submission: the list to label")
    flags.DEFINE_enum(
        "competition",
        "comp6",
        ["comp5", "comp6"],
        "with --voc_submission: comp5 for a network that has seen VOC's own data alone",
    )
    cli.begin()

import glob
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fcn_jax.data.images import IMAGE_SUFFIXES, header_size, is_tiff
from fcn_jax.errors import UserError
from fcn_jax.inference.image_files import is_labelled, label_image, label_in_tiles
from fcn_jax.inference.options import WHOLE, inference_from_flags
from fcn_jax.inference.tiles import receptive_field, tiling
from fcn_jax.inference.trained import load_run
from fcn_jax.terminal.progress import progress_bar, say
from fcn_jax.terminal.signals import StopSignal


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    if not options.workdir or not options.output or not (arguments or options.voc_submission):
        raise UserError("--workdir=DIR, --output=OUT and at least one PATH are needed (see --help)")
    if options.voc_submission and (arguments or options.overlay):
        raise UserError("--voc_submission labels VOC's own list: give no PATH and no --overlay")
    given = [name for name in ("split", "competition") if options[name].present]
    if given and not options.voc_submission:
        raise UserError(f"--{given[0]} is of VOC's submission: add --voc_submission=VOCdevkit")
    inference = inference_from_flags()
    if options.voc_submission:
        from fcn_jax.inference import voc_server

        run = load_run(options.workdir, options.checkpoint)
        voc_server.submit(
            run,
            Path(options.voc_submission),
            Path(options.output),
            split=options.split,
            competition=options.competition,
            label=lambda image: run.label(image, inference)[""],
            method=inference.description,
        )
        return
    paths = find_images(arguments)
    output = Path(options.output)
    if options.halo is not None and options.tile is None:
        raise UserError(f"--halo (={options.halo}) goes with --tile, such as --tile=1024")
    if options.tile is not None and inference != WHOLE:
        raise UserError(
            "--tile gives the whole image's labels: without --windows, --scales, --flip"
        )
    run = load_run(options.workdir, options.checkpoint)
    inference.check_fits(run.network)
    targets = _targets(paths, output, tiled=options.tile is not None)
    if len(run.label_maps) > 1:
        _check_beside(paths, output)
    cut = None
    done: set[Path] = set()
    if options.tile is None:
        sizes = [size for path in paths if (size := header_size(path))]
        if sizes:
            run.prepare_for(np.array(sizes))
    else:
        field = receptive_field(run.network, run.variables)
        cut = tiling(field, options.tile, options.halo)
        rounded = f"; --tile is rounded down to a multiple of {cut.multiple}"
        say(f"labelling in {cut}{rounded if cut.tile != options.tile else ''}")
        overlay = options.overlay
        done = {x for x in paths if is_labelled(run, x, targets[x], cut, overlay=overlay)}
        if done:
            say(f"{len(done)} of {len(paths)} are labelled already")
    failures = []
    with (
        StopSignal("image" if cut is None else "tile") as stop,
        progress_bar("labelling", len(paths), initial=len(done)) as bar,
    ):
        for path in paths:
            if path in done:
                continue
            target = targets[path]
            try:
                if cut is None:
                    label_image(run, path, target, overlay=options.overlay, inference=inference)
                else:
                    label_in_tiles(run, path, target, cut, overlay=options.overlay, stop=stop)
            except UserError as error:
                failures.append(str(error))
            bar.advance()
            if stop.requested:
                say(f"stopped after {bar.completed} of {len(paths)} images")
                break
    places = ", ".join(str(output / name) for name in run.label_maps)
    written = bar.completed - len(failures)
    say(f"{written} label map{'' if written == 1 else 's'} in {places}")
    stop.end_if_requested()
    if failures:
        listed = "\n  ".join(failures)
        raise UserError(f"{len(failures)} of {len(paths)} images failed:\n  {listed}")


def find_images(patterns: Iterable[str]) -> list[Path]:
    """The files that the patterns name, each once, in order; of a folder, its images.

    Raises:
        UserError: a pattern that names nothing, or a folder without images.
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
            inside = [path]
        else:
            inside = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
            if not inside:
                raise UserError(f"{pattern}: no such file, folder or pattern")
        found |= dict.fromkeys(entry for entry in inside if entry.is_file())
    return list(found)


def _targets(paths: list[Path], output: Path, *, tiled: bool = False) -> dict[Path, Path]:
    """Where each image's label map goes: not to that of another, nor among the images."""
    targets = {
        path: output / f"{path.stem}{'.tif' if tiled and is_tiff(path) else '.png'}"
        for path in paths
    }
    claimed: dict[str, Path] = {}
    folder = output.resolve()
    for path, target in targets.items():
        # Of a link, neither where it lies nor where it points to.
        if folder in (path.parent.resolve(), path.resolve().parent):
            raise UserError(
                f"--output={output} is the folder of {path}, and label maps among the images would "
                "be taken for images the next time: give another"
            )
        if target.stem in claimed:
            raise UserError(
                f"{claimed[target.stem]} and {path} would both be written to {target}: label them "
                "into two folders"
            )
        claimed[target.stem] = path
    return targets


def _check_beside(paths: list[Path], output: Path) -> None:
    """The folders of label maps must not fall on those of the masks that belong to the images."""
    for path in paths:
        if path.absolute().parent.parent.resolve() == output.resolve():
            raise UserError(
                f"--output={output} is where the images' own folders lie, masks perhaps among "
                "them: give another"
            )


if __name__ == "__main__":
    cli.run(main)
