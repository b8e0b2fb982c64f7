"""Looks at a data set before anything is trained on it, and tells all that is wrong at once.

    python -m fcn_jax.doctor --config=configs/folder.py --config.data.root=DIR [--output=FILE]
    python -m fcn_jax.doctor --config.data.name=folder --config.data.root=DIR

Reads every image and mask as training would: sizes, labels and their share for each class, files
that are missing, cannot be read or do not fit together, masks that JPEG or resizing has spoilt,
images that lie in two splits (pixel for pixel), classes without a pixel. Says how to mend each
fault, which class weights and crop suit the set, and draws the faulty images and one of each class
to FILE (PNG, JPEG or TIFF; doctor_NAME.png if not given). Own folders and VOC are looked at as they
lie, other sets by their prepared records. Nothing is changed.

Exit status: 0 where there is no fault, 1 where there are any; remarks are no faults.
"""

from absl import flags

from fcn_jax.terminal import cli

if __name__ == "__main__":  # --help and mistakes in flags do not wait for what is imported below
    flags.DEFINE_string("output", None, "picture to write (default: doctor_NAME.png)")
    cli.begin(with_config=True)

import collections
import errno
import itertools
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fcn_jax.config import Config
from fcn_jax.data import folder
from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.data.raw import Note
from fcn_jax.doctor.advice import Advice, advise
from fcn_jax.doctor.examine import Seen
from fcn_jax.doctor.findings import KINDS, Finding, gather
from fcn_jax.doctor.subject import Subject, open_subject
from fcn_jax.doctor.survey import Survey
from fcn_jax.errors import UserError, listed, width_by_height
from fcn_jax.pictures import contact_sheet
from fcn_jax.terminal.atomic_files import write_whole
from fcn_jax.terminal.progress import progress_bar, say

FILES_SHOWN = 5
FAULTY_SHOWN = 24  # images in the picture
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
AHEAD = 4  # images read ahead, for each thread


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r} (see --help)")
    options = flags.FLAGS
    config = options.config
    own = config.data.name == "folder"
    name = Path(config.data.root).resolve().name if own else config.data.name.replace("/", "_")
    output = Path(options.output or f"doctor_{name}.png")
    findings, unwritten = diagnose(config, output)
    faults = sum(finding.severity == "fault" for finding in findings)
    failures = [unwritten] if unwritten else []
    if faults:
        place = config.data.root or config.data.name
        failures.append(f"{faults} {'fault' if faults == 1 else 'faults'} in {place}")
    if failures:
        raise UserError("; ".join(failures))


def diagnose(config: Config, output: Path) -> tuple[list[Finding], str]:
    """Prints what a data set is like and what is wrong with it, and draws the picture to `output`.

    Returns:
      The findings; and why the picture could not be written, "" where it was.

    Raises:
      UserError: a setting cannot be, there is nothing to look at, or no picture at `output`.
    """
    config.check()
    check_output(output)
    unwritten = ""
    with open_subject(config.data) as subject:
        console = Console(highlight=False)
        where = f" in {config.data.root}" if config.data.root else ""
        console.print(Text(f"data set: {config.data.name}{where}"), soft_wrap=True)
        survey, findings = examine(subject, config)
        _print_summary(console, survey)
        for severity, sign in (("fault", "✗"), ("remark", "·")):
            _print_findings(console, sign, [f for f in findings if f.severity == severity])
        _print_advice(console, advise(survey, config))
        picture = contact_sheet.draw(_entries(subject, survey))
        if picture is not None:
            try:
                write_whole(output, lambda part: picture.save(part, FORMATS[output.suffix.lower()]))
                say(f"picture: {output}")
            except UserError as error:  # a disk that has filled up: what was found is told still
                unwritten = str(error)
    if not any(finding.severity == "fault" for finding in findings):
        say("no faults")
    return findings, unwritten


