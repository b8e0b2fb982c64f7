"""The doctor: a clean set passes, and each fault that is planted in it is found and named."""

import functools
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fcn_jax.config import Config, default_config
from fcn_jax.data import shapes
from fcn_jax.data.datasets import open_dataset
from fcn_jax.data.palettes import voc_palette
from fcn_jax.data.raw import Pair
from fcn_jax.data.records import UnreadFile
from fcn_jax.data.splits import Split
from fcn_jax.doctor import __main__
from fcn_jax.doctor.examine import examine_pair, examine_record, has_void_area
from fcn_jax.doctor.findings import FAULTS, Finding
from fcn_jax.doctor.subject import open_subject
from fcn_jax.errors import UserError
from fcn_jax.pictures import contact_sheet
from tests.data.test_voc import REAL, write_archive, write_sbd, write_voc
from tests.own_folder import command, write_folder

TRAIN = [f"train_{index:03}" for index in range(8)]
VAL = [f"val_{index:03}" for index in range(6)]
FIRST = "masks/train_000.png"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A person's own folder without a fault."""
    root = tmp_path_factory.mktemp("drawn") / "mine"
    write_folder(root, TRAIN + VAL)
    (root / "train.txt").write_text("\n".join(TRAIN))
    (root / "val.txt").write_text("\n".join(VAL))
    return root


@pytest.fixture
def mine(drawn, tmp_path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "mine"))


def settings(root: Path | str, name: str = "folder", **data) -> Config:
    config = default_config()
    config.data.name, config.data.root = name, str(root)
    for setting, value in data.items():
        setattr(config.data, setting, value)
    return config


def examine(root: Path, name: str = "folder", **data) -> dict[str, Finding]:
    config = settings(root, name, **data)
    with open_subject(config.data) as subject:
        _, findings = __main__.examine(subject, config)
    return {finding.kind: finding for finding in findings}


def faults(root: Path, **data) -> dict[str, tuple[str, ...]]:
    """Where each kind of fault was seen."""
    found = examine(root, **data)
    return {kind: finding.files for kind, finding in found.items() if kind in FAULTS}


def edit_masks(root: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in (root / "masks").iterdir():
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


def edit_mask(root: Path, change: Callable[[np.ndarray], np.ndarray], name: str = FIRST) -> None:
    Image.fromarray(change(np.asarray(Image.open(root / name)))).save(root / name)


def as_jpeg(pixels: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file))


def resized(pixels: np.ndarray, method: Image.Resampling) -> np.ndarray:
    """Twice as large and back, as a labelling tool may do."""
    image = Image.fromarray(pixels)
    large = image.resize((2 * image.width, 2 * image.height), method)
    return np.asarray(large.resize(image.size, method))


def test_a_clean_set_has_no_fault(mine, tmp_path):
    assert examine(mine) == {}
    assert open_dataset(settings(mine, prepared_dir=str(tmp_path)).data).splits == ("train", "val")
    for name in ("train.txt", "val.txt"):
        (mine / name).unlink()
    assert faults(mine, validation_fraction=0.4) == {}  # split by the hash of the names


def test_an_image_without_a_mask(mine):
    (mine / FIRST).unlink()
    assert faults(mine) == {"image_without_mask": ("images/train_000.png",)}


def test_a_mask_without_an_image(mine):
    for name in ("train.txt", "val.txt", "images/val_003.png"):
        (mine / name).unlink()
    found = faults(mine, validation_fraction=0.4)
    assert found == {"mask_without_image": ("masks/val_003.png",)}


def test_names_that_differ_in_case_are_two_faults(mine):
    for name in ("train.txt", "val.txt"):
        (mine / name).unlink()
    (mine / FIRST).rename(mine / "masks" / "Train_000.png")
    found = faults(mine, validation_fraction=0.4)
    assert set(found) == {"image_without_mask", "mask_without_image"}


def test_a_mask_of_another_size(mine):
    edit_mask(mine, lambda label: label[:90, :80])
    height, width = shapes.draw("train_000")[1].shape
    assert faults(mine) == {"mask_size": (f"{FIRST} (80 × 90, its image {width} × {height})",)}


