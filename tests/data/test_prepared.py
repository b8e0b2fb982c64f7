"""Prepared records: made once, and again when what they depend on has changed."""

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fcn_jax import registry
from fcn_jax.config import DataConfig
from fcn_jax.data import prepared, shapes
from fcn_jax.data.datasets import Dataset, open_dataset
from fcn_jax.data.records import SegmentationBuilder
from fcn_jax.errors import UserError
from tests.full_disk import files_of_at_most


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"train": 6, "val": 3})


@pytest.fixture
def preparations(monkeypatch) -> list[str]:
    """The names of the data sets in the order in which they are prepared."""
    names: list[str] = []
    prepare = SegmentationBuilder.prepare

    def counted(self) -> None:
        names.append(self._data.name)
        prepare(self)

    monkeypatch.setattr(SegmentationBuilder, "prepare", counted)
    return names


def write_set(root: Path, value: int = 1) -> Path:
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("ground\nroad\ncar\n")
    for stem in "abc":
        Image.new("RGB", (5, 4)).save(root / "images" / f"{stem}.png")
        Image.new("L", (5, 4), value).save(root / "masks" / f"{stem}.png")
    return root


def open_folder(root: Path, **changes) -> Dataset:
    place = str(root.parent / "prepared")
    return open_dataset(DataConfig(name="folder", root=str(root), prepared_dir=place, **changes))


def open_shapes(place: Path) -> Dataset:
    return open_dataset(DataConfig(name="shapes", prepared_dir=str(place)))


def versions(place: Path) -> set[Path]:
    return {marker.parent for marker in place.rglob(prepared.MARKER)}


def test_a_second_start_reuses_the_records(tmp_path, preparations):
    first, second = open_shapes(tmp_path), open_shapes(tmp_path)
    assert preparations == ["shapes"]
    assert (first.split("val")[0]["image"] == second.split("val")[0]["image"]).all()


