"""Checks that need the reports of all images: duplicates, outliers, missing classes."""

from collections import defaultdict

import numpy as np

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.data.palettes import format_colour
from fcn_jax.data.raw import Note
from fcn_jax.doctor.examine import MaskReport
from fcn_jax.doctor.survey import Survey
from fcn_jax.errors import width_by_height

RARE_SHARE = 0.001  # of the training pixels
LARGE_FACTOR = 4  # of the median image's area
SMALL_PX = 32
MAX_DUPLICATES_SHOWN = 4
# Masks of 0 and 255 only may be intended if they are fewer than this, in number or as a share, or
# if at least `VOID_AREA_SHARE` of the other masks have areas of void too. Among 882 masks of VOC
# 2012 none has only 0 and 255, and a quarter has an area of void.
MIN_BINARY_MASKS = 2
MIN_BINARY_SHARE = 0.05
VOID_AREA_SHARE = 0.5


def check_set(survey: Survey) -> list[Note]:
    """Returns what only the whole set shows."""
    notes = [*_duplicates(survey), *_unusual_sizes(survey), *_mixed_channels(survey)]
    for label_map in survey.label_maps:
        for check in (_artefacts, _palettes, _labels):
            notes += check(survey, label_map)
    return notes


def _duplicates(survey: Survey) -> list[Note]:
    by_content: dict[str | bytes, list[int]] = defaultdict(list)
    for index, report in enumerate(survey.reports):
        if report.size is None:
            continue
        # Images of a single colour, such as black slices of a volume, are equal by nature: such an
        # image is only a duplicate of itself, if two lists name it.
        is_flat = any(note.kind == "image_flat" for note in report.notes)
        by_content[report.name if is_flat else report.digest].append(index)
    notes = []
    for indices in by_content.values():
        if len(indices) == 1:
            continue
        reports = {index: survey.reports[index] for index in indices}
        shown = [f"{reports[index].split} {reports[index].name}" for index in indices]
        places = " = ".join(shown[:MAX_DUPLICATES_SHOWN])
        if len(shown) > MAX_DUPLICATES_SHOWN:
            places += f" = … ({len(shown)} in all)"
        first = indices[0]
        elsewhere = [i for i in indices if reports[i].split != reports[first].split]
        if elsewhere:
            notes.append(Note("same_image_split", places, images=(first, elsewhere[0])))
        else:
            notes.append(Note("same_image", places))
        for label_map in survey.label_maps:
            masks = {
                report.masks[label_map].digest: index
                for index, report in reports.items()
                if label_map in report.masks
            }
            if len(masks) > 1:
                pair = tuple(masks.values())[:2]
                notes.append(Note("same_image_masks", places, images=pair))
                break
    return notes


def _unusual_sizes(survey: Survey) -> list[Note]:
    sizes = [(report.name, report.size) for report in survey.reports if report.size is not None]
    median = np.median([height * width for _, (height, width) in sizes]) if sizes else 0
    notes = []
    for name, size in sizes:
        if size[0] * size[1] > LARGE_FACTOR * median:
            notes.append(Note("image_large", name, width_by_height(size)))
        if min(size) < SMALL_PX:
            notes.append(Note("image_small", name, width_by_height(size)))
    return notes


def _mixed_channels(survey: Survey) -> list[Note]:
    notes = []
    for folder in dict.fromkeys(name for report in survey.reports for name in report.channels):
        reports = [report for report in survey.reports if folder in report.channels]
        coloured = [report for report in reports if report.channels[folder][0] == 3]
        grey = [report for report in reports if report.channels[folder][0] == 1]
        if coloured and grey:
            detail, rarer = min(("in colour", coloured), ("grey", grey), key=lambda x: len(x[1]))
            notes += [Note("channels_differ", f"{folder}/{r.name}", detail) for r in rarer]
        elif coloured:
            all_equal = all(report.channels[folder][1] for report in coloured)
            detail = "the three are equal in all files: grey, saved as RGB" if all_equal else ""
            notes.append(Note("channels_coloured", f"{folder}/", detail))
    return notes


