"""What one image with its masks is like, and what is wrong with it."""

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np
from PIL import ExifTags, Image

from fcn_jax.data.channels import decode_channels
from fcn_jax.data.images import image_pixels, is_lossy, open_image, png_bits
from fcn_jax.data.labels import IGNORE_INDEX, LABELS_SHOWN, VOC_CLASSES, by_map
from fcn_jax.data.masks import mask_labels
from fcn_jax.data.palettes import format_colour, voc_palette
from fcn_jax.data.raw import Note, Pair
from fcn_jax.data.records import UnreadFile
from fcn_jax.data.splits import Split
from fcn_jax.doctor.smears import Smear, find_smear
from fcn_jax.errors import UserError, listed, width_by_height

UPRIGHT = 1  # EXIF's value of an image that is not to be turned
QUARTER_TURNS = range(5, 9)  # those by which height and width change places
MAX_COLOURS = 8  # of a mask that are named
# Of a block of void, in a mask's shorter sides and pixels: a border between two classes has none.
AREA_SIDE = 1 / 32
MIN_AREA_PX = 5


@dataclasses.dataclass(frozen=True)
class SeenMask:
    """What is kept of a mask.

    counts: pixels of each value, int64 (256,). digest: of the values. smear: see `contours`; here
    of a mask whose labels are classes all the same, so that only the whole set can tell. colours:
    of an indexed file, R G B by value, as far as the values occur. void_area: whether void is
    anywhere more than a border.
    """

    name: str
    counts: np.ndarray
    digest: bytes
    smear: Smear | None
    colours: Mapping[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    void_area: bool = False


@dataclasses.dataclass(frozen=True)
class Seen:
    """What is kept of an image; little, whatever its size.

    size: height and width, or None of an image that cannot be read. mode: Pillow's. digest: of the
    decoded pixels. masks: by label map, where they are readable, not spoilt and of the image's
    size. lacks_mask: of any label map. channels: by folder, how many and whether all are alike.
    """

    name: str
    size: tuple[int, int] | None = None
    mode: str = ""
    digest: bytes = b""
    masks: Mapping[str, SeenMask] = dataclasses.field(default_factory=dict)
    lacks_mask: bool = False
    channels: Mapping[str, tuple[int, bool]] = dataclasses.field(default_factory=dict)
    notes: tuple[Note, ...] = ()


def examine_pair(
    pair: Pair, num_classes: Mapping[str, int], palette: np.ndarray | None = None
) -> Seen:
    """Reads an image and what goes with it.

    Args:
      pair: the raw files.
      num_classes: of each label map; 0 where unknown.
      palette: of masks in colour, uint8 (k, 3).
    """
    notes: list[Note] = []
    size, mode, digest, orientation = None, "", b"", UPRIGHT
    try:
        data = pair.image.read()
        opened = open_image(data, pair.image.name)
        pixels = image_pixels(opened, pair.image.name)
    except UserError as error:
        notes.append(Note("image_unreadable", pair.image.name, _reason(error, pair.image.name)))
    else:
        size, mode, digest = (opened.height, opened.width), opened.mode, _digest(pixels)
        orientation = _orientation(opened)
        if png_bits(data) == 16 or mode.startswith("I"):
            notes.append(Note("image_16_bits", pair.image.name))
        if _is_flat(pixels):
            notes.append(Note("image_flat", pair.image.name))
    seen_masks = {}
    fits = True
    for name, part in pair.masks.items():
        mask, mask_size = _examine_mask(part, num_classes[name], palette, notes)
        if size is not None and mask_size is not None and mask_size != size:
            fits = False
            turned = orientation in QUARTER_TURNS and mask_size == size[::-1]
            sizes = f"{width_by_height(mask_size)}, its image {width_by_height(size)}"
            notes.append(Note("mask_turned" if turned else "mask_size", part.name, sizes))
        elif mask is not None:
            seen_masks[name] = mask
    if orientation != UPRIGHT and fits:
        notes.append(Note("exif_turned", pair.image.name))
    return Seen(
        name=pair.name,
        size=size,
        mode=mode,
        digest=digest,
        masks=seen_masks,
        lacks_mask=num_classes.keys() != pair.masks.keys(),
        channels=_examine_channels(pair, size, notes),
        notes=tuple(notes),
    )


def examine_record(split: Split, index: int, label_maps: tuple[str, ...]) -> Seen:
    """Reads a prepared record; the first thing that is wrong with it stops its decoding."""
    try:
        record = split[index]
    except UserError as error:
        name = f"{split.name}[{index}]"
        return Seen(name, notes=(Note("record_unusable", name, str(error)),))
    name, image = record["name"], record["image"]
    notes = [Note("image_flat", name)] if _is_flat(image) else []
    masks = {
        label_map: mask
        for label_map, label in by_map(record["label"], label_maps).items()
        if (mask := _labelled(label, name, IGNORE_INDEX, notes))
    }
    return Seen(name, image.shape[:2], "RGB", _digest(image), masks, notes=tuple(notes))


def _examine_mask(
    part: UnreadFile, num_classes: int, palette: np.ndarray | None, notes: list[Note]
) -> tuple[SeenMask | None, tuple[int, int] | None]:
    """The mask, where it can be read as class indices, and its height and width."""
    try:
        content = part.read()
        if isinstance(content, np.ndarray):
            return _labelled(content, part.name, num_classes, notes), content.shape[:2]
        opened = open_image(content, part.name)
    except UserError as error:
        notes.append(Note("mask_unreadable", part.name, _reason(error, part.name)))
        return None, None
    size = opened.height, opened.width
    if is_lossy(opened, content):
        notes.append(Note("mask_jpeg", part.name))
        return None, size
    try:
        label = mask_labels(opened, content, part.name, palette)
    except UserError as error:
        notes += _why_no_labels(opened, part.name, palette, error)
        return None, size
    mask = _labelled(label, part.name, num_classes, notes)
    if mask is not None and opened.mode == "P" and palette is None:
        mask = dataclasses.replace(mask, colours=_palette_of(opened, mask.counts))
    return mask, size


def _labelled(label: np.ndarray, name: str, num_classes: int, notes: list[Note]) -> SeenMask | None:
    counts, smear = _counts(label), find_smear(label)
    stray = np.flatnonzero(counts[num_classes:IGNORE_INDEX]) + num_classes
    if num_classes and stray.size:
        if smear is not None:
            notes.append(smear_note(name, smear))
            return None
        notes.append(Note("label_outside", name, listed(stray.tolist(), LABELS_SHOWN)))
    if counts[IGNORE_INDEX] == label.size:
        notes.append(Note("mask_void", name))
    elif counts[IGNORE_INDEX] > label.size / 2:
        notes.append(Note("mostly_void", name, f"{100 * counts[IGNORE_INDEX] / label.size:.0f} %"))
    return SeenMask(name, counts, _digest(label), smear, void_area=has_void_area(label))


def has_void_area(label: np.ndarray) -> bool:
    """Whether a label map, (h, w), has void of more than a border's breadth.

    Looked for in blocks of `AREA_SIDE` of the shorter side that lie edge to edge: a square of
    twice a block's side is always found, what is narrower than a block never.
    """
    height, width = label.shape
    side = max(MIN_AREA_PX, round(min(height, width) * AREA_SIDE))
    void = label[: height // side * side, : width // side * side] == IGNORE_INDEX
    blocks = void.reshape(height // side, side, width // side, side)
    return bool(blocks.all(axis=(1, 3)).any())


def _why_no_labels(
    opened: Image.Image, name: str, palette: np.ndarray | None, error: UserError
) -> list[Note]:
    """What is wrong with a mask that is an image, but holds no class indices."""
    if opened.mode.startswith("I"):
        return [Note("label_outside", name, _reason(error, name))]
    if opened.mode not in ("P", "RGB", "RGBA"):
        return [Note("mask_mode", name, opened.mode)]
    colours = np.asarray(opened.convert("RGB"))
    smears = [smear for plane in range(3) if (smear := find_smear(colours[..., plane]))]
    notes = [smear_note(name, smears[0])] if smears else []
    if palette is None:
        notes.append(Note("mask_colours", name, _commonest(colours)))
    elif not smears:
        notes.append(
            Note("mask_stray_colours", name, _reason(error, name).partition(" (R G B)")[0])
        )
    return notes


def smear_note(name: str, smear: Smear) -> Note:
    """The fault that a mask's contours show."""
    return Note("mask_was_jpeg" if smear.cause == "jpeg" else "mask_interpolated", name)


def _examine_channels(
    pair: Pair, size: tuple[int, int] | None, notes: list[Note]
) -> dict[str, tuple[int, bool]]:
    seen = {}
    for name, part in pair.channels.items():
        try:
            channels = decode_channels(part.read(), part.name)
        except UserError as error:
            notes.append(Note("channels_unreadable", part.name, _reason(error, part.name)))
            continue
        if size is not None and channels.shape[:2] != size:
            sizes = f"{width_by_height(channels.shape[:2])}, its image {width_by_height(size)}"
            notes.append(Note("channels_size", part.name, sizes))
        alike = bool((channels == channels[..., :1]).all())
        seen[name] = channels.shape[-1], alike
    return seen


def _orientation(opened: Image.Image) -> int:
    try:
        return opened.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:  # damaged notes raise many things, and say nothing of the pixels
        return UPRIGHT


def _palette_of(opened: Image.Image, counts: np.ndarray) -> dict[int, tuple[int, ...]]:
    colours = np.reshape(opened.getpalette() or [], (-1, 3)).tolist()
    used = np.flatnonzero(counts[:IGNORE_INDEX]).tolist()
    return {label: tuple(colours[label]) for label in used if label < len(colours)}


def _commonest(colours: np.ndarray) -> str:
    """The colours of a mask, (h, w, 3), the most frequent first."""
    found, counts = np.unique(colours.reshape(-1, 3), axis=0, return_counts=True)
    first = found[np.argsort(-counts, kind="stable")][:MAX_COLOURS]
    shown = "; ".join(format_colour(colour) for colour in first)
    if len(found) > MAX_COLOURS:
        return f"{shown}; … {len(found)} colours"
    of_voc = {tuple(colour) for colour in voc_palette()[[*range(len(VOC_CLASSES)), IGNORE_INDEX]]}
    return shown + ("; all of VOC's" if {tuple(colour) for colour in found} <= of_voc else "")


def _counts(label: np.ndarray) -> np.ndarray:
    return np.bincount(label.reshape(-1), minlength=IGNORE_INDEX + 1)


def _is_flat(image: np.ndarray) -> bool:
    """Whether the RGB of an image, (h, w, c), is one colour throughout."""
    return bool((image[..., :3] == image[0, 0, :3]).all())


def _digest(pixels: np.ndarray) -> bytes:
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.tobytes())
    return digest.digest()


def _reason(error: UserError, name: str) -> str:
    """An error of a file that is named beside it, and whose remedy follows."""
    told = str(error)
    reason = told.removeprefix(f"{name}: ") if told.startswith(name) else told.partition(": ")[2]
    return reason.partition(";")[0]