def test_labels_outside_the_classes(mine):
    edit_mask(mine, lambda label: np.where(label == 0, 7, label).astype(np.uint8))
    assert faults(mine) == {"label_outside": (f"{FIRST} (7)",)}


def test_a_truncated_image(mine):
    path = mine / "images" / "train_001.png"
    path.write_bytes(path.read_bytes()[:5000])
    found = faults(mine)
    assert set(found) == {"image_unreadable"}
    assert found["image_unreadable"][0].startswith("images/train_001.png (the image is damaged")


def test_files_that_are_no_images(mine):
    (mine / "images" / "train_001.png").write_text("not an image")
    (mine / FIRST).write_bytes(b"")
    found = faults(mine)
    assert found["image_unreadable"][0].startswith("images/train_001.png (not an image")
    assert found["mask_unreadable"][0].startswith(f"{FIRST} (not an image")


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged notes
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF"])
def test_whatever_is_damaged_is_a_finding(kind):
    """Random bytes of a file are changed, and it is cut: something is said, nothing raised."""
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(shapes.draw("train_000")[1]).save(file, kind)
    unreadable = 0
    for _ in range(60):
        damaged = np.frombuffer(file.getvalue(), np.uint8).copy()
        damaged[rng.integers(0, 300, 6)] = rng.integers(0, 256, 6)
        part = UnreadFile(damaged[: rng.integers(1, len(damaged))].tobytes, "file")
        seen = examine_pair(Pair("a", "train", part, {"": part}, {"depth": part}), {"": 6})
        unreadable += {note.kind for note in seen.notes} >= {"image_unreadable", "mask_unreadable"}
    assert unreadable > 30


def test_a_mask_saved_as_jpeg(mine):
    with Image.open(mine / FIRST) as mask:
        mask.save(mine / "masks" / "train_000.jpg")
    (mine / FIRST).unlink()
    assert faults(mine) == {"mask_jpeg": ("masks/train_000.jpg",)}


@pytest.mark.parametrize("void", [True, False])
def test_a_mask_that_was_a_jpeg_once(mine, void):
    """Without void every stray value is a class, and no label is outside."""
    if not void:
        edit_masks(mine, lambda label: np.where(label == 255, 0, label).astype(np.uint8))
    edit_mask(mine, as_jpeg)
    assert faults(mine) == {"mask_was_jpeg": (FIRST,)}


