"""PASCAL VOC 2012's test images, labelled and packed as its evaluation server takes them.

    python -m fcn_jax.predict --workdir=DIR --output=OUT --voc_submission=VOCdevkit

writes, for each image that VOC2012/ImageSets/Segmentation/test.txt lists,

    OUT/results/VOC2012/Segmentation/comp6_test_cls/ID.png   class indices, in VOC's colours
    OUT/results.tgz                                          all of these: the file to upload
    OUT/submission.json                                      which network they are of

and nothing is packed before every PNG was read back. Started again, it goes on where it stopped.

There are two competitions: comp5 for networks trained on VOC's own images alone, comp6 for those
that have seen anything else but the test images, ImageNet's weights or SBD's masks among it. Rules,
layout and file format: VOC2012 development kit, sections 5.2 and 5.3, whose own scoring looks for
results/VOC2012/Segmentation/COMPETITION_SPLIT_cls/ID.png.
"""

import contextlib
import gzip
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from fcn_jax.config import Config
from fcn_jax.data.canvases import Size
from fcn_jax.data.images import header_size, open_image, png_bits, read_bytes, read_image
from fcn_jax.data.palettes import voc_palette
from fcn_jax.data.voc import LISTS, MASKS, VOC_CLASSES, find_folder, read_names
from fcn_jax.errors import UserError, listed, width_by_height
from fcn_jax.inference.trained import Predictor
from fcn_jax.pictures import overlays
from fcn_jax.runs import read_settings
from fcn_jax.terminal.atomic_files import UNFINISHED, write_whole
from fcn_jax.terminal.progress import progress_bar, say

SHOWN = 3  # names in a message

SERVER = "http://host.robots.ox.ac.uk:8080"
TEST_IMAGES = 1_456
TEST_ARCHIVE = f"VOC2012test.tar ({SERVER}, after signing in)"

PNG_END = b"IEND\xaeB`\x82"

# Of 187,500 pixels label maps take 1 to 6 kB, and as much again in the archive: here twice that.
PIXELS_PER_BYTE = 8


def submit(
    run: Predictor,
    root: Path,
    output: Path,
    *,
    split: str,
    competition: str,
    label: Callable[[np.ndarray], np.ndarray],
    method: str,
) -> None:
    """Labels the images of a list, checks the PNGs and packs them.

    Args:
        run: the network that `label` uses.
        root: VOC2012, or a folder above it.
        output: gets results/, results.tgz and submission.json.
        split: the list, ImageSets/Segmentation/SPLIT.txt; test for the server.
        competition: comp5 or comp6.
        label: uint8 (h, w, 3), RGB, to class indices, uint8 (h, w).
        method: what `label` does, in words: label maps made by two methods are not mixed.

    Raises:
        UserError: another network than one of VOC's classes, or one that comp5 does not admit; no
            such list, or images of it missing; an output that holds label maps of another network,
            or has no room; images that cannot be read, or label maps that are not as they must be.
    """
    _check_network(run, competition)
    folder = _voc_folder(root)
    images = _listed_images(folder, split)
    sizes = _sizes(images)
    place = f"results/VOC2012/Segmentation/{competition}_{split}_cls"
    pngs = {name: output / place / f"{name}.png" for name in images}
    _check_space(output, sizes.values())
    run.prepare_for(np.array(list(sizes.values())))
    archive = output / "results.tgz"
    try:
        _claim(output, run, method)
        (output / place).mkdir(parents=True, exist_ok=True)
        _check_strays(output / place, split, {png.name for png in pngs.values()})
        archive.unlink(missing_ok=True)  # of an earlier start, perhaps of another list
    except OSError as error:
        raise UserError(
            f"cannot write to {error.filename or output / place} ({error.strerror or error})"
        ) from error
    _label(images, pngs, sizes, label)
    _check_all(pngs, sizes)
    write_whole(archive, lambda part: _pack(part, output, place))
    say(f"{archive}: {len(images)} label maps, {archive.stat().st_size / 1e6:.1f} MB, of {place}")
    if not all((folder / MASKS / f"{name}.png").exists() for name in images):
        if len(images) != TEST_IMAGES:
            say(f"note: {split}.txt lists {len(images)} images; the server expects {TEST_IMAGES}")
        say(f"upload {archive} to {SERVER}, VOC2012, Segmentation, {competition}")


