"""The kinds of faults and remarks, each with a title and a remedy.

A fault stops training or silently spoils it. A remark may be intended.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import NamedTuple

from fcn_jax.data.raw import Note


class Kind(NamedTuple):
    title: str
    remedy: str


def _parse(table: str) -> dict[str, Kind]:
    """Reads entries of a line "name: title" and indented lines of remedy."""
    kinds = {}
    for entry in re.split(r"\n(?=\w)", table.strip()):
        head, *remedy = entry.splitlines()
        name, title = head.split(": ", maxsplit=1)
        kinds[name] = Kind(title, " ".join(line.strip() for line in remedy))
    return kinds


FAULTS = _parse("""
classes: unusable lists of classes
    write one class name per line, class 0 first (usually 'background'), each name once
image_without_mask: images without a mask
    add the mask or remove the image; names must match, including case: a.png for a.jpg
mask_without_image: masks without an image
    add the image or remove the mask; names must match, including case: a.png for a.jpg
channels_missing: images without a file of extra channels
    add a file with the image's name, or remove its folder from config.data.extra_channels
annotation: annotations that cannot be used
    correct them in the annotation tool, or the file that is named, and export again
several_files: names with several files
    keep one; the ending does not distinguish them
list_unreadable: unreadable lists of images
    save the list as plain UTF-8 text, one image name per line
listed_missing: list entries without an image
    correct the list: one name of a file in images/ per line, with or without its ending
listed_twice: images listed twice
    delete the second entry; it would count double
split_empty: empty splits
    list images there, or delete the list
split_missing: splits that the settings name and the set does not have
    add the missing list (one image name per line), or set config.data.train_split and
    config.data.eval_split to existing splits
image_unreadable: unreadable images
    open the file in a viewer; copy it again from its source, or remove the image
mask_unreadable: unreadable masks
    open the file in a viewer; copy it again from its source, or remove the image
channels_unreadable: unusable extra channels
    follow the message, or copy the file again from its source
reader_failed: files whose reader raises an error
    correct the function of the data set that reads them, or the files
reader_labels: masks whose reader returns no class indices
    return integers (h, w) from the function that reads the masks: 0 to the number of classes minus
    1, and 255 for void
record_unusable: unusable records
    follow the message
mask_size: masks that differ in size from their image
    export the mask at the image's size; if you must resize it, use nearest neighbours
