"""Predicts PASCAL VOC 2012's test images and packs them for its evaluation server.

    python -m fcn_jax.predict --workdir=DIR --output=OUT --voc_submission=VOCdevkit

writes, for each image that VOC2012/ImageSets/Segmentation/test.txt lists,

    OUT/results/VOC2012/Segmentation/comp6_test_cls/ID.png   class indices, in VOC's colours
    OUT/results.tgz                                          all of these: the file to upload
    OUT/submission.json                                      the network that predicted them

Every PNG is read back before anything is packed. The same command resumes after an interruption.

There are two competitions: comp5 for networks trained on VOC's own images alone, comp6 for networks
that were trained on any other data except the test images; ImageNet weights and SBD's masks are
other data. Rules, layout and file format: VOC2012 development kit, sections 5.2 and 5.3, whose own
scoring reads results/VOC2012/Segmentation/COMPETITION_SPLIT_cls/ID.png.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from fcn_jax.config import Config
from fcn_jax.data.canvases import Size
from fcn_jax.data.images import header_size, read_bytes, read_image
from fcn_jax.data.voc import LISTS, MASKS, VOC_CLASSES, find_folder, read_names
from fcn_jax.errors import ArgumentError, UserError, listed
from fcn_jax.inference import voc_archive
from fcn_jax.inference.trained import Predictor
from fcn_jax.inference.voc_archive import MAX_SHOWN
from fcn_jax.pictures import overlays
from fcn_jax.runs import read_settings
from fcn_jax.terminal.atomic_files import UNFINISHED, write_text, write_whole
from fcn_jax.terminal.progress import progress_bar, say

SERVER = "http://host.robots.ox.ac.uk:8080"
TEST_IMAGES = 1_456
TEST_ARCHIVE = f"VOC2012test.tar ({SERVER}, after signing in)"

PIXELS_PER_BYTE = 8
"""Label maps of 187,500 pixels take 1 to 6 kB, and as much again in the archive; this is twice as
much."""


def submit(
    predictor: Predictor,
    root: Path,
    output: Path,
    *,
    split: str,
    competition: str,
    predict: Callable[[np.ndarray], np.ndarray],
    method: str,
) -> None:
    """Predicts the images of a list, checks the PNGs and packs them.

    Args:
        predictor: the network that `predict` uses.
        root: the folder VOC2012, or one that contains it.
        output: the folder for results/, results.tgz and submission.json.
        split: the list, ImageSets/Segmentation/SPLIT.txt; "test" for the server.
        competition: "comp5" or "comp6".
        predict: uint8 (h, w, 3), RGB, to class indices, uint8 (h, w).
        method: description of `predict`; label maps of different methods are not mixed.

    Raises:
        UserError: the network does not have VOC's classes; images are missing or damaged; `output`
            holds files of another network, or has no room; a label map is not what the server
            accepts.
        ArgumentError: comp5 does not permit the network.
    """
    _check_network(predictor, competition)
    folder = _voc_folder(root)
    images = _listed_images(folder, split)
    sizes = _sizes(images)
    results = f"results/VOC2012/Segmentation/{competition}_{split}_cls"
    pngs = {name: output / results / f"{name}.png" for name in images}
    _check_space(output, sizes.values())
    predictor.choose_canvases(np.array(list(sizes.values())))
    archive = output / "results.tgz"
    try:
        _claim(output, predictor, method)
        (output / results).mkdir(parents=True, exist_ok=True)
        _check_other_files(output / results, split, {png.name for png in pngs.values()})
        archive.unlink(missing_ok=True)  # of an earlier start, perhaps with another list
    except OSError as error:
        raise UserError(
            f"cannot write to {error.filename or output / results} ({error.strerror or error})"
        ) from error
    _predict_missing(images, pngs, sizes, predict)
    voc_archive.check_all(pngs, sizes)
    write_whole(archive, lambda part: voc_archive.pack(part, output, results))
    say(f"{archive}: {len(images)} label maps, {archive.stat().st_size / 1e6:.1f} MB, of {results}")
    if not all((folder / MASKS / f"{name}.png").exists() for name in images):
        if len(images) != TEST_IMAGES:
            say(f"note: {split}.txt lists {len(images)} images; the server expects {TEST_IMAGES}")
        say(f"upload {archive} to {SERVER}, VOC2012, Segmentation, {competition}")


def _predict_missing(
    images: Mapping[str, Path],
    pngs: Mapping[str, Path],
    sizes: Mapping[str, Size],
    predict: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Writes the PNGs that do not exist or have a flaw."""
    missing = [name for name in images if voc_archive.flaw_of(pngs[name], sizes[name])]
    failures = []
    done = len(images) - len(missing)
    with progress_bar("predicting", len(images), initial=done) as bar:
        try:
            for name in missing:
                try:
                    image = read_image(images[name])
                except UserError as error:
                    failures.append(str(error))
                else:
                    _save(pngs[name], predict(image))
                    done += 1
                bar.advance()
        except (KeyboardInterrupt, SystemExit):
            say(f"{done} of {len(images)} label maps are kept: the same command resumes")
            raise
    if failures:
        raise UserError(
            f"{len(failures)} of {len(images)} images cannot be read, and nothing was packed: "
            f"{listed(failures, MAX_SHOWN)}; fetch them again and start the same command again"
        )