@pytest.mark.parametrize("void", [True, False])
@pytest.mark.parametrize("method", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_a_mask_resized_with_interpolation(mine, method, void):
    if not void:
        edit_masks(mine, lambda label: np.where(label == 255, 0, label).astype(np.uint8))
    edit_mask(mine, lambda label: resized(label, method))
    assert faults(mine) == {"mask_interpolated": (FIRST,)}


def test_nearest_neighbours_leave_no_trace(mine):
    edit_masks(mine, lambda label: resized(label, Image.Resampling.NEAREST))
    assert examine(mine) == {}


def test_anti_aliased_colours(mine, tmp_path):
    edit_masks(mine, lambda label: voc_palette()[label])
    edit_mask(mine, lambda colours: resized(colours, Image.Resampling.BILINEAR))
    assert faults(mine, mask_palette="voc") == {"mask_interpolated": (FIRST,)}


def test_a_thin_border_class_is_remarked_on(mine):
    """Classes 0, 1 and 2 where 1 is a border: nothing tells it from interpolation."""

    def bordered(label):
        return np.select([label == 255, label == 0], [1, 0], 2).astype(np.uint8)

    (mine / "classes.txt").write_text("ground\nborder\ncell\n")
    edit_masks(mine, bordered)
    found = examine(mine)
    assert set(found) == {"thin_class"}
    assert found["thin_class"].files[0].startswith("border (in ")


def test_one_image_in_two_splits(mine):
    """Under another name and in another format: it is the pixels that count."""
    with Image.open(mine / "images" / "train_002.png") as image:
        image.save(mine / "images" / "val_000.bmp")
    (mine / "images" / "val_000.png").unlink()
    shutil.copy(mine / "masks" / "train_002.png", mine / "masks" / "val_000.png")
    assert faults(mine) == {"same_image_split": ("train train_002 = val val_000",)}


def test_one_image_twice_in_a_split(mine):
    shutil.copy(mine / "images" / "train_002.png", mine / "images" / "train_003.png")
    shutil.copy(mine / "masks" / "train_002.png", mine / "masks" / "train_003.png")
    assert set(examine(mine)) == {"same_image"}
    (mine / "masks" / "train_003.png").write_bytes(b"")
    assert set(faults(mine)) == {"mask_unreadable"}
    with Image.open(mine / "masks" / "train_002.png") as mask:
        mask.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(mine / "masks" / "train_003.png")
    assert faults(mine) == {"same_image_masks": ("train train_002 = train train_003",)}


def test_one_name_in_two_lists(mine):
    (mine / "val.txt").write_text("\n".join([*VAL, "train_004"]))
    assert faults(mine) == {"same_image_split": ("train train_004 = val train_004",)}


def test_blank_images_are_no_twins_but_of_themselves(mine):
    size = shapes.draw("train_004")[1].shape[::-1]
    for name in ("train_004", "val_001", "val_002"):
        Image.new("RGB", size, (200, 0, 0)).save(mine / "images" / f"{name}.png")
        Image.new("L", size, 1).save(mine / "masks" / f"{name}.png")
    found = examine(mine)
    assert set(found) == {"image_flat", "class_absent"}
    blank = tuple(f"images/{name}.png" for name in ("train_004", "val_001", "val_002"))
    assert found["image_flat"].files == blank
    (mine / "val.txt").write_text("\n".join([*VAL, "train_004"]))
    assert faults(mine) == {"same_image_split": ("train train_004 = val train_004",)}


def test_a_class_that_a_split_lacks(mine):
    (mine / "classes.txt").write_text("\n".join([*shapes.CLASSES, "moon"]))
    found = examine(mine)
    assert found["class_untrained"].files == ("moon",)
    assert found["class_absent"].files == ("val (moon)",)
    assert found["class_absent"].severity == "remark"


def test_a_class_whose_masks_are_all_in_fault(mine):
    """Where others were not counted, the first remedy is theirs."""
    (mine / "classes.txt").write_text("\n".join([*shapes.CLASSES, "moon"]))
    alone = examine(mine)["class_untrained"].remedy
    assert alone == FAULTS["class_untrained"][1]
    edit_mask(mine, lambda label: label[:50])
    assert examine(mine)["class_untrained"].remedy == (
        "mend the other faults first: what masks in fault hold was not counted; then " + alone
    )


def test_stray_values_do_not_count_as_a_class(mine):
    """JPEG makes a 6, the moon's label, of star and void; nobody drew a moon."""
    (mine / "classes.txt").write_text("\n".join([*shapes.CLASSES, "moon"]))
    edit_mask(mine, as_jpeg)
    with Image.open(mine / FIRST) as mask:
        assert 6 in np.asarray(mask)
    assert faults(mine) == {"mask_was_jpeg": (FIRST,), "class_untrained": ("moon",)}


def test_void_masks(mine):
    edit_mask(mine, lambda label: np.full_like(label, 255))
    edit_mask(mine, lambda label: np.where(label == 0, 255, label), "masks/train_001.png")
    found = examine(mine)
    assert {kind: finding.files[0][:19] for kind, finding in found.items()} == {
        "mask_void": FIRST,
        "mostly_void": "masks/train_001.png",
    }
    assert found["mostly_void"].severity == "remark"


def test_masks_in_colour_without_a_palette(mine):
    edit_masks(mine, lambda label: voc_palette()[label])
    found = faults(mine)
    assert set(found) == {"mask_colours"}
    assert len(found["mask_colours"]) == len(TRAIN + VAL)
    assert "0 0 0; " in found["mask_colours"][0]
    assert found["mask_colours"][0].endswith("all of VOC's)")
    assert faults(mine, mask_palette="voc") == {}


def test_indexed_masks_whose_palettes_disagree(mine):
    def index(path: Path, palette: np.ndarray) -> None:
        with Image.open(path) as mask:
            mask.load()
        mask.putpalette(palette.tobytes())
        mask.save(path)

    for path in (mine / "masks").iterdir():
        index(path, voc_palette())
    assert examine(mine) == {}
    index(mine / "masks" / "val_005.png", voc_palette()[::-1])
    found = examine(mine)
    assert {kind: finding.files for kind, finding in found.items()} == {
        "palettes_differ": ("masks/val_005.png (0 is 224 224 192, not 0 0 0)",)
    }


def test_images_that_look_amiss(mine):
    sizes = {name: shapes.draw(name)[1].shape for name in ("train_000", "train_001")}
    Image.new("RGB", sizes["train_000"][::-1], (9, 9, 9)).save(mine / "images" / "train_000.png")
    deep = np.random.default_rng(0).integers(0, 65536, sizes["train_001"], np.uint16)
    Image.fromarray(deep).save(mine / "images" / "train_001.png")
    for folder in ("images", "masks"):
        with Image.open(mine / folder / "train_002.png") as image:
            image.crop((0, 0, 90, 20)).save(mine / folder / "train_002.png")
    found = examine(mine)
    assert {kind: finding.files for kind, finding in found.items()} == {
        "image_flat": ("images/train_000.png",),
        "image_16_bits": ("images/train_001.png",),
        "image_small": ("train_002 (90 × 20)",),
    }
    assert {finding.severity for finding in found.values()} == {"remark"}


def test_a_mask_of_a_kind_that_holds_no_classes(mine):
    with Image.open(mine / FIRST) as mask:
        mask.convert("LA").save(mine / FIRST)
    assert faults(mine) == {"mask_mode": (f"{FIRST} (LA)",)}


def test_a_colour_that_the_palette_lacks(mine, tmp_path):
    edit_masks(mine, lambda label: voc_palette()[label])
    palette = np.delete(voc_palette(), 3, axis=0)
    (tmp_path / "palette.txt").write_text("\n".join(f"{r} {g} {b}" for r, g, b in palette[:254]))
    found = faults(mine, mask_palette=str(tmp_path / "palette.txt"))
    assert "colour 128 128 0" in "".join(found["mask_stray_colours"])


def test_foreground_saved_as_255(mine):
    (mine / "classes.txt").write_text("ground\nthing\n")
    edit_masks(mine, lambda label: np.where(label == 0, 0, 255).astype(np.uint8))
    config = settings(mine)
    with open_subject(config.data) as subject:
        survey, findings = __main__.examine(subject, config)
    (finding,) = (finding for finding in findings if finding.severity == "fault")
    assert finding.kind == "foreground_255"
    assert "of the pixels are 255" in finding.files[0]
    assert survey.faulty["foreground_255"] == [0, 1, 2]  # these are drawn


def binary(label: np.ndarray) -> np.ndarray:
    """Everything drawn is 255, as programs for one class save it."""
    return np.where(label == 0, 0, 255).astype(np.uint8)


def test_a_set_merged_with_masks_of_0_and_255(mine):
    """Six of 14; the 255 of each is a drawn shape."""
    merged = [f"masks/{name}.png" for name in (*TRAIN[:4], *VAL[:2])]
    for name in merged:
        edit_mask(mine, binary, name)
    found = faults(mine)
    assert set(found) == {"foreground_255_some"}
    label = binary(shapes.draw(TRAIN[0])[1])
    share = f"{100 * (label == 255).mean():.3g} % are 255"
    assert found["foreground_255_some"][0] == f"{FIRST} ({share}; 8 other masks hold classes)"
    assert [file.partition(" ")[0] for file in found["foreground_255_some"]] == merged


def test_one_mask_of_0_and_255_may_be_meant_so(mine):
    edit_mask(mine, binary)
    found = examine(mine)
    assert found["foreground_255_maybe"].severity == "remark"
    assert len(found["foreground_255_maybe"].files) == 1
    assert not found.keys() & FAULTS.keys()


def test_areas_of_void_may_be_the_custom(mine):
    """Three masks hold no more than 0 and 255, and all others have an area of void as well."""

    def left_out(label: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(label))[:, None] < 12, 255, label).astype(np.uint8)

    edit_masks(mine, left_out)
    for name in TRAIN[:3]:
        edit_mask(mine, lambda label: left_out(np.zeros_like(label)), f"masks/{name}.png")
    found = examine(mine)
    assert len(found["foreground_255_maybe"].files) == 3
    assert not found.keys() & FAULTS.keys()