def test_the_place_of_records(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("FCN_JAX_DATA", raising=False)
    assert prepared.prepared_dir(DataConfig()) == Path("/home/somebody/.cache/fcn_jax/data")
    monkeypatch.setenv("FCN_JAX_DATA", "/data")
    assert prepared.prepared_dir(DataConfig()) == Path("/data")
    assert prepared.prepared_dir(DataConfig(prepared_dir="/here")) == Path("/here")


def test_folders_of_one_name_do_not_collide(tmp_path):
    one = open_folder(write_set(tmp_path / "x" / "set", 1))
    two = open_folder(write_set(tmp_path / "y" / "set", 2))
    assert (one.split("train")[0]["label"] == 1).all()
    assert (two.split("train")[0]["label"] == 2).all()


def test_edited_masks_are_prepared_again(tmp_path, preparations):
    root = write_set(tmp_path / "set")
    old = open_folder(root)
    for value in (2, 0, 1):
        for stem in "abc":
            Image.new("L", (5, 4), value).save(root / "masks" / f"{stem}.png")
            os.utime(root / "masks" / f"{stem}.png", ns=(value, value))
        new = open_folder(root)
        assert (new.split("train")[0]["label"] == value).all()
        if value == 2:  # a run that reads the version before goes on
            assert (old.split("train")[0]["label"] == 1).all()
    assert preparations == ["folder"] * 4
    assert len(versions(tmp_path)) == 2


def test_class_names_and_lists_are_part_of_the_records(tmp_path, preparations):
    root = write_set(tmp_path / "set")
    open_folder(root)
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    assert open_folder(root).class_names == ("sky", "road", "car")
    (root / "train.txt").write_text("c\na\n")
    assert [record["name"] for record in open_folder(root).split("train")] == ["c", "a"]
    assert preparations == ["folder"] * 3


def test_settings_that_only_training_reads_do_not_matter(tmp_path, preparations):
    root = write_set(tmp_path / "set")
    open_folder(root)
    open_folder(root, workers=2, canvas_px=(64, 64), train_split="val", cache="none")
    assert preparations == ["folder"]
    open_folder(root, validation_fraction=0.5)
    assert preparations == ["folder"] * 2


READER = """
from pathlib import Path
import numpy as np
from fcn_jax.data.raw import RawDataset, Sample, SourceFile

def mine(data):
    image = SourceFile(Path("a.png"), lambda _: np.zeros((4, 5, 3), np.uint8))
    mask = SourceFile(Path("b.png"), lambda _: np.full((4, 5), {value}))
    return RawDataset(("a", "b"), [Sample("train", image, mask)])
"""


def test_a_changed_reader_prepares_again(tmp_path, monkeypatch, preparations):
    monkeypatch.setattr(registry.datasets, "_registered", {})
    path = tmp_path / "reader.py"
    for value in (1, 1, 0):
        path.write_text(READER.format(value=value))
        specification = importlib.util.spec_from_file_location("reader", path)
        module = importlib.util.module_from_spec(specification)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        specification.loader.exec_module(module)
        registry.register_dataset("mine")(module.mine)
        dataset = open_dataset(DataConfig(name="mine", prepared_dir=str(tmp_path / "prepared")))
        assert (dataset.split("train")[0]["label"] == value).all()
    assert preparations == ["mine"] * 2


def test_records_outlive_the_raw_files(tmp_path):
    root = write_set(tmp_path / "set")
    open_folder(root)
    for stem in "abc":
        Image.new("L", (5, 4), 2).save(root / "masks" / f"{stem}.png")
    open_folder(root)
    root.rename(tmp_path / "elsewhere")
    split = open_folder(root).split("train+val")
    assert len(split) == 3
    assert (split[0]["label"] == 2).all()  # the version that was used last
    with pytest.raises(UserError, match="never: no such folder"):
        open_folder(tmp_path / "never")


def test_a_clock_set_back_does_no_harm(tmp_path, preparations):
    """Versions are found by what they hold; their files' times do not matter."""
    root = write_set(tmp_path / "set")
    for value in (1, 2, 0):
        for stem in "abc":
            Image.new("L", (5, 4), value).save(root / "masks" / f"{stem}.png")
            os.utime(root / "masks" / f"{stem}.png", ns=(value, value))
        assert (open_folder(root).split("train")[0]["label"] == value).all()
        for folder in versions(tmp_path):
            os.utime(folder, (2**32, 2**32))  # in the year 2106
    assert preparations == ["folder"] * 3


def test_a_version_used_again_is_not_the_oldest(tmp_path):
    root = write_set(tmp_path / "set")
    used = []
    for value in (1, 2, 1, 0):
        for stem in "abc":
            Image.new("L", (5, 4), value).save(root / "masks" / f"{stem}.png")
            os.utime(root / "masks" / f"{stem}.png", ns=(value, value))
        used.append(Path(open_folder(root).builder.data_dir).parents[1])
    assert used[0] == used[2]
    assert versions(tmp_path) == {used[2], used[3]}


def test_only_folders_with_our_marker_are_deleted(tmp_path, monkeypatch):
    """A person's own folders may be anywhere in `prepared_dir`, older or newer than the records."""
    open_shapes(tmp_path)
    (ours,) = versions(tmp_path)
    own = [tmp_path / "shapes" / "a", *(ours.parent / name for name in "bcd")]
    for folder in own:
        folder.mkdir()
        (folder / "thesis.txt").write_text("mine")
        os.utime(folder, (0, 0))
    for size in (5, 4, 3):
        monkeypatch.setattr(
            shapes, "CLASSES", ("background", "disc", "square", "triangle", "ring", f"star{size}")
        )
        open_shapes(tmp_path)
    assert all((folder / "thesis.txt").read_text() == "mine" for folder in own)
    assert len(versions(tmp_path)) == 2


def test_a_folder_of_someone_else_in_the_place_of_records_is_refused(tmp_path):
    open_shapes(tmp_path)
    (ours,) = versions(tmp_path)
    shutil.rmtree(ours)
    ours.mkdir()
    (ours / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=rf"{ours} exists, but fcn_jax has not written it"):
        open_shapes(tmp_path)
    assert (ours / "thesis.txt").read_text() == "mine"


def damage(folder: Path, name: str) -> None:
    (path,) = folder.rglob(name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "name", ["records-train.array_record*", "dataset_info.json", "features.json"]
)
def test_truncated_records_are_named_and_prepared_again(tmp_path, name, capsys, preparations):
    open_shapes(tmp_path)
    damage(tmp_path, name)
    assert len(open_shapes(tmp_path).split("train")) == 6
    assert preparations == ["shapes"] * 2
    line = capsys.readouterr().out
    assert line.startswith("the prepared records are damaged (")
    assert name.rstrip("*") in line
    assert line.endswith("): preparing shapes again\n")


@pytest.mark.parametrize("name", ["records-train.array_record*", "features.json"])
def test_missing_files_are_prepared_again(tmp_path, name, preparations):
    open_shapes(tmp_path)
    (path,) = tmp_path.rglob(name)
    path.unlink()
    assert len(open_shapes(tmp_path).split("train")) == 6
    assert preparations == ["shapes"] * 2


def test_a_description_that_is_no_json_is_prepared_again(tmp_path, preparations):
    open_shapes(tmp_path)
    (path,) = tmp_path.rglob("dataset_info.json")
    path.write_bytes(b"x" * path.stat().st_size)
    assert len(open_shapes(tmp_path).split("train")) == 6
    assert preparations == ["shapes"] * 2


def test_damaged_records_without_raw_files_end_in_one_line(tmp_path):
    root = write_set(tmp_path / "set")
    open_folder(root)
    damage(tmp_path / "prepared", "dataset_info.json")
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(
        UserError,
        match=r"^the prepared records are damaged \(.*info\.json\), and .*set, from .* gone$",
    ):
        open_folder(root)


def test_without_raw_files_an_earlier_state_takes_the_place_of_damaged_records(tmp_path, capsys):
    root = write_set(tmp_path / "set")
    before = open_folder(root)
    (root / "classes.txt").write_text("ground\nroad\ntree\n")
    newest = Path(open_folder(root).builder.data_dir)
    (newest / "dataset_info.json").write_text("")
    root.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert open_folder(root).label_maps == before.label_maps == {"": ("ground", "road", "car")}
    assert "is gone: an earlier state of the data set is used" in capsys.readouterr().out


@pytest.mark.parametrize("setting", ["root", "prepared_dir"])
def test_a_home_directory_that_does_not_exist_is_one_line(monkeypatch, setting):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    data = DataConfig(name="folder", **{"root": "/x", setting: "~/mine"})
    with pytest.raises(UserError, match=rf"data\.{setting} \(=~/mine\) needs a home directory"):
        open_dataset(data)


def test_records_are_prepared_for_a_user_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert len(open_shapes(tmp_path).split("train")) == 6


def test_a_flipped_byte_in_a_record_is_one_line(tmp_path):
    dataset = open_shapes(tmp_path)
    (path,) = tmp_path.rglob("records-train.array_record*")
    content = bytearray(path.read_bytes())
    content[150_000] ^= 255
    path.write_bytes(content)
    split = dataset.split("train")
    with pytest.raises(
        UserError, match=r"the prepared records of train .* are damaged \("
    ) as raised:
        [split[index] for index in range(6)]
    assert "\n" not in str(raised.value)


def test_an_interrupted_preparation_is_redone(tmp_path, monkeypatch):
    record = SegmentationBuilder._record

    def interrupted(self, sample):
        if sample.name == "val_001":
            raise KeyboardInterrupt
        return record(self, sample)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationBuilder, "_record", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_shapes(tmp_path)
    assert not list(tmp_path.glob("**/*.array_record*"))
    assert len(open_shapes(tmp_path).split("val")) == 3


def test_leftovers_of_a_killed_preparation_are_removed(tmp_path, capsys):
    open_shapes(tmp_path)
    (info,) = tmp_path.glob("shapes/**/dataset_info.json")
    killed = info.parent.with_name("incomplete.ABCDEF_1.0.0")
    info.parent.rename(killed)
    (folder,) = versions(tmp_path)
    (folder / prepared.MARKER).write_text(json.dumps({"number": 1}))
    assert len(open_shapes(tmp_path).split("train")) == 6
    assert not killed.exists()
    assert "are incomplete: preparing shapes again" in capsys.readouterr().out


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    """Writing beyond a limit fails as on a full disk, in ArrayRecord's own code."""
    with (
        files_of_at_most(70_000),
        pytest.raises(UserError, match=r"^cannot write the prepared .* \(File too large\); "),
    ):
        open_shapes(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["lock"]
    assert len(open_shapes(tmp_path).split("train")) == 6


def test_a_place_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/.* \(Not a directory\); free some"):
        open_shapes(tmp_path / "file")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SegmentationBuilder, "download_and_prepare", full)
    with pytest.raises(UserError, match=r"\(No space left on device\); free some space, or set --"):
        open_shapes(tmp_path / "full")


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
    # Either one of them prepared, or the other was late enough to find the records.
    assert sum("preparing" in stderr for _, stderr in outputs) == 1
    assert len(list(tmp_path.glob("shapes/**/dataset_info.json"))) == 1