def _save(png: Path, label: np.ndarray) -> None:
    try:
        overlays.save_label_map(png, label)
    except UserError as error:
        raise UserError(
            f"{error}; the other label maps are kept: correct this and start the same command again"
        ) from error


# --- checks before anything is written


def _check_network(predictor: Predictor, competition: str) -> None:
    if len(predictor.label_maps) != 1 or predictor.channels != 3:
        raise UserError(
            f"the network has {predictor.channels} channels and {len(predictor.label_maps)} label "
            "maps; VOC's server needs one label map of RGB alone"
        )
    class_names = predictor.class_names
    if class_names != VOC_CLASSES:
        pairs = zip(class_names, VOC_CLASSES, strict=False)
        unlike = [f"{index} is {ours}" for index, (ours, voc) in enumerate(pairs) if ours != voc]
        raise UserError(
            f"the network has {len(class_names)} classes{', of which ' if unlike else ''}"
            f"{listed(unlike, MAX_SHOWN)}; it must have VOC's {len(VOC_CLASSES)}, in VOC's order"
        )
    other_data = _other_data(predictor.config)
    if competition == "comp5" and other_data:
        raise ArgumentError(
            "competition",
            competition,
            "must be comp6: comp5 is for networks trained on VOC's own images and masks alone, and "
            f"here {other_data}",
        )


def _other_data(config: Config) -> str:
    """Returns the setting that shows that a run used more than VOC's own data, or ""."""
    if config.data.name != "voc":
        return f"data.name is {config.data.name}"
    for start in config.init.split(",") if config.init else ():
        if not (Path(start) / "run.json").exists():  # weights of another project
            return f"init is {start}"
        other_data = _other_data(read_settings(Path(start)).config)
        if other_data:
            return f"init is {start}, whose {other_data}"
    return ""


def _voc_folder(root: Path) -> Path:
    with contextlib.suppress(UserError):
        folder = find_folder(root)
        if folder:
            return folder
    raise UserError(
        f"{root} holds no VOCdevkit/VOC2012 with its {LISTS}; unpack the archives of VOC there; "
        f"the test images are in {TEST_ARCHIVE}"
    )


def _listed_images(folder: Path, split: str) -> dict[str, Path]:
    """Returns the images of a list by name."""
    path = folder / LISTS / f"{split}.txt"
    if not path.is_file():
        lists = ", ".join(sorted(entry.stem for entry in path.parent.glob("*.txt"))) or "none"
        raise UserError(
            f"{path} is missing (lists there: {lists}): unpack over VOCdevkit {TEST_ARCHIVE}, or "
            "try it on images that have masks, the split val"
        )
    names = read_names(read_bytes(path), str(path))
    for name in names:
        if "/" in name:  # the server expects all label maps in one folder
            raise UserError(f"{path}: {name!r} is not the name of an image")
    images = {name: folder / "JPEGImages" / f"{name}.jpg" for name in names}
    missing = [image.name for image in images.values() if not image.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(images)} images of {path} are missing in "
            f"{folder / 'JPEGImages'} ({listed(missing, MAX_SHOWN)}): those of test are in "
            f"{TEST_ARCHIVE}"
        )
    return images


def _sizes(images: Mapping[str, Path]) -> dict[str, Size]:
    """Returns the height and width in each image's header."""
    sizes: dict[str, Size] = {}
    for name, path in images.items():
        size = header_size(path)
        if size is None:
            raise UserError(f"{path}: no image, damaged, or far too large: fetch it again")
        sizes[name] = size
    return sizes


def _check_space(output: Path, sizes: Iterable[Size]) -> None:
    needed = sum(height * width for height, width in sizes) // PIXELS_PER_BYTE
    existing = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{output}: {free / 1e6:.1f} MB are free there, and the label maps may take "
            f"{needed / 1e6:.1f} MB: free some, or give another output folder"
        )


def _claim(output: Path, predictor: Predictor, method: str) -> None:
    """Writes submission.json, or checks that the files in `output` are of the same network."""
    path = output / "submission.json"
    ours = {"step": predictor.step, "method": method, "network": predictor.digest}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        found = None
    if found == ours:
        return
    is_submission = isinstance(found, dict) and found.keys() == ours.keys()
    label_maps = next((output / "results").rglob("*.png"), None)
    if label_maps is not None:
        network = (
            f"step {found['step']} ({found['method']})" if is_submission else "an unknown network"
        )
        raise UserError(
            f"{output / 'results'} holds label maps of {network}, not of this network at step "
            f"{predictor.step} ({method}): give another output folder, or remove that folder"
        )
    for file in (path, output / "results.tgz"):
        if file.exists() and not is_submission:
            raise UserError(
                f"{file} exists and is not of a submission: give another output folder, or remove "
                "it"
            )
    write_text(path, json.dumps(ours, indent=2) + "\n")


def _check_other_files(folder: Path, split: str, expected: set[str]) -> None:
    for unfinished in folder.glob(f".*{UNFINISHED}"):  # of a start that was killed
        unfinished.unlink()
    others = sorted(entry.name for entry in folder.iterdir() if entry.name not in expected)
    if others:
        raise UserError(
            f"{folder} holds {len(others)} files that {split}.txt does not list "
            f"({listed(others, MAX_SHOWN)}): remove them, or give another output folder"
        )