def check_output(path: Path) -> None:
    """Whether a picture can be written there, before anything is read; leaves nothing behind.

    Raises:
      UserError: it cannot, or the ending is no picture's.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--output (={path}) must end in one of {', '.join(FORMATS)}")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        folders = path.absolute().parents
        tempfile.TemporaryFile(dir=next(place for place in folders if place.exists())).close()
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}); give another --output=FILE"
        ) from error


def examine(subject: Subject, config: Config) -> tuple[Survey, list[Finding]]:
    """Reads all images of a data set, several at a time."""
    train_splits = _split_names(config.data.train_split)
    survey = Survey(subject.label_maps, subject.splits, train_splits, is_part=subject.is_part)
    notes = list(subject.notes)
    for wanted in dict.fromkeys([*train_splits, *_split_names(config.data.eval_split)]):
        if wanted not in subject.splits:
            notes.append(_missing_split(wanted, subject.splits, own=config.data.name == "folder"))
    with progress_bar("examining", len(subject.split_of)) as bar:
        for index, seen in enumerate(_examined(subject)):
            survey.add(index, subject.split_of[index], seen)
            bar.advance()
    return survey, gather([*notes, *survey.notes()])


def _examined(subject: Subject) -> Iterator[Seen]:
    """In order, and few ahead of the one that is wanted: a large set is never held whole."""
    threads = os.cpu_count() or 1
    indices = iter(range(len(subject.split_of)))
    pending: collections.deque[Future[Seen]] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for index in itertools.islice(indices, AHEAD * threads):
                pending.append(pool.submit(subject.examine, index))
            while pending:
                yield pending.popleft().result()
                for index in itertools.islice(indices, 1):
                    pending.append(pool.submit(subject.examine, index))
        finally:
            for future in pending:
                future.cancel()


def _missing_split(wanted: str, splits: tuple[str, ...], *, own: bool) -> Note:
    """In an own folder it is a file that is missing."""
    name = f"{wanted}.txt" if own and wanted in folder.SPLITS else wanted
    present = f" but {' and '.join(splits)}" if splits else ""
    return Note("split_missing", name, f"the set has no splits{present}")


def _split_names(expression: str) -> tuple[str, ...]:
    """The splits in what TFDS takes for one: train of 'train[:10%]', both of 'train+val'."""
    return tuple(part.partition("[")[0].strip() for part in expression.split("+"))


def _entries(subject: Subject, survey: Survey) -> Iterator[contact_sheet.Entry]:
    """Faulty images first, then for each class the one that shows most of it."""
    for index, kinds in itertools.islice(_faulty(survey).items(), FAULTY_SHOWN):
        titles = "; ".join(KINDS[kind].title for kind in kinds)
        for label_map, class_names in subject.label_maps.items():
            name, image, mask = subject.show(index, label_map)
            yield contact_sheet.Entry(f"{name}: {titles}", image, mask, class_names, is_faulty=True)
    for label_map, class_names in subject.label_maps.items():
        for label, (share, index) in sorted(survey.samples[label_map].items()):
            if label < len(class_names):
                name, image, mask = subject.show(index, label_map)
                caption = f"{name}: {100 * share:.3g} % {class_names[label]}"
                yield contact_sheet.Entry(caption, image, mask, class_names, is_faulty=False)


def _faulty(survey: Survey) -> dict[int, list[str]]:
    """The kinds of fault of each image that is kept for the picture."""
    kinds: dict[int, list[str]] = {}
    for kind, indices in survey.faulty.items():
        for index in indices:
            kinds.setdefault(index, []).append(kind)
    return kinds


def _print_summary(console: Console, survey: Survey) -> None:
    splits = " · ".join(f"{split} {count:,}" for split, count in survey.images.items())
    console.print(Text(f"images: {splits or 'none'}", "bold"))
    sizes = np.array([size for of_split in survey.sizes.values() for size in of_split])
    if len(sizes):
        (low, narrow), (high, wide) = sizes.min(axis=0), sizes.max(axis=0)
        median = np.median(sizes, axis=0).astype(int)
        different = len(np.unique(sizes, axis=0))
        if different == 1:
            console.print(f"width × height: all {width_by_height(sizes[0])}")
        else:
            console.print(
                f"width × height: {narrow} to {wide} × {low} to {high}, median "
                f"{width_by_height(median)}, {different:,} different"
            )
    modes = ", ".join(f"{mode} {count:,}" for mode, count in survey.modes.most_common())
    console.print(f"modes: {modes or 'none'}")
    for label_map, class_names in survey.label_maps.items():
        if label_map:
            console.print(Text(f"label map {label_map}", "bold"))
        console.print(_class_table(survey, label_map, class_names))


def _class_table(survey: Survey, label_map: str, class_names: tuple[str, ...]) -> Table:
    """Share of the pixels, void left out, and images of each class in each split; then void's."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("class", overflow="fold")
    tallies = survey.tallies[label_map]
    for split in tallies:
        table.add_column(f"{split} %", justify="right", no_wrap=True)
        table.add_column("images", justify="right", no_wrap=True)
    names = dict(enumerate(class_names))
    if not names:  # the list of classes does not serve: whatever occurs
        pixels = sum((tally.pixels for tally in tallies.values()), np.zeros(256, np.int64))
        names = {
            label: f"class {label}" for label in np.flatnonzero(pixels[:IGNORE_INDEX]).tolist()
        }
    for label, name in [*names.items(), (IGNORE_INDEX, "void")]:
        cells = []
        for tally in tallies.values():
            of = tally.pixels.sum() if label == IGNORE_INDEX else tally.pixels[:IGNORE_INDEX].sum()
            share = 100 * tally.pixels[label] / max(of, 1)
            cells += [f"{share:.2f}" if share else "–", f"{tally.images[label]:,}"]
        if label == IGNORE_INDEX:
            table.add_section()
        table.add_row(str(label), Text(name), *cells)
    return table


def _print_findings(console: Console, sign: str, findings: list[Finding]) -> None:
    for finding in findings:
        count = len(finding.files)
        style = "bold red" if finding.severity == "fault" else "bold"
        console.print(Text(f"{sign} {finding.title} ({count:,})", style))
        console.print(Padding.indent(Text(listed(finding.files, FILES_SHOWN)), 4))
        console.print(Padding.indent(Text(f"→ {finding.remedy}", "dim"), 4))


def _print_advice(console: Console, advice: list[Advice]) -> None:
    if advice:
        console.print(Text("suggested", "bold"))
    for setting, why in advice:
        if setting:
            console.print(Text(f"  {setting}"), soft_wrap=True)  # in one line, to be copied
        console.print(Padding.indent(Text(why, "dim"), 4))


if __name__ == "__main__":
    cli.run(main)
