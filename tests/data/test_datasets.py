"""Opening data sets by name: prepared once, reused, prepared anew when files change."""

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax.config import DataConfig
from fcn_jax.data import datasets, shapes, versions
from fcn_jax.data.datasets import Dataset, open_dataset
from fcn_jax.data.records import SegmentationBuilder
from fcn_jax.errors import UserError


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"train": 6, "val": 3})


def write_set(root: Path, value: int = 1) -> Path:
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("ground\nroad\ncar\n")
    for stem in "abc":
        Image.new("RGB", (5, 4)).save(root / "images" / f"{stem}.png")
        Image.new("L", (5, 4), value).save(root / "masks" / f"{stem}.png")
    return root


def open_folder(root: Path, prepared: Path) -> Dataset:
    return open_dataset(DataConfig(name="folder", root=str(root), prepared_dir=str(prepared)))


def open_shapes(prepared: Path) -> Dataset:
    return open_dataset(DataConfig(name="shapes", prepared_dir=str(prepared)))


def count_preparations(monkeypatch) -> list[str]:
    prepared: list[str] = []
    prepare = SegmentationBuilder.prepare

    def counted(self, download_dir: str) -> None:
        prepared.append(self.name)
        prepare(self, download_dir)

    monkeypatch.setattr(SegmentationBuilder, "prepare", counted)
    return prepared


def test_records_are_what_was_drawn(tmp_path):
    dataset = open_shapes(tmp_path)
    assert dataset.class_names == shapes.CLASSES
    assert dataset.num_classes == {"": 6}
    assert dataset.channels == 3
    assert dataset.splits == ("train", "val")
    split = dataset.split("train")
    assert [record["name"] for record in split] == [f"train_{i:03}" for i in range(6)]
    assert [split.record_name(i) for i in range(6)] == [f"train_{i:03}" for i in range(6)]
    image, label = shapes.draw("train_004")
    np.testing.assert_array_equal(split[4]["image"], image)
    np.testing.assert_array_equal(split[4]["label"], label)
    np.testing.assert_array_equal(split.label(4), label)
    with pytest.raises(IndexError):
        split[6]


def test_drawn_images_have_no_root(tmp_path):
    """Whoever gives one wants another data set looked at than the default."""
    data = DataConfig(name="shapes", root="../mine", prepared_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"data\.root \(=\.\./mine\) is of no use to shapes, which"):
        open_dataset(data)
    assert list(tmp_path.iterdir()) == []


def test_a_second_start_reuses_the_records(tmp_path, monkeypatch):
    prepared = count_preparations(monkeypatch)
    first, second = open_shapes(tmp_path), open_shapes(tmp_path)
    assert prepared == ["shapes"]
    np.testing.assert_array_equal(first.split("val")[0]["image"], second.split("val")[0]["image"])


