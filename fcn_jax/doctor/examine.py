"""Examines one image with its masks: what it contains, and what is wrong with it."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from fcn_jax.data.channels import decode_channels
from fcn_jax.data.images import image_pixels, is_lossy, open_image, png_bits
from fcn_jax.data.labels import IGNORE_INDEX, LABELS_SHOWN, by_map
from fcn_jax.data.masks import as_labels, mask_labels
from fcn_jax.data.palettes import format_colour, voc_palette
from fcn_jax.data.raw import Note, ReaderError, Sample, SourceFile
from fcn_jax.data.splits import Split
from fcn_jax.data.voc import VOC_CLASSES
from fcn_jax.doctor.artefacts import Artefact, find_artefact
from fcn_jax.errors import UserError, listed, width_by_height

UPRIGHT = 1  # EXIF orientation of an image that needs no rotation
QUARTER_TURNS = range(5, 9)  # EXIF orientations that swap height and width
MAX_COLOURS = 8
VOID_BLOCK_SIDE = 1 / 32  # of the mask's shorter side; borders between classes are narrower
MIN_VOID_BLOCK_PX = 5


@dataclasses.dataclass(slots=True)
class MaskReport:
    """Contents of a mask.

    pixels: the number of pixels of each value that occurs. digest: hash of the values.
    artefact: traces of interpolation or JPEG although every value is a class, so that only the
    whole set can decide. colours: of an indexed file, RGB of each value that occurs.
    """

    name: str
    pixels: Mapping[int, int]
    digest: bytes
    artefact: Artefact | None = None
    colours: Mapping[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    has_void_area: bool = False


@dataclasses.dataclass(slots=True)
class ImageReport:
    """Contents of an image and its masks, about a kilobyte for any size of image.

    size: height and width; None if the image is unreadable. mode: Pillow's. digest: hash of the
    pixels. masks: by label map, without those that are unreadable, spoilt or of another size.
    channels: by folder, the number of extra channels and whether all of them are equal.
    """

    name: str
    split: str
    size: tuple[int, int] | None = None
    mode: str = ""
    digest: bytes = b""
    masks: dict[str, MaskReport] = dataclasses.field(default_factory=dict)
    channels: dict[str, tuple[int, bool]] = dataclasses.field(default_factory=dict)
    notes: list[Note] = dataclasses.field(default_factory=list)

    def note(self, kind: str, where: str, detail: str = "") -> None:
        self.notes.append(Note(kind, where, detail))


def examine_sample(
    sample: Sample, num_classes: Mapping[str, int], palette: np.ndarray | None = None
) -> ImageReport:
    """Reads an image with its masks and extra channels.

    Args:
      sample: the unread files.
      num_classes: by label map; 0 if unknown.
      palette: colour of each class, uint8 (k, 3), if the masks are in colour.
    """
    report = ImageReport(sample.name, sample.split)
    orientation = _examine_image(report, sample.image)
    masks_fit = True
    for label_map, count in num_classes.items():
        if label_map not in sample.masks:
            where = f"in {label_map}/" if label_map else ""
            report.note("image_without_mask", sample.image.name, where)
            continue
        file = sample.masks[label_map]
        mask, size = _examine_mask(report, file, count, palette)
        if report.size is not None and size is not None and size != report.size:
            masks_fit = False
            turned = orientation in QUARTER_TURNS and size == report.size[::-1]
            _note_sizes(report, "mask_turned" if turned else "mask_size", file.name, size)
        elif mask is not None:
            report.masks[label_map] = mask
    if orientation != UPRIGHT and masks_fit:
        report.note("exif_turned", sample.image.name)
    for folder, file in sample.channels.items():
        _examine_channels(report, folder, file)
    return report


def examine_record(split: Split, index: int, label_maps: tuple[str, ...]) -> ImageReport:
    """Reads a prepared record. Only its first fault is found, because decoding stops there."""
    try:
        record = split[index]
    except UserError as error:
        report = ImageReport(f"{split.name}[{index}]", split.name)
        report.note("record_unusable", report.name, str(error))
        return report
    name, image = record["name"], record["image"]
    report = ImageReport(name, split.name, image.shape[:2], "RGB", _digest(image))
    if _is_flat(image):
        report.note("image_flat", name)
    for label_map, label in by_map(record["label"], label_maps).items():
        mask = _examine_label(report, label, name, IGNORE_INDEX)
        if mask is not None:
            report.masks[label_map] = mask
    return report


def has_void_area(label: np.ndarray) -> bool:
    """Returns whether a label map, (h, w), has void that is wider than a border.

    Searches adjacent blocks of `VOID_BLOCK_SIDE` of the shorter side. A square of twice a block's
    side always contains one; a line narrower than a block never does.
    """
    height, width = label.shape
    side = max(MIN_VOID_BLOCK_PX, round(min(height, width) * VOID_BLOCK_SIDE))
    void = label[: height // side * side, : width // side * side] == IGNORE_INDEX
    blocks = void.reshape(height // side, side, width // side, side)
    return bool(blocks.all(axis=(1, 3)).any())


def exif_value(image: Image.Image, tag: int, default: Any = None) -> Any:
    """Returns the value of an EXIF tag, or the default if there is none or EXIF is damaged."""
    try:
        return image.getexif().get(tag, default)
    except Exception:  # damaged EXIF data raise many types of exceptions
        return default


def _examine_image(report: ImageReport, file: SourceFile) -> int:
    """Fills in the image's part of the report and returns its EXIF orientation."""
    try:
        data = file.load_bytes()
        image = open_image(data, file.name)
        pixels = image_pixels(image, file.name)
    except UserError as error:
        _note_unreadable(report, "image_unreadable", file, error)
        return UPRIGHT
    report.size, report.mode = (image.height, image.width), image.mode
    report.digest = _digest(pixels)
    if png_bits(data) == 16 or image.mode.startswith("I"):
        report.note("image_16_bits", file.name)
    if _is_flat(pixels):
        report.note("image_flat", file.name)
    return exif_value(image, ExifTags.Base.Orientation, UPRIGHT)


