"""VOC in its layouts: drawn images everywhere, and the real data where they are available."""

import functools
import hashlib
import http.server
import shutil
import tarfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from fcn_jax.config import DataConfig
from fcn_jax.data import voc
from fcn_jax.data.datasets import Dataset, open_dataset
from fcn_jax.data.palettes import voc_palette
from fcn_jax.data.voc import VOC_CLASSES
from fcn_jax.errors import UserError

REAL = Path(__file__).parents[3] / "shared" / "data"
LABELS = {"a": 1, "b": 2, "c": 3, "d": 4}


def write_voc(top: Path, train: str = "a b", val: str = "c", images: str = "abcd") -> Path:
    """Writes a VOCdevkit whose masks hold the label of their name in LABELS and a void corner."""
    folder = top / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for split, names in (("train", train), ("val", val)):
        path = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.write_text("\n".join(names.split()) + "\n")
    for name in images:
        Image.new("RGB", (8, 6), (10, 20, 30)).save(folder / "JPEGImages" / f"{name}.jpg")
        if name in [*train.split(), *val.split()]:
            write_mask(folder / "SegmentationClass" / f"{name}.png", LABELS[name])
    return folder


def write_mask(path: Path, value: int) -> None:
    label = np.full((6, 8), value, np.uint8)
    label[0, 0] = 255
    image = Image.fromarray(label).convert("L")
    image.putpalette(voc_palette().flatten().tolist())
    path.parent.mkdir(exist_ok=True)
    image.save(path)


def write_sbd(folder: Path, names: str = "a c d") -> None:
    """Writes SBD's masks; their labels are 10 more than VOC's, to distinguish them."""
    (folder / "cls").mkdir(parents=True)
    for name in names.split():
        matrix = {"GTcls": {"Segmentation": np.full((6, 8), LABELS[name] + 10, np.uint8)}}
        scipy.io.savemat(folder / "cls" / f"{name}.mat", matrix)
    first, *others = names.split()
    (folder / "train.txt").write_text(f"{first}\n")
    (folder / "val.txt").write_text("\n".join(others) + "\n")


def open_voc(root: Path | None, prepared: Path, name: str = "voc") -> Dataset:
    place = str(root) if root else None
    return open_dataset(DataConfig(name=name, root=place, prepared_dir=str(prepared)))


def label_by_name(dataset: Dataset, split: str) -> dict[str, int]:
    return {record["name"]: int(record["label"][-1, -1]) for record in dataset.split(split)}


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_the_folder_is_found_at_each_level(tmp_path, below):
    write_voc(tmp_path / "raw")
    dataset = open_voc(tmp_path / "raw" / below, tmp_path / "prepared")
    assert dataset.class_names == VOC_CLASSES
    assert label_by_name(dataset, "train") == {"a": 1, "b": 2}
    assert label_by_name(dataset, "val") == {"c": 3}
    assert len(dataset.split("train+val")) == 3
    record = dataset.split("val")[0]
    assert record["label"][0, 0] == 255
    assert record["image"].shape == (6, 8, 3)


def test_jpegs_are_passed_through_unchanged(tmp_path):
    folder = write_voc(tmp_path)
    split = open_voc(tmp_path, tmp_path / "prepared").split("val")
    assert split.records[0]["image"] == (folder / "JPEGImages" / "c.jpg").read_bytes()


def write_archive(top: Path) -> Path:
    write_voc(top / "made")
    (top / "raw").mkdir()
    with tarfile.open(top / "raw" / voc.ARCHIVE, "w") as tar:
        tar.add(top / "made" / "VOCdevkit", "VOCdevkit")
    return top / "raw"


def test_the_archive_is_read_in_place(tmp_path):
    root = write_archive(tmp_path)
    assert label_by_name(open_voc(root, tmp_path / "prepared"), "train") == {"a": 1, "b": 2}
    assert [path.name for path in root.iterdir()] == [voc.ARCHIVE]


def test_a_truncated_archive_is_named(tmp_path):
    archive = write_archive(tmp_path) / voc.ARCHIVE
    archive.write_bytes(archive.read_bytes()[:9000])
    with pytest.raises(UserError, match=rf"{voc.ARCHIVE}: the archive is damaged or cut short"):
        open_voc(archive.parent, tmp_path / "prepared")


def test_an_archive_cut_between_two_files_misses_one(tmp_path):
    archive = write_archive(tmp_path) / voc.ARCHIVE
    with tarfile.open(archive) as tar:
        offset = next(member.offset for member in tar if member.name.endswith("SegmentationClass"))
    archive.write_bytes(archive.read_bytes()[:offset])
    with pytest.raises(UserError, match=rf"{voc.ARCHIVE}.*missing from the archive"):
        open_voc(archive.parent, tmp_path / "prepared")


@pytest.mark.parametrize("missing", ["JPEGImages/b.jpg", "SegmentationClass/b.png"])
def test_a_listed_file_that_is_missing_is_named(tmp_path, missing):
    (write_voc(tmp_path) / missing).unlink()
    with pytest.raises(UserError, match=f"{missing}: No such file"):
        open_voc(tmp_path, tmp_path / "prepared")
    assert not list((tmp_path / "prepared").glob("**/*.array_record*"))


@pytest.mark.parametrize("name", ["../secret", "/etc/secret"])
def test_a_list_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    write_voc(tmp_path, images="abc", train=f"a {name}")
    with pytest.raises(UserError, match=rf"train\.txt: '{name}' leads out of the folder"):
        open_voc(tmp_path, tmp_path / "prepared")