def _artefacts(survey: Survey, label_map: str) -> list[Note]:
    found = [(i, mask, mask.artefact) for i, mask in survey.masks(label_map) if mask.artefact]
    thin = survey.thin_class(label_map)
    if thin is None:
        return [Note(artefact.kind, mask.name, images=(i,)) for i, mask, artefact in found]
    names = survey.label_maps[label_map]
    shown = names[thin] if thin < len(names) else f"class {thin}"
    return [Note("thin_class", shown, f"in {len(found)} masks, {found[0][1].name} first")]


def _palettes(survey: Survey, label_map: str) -> list[Note]:
    notes = []
    first_colours: dict[int, tuple[int, ...]] = {}
    for _, mask in survey.masks(label_map):
        for label, colour in mask.colours.items():
            first = first_colours.setdefault(label, colour)
            if colour != first:
                detail = f"{label} is {format_colour(colour)}, not {format_colour(first)}"
                notes.append(Note("palettes_differ", mask.name, detail))
                break
    return notes


def _labels(survey: Survey, label_map: str) -> list[Note]:
    pixels = survey.statistics(label_map, survey.splits).pixels
    only_0_and_255 = set(np.flatnonzero(pixels).tolist()) == {0, IGNORE_INDEX}
    if only_0_and_255 and len(survey.label_maps[label_map]) > 1:
        where = f"label map {label_map}" if label_map else "all masks"
        detail = f"{100 * pixels[IGNORE_INDEX] / pixels.sum():.3g} % of the pixels are 255"
        return [Note("foreground_255", where, detail, tuple(_binary_masks(survey, label_map)))]
    return [*_some_foreground_255(survey, label_map), *_rare_classes(survey, label_map)]


def _binary_masks(survey: Survey, label_map: str) -> dict[int, MaskReport]:
    """Returns the masks that contain 0 and 255 only, by the index of their image."""
    masks = survey.masks(label_map)
    return {index: mask for index, mask in masks if mask.pixels.keys() == {0, IGNORE_INDEX}}


def _some_foreground_255(survey: Survey, label_map: str) -> list[Note]:
    binary = _binary_masks(survey, label_map)
    binary = {index: mask for index, mask in binary.items() if mask.has_void_area}
    with_classes = [
        mask for _, mask in survey.masks(label_map) if mask.pixels.keys() - {0, IGNORE_INDEX}
    ]
    if not binary or not with_classes:
        return []
    void_areas = sum(mask.has_void_area for mask in with_classes)
    is_fault = len(binary) >= max(
        MIN_BINARY_MASKS, MIN_BINARY_SHARE * (len(binary) + len(with_classes))
    ) and void_areas < VOID_AREA_SHARE * len(with_classes)
    kind = "foreground_255_some" if is_fault else "foreground_255_maybe"
    notes: list[Note] = []
    for index, mask in binary.items():
        share = mask.pixels[IGNORE_INDEX] / sum(mask.pixels.values())
        others = "" if notes else f"; {len(with_classes):,} other masks contain classes"
        notes.append(Note(kind, mask.name, f"{100 * share:.3g} % are 255{others}", (index,)))
    return notes


def _rare_classes(survey: Survey, label_map: str) -> list[Note]:
    names = survey.label_maps[label_map]
    suffix = f" of {label_map}" if label_map else ""
    notes = []
    trained = survey.statistics(label_map, survey.train_splits).pixels[: len(names)]
    for name, pixels in zip(names, trained.tolist(), strict=True):
        share = pixels / max(trained.sum(), 1)
        if pixels == 0 and trained.any() and not survey.is_part:
            notes.append(Note("class_untrained", name + suffix))
        elif 0 < share < RARE_SHARE:
            notes.append(Note("class_rare", name + suffix, f"{100 * share:.2g} %"))
    for split in survey.splits:
        if split in survey.train_splits and not survey.is_part:
            continue  # noted above as a fault
        pixels = survey.statistics(label_map, (split,)).pixels
        absent = [name for label, name in enumerate(names) if not pixels[label]]
        if pixels.any() and absent:
            notes.append(Note("class_absent", split + suffix, ", ".join(absent)))
    return notes