mask_turned: masks drawn on a rotated photo
    the photo's EXIF data asks viewers to rotate it, which training does not do; rotate the stored
    pixels (exiftran -ai, or Pillow's ImageOps.exif_transpose) and save the photo
mask_jpeg: masks saved as JPEG
    JPEG changes pixel values and therefore classes; export the masks again, as PNG
mask_was_jpeg: masks that were once saved as JPEG
    stray values surround the contours (resizing with cubic interpolation can look alike), and
    saving as PNG does not remove them; export the masks again from the labelling tool
mask_interpolated: masks resized with interpolation
    the contours contain values between those on either side, which are other classes (a JPEG of low
    quality can look alike); resize the originals with nearest neighbours (Image.Resampling.NEAREST,
    cv2.INTER_NEAREST), and draw masks without anti-aliasing
mask_colours: masks in colour, without a palette
    define the class of each colour: --config.data.mask_palette=voc for VOC's colours, or =FILE with
    a line 'R G B' for each class, in the order of the class names
mask_stray_colours: masks with colours that are not in the palette
    add the colours to the palette's file, or correct the masks
mask_mode: masks whose pixel format cannot store classes
    save them as 8-bit grey PNG
label_outside: masks with labels that are not classes
    labels go from 0 to the number of classes minus 1, and 255 is void; convert labels that start at
    1 or are grey levels (0, 128, …), or add the missing names to the classes
foreground_255: masks of 0 and 255 only
    255 is void, which is neither trained on nor scored; save the foreground as 1
foreground_255_some: masks of 0 and 255 only, in a set whose other masks contain classes
    255 is void, which is neither trained on nor scored; save the number of the class instead
mask_void: masks that are entirely void
    such images are neither trained on nor scored; draw the mask or remove the image
same_image_split: images in two splits
    keep each image in one split; otherwise training images are scored
same_image_masks: duplicate images with different masks
    keep the correct mask; the network cannot learn both
class_untrained: classes without a pixel in the training splits
    a network predicts only classes that it was trained on; add such images to the training split,
    or remove the class
channels_differ: folders of extra channels that mix colour and grey
    save all files of a folder in one format
channels_size: extra channels that differ in size from their image
    resize them to the image's size
""")

REMARKS = _parse("""
part_of_voc: a part of VOC 2012
    name the part together with any score, and do not compare it with published scores
class_absent: classes that a split lacks
    they cannot be learnt or scored there; mIoU is the mean over the classes present
class_rare: classes with less than 0.1 % of the training pixels
    more images of these classes help most; class weights come next (see below)
thin_class: a class that occurs only in thin lines between two others
    correct if it is meant as a border; otherwise the masks were resized with interpolation
palettes_differ: indexed masks whose colour for a class differs from the first mask's
    check in the picture that they show the same classes; some programs number the colours of each
    file differently: then save the masks as RGB and map colours with config.data.mask_palette
foreground_255_maybe: masks of 0 and 255 only, with areas of 255
    correct if these areas are to be ignored: 255 is void; if not, save the number of their class
mostly_void: masks that are more than half void
    correct if most of the image is to be ignored
same_image: duplicate images in one split
    they count double; keep one
exif_turned: photos with a rotation in their EXIF data
    training does not apply it, because masks match the stored pixels; check in the picture that
    these masks fit, and rotate new photos before you label them
channels_coloured: folders of extra channels in colour
    each file adds three channels to RGB, which is right for HHA; save depth as grey
file_ignored: files that are not recognised as images
    if they belong to the set, save them as JPEG or PNG in images/ itself, not in a subfolder
image_unannotated: images without annotations
    they are not used; annotate them (an image without objects, too, needs its file), or remove them
image_unlisted: images that no list names
    they are not used; to use them, add them to train.txt, val.txt or test.txt
image_large: images much larger than the others
    in training every image is placed on a canvas that holds the largest; shrink these images with
    their masks, or set config.data.canvas_px: of larger images it shows a random part
image_small: images with a side below 32 pixels
    the coarsest features have a single position there; enlarge the images
image_flat: images of a single colour
    check that they were exported completely
image_16_bits: images of more than 8 bits per channel
    only the upper 8 of 16 bits are used; scale the range that matters to 8 bits and save that
""")

KINDS = FAULTS | REMARKS

REMEDIES_WITHOUT_LISTS = {
    "split_missing": "set config.data.train_split and config.data.eval_split to existing splits",
    "split_empty": "add images to these splits, or remove the splits",
    "image_without_mask": "add the mask or remove the image",
    "mask_colours": "define the class of each colour by the `palette` of the RawDataset",
    "mask_stray_colours": "add the colours to the palette of the data set, or correct the masks",
    "palettes_differ": "check in the picture that they show the same classes; some programs number "
    "the colours of each file differently: then save the masks as RGB and give the RawDataset a "
    "`palette`",
}
"""Remedies for data sets that are not a folder of `images/`, `masks/` and lists of images."""

MAX_IMAGES = 3
OTHER_FAULTS_FIRST = "correct the other faults first, which may hide pixels; then: "


@dataclasses.dataclass(frozen=True)
class Finding:
    """All notes of one kind.

    places: the files, splits or classes concerned, each once, with the detail in brackets.
    images: indices of the first images concerned, for the picture.
    """

    kind: str
    places: tuple[str, ...]
    images: tuple[int, ...]
    remedy: str

    @property
    def title(self) -> str:
        return KINDS[self.kind].title

    @property
    def is_fault(self) -> bool:
        return self.kind in FAULTS


def group_by_kind(notes: Iterable[Note], *, is_folder: bool) -> list[Finding]:
    """Returns a finding for each kind that occurs, in the order of `KINDS`: faults first.

    Args:
        notes: the notes of the whole data set.
        is_folder: the data set is "folder", which `config.data` and lists of images describe.
    """
    by_kind: dict[str, list[Note]] = {kind: [] for kind in KINDS}
    for note in notes:
        by_kind[note.kind].append(note)
    findings: list[Finding] = []
    for kind, same_kind in by_kind.items():
        if not same_kind:
            continue
        places: dict[str, None] = {}
        images: dict[int, None] = {}
        for note in same_kind:
            places[f"{note.where} ({note.detail})" if note.detail else note.where] = None
            if len(images) < MAX_IMAGES:  # all images of a note, so that pairs stay together
                images |= dict.fromkeys(note.images[:MAX_IMAGES])
        remedy = KINDS[kind].remedy
        if not is_folder:
            remedy = REMEDIES_WITHOUT_LISTS.get(kind, remedy)
        if kind == "class_untrained" and findings:
            remedy = OTHER_FAULTS_FIRST + remedy
        findings.append(Finding(kind, tuple(places), tuple(images), remedy))
    return findings