def _examine_mask(
    report: ImageReport, file: SourceFile, num_classes: int, palette: np.ndarray | None
) -> tuple[MaskReport | None, tuple[int, int] | None]:
    """Returns the mask, if it contains class indices, and its height and width, if readable."""
    try:
        content = file.load()
        if not isinstance(content, bytes):
            try:
                label = as_labels(content, file.name)
            except UserError as error:
                report.note("reader_labels", file.name, _reason(error, file.name))
                return None, None
            mask = _examine_label(report, label, file.name, num_classes)
            return mask, (label.shape[0], label.shape[1])
        image = open_image(content, file.name)
    except UserError as error:
        _note_unreadable(report, "mask_unreadable", file, error)
        return None, None
    size = image.height, image.width
    if is_lossy(image, content):
        report.note("mask_jpeg", file.name)
        return None, size
    try:
        label = mask_labels(image, content, file.name, palette)
    except UserError as error:
        _note_why_no_labels(report, image, file.name, palette, _reason(error, file.name))
        return None, size
    mask = _examine_label(report, label, file.name, num_classes)
    if mask is not None and image.mode == "P" and palette is None:
        colours = np.reshape(image.getpalette() or [], (-1, 3)).tolist()
        mask.colours = {
            value: tuple(colours[value])
            for value in mask.pixels
            if value < len(colours) and value != IGNORE_INDEX
        }
    return mask, size


def _examine_label(
    report: ImageReport, label: np.ndarray, name: str, num_classes: int
) -> MaskReport | None:
    """Examines a decoded mask, uint8 (h, w). Returns None if its values are spoilt."""
    counts = np.bincount(label.reshape(-1))
    pixels = {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}
    artefact = find_artefact(label)
    stray = [value for value in pixels if num_classes <= value != IGNORE_INDEX]
    if num_classes and stray:
        if artefact is not None:
            report.note(artefact.kind, name)
            return None
        report.note("label_outside", name, listed(stray, LABELS_SHOWN))
    void_share = pixels.get(IGNORE_INDEX, 0) / label.size
    if void_share == 1:
        report.note("mask_void", name)
    elif void_share > 0.5:
        report.note("mostly_void", name, f"{100 * void_share:.0f} %")
    return MaskReport(name, pixels, _digest(label), artefact, has_void_area=has_void_area(label))


def _note_why_no_labels(
    report: ImageReport, image: Image.Image, name: str, palette: np.ndarray | None, reason: str
) -> None:
    """Notes why a readable mask contains no class indices."""
    if image.mode.startswith("I"):
        report.note("label_outside", name, reason)
        return
    if image.mode not in ("P", "RGB", "RGBA"):
        report.note("mask_mode", name, image.mode)
        return
    colours = np.asarray(image.convert("RGB"))
    artefacts = [found for plane in range(3) if (found := find_artefact(colours[..., plane]))]
    if artefacts:
        report.note(artefacts[0].kind, name)
    if palette is None:
        report.note("mask_colours", name, _most_frequent_colours(colours))
    elif not artefacts:
        report.note("mask_stray_colours", name, reason.partition(" (R G B)")[0])


def _examine_channels(report: ImageReport, folder: str, file: SourceFile) -> None:
    try:
        channels = decode_channels(file.load_bytes(), file.name)
    except UserError as error:
        _note_unreadable(report, "channels_unreadable", file, error)
        return
    size = channels.shape[0], channels.shape[1]
    if report.size is not None and size != report.size:
        _note_sizes(report, "channels_size", file.name, size)
    report.channels[folder] = channels.shape[-1], bool((channels == channels[..., :1]).all())


def _note_unreadable(report: ImageReport, kind: str, file: SourceFile, error: UserError) -> None:
    kind = "reader_failed" if isinstance(error, ReaderError) else kind
    report.note(kind, file.name, _reason(error, file.name))


def _note_sizes(report: ImageReport, kind: str, name: str, size: tuple[int, int]) -> None:
    assert report.size is not None
    sizes = f"{width_by_height(size)}, its image {width_by_height(report.size)}"
    report.note(kind, name, sizes)


def _most_frequent_colours(colours: np.ndarray) -> str:
    """Lists the colours of a mask, (h, w, 3), the most frequent first."""
    distinct, counts = np.unique(colours.reshape(-1, 3), axis=0, return_counts=True)
    first = distinct[np.argsort(-counts, kind="stable")][:MAX_COLOURS]
    shown = "; ".join(format_colour(colour) for colour in first)
    if len(distinct) > MAX_COLOURS:
        return f"{shown}; … {len(distinct)} colours"
    voc = voc_palette()[[*range(len(VOC_CLASSES)), IGNORE_INDEX]]
    only_voc = set(map(tuple, distinct.tolist())) <= set(map(tuple, voc.tolist()))
    return shown + ("; all in VOC's palette" if only_voc else "")


def _is_flat(image: np.ndarray) -> bool:
    """Returns whether the RGB channels of an image, (h, w, c), have a single colour."""
    return bool((image[..., :3] == image[0, 0, :3]).all())


def _digest(pixels: np.ndarray) -> bytes:
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.tobytes())
    return digest.digest()


def _reason(error: UserError, name: str) -> str:
    """Returns an error's reason, without the file's name before it and the remedy after it."""
    message = str(error)
    if message.startswith(name):
        reason = message.removeprefix(f"{name}: ")
    else:
        reason = message.partition(": ")[2]
    return reason.partition(";")[0]