def test_borders_of_void_around_nothing(mine):
    """As where a class was taken out of VOC's masks, and its borders stayed."""
    for name in TRAIN[:4]:
        border = functools.partial(np.where, shapes.draw(name)[1] == 255, np.uint8(255))
        edit_mask(mine, lambda _, border=border: border(np.uint8(0)), f"masks/{name}.png")
    assert not faults(mine)
    assert not any(kind.startswith("foreground") for kind in examine(mine))


@pytest.mark.parametrize(("breadth", "is_area"), [(4, False), (9, True)])
def test_a_band_is_no_area_of_void(breadth, is_area):
    """Blocks are 5 pixels a side: a band of 4 holds none, one of 9 wherever it lies."""
    for top in range(40, 50):
        label = np.zeros((100, 120), np.uint8)
        label[top : top + breadth] = 255
        assert has_void_area(label) == is_area
        assert has_void_area(label.T) == is_area


def test_lists_that_do_not_serve(mine):
    (mine / "train.txt").write_text("\n".join([*TRAIN, "train_000", "zebra", "horse.png"]))
    (mine / "val.txt").write_text("\n")
    assert faults(mine) == {
        "listed_missing": ("train.txt (zebra)", "train.txt (horse.png)"),
        "listed_twice": ("train.txt (train_000)",),
        "split_empty": ("val.txt",),
    }


