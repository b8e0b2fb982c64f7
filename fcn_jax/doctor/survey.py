"""What a whole data set is like: sizes, modes, the pixels of each class; and what only it shows."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping

import numpy as np

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.data.palettes import format_colour
from fcn_jax.data.raw import Note
from fcn_jax.doctor.examine import Seen, SeenMask, smear_note
from fcn_jax.doctor.findings import KINDS
from fcn_jax.doctor.smears import Smear
from fcn_jax.errors import width_by_height

RARE = 0.001  # of the pixels to train on
LARGE = 4  # times the area of the median image
SMALL_PX = 32
FAULTY_KEPT = 3  # images of each kind of fault, for the picture
# Masks of 0 and 255 alone among others that hold classes: fewer, or where as large a share of the
# others has areas of void too, may be meant so. Of VOC's 882 masks at hand none is of 0 and 255
# alone, and a quarter has an area of void.
MIN_BINARY = 2
BINARY = 0.05
VOID_AREAS = 0.5


@dataclasses.dataclass
class MapTally:
    """Of a label map in a split: pixels and images of each value, int64 (256,).

    pixels_with: pixels, void left out, of the images in which the value occurs.
    """

    pixels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    images: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    pixels_with: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))

    def add(self, counts: np.ndarray) -> None:
        self.pixels += counts
        self.images += counts > 0
        self.pixels_with[counts > 0] += counts[:IGNORE_INDEX].sum()

    def __add__(self, other: "MapTally") -> "MapTally":
        return MapTally(
            self.pixels + other.pixels,
            self.images + other.images,
            self.pixels_with + other.pixels_with,
        )


@dataclasses.dataclass(frozen=True)
class _Twin:
    """An image by its place; digests: of its masks, b"" where there is none."""

    index: int
    split: str
    name: str
    digests: tuple[bytes, ...]


class Survey:
    """Takes in one image after another; memory grows by some hundred bytes with each.

    label_maps: class names by label map; none where unknown. train_splits: those trained on.
    """

    def __init__(
        self,
        label_maps: Mapping[str, tuple[str, ...]],
        splits: tuple[str, ...],
        train_splits: tuple[str, ...],
        *,
        is_part: bool = False,
    ):
        self.label_maps = label_maps
        self.splits = splits
        self.train_splits = train_splits
        self.sizes: dict[str, list[tuple[int, int]]] = {split: [] for split in splits}
        self.images = dict.fromkeys(splits, 0)
        self.modes: Counter[str] = Counter()
        self.tallies = {name: {split: MapTally() for split in splits} for name in label_maps}
        self.samples: dict[str, dict[int, tuple[float, int]]] = {name: {} for name in label_maps}
        self.faulty: dict[str, list[int]] = defaultdict(list)
        self._is_part = is_part
        self._notes: list[Note] = []
        self._twins: dict[bytes, list[_Twin]] = defaultdict(list)
        self._named_sizes: list[tuple[str, tuple[int, int]]] = []
        self._channels: dict[str, dict[tuple[int, bool], list[str]]] = defaultdict(
            lambda: defaultdict(list)
        )
        # Masks with a smear that may yet be drawn so; counted apart until that is settled.
        self._smears: dict[str, list[tuple[int, str, Smear]]] = {name: [] for name in label_maps}
        self._held_back = {name: {split: MapTally() for split in splits} for name in label_maps}
        # Masks of 0 and 255 alone, and of those that hold classes, how many have areas of void.
        self._binary: dict[str, list[tuple[int, SeenMask]]] = {name: [] for name in label_maps}
        self._void_areas: dict[str, list[bool]] = {name: [] for name in label_maps}
        self._colours: dict[str, dict[int, tuple[int, ...]]] = {name: {} for name in label_maps}

    def add(self, index: int, split: str, seen: Seen) -> None:
        """Takes in the image of that index, by which the picture finds it again."""
        self.images[split] += 1
        self._notes += seen.notes
        for note in seen.notes:
            self._mark(note.kind, index)
        if seen.lacks_mask:  # the listing of the files has told of it
            self._mark("image_without_mask", index)
        if seen.size is not None:
            self.sizes[split].append(seen.size)
            self._named_sizes.append((seen.name, seen.size))
            self.modes[seen.mode] += 1
            masks = (seen.masks.get(name) for name in self.label_maps)
            digests = tuple(mask.digest if mask else b"" for mask in masks)
            # Of two blank images, say of a volume's black slices, neither tells of the other: such
            # a one is only its own twin, where two lists name it.
            blank = any(note.kind == "image_flat" for note in seen.notes)
            alike = seen.name.encode() if blank else seen.digest
            self._twins[alike].append(_Twin(index, split, seen.name, digests))
        for folder, kind in seen.channels.items():
            self._channels[folder][kind].append(seen.name)
        for name, mask in seen.masks.items():
            if mask.smear is None:
                self.tallies[name][split].add(mask.counts)
            else:
                self._held_back[name][split].add(mask.counts)
                self._smears[name].append((index, mask.name, mask.smear))
            self._compare_colours(name, mask)
            if mask.counts[1:IGNORE_INDEX].any():
                self._void_areas[name].append(mask.void_area)
            elif mask.counts[0] and mask.counts[IGNORE_INDEX]:
                self._binary[name].append((index, mask))
            if seen.size is None:
                continue
            area = max(int(mask.counts.sum()), 1)
            for label in np.flatnonzero(mask.counts[:IGNORE_INDEX]).tolist():
                share = mask.counts[label] / area
                if share > self.samples[name].get(label, (0.0, 0))[0]:
                    self.samples[name][label] = float(share), index

    def training(self, label_map: str) -> MapTally:
        """Of the splits that are trained on."""
        tallies = self.tallies[label_map]
        return sum((tallies[split] for split in self.train_splits if split in tallies), MapTally())

    def notes(self) -> list[Note]:
        """All that was seen, with what only the whole set shows; once, at the end."""
        notes = [*self._notes, *self._of_twins(), *self._of_sizes(), *self._of_channels()]
        for name in self.label_maps:
            notes += self._of_smears(name) + self._of_classes(name)
        return notes

    def _mark(self, kind: str, *indices: int) -> None:
        """Keeps an image for the picture, or several that belong together."""
        marked = self.faulty[kind]
        if KINDS[kind].severity == "fault" and len(marked) < FAULTY_KEPT:
            marked += [index for index in indices if index not in marked]

    def _compare_colours(self, label_map: str, mask: SeenMask) -> None:
        for label, colour in mask.colours.items():
            first = self._colours[label_map].setdefault(label, colour)
            if colour != first:
                shown = f"{label} is {format_colour(colour)}, not {format_colour(first)}"
                self._notes.append(Note("palettes_differ", mask.name, shown))
                return

    def _of_twins(self) -> list[Note]:
        notes = []
        for twins in self._twins.values():
            if len(twins) == 1:
                continue
            shown = " = ".join(f"{twin.split} {twin.name}" for twin in twins[:4])
            shown += f" = … ({len(twins)} in all)" if len(twins) > 4 else ""
            first, *others = twins
            elsewhere = [twin for twin in others if twin.split != first.split]
            notes.append(Note("same_image_split" if elsewhere else "same_image", shown))
            for twin in elsewhere[:1]:
                self._mark("same_image_split", first.index, twin.index)
            by_map = [
                {digests[place]: twin.index for twin in twins if (digests := twin.digests)[place]}
                for place in range(len(first.digests))
            ]
            for differing in [indices for indices in by_map if len(indices) > 1][:1]:
                notes.append(Note("same_image_masks", shown))
                self._mark("same_image_masks", *list(differing.values())[:2])
        return notes

    def _of_sizes(self) -> list[Note]:
        if not self._named_sizes:
            return []
        median = float(np.median([height * width for _, (height, width) in self._named_sizes]))
        notes = []
        for name, size in self._named_sizes:
            if size[0] * size[1] > LARGE * median:
                notes.append(Note("image_large", name, width_by_height(size)))
            if min(size) < SMALL_PX:
                notes.append(Note("image_small", name, width_by_height(size)))
        return notes

    def _of_channels(self) -> list[Note]:
        notes = []
        for folder, kinds in self._channels.items():
            by_count: dict[int, list[str]] = defaultdict(list)
            for (count, _), names in kinds.items():
                by_count[count] += names
            if len(by_count) > 1:
                fewest = min(by_count, key=lambda count: len(by_count[count]))
                kind = "grey" if fewest == 1 else "in colour"
                notes += [
                    Note("channels_differ", f"{folder}/{name}", kind) for name in by_count[fewest]
                ]
            elif 3 in by_count:
                alike = kinds.keys() == {(3, True)}
                detail = "the three are the same in each: grey, saved as RGB" if alike else ""
                notes.append(Note("channels_coloured", f"{folder}/", detail))
        return notes

    def _of_smears(self, label_map: str) -> list[Note]:
        smears = self._smears[label_map]
        between = {value for _, _, smear in smears for value in smear.between}
        names = self.label_maps[label_map]
        unsure = all(smear.cause == "interpolated" for _, _, smear in smears) and not {
            "mask_interpolated",
            "mask_was_jpeg",
        } & {note.kind for note in self._notes}
        if unsure and len(between) == 1:
            # A border class, drawn so, cannot be told from interpolation between its neighbours.
            (value,) = between
            shown = names[value] if value < len(names) else f"class {value}"
            for split, tally in self._held_back[label_map].items():
                self.tallies[label_map][split] += tally
            return [Note("thin_class", shown, f"in {len(smears)} masks, {smears[0][1]} first")]
        for index, _, smear in smears:
            self._mark(smear_note("", smear).kind, index)
        return [smear_note(name, smear) for _, name, smear in smears]

    def _of_binary(self, label_map: str) -> list[Note]:
        """Masks of 0 and 255 alone, where others hold classes."""
        binary = [(index, mask) for index, mask in self._binary[label_map] if mask.void_area]
        void_areas = self._void_areas[label_map]
        if not binary or not void_areas:
            return []
        count = len(binary) + len(void_areas)
        customary = sum(void_areas) >= VOID_AREAS * len(void_areas)
        sure = len(binary) >= max(MIN_BINARY, BINARY * count) and not customary
        kind = "foreground_255_some" if sure else "foreground_255_maybe"
        notes: list[Note] = []
        for index, mask in binary:
            self._mark(kind, index)
            share = f"{100 * mask.counts[IGNORE_INDEX] / mask.counts.sum():.3g} % are 255"
            if not notes:
                share += f"; {len(void_areas):,} other masks hold classes"
            notes.append(Note(kind, mask.name, share))
        return notes

    def _of_classes(self, label_map: str) -> list[Note]:
        names = self.label_maps[label_map]
        of_map = f" of {label_map}" if label_map else ""
        whole = sum(self.tallies[label_map].values(), MapTally()).pixels
        if set(np.flatnonzero(whole).tolist()) == {0, IGNORE_INDEX} and len(names) > 1:
            place = f"label map {label_map}" if label_map else "all masks"
            share = 100 * whole[IGNORE_INDEX] / whole.sum()
            for index, _ in self._binary[label_map]:
                self._mark("foreground_255", index)
            return [Note("foreground_255", place, f"{share:.3g} % of the pixels are 255")]
        notes = self._of_binary(label_map)
        trained = self.training(label_map).pixels[: len(names)]
        for label in np.flatnonzero(trained == 0) if trained.any() else ():
            if not self._is_part:
                notes.append(Note("class_untrained", names[label] + of_map))
        for label in np.flatnonzero((trained > 0) & (trained < RARE * trained.sum())):
            share = trained[label] / trained.sum()
            notes.append(Note("class_rare", names[label] + of_map, f"{100 * share:.2g} %"))
        for split, tally in self.tallies[label_map].items():
            if not tally.pixels.any() or (split in self.train_splits and not self._is_part):
                continue
            absent = [name for name, n in zip(names, tally.pixels, strict=False) if not n]
            if absent:
                notes.append(Note("class_absent", split + of_map, ", ".join(absent)))
        return notes