def test_a_mask_edited_in_place_is_prepared_again(tmp_path):
    folder = write_voc(tmp_path)
    open_voc(tmp_path, tmp_path / "prepared")
    write_mask(folder / "SegmentationClass" / "b.png", 9)
    dataset = open_voc(tmp_path, tmp_path / "prepared")
    assert label_by_name(dataset, "train") == {"a": 1, "b": 9}


def test_a_root_without_voc_says_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match=rf"VOCdevkit/VOC2012.*{voc.ARCHIVE}"):
        open_voc(tmp_path, tmp_path / "prepared")
    with pytest.raises(UserError, match="gone: no such folder"):
        open_voc(tmp_path / "gone", tmp_path / "prepared")


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(voc, "URL", "http://127.0.0.1:9/VOC.tar")  # nobody listens there
    with pytest.raises(UserError, match=r"cannot download http://127.*--config\.data\.root"):
        open_voc(None, tmp_path / "prepared")


def test_the_download_is_read_and_kept(tmp_path, monkeypatch):
    served = write_archive(tmp_path)
    archive = served / voc.ARCHIVE
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{voc.ARCHIVE}"
        monkeypatch.setattr(voc, "URL", url)
        with pytest.raises(UserError, match=r"cannot download .* not VOC's archive"):
            open_voc(None, tmp_path / "prepared")
        assert not list((tmp_path / "prepared").rglob("*.tar*"))
        checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
        monkeypatch.setattr(voc, "ARCHIVE_SHA256", checksum)
        assert label_by_name(open_voc(None, tmp_path / "prepared"), "train") == {"a": 1, "b": 2}
        server.shutdown()
    shutil.rmtree(tmp_path / "prepared" / "voc")
    assert label_by_name(open_voc(None, tmp_path / "prepared"), "val") == {"c": 3}


def test_trainaug_from_a_folder_of_pngs(tmp_path):
    folder = write_voc(tmp_path)
    for name in "acd":
        write_mask(folder / "SegmentationClassAug" / f"{name}.png", LABELS[name] + 10)
    dataset = open_voc(tmp_path, tmp_path / "prepared", "voc/trainaug")
    # VOC's own masks win; what is in val stays out.
    assert label_by_name(dataset, "train") == {"a": 1, "b": 2, "d": 14}
    assert label_by_name(dataset, "val") == {"c": 3}


def test_trainaug_from_the_sbd_folder(tmp_path):
    write_voc(tmp_path)
    write_sbd(tmp_path / "benchmark_RELEASE" / "dataset")
    dataset = open_voc(tmp_path, tmp_path / "prepared", "voc/trainaug")
    assert label_by_name(dataset, "train") == {"a": 1, "b": 2, "d": 14}


def test_trainaug_from_the_sbd_archive(tmp_path):
    write_voc(tmp_path / "raw")
    write_sbd(tmp_path / "made" / "benchmark_RELEASE" / "dataset")
    with tarfile.open(tmp_path / "raw" / "benchmark.tgz", "w:gz") as tar:
        tar.add(tmp_path / "made" / "benchmark_RELEASE", "benchmark_RELEASE")
    dataset = open_voc(tmp_path / "raw", tmp_path / "prepared", "voc/trainaug")
    assert label_by_name(dataset, "train") == {"a": 1, "b": 2, "d": 14}


def test_a_truncated_sbd_archive_is_named(tmp_path):
    write_voc(tmp_path)
    (tmp_path / "benchmark.tgz").write_bytes(b"\x1f\x8b no archive")
    with pytest.raises(UserError, match=r"benchmark\.tgz: the archive is damaged"):
        open_voc(tmp_path, tmp_path / "prepared", "voc/trainaug")


def test_trainaug_without_sbd_says_what_is_missing(tmp_path):
    write_voc(tmp_path)
    with pytest.raises(UserError, match=r"benchmark\.tgz.*benchmark_RELEASE.*SegmentationClassAug"):
        open_voc(tmp_path, tmp_path / "prepared", "voc/trainaug")


@pytest.fixture
def few_real_images(tmp_path) -> Path:
    """Makes a root with the real files and every eighth name of each list."""
    if not (REAL / "VOCdevkit").is_dir():
        pytest.skip(f"no VOC at {REAL}")
    real = REAL / "VOCdevkit" / "VOC2012"
    folder = tmp_path / "VOC2012"
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name in ("JPEGImages", "SegmentationClass"):
        (folder / name).symlink_to(real / name)
    for split in ("train.txt", "val.txt"):
        names = (real / "ImageSets" / "Segmentation" / split).read_text().split()
        (folder / "ImageSets" / "Segmentation" / split).write_text("\n".join(names[::8]))
    return tmp_path


def test_the_real_part_is_listed():
    if not (REAL / "VOCdevkit").is_dir():
        pytest.skip(f"no VOC at {REAL}")
    raw = voc.raw_dataset(DataConfig(name="voc", root=str(REAL)))
    assert Counter(sample.split for sample in raw.samples) == {"train": 437, "val": 445}


def test_real_images(few_real_images):
    dataset = open_voc(few_real_images, few_real_images / "prepared")
    assert [len(dataset.split(split)) for split in dataset.splits] == [55, 56]
    for name in dataset.splits:
        split, statistics = dataset.split(name), dataset.statistics(name)
        assert set(np.flatnonzero(statistics.label_counts[""])) <= {*range(21), 255}
        for index in range(0, len(split), 5):
            record = split[index]
            path = few_real_images / "VOC2012" / "JPEGImages" / f"{record['name']}.jpg"
            with Image.open(path) as image:
                assert record["image"].shape == (image.height, image.width, 3)
                size = tuple(statistics.sizes[index])
                assert size == record["label"].shape == (image.height, image.width)