def test_images_that_no_list_names(mine):
    (mine / "train.txt").write_text("\n".join(TRAIN[1:]))
    (mine / FIRST).unlink()
    found = examine(mine)
    assert {kind: (finding.severity, finding.files) for kind, finding in found.items()} == {
        "image_unlisted": ("remark", ("images/train_000.png",))
    }


def test_lists_that_are_no_text(mine):
    for name in ("classes.txt", "val.txt"):
        (mine / name).write_text("a\nb\n", encoding="utf-16")
    found = faults(mine)
    assert set(found) == {"classes", "list_unreadable", "split_empty"}
    assert found["list_unreadable"] == (f"{mine}/val.txt: not text in UTF-8",)


def test_a_split_that_the_settings_name_and_no_list_makes(mine):
    (mine / "val.txt").unlink()
    assert faults(mine) == {"split_missing": ("val.txt (the set has no splits but train)",)}
    assert faults(mine, eval_split="train") == {}
    assert faults(mine, eval_split="train+dev") == {
        "split_missing": ("dev (the set has no splits but train)",)
    }
    (mine / "train.txt").rename(mine / "val.txt")
    assert faults(mine) == {"split_missing": ("train.txt (the set has no splits but val)",)}


def write_turned(root: Path, name: str, orientation: int) -> tuple[int, int]:
    """A photo whose EXIF notes that it is to be turned. Returns width and height as stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(root / "images" / f"{name}.png") as image:
        image.save(root / "images" / f"{name}.jpg", exif=exif)
        size = image.size
    (root / "images" / f"{name}.png").unlink()
    return size


def test_a_mask_drawn_on_a_turned_photo(mine):
    width, height = write_turned(mine, "train_000", 6)
    edit_mask(mine, np.rot90)
    shown = f"{FIRST} ({height} × {width}, its image {width} × {height})"
    assert faults(mine) == {"mask_turned": (shown,)}


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_photo_whose_mask_lies_as_it_does(mine, orientation):
    write_turned(mine, "train_000", orientation)
    found = examine(mine)
    assert {kind: finding.severity for kind, finding in found.items()} == {"exif_turned": "remark"}
    assert found["exif_turned"].files == ("images/train_000.jpg",)


def write_channels(root: Path, mode: str) -> None:
    (root / "depth").mkdir()
    for path in (root / "images").iterdir():
        with Image.open(path) as image:
            image.convert("L").convert(mode).save(root / "depth" / path.name)


def test_depth_saved_in_colour_is_remarked_on(mine):
    write_channels(mine, "RGB")
    found = examine(mine, extra_channels="depth")
    assert set(found) == {"channels_coloured"}
    assert "the three are the same" in found["channels_coloured"].files[0]


def test_further_channels_that_do_not_serve(mine):
    write_channels(mine, "L")
    assert examine(mine, extra_channels="depth") == {}
    depth = mine / "depth"
    (depth / "train_000.png").unlink()
    (depth / "train_001.png").write_bytes(b"")
    Image.new("L", (5, 4)).save(depth / "train_002.png")
    with Image.open(depth / "train_003.png") as image:
        image.convert("RGB").save(depth / "train_003.png")
    found = faults(mine, extra_channels="depth")
    assert found.pop("channels_unreadable")[0].startswith("depth/train_001.png (not an image")
    height, width = shapes.draw("train_002")[1].shape
    assert found == {
        "channels_missing": ("images/train_000.png (in depth/)",),
        "channels_size": (f"depth/train_002.png (5 × 4, its image {width} × {height})",),
        "channels_differ": ("depth/train_003 (in colour)",),
    }


def test_each_label_map_is_looked_at(mine):
    shutil.copytree(mine / "masks", mine / "parts")
    (mine / "parts.txt").write_text("\n".join(shapes.CLASSES))
    assert examine(mine, label_maps="masks,parts") == {}
    edit_mask(mine, lambda label: label + 3, "parts/train_000.png")
    (mine / "parts" / "train_001.png").unlink()
    drawn = np.unique(shapes.draw("train_000")[1]).tolist()
    outside = ", ".join(str(label + 3) for label in drawn if 5 < label + 3 < 255)
    assert faults(mine, label_maps="masks,parts") == {
        "image_without_mask": ("images/train_001.png (in parts/)",),
        "label_outside": (f"parts/train_000.png ({outside})",),
    }


def test_files_that_are_left_aside(mine):
    (mine / "images" / "photo.heic").write_text("")
    shutil.copy(mine / FIRST, mine / "masks" / "train_000.tif")
    found = examine(mine)
    assert found["file_ignored"].files == ("images/photo.heic",)
    assert found["several_files"].files == ("masks/train_000 (.png, .tif)",)


def test_a_list_of_classes_that_does_not_serve(mine, tmp_path, capsys):
    (mine / "classes.txt").unlink()
    assert faults(mine) == {"classes": (f"{mine}/classes.txt: missing",)}  # its remedy once
    __main__.diagnose(settings(mine), tmp_path / "sheet.png")
    assert "class 5" in capsys.readouterr().out  # the shares are told all the same


def test_an_image_much_larger_than_the_rest(mine):
    for folder in ("images", "masks"):
        path = mine / folder / "train_000.png"
        with Image.open(path) as image:
            large = image.resize((8 * image.width, 8 * image.height), Image.Resampling.NEAREST)
        large.save(path)
    found = examine(mine)
    assert set(found) == {"image_large"}
    assert found["image_large"].severity == "remark"


def test_all_faults_are_told_at_once(mine, tmp_path, capsys):
    (mine / FIRST).unlink()
    edit_mask(mine, as_jpeg, "masks/train_001.png")
    edit_mask(mine, lambda label: label[:50], "masks/train_002.png")
    before = {path: path.stat().st_mtime_ns for path in mine.rglob("*")}
    findings, _ = __main__.diagnose(settings(mine), tmp_path / "pictures" / "sheet.png")
    assert {finding.kind for finding in findings} == {
        "image_without_mask",
        "mask_was_jpeg",
        "mask_size",
    }
    printed = " ".join(capsys.readouterr().out.split())
    for finding in findings:
        assert f"✗ {finding.title} (1) {finding.files[0]} → {finding.remedy}" in printed
    assert {path: path.stat().st_mtime_ns for path in mine.rglob("*")} == before
    with Image.open(tmp_path / "pictures" / "sheet.png") as sheet:
        assert sheet.width == 1400


def test_the_picture_shows_each_kind_of_fault(mine, tmp_path, monkeypatch):
    """Also those that the listing tells of, and those that only the whole set shows."""
    (mine / FIRST).unlink()
    (mine / "masks" / "train_001.png").write_bytes(b"")
    (mine / "images" / "train_004.png").write_bytes(b"")
    shutil.copy(mine / "images" / "train_002.png", mine / "images" / "val_000.png")
    with Image.open(mine / "masks" / "train_002.png") as mask:
        mask.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(mine / "masks" / "val_000.png")
    for name in ("train_006", "train_007"):
        edit_mask(mine, binary, f"masks/{name}.png")
    entries: list[contact_sheet.Entry] = []
    monkeypatch.setattr(contact_sheet, "draw", entries.extend)
    __main__.diagnose(settings(mine), tmp_path / "sheet.png")
    twins = "images that lie in two splits; images that lie there twice, with different masks"
    alone = "masks of 0 and 255 alone, where others hold classes"
    faulty = {entry.name: entry for entry in entries if entry.is_faulty}
    assert sorted(faulty) == [
        "train_000: images without a mask",
        "train_001: masks that cannot be read",
        f"train_002: {twins}",
        "train_004: images that cannot be read",
        f"train_006: {alone}",
        f"train_007: {alone}",
        f"val_000: {twins}",
    ]
    assert faulty["train_000: images without a mask"].mask == "missing"
    assert faulty["train_001: masks that cannot be read"].mask == "cannot be read"
    assert faulty["train_004: images that cannot be read"].image == "cannot be read"
    assert not any(isinstance(entry.mask, str) for entry in entries if not entry.is_faulty)


def test_prepared_records_are_looked_at_where_there_are_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"train": 8, "val": 6})
    config = settings("", "shapes", prepared_dir=str(tmp_path))
    with open_subject(config.data) as subject:
        survey, findings = __main__.examine(subject, config)
    assert findings == []
    assert survey.images == {"train": 8, "val": 6}
    labels = [shapes.draw(name)[1] for name in VAL]
    pixels = sum(np.bincount(label.reshape(-1), minlength=256) for label in labels)
    np.testing.assert_array_equal(survey.tallies[""]["val"].pixels, pixels)
    images = [sum((label == index).any() for label in labels) for index in range(6)]
    np.testing.assert_array_equal(survey.tallies[""]["val"].images[:6], images)


def test_records_that_cannot_be_used():
    records = [{"image": np.zeros((4, 5, 3), np.uint8), "label": np.full((4, 5), 3), "name": "a"}]
    split = Split("train", {"label": 3}, records)
    (note,) = examine_record(split, 0, ("",)).notes
    assert note[:2] == ("record_unusable", "train[0]")
    assert note.detail.startswith("a: label 3 is outside 0 to 2")


def test_a_blank_record_whose_depth_is_not():
    image = np.zeros((4, 5, 3), np.uint8)
    image[...] = 200, 0, 0
    depth = np.arange(20, dtype=np.uint8).reshape(4, 5, 1)
    records = [{"image": image, "depth": depth, "label": np.zeros((4, 5), np.uint8), "name": "a"}]
    split = Split("train", {"label": 3}, records, channel_features=("depth",))
    assert [note[:2] for note in examine_record(split, 0, ("",)).notes] == [("image_flat", "a")]
    image[3, 4, 1] = 1
    assert examine_record(split, 0, ("",)).notes == ()


def test_voc_from_its_archive(tmp_path):
    found = examine(write_archive(tmp_path), "voc")
    assert {kind for kind in found if kind in FAULTS} == set()
    assert len(found["image_flat"].files) == 3
    assert found["part_of_voc"].files == ("train (2 of 1,464 images)", "val (1 of 1,449 images)")


def test_sbd_masks_and_files_that_voc_lists_but_lacks(tmp_path):
    folder = write_voc(tmp_path)
    write_sbd(tmp_path / "benchmark_RELEASE" / "dataset")
    (folder / "JPEGImages" / "b.jpg").unlink()
    (folder / "SegmentationClass" / "a.png").unlink()
    found = examine(tmp_path, "voc/trainaug")
    assert found["image_unreadable"].files == ("JPEGImages/b.jpg (No such file or directory)",)
    assert found["mask_unreadable"].files[0].startswith("SegmentationClass/a.png (No such file")
    assert found["part_of_voc"].files[0] == "train (3 of 10,582 images)"


def test_the_real_part_of_voc_has_no_fault():
    if not (REAL / "VOCdevkit").is_dir():
        pytest.skip(f"no VOC at {REAL}")
    found = examine(REAL, "voc")
    assert {kind for kind in found if kind in FAULTS} == set()
    assert set(found) == {"part_of_voc", "class_absent", "class_rare", "mostly_void"}
    absent = "aeroplane, bicycle, bus, motorbike, train"
    assert found["class_absent"].files[0] == f"train ({absent})"


def test_nothing_to_look_at(tmp_path):
    with pytest.raises(UserError, match=r"images: no such folder; .*classes\.txt"):
        examine(tmp_path)
    with pytest.raises(UserError, match=r"needs --config\.data\.root"):
        open_subject(settings("").data).__enter__()


def test_a_picture_that_cannot_be_written_is_told_at_once(tmp_path):
    """Before the data set is looked for, which there is not."""
    config = settings(tmp_path / "none")
    with pytest.raises(UserError, match=r"--output \(=.*sheet\.pdf\) must end in one of \.png, "):
        __main__.diagnose(config, tmp_path / "sheet.pdf")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cannot write .*a/sheet\.png \(Not a directory\); give"):
        __main__.diagnose(config, tmp_path / "file" / "a" / "sheet.png")
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(UserError, match=r"^cannot write .*sheet\.png \(Is a directory\); give"):
        __main__.diagnose(config, tmp_path / "sheet.png")
    __main__.check_output(tmp_path / "new" / "folder" / "sheet.JPG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "sheet.png"]


@pytest.mark.parametrize("is_faulty", [True, False])
def test_a_disk_that_is_full_at_the_end(mine, tmp_path, monkeypatch, capsys, is_faulty):
    """What was found is told and counted still, and the status is 1 even without a fault."""

    def full(path: Path, write: Callable) -> None:
        raise UserError(f"cannot write {path} (No space left on device)")

    monkeypatch.setattr(__main__, "write_whole", full)
    if is_faulty:
        edit_mask(mine, as_jpeg)
    output = tmp_path / "sheet.png"
    options = SimpleNamespace(config=settings(mine), output=str(output))
    monkeypatch.setattr(__main__.flags, "FLAGS", options)
    counted = f"; 1 fault in {mine}" if is_faulty else ""
    with pytest.raises(UserError) as raised:
        __main__.main([])
    assert str(raised.value) == f"cannot write {output} (No space left on device){counted}"
    assert ("no faults" in capsys.readouterr().out) == (not is_faulty)


def test_the_command(mine, tmp_path):
    sheet = tmp_path / "sheet.png"
    arguments = ["--config.data.name=folder", f"--config.data.root={mine}", f"--output={sheet}"]
    clean = command("doctor", *arguments)
    assert (clean.returncode, clean.stdout.splitlines()[-1]) == (0, "no faults")
    assert clean.stdout.splitlines()[0] == f"data set: folder in {mine}"
    assert "--config.loss.class_weights=balanced" in clean.stdout
    assert sheet.is_file()
    edit_mask(mine, as_jpeg)
    faulty = command("doctor", *arguments)
    assert faulty.returncode == 1
    assert faulty.stderr.splitlines()[-1] == f"doctor: 1 fault in {mine}"
    assert FIRST in faulty.stdout