def _label(
    images: Mapping[str, Path],
    pngs: Mapping[str, Path],
    sizes: Mapping[str, Size],
    label: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Writes the PNGs that are not there whole."""
    left = [name for name in images if _flaw(pngs[name], sizes[name])]
    failures = []
    with progress_bar("labelling", len(images), initial=len(images) - len(left)) as bar:
        kept = len(images) - len(left)
        try:
            for name in left:
                try:
                    image = read_image(images[name])
                except UserError as error:
                    failures.append(str(error))
                else:
                    _save(pngs[name], label(image))
                    kept += 1
                bar.advance()
        except (KeyboardInterrupt, SystemExit):
            say(f"{kept} of {len(images)} label maps are kept: the same command goes on")
            raise
    if failures:
        raise UserError(
            f"{len(failures)} of {len(images)} images cannot be read, and nothing was packed: "
            f"{listed(failures, SHOWN)}; get them anew and start the same command again"
        )


def _save(png: Path, label: np.ndarray) -> None:
    try:
        overlays.save_label_map(png, label)
    except UserError as error:
        raise UserError(
            f"{error}; what was labelled stays: mend this and start the same command again"
        ) from error


def _check_all(pngs: Mapping[str, Path], sizes: Mapping[str, Size]) -> None:
    flaws = []
    with progress_bar("checking", len(pngs)) as bar:
        for name, png in pngs.items():
            flaw = _flaw(png, sizes[name])
            flaws += [flaw] if flaw else []
            bar.advance()
    if flaws:
        raise UserError(
            f"{len(flaws)} of {len(pngs)} label maps are not what the server takes, and nothing "
            f"was packed: {listed(flaws, SHOWN)}"
        )


def _flaw(png: Path, size: Size) -> str:
    """What is wrong with a label map, in words; "" where nothing is."""
    try:
        data = read_bytes(png)
        image = open_image(data, str(png))
    except UserError as error:
        return str(error)
    if image.mode != "P" or png_bits(data) != 8 or not data.endswith(PNG_END):
        return f"{png}: not a whole indexed PNG of 8 bits"
    of_png = image.height, image.width
    if of_png != size:
        sizes = f"{width_by_height(of_png)} pixels, but its image has {width_by_height(size)}"
        return f"{png}: {sizes}"
    highest = int(np.asarray(image).max())
    if highest >= len(VOC_CLASSES):
        return f"{png}: class {highest}, but VOC's go to {len(VOC_CLASSES) - 1}"
    if image.getpalette() != voc_palette().flatten().tolist():
        return f"{png}: other colours than VOC's"
    return ""


def _pack(part: Path, output: Path, place: str) -> None:
    """What `tar -czf results.tgz results` packs, without the times and owners: the same label maps
    give the same bytes."""
    folders = [Path(place), *Path(place).parents][-2::-1]  # results, results/VOC2012, …
    with (
        part.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for folder in folders:
            entry = tarfile.TarInfo(folder.as_posix())
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for png in sorted((output / place).glob("*.png")):
            entry = tarfile.TarInfo(f"{place}/{png.name}")
            entry.size, entry.mode = png.stat().st_size, 0o644
            with png.open("rb") as content:
                tar.addfile(entry, content)


# --- Before anything is written


def _check_network(run: Predictor, competition: str) -> None:
    if len(run.label_maps) != 1 or run.channels != 3:
        raise UserError(
            f"the network has {run.channels} channels and {len(run.label_maps)} label maps; for "
            "VOC's server it must make one label map of RGB alone"
        )
    if run.class_names != VOC_CLASSES:
        pairs = zip(run.class_names, VOC_CLASSES, strict=False)
        unlike = [f"{index} is {ours}" for index, (ours, voc) in enumerate(pairs) if ours != voc]
        raise UserError(
            f"the network has {len(run.class_names)} classes{', of which ' if unlike else ''}"
            f"{listed(unlike, SHOWN)}; it must have VOC's {len(VOC_CLASSES)}, in VOC's order"
        )
    outside = _outside_data(run.config)
    if competition == "comp5" and outside:
        raise UserError(
            f"comp5 is for networks trained on VOC's own images and masks alone, and of this one "
            f"{outside}: give --competition=comp6"
        )


def _outside_data(config: Config) -> str:
    """What tells that a run has seen more than VOC's own images and masks; "" if nothing does."""
    if config.data.name != "voc":
        return f"config.data.name is {config.data.name}"
    for start in config.init.split(",") if config.init else ():
        if not (Path(start) / "run.json").exists():  # weights made elsewhere
            return f"config.init is {start}"
        further = _outside_data(read_settings(Path(start)).config)
        if further:
            return f"config.init is {start}, whose {further}"
    return ""


def _voc_folder(root: Path) -> Path:
    with contextlib.suppress(UserError):
        folder = find_folder(root)
        if folder:
            return folder
    raise UserError(
        f"--voc_submission={root}: holds no VOCdevkit/VOC2012 with its {LISTS}; unpack the "
        f"archives of VOC there; the test images are in {TEST_ARCHIVE}"
    )


def _listed_images(folder: Path, split: str) -> dict[str, Path]:
    """The images of a list by their names."""
    path = folder / LISTS / f"{split}.txt"
    if not path.is_file():
        held = ", ".join(sorted(entry.stem for entry in path.parent.glob("*.txt"))) or "none"
        raise UserError(
            f"{path} is missing (lists there: {held}): unpack over VOCdevkit {TEST_ARCHIVE}, or "
            "try it on images that have masks, --split=val"
        )
    names = read_names(read_bytes(path), str(path))
    images = {name: folder / "JPEGImages" / f"{name}.jpg" for name in names}
    missing = [image.name for image in images.values() if not image.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(images)} images of {path} are missing in "
            f"{folder / 'JPEGImages'} ({listed(missing, SHOWN)}): those of test are in "
            f"{TEST_ARCHIVE}"
        )
    return images


