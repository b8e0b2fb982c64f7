"""Examines a data set before training and lists everything that is wrong with it.

    python -m fcn_jax.doctor --config=configs/folder.py --config.data.root=DIR [--output=FILE]
    python -m fcn_jax.doctor --config.data.name=folder --config.data.root=DIR

Reads every image and mask as training does. Prints the image sizes, the share of pixels of each
class, and the faults with a remedy for each. Faults are files that are missing, unreadable or do
not fit together, masks that JPEG or resizing has damaged, identical images in two splits, and
classes without a pixel. Also suggests class weights and a crop, and draws the faulty images and an
example of each class to FILE (PNG, JPEG or TIFF; doctor_NAME.png by default). Your own folders and
VOC are read from their raw files, other data sets from their prepared records. The data set is not
changed.

    python -m fcn_jax.doctor --config=FILE --augmented [--output=FILE]

draws instead the first ten samples that training with these settings would see, augmented on the
device by training's own code, to doctor_NAME_augmented.png; of volumes three orthogonal views.

The exit status is 0 if there is no fault, else 1. Remarks, which may be intended, are not faults.
"""

from absl import flags

from fcn_jax.terminal import cli

if __name__ == "__main__":  # --help and mistakes in flags do not wait for the imports below
    flags.DEFINE_string("output", None, "picture to write (default: doctor_NAME.png)")
    flags.DEFINE_bool(
        "augmented", False, "draw ten augmented training samples instead of examining the set"
    )
    cli.begin(with_config=True)

import errno
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import ExifTags, Image
from rich.text import Text

from fcn_jax.config import Config
from fcn_jax.data import folder, images
from fcn_jax.data.raw import Note
from fcn_jax.doctor import report
from fcn_jax.doctor.advice import advise
from fcn_jax.doctor.examine import exif_value
from fcn_jax.doctor.kinds import Finding, group_by_kind
from fcn_jax.doctor.set_checks import check_set
from fcn_jax.doctor.subject import Subject, open_subject
from fcn_jax.doctor.survey import Survey
from fcn_jax.doctor.volumes import examine_volumes
from fcn_jax.errors import UserError
from fcn_jax.pictures import contact_sheet
from fcn_jax.terminal.atomic_files import write_whole
from fcn_jax.terminal.console import open_console
from fcn_jax.terminal.progress import progress_bar, say

MAX_FAULTY_SHOWN = 24
"""The picture shows at most this many faulty images."""
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
SOFTWARE = "fcn_jax.doctor"
"""Value of the EXIF tag `Software` in the doctor's pictures. Other files are not overwritten."""


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r} (see --help)")
    config, output = flags.FLAGS.config, flags.FLAGS.output
    name = config.data.name.replace("/", "_")
    if config.data.name in ("folder", "volumes"):
        name = Path(config.data.root or "").resolve().name
    if flags.FLAGS.augmented:
        draw_augmented(config, Path(output or f"doctor_{name}_augmented.png"))
    else:
        diagnose(config, Path(output or f"doctor_{name}.png"))


def draw_augmented(config: Config, output: Path) -> None:
    """Draws the first samples that training would see.

    Raises:
      UserError: the data set or `output` cannot be used.
    """
    from fcn_jax.doctor.augmented import SAMPLES, augmented_entries  # imports JAX

    config.check()
    check_output(output)
    sheet = contact_sheet.draw(augmented_entries(config))
    if sheet is None:
        raise UserError(f"split {config.data.train_split} of {config.data.name} has no images")
    save_picture(sheet, output)
    say(f"the first {SAMPLES} samples of seed {config.seed}: {output}")


def diagnose(config: Config, output: Path) -> None:
    """Examines a data set, prints the result and draws the picture.

    Raises:
      UserError: the data set has faults, or the data set or `output` cannot be used.
    """
    config.check()
    check_output(output)
    if config.data.ndim == 3:
        lines, pictures = examine_volumes(config.data)
        _finish(len(lines), pictures, output, config.data.root or config.data.name)
        return
    with open_subject(config.data) as subject:
        console = open_console()
        where = f" in {config.data.root}" if config.data.root else ""
        console.print(Text(f"data set: {config.data.name}{where}"), soft_wrap=True)
        survey, findings = examine(subject, config)
        report.print_statistics(console, survey)
        report.print_findings(console, findings)
        report.print_advice(console, advise(survey, config))
        faults = [finding for finding in findings if finding.is_fault]
        entries = _sheet_entries(subject, survey, faults)
        _finish(len(faults), entries, output, config.data.root or config.data.name)


