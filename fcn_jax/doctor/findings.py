"""What can be wrong with a data set: each kind with its name, its weight and its remedy.

A fault would stop training or spoil it in silence; a remark is worth knowing and may be meant so.
"""

import dataclasses
from collections.abc import Iterable
from typing import Literal, NamedTuple

from fcn_jax.data.raw import Note

Severity = Literal["fault", "remark"]


class Kind(NamedTuple):
    severity: Severity
    title: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Finding:
    """All sightings of one kind.

    files: where it was seen, each once, with what was seen in brackets.
    """

    kind: str
    severity: Severity
    title: str
    files: tuple[str, ...]
    remedy: str


_NAMES = (
    "a mask bears its image's name, to the letter: masks/a.png for images/a.jpg, not A.png or "
    "a_mask.png"
)
_AGAIN = "open the file in a viewer; copy it anew from where it came, or take the image out"
_LOSSLESS = "make the masks anew from what they were drawn with, and save them as PNG"

FAULTS = {
    "classes": (
        "class lists that cannot be used",
        "write one name a line, from class 0 (mostly 'background') on, each once",
    ),
    "image_without_mask": ("images without a mask", f"draw it or take the image out; {_NAMES}"),
    "mask_without_image": (
        "masks without an image",
        f"add the image or take the mask out; {_NAMES}",
    ),
    "channels_missing": (
        "images without a file of further channels",
        "add it, under the image's name, or leave its folder out of config.data.extra_channels",
    ),
    "several_files": (
        "names with several files",
        "keep one of them; the endings do not tell them apart",
    ),
    "list_unreadable": (
        "lists that cannot be read",
        "save them as plain text in UTF-8, the name of an image on each line",
    ),
    "listed_missing": (
        "list entries without an image",
        "mend the list: a name of a file in images/ on each line, with or without its ending",
    ),
    "listed_twice": ("images listed twice", "strike the second out; it would count double"),
    "split_empty": ("empty splits", "list images there, or delete the list"),
    "split_missing": (
        "splits that the settings name and the set does not have",
        "add what is named (a list has the name of an image on each line), or set "
        "config.data.train_split and config.data.eval_split to splits that are there",
    ),
    "image_unreadable": ("images that cannot be read", _AGAIN),
    "mask_unreadable": ("masks that cannot be read", _AGAIN),
    "channels_unreadable": ("further channels that cannot be used", f"as it says, or {_AGAIN}"),
    "record_unusable": ("records that cannot be used", "as it says"),
    "mask_size": (
        "masks of another size than their image",
        "export the mask at the image's size; if it must be resized, then with nearest neighbours",
    ),
    "mask_turned": (
        "masks drawn on a turned photo",
        "the photo is stored lying, with a note (EXIF) to turn it, which is not applied here; turn "
        "the pixels themselves (exiftran -ai, or Pillow's ImageOps.exif_transpose) and save it",
    ),
    "mask_jpeg": (
        "masks saved as JPEG",
        f"JPEG changes pixel values, and with them the classes; {_LOSSLESS}",
    ),
    "mask_was_jpeg": (
        "masks that were a JPEG once",
        "stray values are strewn about the contours (resizing with cubic interpolation can look "
        f"alike), and saving it as PNG again does not take them out; {_LOSSLESS}",
    ),
    "mask_interpolated": (
        "masks resized with interpolation",
        "along the contours lie values between those on either side, which are other classes "
        "(a JPEG of low quality can look alike); resize from the originals with nearest neighbours "
        "(Image.Resampling.NEAREST, cv2.INTER_NEAREST), and draw masks without anti-aliasing",
    ),
    "mask_colours": (
        "masks in colour, without a palette",
        "say which class a colour is: --config.data.mask_palette=voc for VOC's colours, or =FILE "
        "with a line 'R G B' for each class, in the order of the class names",
    ),
    "mask_stray_colours": (
        "masks with colours that the palette lacks",
        "add them to the palette's file, or mend the masks",
    ),
    "mask_mode": ("masks of a kind that holds no classes", "save them as 8-bit grey PNG"),
    "label_outside": (
        "masks with labels outside the classes",
        "labels go from 0 to the number of classes less one, 255 is void; if they were exported "
        "from 1 on or as greys (0, 128, …), map them; else add the names that are missing to the "
        "list of classes",
    ),
    "foreground_255": (
        "masks of 0 and 255 alone",
        "255 is void, neither trained on nor scored: a network would learn nothing but class 0; "
        "save the foreground as 1",
    ),
    "foreground_255_some": (
        "masks of 0 and 255 alone, where others hold classes",
        "255 is void, neither trained on nor scored: of these only the background would be learnt; "
        "save what is 255 in them as its class's number",
    ),
    "mask_void": (
        "masks that are void throughout",
        "nothing is learnt from them, nor scored; draw them or take the image out",
    ),
    "same_image_split": (
        "images that lie in two splits",
        "keep each in one; else what was trained on is scored",
    ),
    "same_image_masks": (
        "images that lie there twice, with different masks",
        "keep the mask that is right; the network cannot learn both",
    ),
    "class_untrained": (
        "classes without a pixel to train on",
        "a network never says what it has not seen; add images of them to the training split, or "
        "take them out of the classes",
    ),
    "channels_differ": (
        "further channels, some in colour and some grey",
        "save the whole folder alike",
    ),
    "channels_size": (
        "further channels of another size than their image",
        "bring them to its size",
    ),
}

