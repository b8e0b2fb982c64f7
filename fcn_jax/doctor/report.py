"""Prints statistics, findings and advice to the terminal."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.doctor.advice import Advice
from fcn_jax.doctor.kinds import Finding
from fcn_jax.doctor.survey import Survey
from fcn_jax.errors import listed, printable, width_by_height

PLACES_SHOWN = 5


def print_statistics(console: Console, survey: Survey) -> None:
    """Prints the numbers of images, their sizes and modes, and the classes of each label map."""
    counts = Counter(report.split for report in survey.reports)
    splits = " · ".join(f"{split} {counts[split]:,}" for split in survey.splits)
    console.print(Text(f"images: {splits or 'none'}", "bold"))
    sizes = survey.sizes(survey.splits)
    distinct = len(np.unique(sizes, axis=0))
    if distinct == 1:
        console.print(f"width × height: all {width_by_height(sizes[0])}")
    elif distinct:
        (low, narrow), (high, wide) = sizes.min(axis=0), sizes.max(axis=0)
        median = width_by_height(np.median(sizes, axis=0).astype(int))
        console.print(
            f"width × height: {narrow} to {wide} × {low} to {high}, median {median}, "
            f"{distinct:,} different"
        )
    modes = Counter(report.mode for report in survey.reports if report.mode)
    shown = ", ".join(f"{mode} {count:,}" for mode, count in modes.most_common())
    console.print(f"modes: {shown or 'none'}")
    for label_map in survey.label_maps:
        if label_map:
            console.print(Text(f"label map {label_map}", "bold"))
        console.print(_class_table(survey, label_map))


def _class_table(survey: Survey, label_map: str) -> Table:
    """Builds a table of each class's share of the pixels (except void) and number of images."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("class", overflow="fold")
    for split in survey.splits:
        table.add_column(f"{split} %", justify="right", no_wrap=True)
        table.add_column("images", justify="right", no_wrap=True)
    by_split = [survey.statistics(label_map, (split,)) for split in survey.splits]
    names = dict(enumerate(survey.label_maps[label_map]))
    if not names:  # the list of classes is unusable: show the labels that occur
        present = survey.statistics(label_map, survey.splits).pixels[:IGNORE_INDEX]
        names = {label: f"class {label}" for label in np.flatnonzero(present).tolist()}
    for label, name in [*names.items(), (IGNORE_INDEX, "void")]:
        cells = []
        for statistics in by_split:
            counted = statistics.pixels if label == IGNORE_INDEX else statistics.pixels[:-1]
            share = 100 * statistics.pixels[label] / max(counted.sum(), 1)
            cells += [f"{share:.2f}" if share else "–", f"{statistics.images[label]:,}"]
        if label == IGNORE_INDEX:
            table.add_section()
        table.add_row(str(label), Text(printable(name)), *cells)
    return table


def print_findings(console: Console, findings: Iterable[Finding]) -> None:
    """Prints each finding with the first places and the remedy."""
    for finding in findings:
        sign, style = ("✗", "bold red") if finding.is_fault else ("·", "bold")
        console.print(Text(f"{sign} {finding.title} ({len(finding.places):,})", style))
        console.print(Padding.indent(Text(printable(listed(finding.places, PLACES_SHOWN))), 4))
        console.print(Padding.indent(Text(f"→ {finding.remedy}", "dim"), 4))


def print_advice(console: Console, advice: list[Advice]) -> None:
    """Prints each suggested setting with its reason."""
    if advice:
        console.print(Text("suggested", "bold"))
    for setting, reason in advice:
        if setting is not None:
            console.print(Text(f"  {setting}"), soft_wrap=True)  # on one line, for copying
        console.print(Padding.indent(Text(reason, "dim"), 4))