def _finish(faults: int, entries: Iterable[contact_sheet.Entry], output: Path, place: str) -> None:
    """Draws the picture; raises UserError if there are faults or the picture cannot be written."""
    errors = []
    sheet = contact_sheet.draw(entries)
    if sheet is not None:
        try:
            save_picture(sheet, output)
            say(f"picture: {output}")
        except UserError as error:  # for example a full disk; the faults still count
            errors.append(str(error))
    if faults:
        noun = "fault" if faults == 1 else "faults"
        errors.append(f"{faults} {noun} in {place}")
    else:
        say("no faults")
    if errors:
        raise UserError("; ".join(errors))


def examine(subject: Subject, config: Config) -> tuple[Survey, list[Finding]]:
    """Reads and checks all images of a data set in several threads.

    Returns:
      Statistics of the images, and the faults and remarks.
    """
    train_splits = _split_names(config.data.train_split)
    notes = list(subject.notes)
    for split in dict.fromkeys([*train_splits, *_split_names(config.data.eval_split)]):
        if split not in subject.splits:
            is_list = config.data.name == "folder" and split in folder.SPLITS
            available = ", ".join(subject.splits) or "none"
            where = f"{split}.txt" if is_list else split
            notes.append(Note("split_missing", where, f"the set's splits: {available}"))
    reports = []
    total = subject.num_images
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress_bar("examining", total) as bar:
        for index, image in enumerate(pool.map(subject.examine, range(total))):
            reports.append(image)
            notes += [note._replace(images=(index,)) for note in image.notes]
            bar.advance()
    survey = Survey(subject.label_maps, subject.splits, train_splits, reports, subject.is_part)
    return survey, group_by_kind(
        [*notes, *check_set(survey)], is_folder=config.data.name == "folder"
    )


def check_output(path: Path) -> None:
    """Checks that a picture can be written to `path`, so that errors come before the data is read.

    Raises:
      UserError: `path` cannot be written, its suffix is not in `FORMATS`, or it is a file that the
        doctor did not draw.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--output (={path}) must end in one of {', '.join(FORMATS)}")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        parents = path.absolute().parents
        tempfile.TemporaryFile(dir=next(parent for parent in parents if parent.exists())).close()
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}); give another --output=FILE"
        ) from error
    if path.exists() and not is_own_picture(path):
        raise UserError(
            f"{path} exists and is not a picture that the doctor drew; remove it, or give another "
            "--output=FILE"
        )


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a picture that `is_own_picture` recognises."""
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = SOFTWARE
    file_format = FORMATS[path.suffix.lower()]
    write_whole(path, lambda part: picture.save(part, file_format, exif=exif))


def is_own_picture(path: Path) -> bool:
    """Returns whether the doctor drew this picture."""
    software = images.read_header(path, lambda image: exif_value(image, ExifTags.Base.Software))
    return software == SOFTWARE


def _split_names(expression: str) -> tuple[str, ...]:
    """Returns the split names in a TFDS expression: train and val for 'train[:10%]+val'."""
    return tuple(part.partition("[")[0].strip() for part in expression.split("+"))


def _sheet_entries(
    subject: Subject, survey: Survey, faults: list[Finding]
) -> Iterator[contact_sheet.Entry]:
    """Loads the faulty images, then for each class the image with the largest share of it."""
    titles: dict[int, list[str]] = {}
    for finding in faults:
        for index in finding.images:
            titles.setdefault(index, []).append(finding.title)
    for index, found in itertools.islice(titles.items(), MAX_FAULTY_SHOWN):
        for label_map in subject.label_maps:
            entry = subject.load(index, label_map)
            caption = f"{entry.caption}: {'; '.join(found)}"
            yield entry._replace(caption=caption, is_faulty=True)
    for label_map, class_names in subject.label_maps.items():
        for label, (share, index) in sorted(survey.clearest_examples(label_map).items()):
            if label < len(class_names):
                entry = subject.load(index, label_map)
                caption = f"{entry.caption}: {100 * share:.3g} % {class_names[label]}"
                yield entry._replace(caption=caption)


if __name__ == "__main__":
    cli.run(main)