def test_the_place_of_records(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("FCN_JAX_DATA", raising=False)
    assert versions.prepared_dir(DataConfig()) == Path("/home/somebody/.cache/fcn_jax/data")
    monkeypatch.setenv("FCN_JAX_DATA", "/data")
    assert versions.prepared_dir(DataConfig()) == Path("/data")
    assert versions.prepared_dir(DataConfig(prepared_dir="/here")) == Path("/here")


def test_folders_of_one_name_do_not_collide(tmp_path):
    one = open_folder(write_set(tmp_path / "x" / "set", 1), tmp_path / "prepared")
    two = open_folder(write_set(tmp_path / "y" / "set", 2), tmp_path / "prepared")
    assert (one.split("train")[0]["label"] == 1).all()
    assert (two.split("train")[0]["label"] == 2).all()


def test_a_changed_folder_is_prepared_anew(tmp_path, monkeypatch):
    prepared = count_preparations(monkeypatch)
    root = write_set(tmp_path / "set")
    old = open_folder(root, tmp_path / "prepared")
    for value in (2, 0, 1):
        for stem in "abc":
            Image.new("L", (5, 4), value).save(root / "masks" / f"{stem}.png")
            os.utime(root / "masks" / f"{stem}.png", ns=(value, value))
        new = open_folder(root, tmp_path / "prepared")
        assert (new.split("train")[0]["label"] == value).all()
        if value == 2:  # a run that reads the version before goes on
            assert (old.split("train")[0]["label"] == 1).all()
    assert prepared == ["folder"] * 4
    assert len(list((tmp_path / "prepared" / "folder").glob("*/*/"))) == 2


def test_records_outlive_the_raw_files(tmp_path):
    root = write_set(tmp_path / "set")
    open_folder(root, tmp_path / "prepared")
    root.rename(tmp_path / "elsewhere")
    assert len(open_folder(root, tmp_path / "prepared").split("train+val")) == 3
    with pytest.raises(UserError, match="never: no such folder"):
        open_folder(tmp_path / "never", tmp_path / "prepared")


def test_an_interrupted_preparation_is_redone(tmp_path, monkeypatch):
    record = SegmentationBuilder._record

    def interrupted(self, source):
        if source.name == "val_001":
            raise KeyboardInterrupt
        return record(self, source)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationBuilder, "_record", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_shapes(tmp_path)
    assert not list(tmp_path.glob("**/*.array_record*"))
    assert len(open_shapes(tmp_path).split("val")) == 3


def test_leftovers_of_a_killed_preparation_are_removed(tmp_path):
    open_shapes(tmp_path)
    (info,) = tmp_path.glob("shapes/**/dataset_info.json")
    killed = info.parent.with_name("incomplete.ABCDEF_1.0.0")
    info.parent.rename(killed)
    assert len(open_shapes(tmp_path).split("train")) == 6
    assert not killed.exists()


def test_two_processes_prepare_once(tmp_path):
    code = (
        "from fcn_jax.data import shapes; shapes.SPLIT_SIZES = {'train': 40, 'val': 2};"
        "from fcn_jax.data.datasets import open_dataset, DataConfig;"
        f"d = open_dataset(DataConfig(prepared_dir={str(tmp_path)!r}));"
        "print(sum(r['label'].sum() for r in d.split('train')))"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] != ""
    # One of them prepared, or the other was late enough to find the records; none did both.
    assert sum("preparing" in stderr for _, stderr in outputs) == 1
    assert len(list(tmp_path.glob("shapes/**/dataset_info.json"))) == 1


def test_without_tensorflow_and_without_chatter(tmp_path):
    code = (
        "import sys; from fcn_jax.data import datasets;"
        "assert 'tensorflow_datasets' not in sys.modules;"
        "from fcn_jax.data import shapes; shapes.SPLIT_SIZES = {'train': 4, 'val': 2};"
        f"d = datasets.open_dataset(datasets.DataConfig(prepared_dir={str(tmp_path)!r}));"
        "d.split('train')[0]; d.statistics('val');"
        "assert 'tensorflow_datasets' in sys.modules; assert 'tensorflow' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    lines = run.stderr.splitlines()
    assert {line.split(":")[0] for line in lines} == {"preparing shapes", "measuring val"}


def test_splits_can_be_pickled_and_read_by_threads(tmp_path):
    split = pickle.loads(pickle.dumps(open_shapes(tmp_path).split("train")))
    read: dict[int, str] = {}

    def read_one(index: int) -> None:
        read[index] = split[index]["name"]

    threads = [threading.Thread(target=read_one, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == {index: f"train_{index:03}" for index in range(6)}


def test_unknown_splits_and_data_sets(tmp_path):
    dataset = open_shapes(tmp_path)
    with pytest.raises(UserError, match="shapes has no split 'valid'; it has train, val"):
        dataset.split("valid")
    with pytest.raises(UserError, match="called 'shapse'; did you mean shapes"):
        open_dataset(DataConfig(name="shapse", prepared_dir=str(tmp_path)))


def test_statistics_by_hand(tmp_path, monkeypatch):
    dataset = open_folder(write_set(tmp_path / "set"), tmp_path / "prepared")
    statistics = dataset.statistics("train+val")
    np.testing.assert_array_equal(statistics.sizes, [[4, 5]] * 3)
    assert statistics.sizes.dtype == np.int32
    counts = statistics.label_counts[""]
    assert counts.shape == (256,)
    assert counts[1] == counts.sum() == 60
    monkeypatch.setattr(datasets, "_measure", None)  # the second time they are read
    again = dataset.statistics("train+val")
    np.testing.assert_array_equal(again.sizes, statistics.sizes)
    np.testing.assert_array_equal(again.label_counts[""], counts)


def write_foreign(data_dir: Path, **label_options) -> None:
    """A data set called `foreign`, as another TFDS builder would have prepared it."""
    import tensorflow_datasets as tfds

    class Foreign(tfds.core.ShardBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("2.0.0")
        url_infos = None

        def _info(self):
            label = (
                tfds.features.LabeledImage(**label_options)
                if label_options
                else tfds.features.Image(shape=(None, None, 1))
            )
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {"photo": tfds.features.Image(shape=(None, None, 1)), "mask": label}
                ),
            )

        def _shard_iterators_per_split(self, dl_manager):
            return {"train": [self._records]}

        def _records(self):
            from fcn_jax.data.images import encode_png

            yield (
                "a",
                {
                    "photo": encode_png(np.array([[5, 6, 7]], np.uint8)),
                    "mask": encode_png(np.array([[0, 1, 3]], np.uint8)),
                },
            )

    Foreign(data_dir=data_dir, file_format="array_record").download_and_prepare()


def foreign(root: Path, **settings) -> DataConfig:
    names = {"image_feature": "photo", "label_feature": "mask"}
    return DataConfig(name="foreign", root=str(root), **names | settings)


def test_other_tfds_sets(tmp_path, capsys):
    write_foreign(tmp_path)
    dataset = open_dataset(foreign(tmp_path, num_classes=4))
    assert dataset.class_names == ("class_0", "class_1", "class_2", "class_3")
    record = dataset.split("train")[0]
    np.testing.assert_array_equal(record["image"], [[[5] * 3, [6] * 3, [7] * 3]])
    np.testing.assert_array_equal(record["label"], [[0, 1, 3]])
    assert record["name"] == "train[0]"
    # Classes that start at 1: what falls below zero is void.
    shifted = open_dataset(foreign(tmp_path, num_classes=3, label_offset=-1)).split("train")
    np.testing.assert_array_equal(shifted[0]["label"], [[255, 0, 2]])
    with pytest.raises(UserError, match=r"train\[0\]: label 3 is outside 0 to 2"):
        open_dataset(foreign(tmp_path, num_classes=3)).split("train")[0]
    with pytest.raises(UserError, match=r"set --config\.data\.num_classes"):
        open_dataset(foreign(tmp_path))
    with pytest.raises(UserError, match="no feature 'image', only mask, photo"):
        open_dataset(foreign(tmp_path, image_feature="image"))


def test_class_names_of_other_tfds_sets(tmp_path):
    write_foreign(tmp_path, labels=["other", "sky", "sea", "land"])
    assert open_dataset(foreign(tmp_path)).class_names == ("other", "sky", "sea", "land")
    without_other = open_dataset(foreign(tmp_path, label_offset=-1))
    assert without_other.class_names == ("sky", "sea", "land")
    np.testing.assert_array_equal(without_other.split("train")[0]["label"], [[255, 0, 2]])
