"""Opening data sets by name: records, statistics, and the data sets of TFDS."""

import hashlib
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax.config import Config, DataConfig
from fcn_jax.data import datasets, shapes
from fcn_jax.data.datasets import Dataset, open_dataset
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
    """A person who gives a root wants another data set than the default."""
    data = DataConfig(name="shapes", root="../mine", prepared_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"data\.root \(=\.\./mine\) is of no use to shapes, which"):
        open_dataset(data)
    assert list(tmp_path.iterdir()) == []


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
    with pytest.raises(UserError, match="import its module first; did you mean shapes"):
        open_dataset(DataConfig(name="shapse", prepared_dir=str(tmp_path)))
    with pytest.raises(UserError, match="'qqqq'; if your own code registers it, import its"):
        open_dataset(DataConfig(name="qqqq", prepared_dir=str(tmp_path)))


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
    assert again.names_digest == statistics.names_digest
    assert again.contents_digest == statistics.contents_digest


def test_the_digest_of_names_depends_on_names_and_order(tmp_path):
    dataset = open_folder(write_set(tmp_path / "set"), tmp_path / "prepared")
    names = [dataset.split("train+val").record_name(index) for index in range(3)]
    lines = "".join(f"{name}\n" for name in names).encode()
    digest = dataset.statistics("train+val").names_digest
    assert digest == hashlib.sha256(lines).hexdigest()[:16]
    assert dataset.statistics("val+train").names_digest != digest


def test_the_digest_of_contents_depends_on_images_and_masks_but_not_on_their_place(tmp_path):
    def digest(root: Path) -> str:
        return open_folder(root, tmp_path / "prepared").statistics("train+val").contents_digest

    root = write_set(tmp_path / "set")
    first = digest(root)
    assert digest(write_set(tmp_path / "moved")) == first
    corrected = Image.new("L", (5, 4), 1)
    corrected.putpixel((2, 2), 2)
    corrected.save(root / "masks" / "b.png")
    second = digest(root)
    Image.new("RGB", (5, 4), "red").save(root / "images" / "a.png")
    assert len({first, second, digest(root)}) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"sizes": [[4, 5]]',
        b'{"sizes": 3}',
        b'{"sizes": [[4, 5], [4, 5], [4, 5]], "label_counts": {}}',  # of an earlier version
    ],
)
def test_damaged_statistics_are_counted_again(tmp_path, content):
    dataset = open_folder(write_set(tmp_path / "set"), tmp_path / "prepared")
    statistics = dataset.statistics("train+val")
    (path,) = tmp_path.rglob("counts-*.json")
    path.write_bytes(content)
    again = dataset.statistics("train+val")
    np.testing.assert_array_equal(again.label_counts[""], statistics.label_counts[""])
    assert again.names_digest == statistics.names_digest


def write_foreign(data_dir: Path, **label_options) -> None:
    """Prepares a data set called `foreign` with a TFDS builder of its own."""
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


def test_a_data_set_is_opened_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("FCN_JAX_DATA", str(tmp_path))
    assert open_dataset("shapes").label_maps == open_shapes(tmp_path).label_maps
    with pytest.raises(TypeError, match=r"`data` is a Config, .*: give config\.data"):
        open_dataset(Config())