def _sizes(images: Mapping[str, Path]) -> dict[str, Size]:
    """Height and width of each image, by its header."""
    sizes = {}
    for name, path in images.items():
        size = header_size(path)
        if size is None:
            raise UserError(f"{path}: no image, damaged, or far too large: get it anew")
        sizes[name] = size
    return sizes


def _check_space(output: Path, sizes: Iterable[Size]) -> None:
    needed = sum(height * width for height, width in sizes) // PIXELS_PER_BYTE
    exists = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    free = shutil.disk_usage(exists).free
    if free < needed:
        raise UserError(
            f"--output={output}: {free / 1e6:.1f} MB are free there, and the label maps may take "
            f"{needed / 1e6:.1f} MB: make room or give another"
        )


def _claim(output: Path, run: Predictor, method: str) -> None:
    """Notes which network the label maps are of, or checks that those there are of the same."""
    path = output / "submission.json"
    made_by = {"step": run.step, "method": method, "network": run.digest}
    if any((output / "results").rglob("*.png")):
        try:
            held = json.loads(path.read_text())
        except (OSError, ValueError):
            held = None
        if held != made_by:
            theirs = (
                f"step {held.get('step')} ({held.get('method')})"
                if isinstance(held, dict)
                else "an unknown network"
            )
            raise UserError(
                f"{output / 'results'} holds label maps of {theirs}, not of this network at step "
                f"{run.step} ({method}): give another --output, or remove that folder"
            )
        return
    write_whole(path, lambda part: part.write_text(json.dumps(made_by, indent=2) + "\n"))


def _check_strays(folder: Path, split: str, expected: set[str]) -> None:
    for unfinished in folder.glob(f".*{UNFINISHED}"):  # of a start that was killed
        unfinished.unlink()
    strays = sorted(entry.name for entry in folder.iterdir() if entry.name not in expected)
    if strays:
        raise UserError(
            f"{folder} holds {len(strays)} files of which {split}.txt says nothing "
            f"({listed(strays, SHOWN)}): remove them, or give another --output"
        )