REMARKS = {
    "part_of_voc": (
        "a part of VOC 2012",
        "name the part where you name a score, and set it beside no published one",
    ),
    "class_absent": (
        "classes that a split lacks",
        "they cannot be learnt there, or scored; mIoU is taken over the classes present",
    ),
    "class_rare": (
        "classes with less than 0.1 % of the pixels to train on",
        "more images of them help most; then class weights, see below",
    ),
    "thin_class": (
        "a class that lies only in thin lines between two others",
        "right where it is meant as a border; else the masks were resized with interpolation",
    ),
    "palettes_differ": (
        "indexed masks in which a class has another colour than in the first",
        "see in the picture that they show the same classes; some programs number the colours of "
        "each file anew, and then the indices mean nothing: map the colours, saved as RGB, with "
        "config.data.mask_palette",
    ),
    "foreground_255_maybe": (
        "masks of 0 and 255 alone, with areas of 255",
        "right where those areas are not to count: 255 is void; where they are the foreground, "
        "save them as its class's number",
    ),
    "mostly_void": (
        "masks that are void for more than half",
        "right where most of the image is not to count",
    ),
    "same_image": (
        "images that lie there twice, in one split",
        "they count double; keep one",
    ),
    "exif_turned": (
        "photos with a note to turn them (EXIF)",
        "it is not applied, because masks lie as the stored pixels do; see in the picture that "
        "these masks fit, and turn new photos before you label them",
    ),
    "channels_coloured": (
        "folders of further channels in colour",
        "three channels each go behind RGB, as is right for HHA; depth and the like, save as grey",
    ),
    "file_ignored": (
        "files that are not taken for images",
        "if they belong there, save them as JPEG or PNG in images/ itself, not in folders below it",
    ),
    "image_unlisted": (
        "images that no list names",
        "they are left out; add them to train.txt, val.txt or test.txt if they should not be",
    ),
    "image_large": (
        "images much larger than the rest",
        "in training every image lies on a canvas that holds the largest; shrink them, with their "
        "masks, or set config.data.canvas_px, on which larger images then show a random part",
    ),
    "image_small": (
        "images with a side below 32 pixels",
        "the coarsest features have a single cell there; enlarge them, or take fewer strides",
    ),
    "image_flat": ("images of one colour throughout", "see whether they were exported whole"),
    "image_16_bits": (
        "images of more than 8 bits a channel",
        "of 16 bits the upper 8 are kept; scale the range that matters to 0…255 and save it with 8",
    ),
}

KINDS = {
    **{kind: Kind("fault", *told) for kind, told in FAULTS.items()},
    **{kind: Kind("remark", *told) for kind, told in REMARKS.items()},
}


UNCOUNTED = frozenset(
    {
        "image_without_mask",
        "mask_without_image",
        "listed_missing",
        "split_empty",
        "mask_unreadable",
        "record_unusable",
        "mask_size",
        "mask_turned",
        "mask_jpeg",
        "mask_was_jpeg",
        "mask_interpolated",
        "mask_colours",
        "mask_stray_colours",
        "mask_mode",
        "label_outside",
        "foreground_255_some",
        "mask_void",
    }
)
"""Faults that may be why a class has no pixel: those drawn there were not counted as it."""

MEND_FIRST = "mend the other faults first: what masks in fault hold was not counted; then "


def gather(notes: Iterable[Note]) -> list[Finding]:
    """The sightings by kind, faults first, in the order of `KINDS`."""
    places: dict[str, dict[str, None]] = {kind: {} for kind in KINDS}
    for note in notes:
        places[note.kind][f"{note.where} ({note.detail})" if note.detail else note.where] = None
    uncounted = any(places[kind] for kind in UNCOUNTED)
    return [
        Finding(
            kind,
            *KINDS[kind][:2],
            files=tuple(seen),
            remedy=(MEND_FIRST if kind == "class_untrained" and uncounted else "")
            + KINDS[kind].remedy,
        )
        for kind, seen in places.items()
        if seen
    ]
