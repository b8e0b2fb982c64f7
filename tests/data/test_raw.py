"""Registering a data set: one function serves training, preparing and the doctor."""

import dataclasses
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax import registry
from fcn_jax.config import Config, DataConfig
from fcn_jax.data.datasets import open_dataset
from fcn_jax.data.raw import RawDataset, Sample, SourceFile
from fcn_jax.doctor.subject import open_subject
from fcn_jax.errors import UserError
from tests.data import labelme
from tests.doctor.example_set import examine

SQUARE = [[2, 2], [5, 2], [5, 6], [2, 6]]


def write_labelme(root: Path, count: int = 5) -> Path:
    root.mkdir()
    for index in range(count):
        Image.new("RGB", (12, 10), (9 * index, 80, 80)).save(root / f"{index}.jpg")
        write_shapes(root / f"{index}.json", [("cell", SQUARE)])
    return root


def write_shapes(path: Path, shapes: list[tuple[str, list[list[int]]]]) -> None:
    document = {
        "imageWidth": 12,
        "imageHeight": 10,
        "shapes": [{"label": label, "points": points} for label, points in shapes],
    }
    path.write_text(json.dumps(document))


def settings(root: Path, name: str = "labelme", **changes) -> DataConfig:
    return DataConfig(
        name=name, root=str(root), prepared_dir=str(root.parent / "prepared"), **changes
    )


def test_a_data_set_is_one_function(tmp_path):
    """Prepared, opened and measured by its name."""
    dataset = open_dataset(settings(write_labelme(tmp_path / "cells")))
    assert dataset.class_names == labelme.CLASSES
    assert [record["name"] for record in dataset.split("train")] == ["1", "2", "3"]
    assert [record["name"] for record in dataset.split("val")] == ["0", "4"]
    record = dataset.split("train")[0]
    expected = np.zeros((10, 12), np.uint8)
    expected[2:7, 2:6] = 1  # Pillow's polygons include their corners
    np.testing.assert_array_equal(record["label"], expected)
    assert record["image"].shape == (10, 12, 3)
    statistics = dataset.statistics("train")
    np.testing.assert_array_equal(statistics.sizes, [[10, 12]] * 3)
    assert statistics.label_counts[""][:3].tolist() == [3 * 100, 3 * 20, 0]


def test_an_edited_annotation_is_prepared_again(tmp_path):
    root = write_labelme(tmp_path / "cells")
    open_dataset(settings(root))
    write_shapes(root / "1.json", [("nucleus", SQUARE)])
    record = open_dataset(settings(root)).split("train")[0]
    assert set(np.unique(record["label"])) == {0, 2}


def test_the_doctor_examines_it_by_its_files(tmp_path):
    root = write_labelme(tmp_path / "cells")
    (root / "2.jpg").write_bytes(b"no image")
    write_shapes(root / "3.json", [])
    with Image.open(root / "4.jpg") as image:
        image.crop((0, 0, 6, 6)).save(root / "4.jpg")
    with open_subject(settings(root)) as subject:
        reports = [subject.examine(index) for index in range(subject.num_images)]
    assert subject.splits == ("val", "train")
    assert subject.label_maps == {"": labelme.CLASSES}
    notes = {report.name: {note.kind for note in report.notes} for report in reports}
    flat = {"image_flat"}  # they are of one colour
    assert notes == {"0": flat, "1": flat, "2": {"image_unreadable"}, "3": flat} | {
        "4": {"image_flat", "mask_size"}
    }
    assert not (tmp_path / "prepared").exists()


def test_a_name_that_looks_like_a_registered_one_is_suggested(tmp_path):
    with pytest.raises(UserError, match=r"its module first; did you mean labelme\?"):
        open_dataset(settings(write_labelme(tmp_path / "cells"), "labelmee"))


def test_a_root_that_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"^the labelme data set needs --config\.data\.root=DIR$"):
        open_dataset(DataConfig(name="labelme", prepared_dir=str(tmp_path)))
    with pytest.raises(UserError, match=r"gone: no such folder \(--config\.data\.root\)$"):
        open_dataset(settings(tmp_path / "gone"))


@pytest.fixture
def register(monkeypatch):
    """Registers a data set for the length of a test."""
    monkeypatch.setattr(registry.datasets, "_registered", dict(registry.datasets._registered))

    def register(function):
        registry.register_dataset("mine")(function)

    return register


def image(value: int = 7) -> SourceFile:
    return SourceFile(Path("drawn/a.png"), lambda _: np.full((4, 5, 3), value, np.uint8))


def mask(values: object = 1) -> SourceFile:
    return SourceFile(Path("drawn/b.png"), lambda _: np.broadcast_to(np.asarray(values), (4, 5)))


GOOD = RawDataset(("a", "b"), [Sample("train", image(), mask(), name) for name in ("x", "y")])


def changed(**fields) -> RawDataset:
    return dataclasses.replace(GOOD, **fields)


def test_images_and_masks_may_be_arrays(tmp_path, register):
    register(lambda data: changed(samples=(sample for sample in GOOD.samples), files=()))
    split = open_dataset(settings(tmp_path / "", "mine")).split("train")
    assert (split[1]["image"] == 7).all()
    assert (split[1]["label"] == 1).all()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (changed(samples=[]), "the data set has no images"),
        (changed(samples=[*GOOD.samples, *GOOD.samples]), r"different names: x in train, y in tra"),
        (changed(class_names=["a", "a"]), "class names must differ, but a occurs twice"),
        (changed(class_names=["a"]), "1 class names; 2 to 255 are needed"),
        (changed(class_names=[str(i) for i in range(256)]), "256 class names; 2 to 255"),
        (changed(samples=[Sample("train", image(), {}, "x")]), "1 images without a mask: x"),
        (
            changed(samples=[Sample("train", image(), mask(), "x", {"depth": image()})]),
            r"data\.extra_channels \(=\(\)\) must name the channels beside RGB of mine, which has",
        ),
        (changed(samples=[Sample("all", image(), mask())]), "'all' cannot be the name of a split"),
        (changed(samples=[Sample("a/b", image(), mask())]), "'a/b' cannot be the name of a split"),
        (changed(samples=[Sample("train", image(), mask(), "../x")]), r"'\.\./x' leads out"),
        (changed(samples=[Sample("train", image(), mask(2), "x")]), r"b\.png: label 2 is outside"),
        (
            changed(samples=[Sample("train", image(), mask(0.5), "x")]),
            r"float64 \(4, 5\)",
        ),
        (changed(samples=[Sample("train", image(), mask(-1), "x")]), r"b\.png: values from -1 to"),
        (changed(samples=[Sample("train", mask(), mask(), "x")]), r"b\.png: the image is int64"),
        (changed(samples=[Sample("train", Path("gone.png"), mask())]), r"gone\.png: No such file"),
    ],
)
def test_unusable_data_sets(tmp_path, register, raw, message):
    register(lambda data: raw)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(settings(tmp_path / "", "mine"))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.array_record*"))


def test_the_doctor_says_what_training_says_of_no_images_and_of_values_that_are_no_labels(
    tmp_path, register
):
    samples: list[Sample] = []
    register(lambda data: changed(samples=samples))
    with pytest.raises(UserError, match="the data set has no images"):
        examine(tmp_path, "mine")
    samples += [
        Sample("train", image(1), mask(np.float32(1)), "x"),
        Sample("val", image(2), mask(-1), "y"),
    ]
    found = examine(tmp_path, "mine")
    assert {kind for kind, finding in found.items() if finding.is_fault} == {"reader_labels"}
    assert found["reader_labels"].places == (
        "drawn/b.png (the mask is float32 (4, 5))",
        "drawn/b.png (values from -1 to -1)",
    )
    assert found["reader_labels"].remedy.startswith("return integers (h, w)")


def test_settings_that_do_not_apply_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"extra_channels \(=depth\) must name .* has none"):
        open_dataset(settings(write_labelme(tmp_path / "cells"), extra_channels=("depth",)))
    with pytest.raises(UserError, match=r"label_maps \(=a,b\) must name the label maps of"):
        open_dataset(settings(tmp_path / "cells", label_maps=("a", "b")))


def line_of(function, text: str) -> str:
    """Returns FILE:LINE of the first line with a text in the source of a function."""
    lines, first = inspect.getsourcelines(function)
    offset = next(n for n, line in enumerate(lines) if text in line)
    return f"{__file__}:{first + offset}"


def test_a_reader_may_print_and_its_errors_name_the_file_and_the_line(tmp_path, register, capsys):
    def read(path):
        print(f"reading {path}")
        return {"no": "mask"}["mask"]

    register(lambda data: changed(samples=[Sample("train", image(), SourceFile(Path("b"), read))]))
    reason = f"{line_of(read, '[')}: KeyError: 'mask'"
    with pytest.raises(UserError) as raised:
        open_dataset(settings(tmp_path / "", "mine"))
    assert str(raised.value).startswith(f"b: {reason} (`python -m fcn_jax.doctor`")
    assert capsys.readouterr().out == "reading b\n"
    with open_subject(settings(tmp_path / "", "mine")) as subject:
        (note,) = (note for note in subject.examine(0).notes if note.where == "b")
    assert (note.kind, note.detail) == ("reader_failed", reason)


@pytest.mark.parametrize("opened", [open_dataset, lambda data: open_subject(data).__enter__()])
def test_an_error_in_the_function_or_its_generator_names_the_line(tmp_path, register, opened):
    data = settings(tmp_path / "", "mine")

    def read(text: str):
        return json.loads(text)  # the error is raised in another file

    register(lambda data: read("{"))
    with pytest.raises(UserError) as raised:
        opened(data)
    line = line_of(read, "json.loads")
    assert str(raised.value).startswith(f"{line}: JSONDecodeError: Expecting property name")
    assert str(raised.value).endswith("(in the data set 'mine')")

    def samples():
        yield GOOD.samples[0]
        yield {}["mask"]

    registry.datasets._registered.pop("mine")
    register(lambda data: changed(samples=samples()))
    with pytest.raises(UserError) as raised:
        opened(data)
    line = line_of(samples, '["mask"]')
    assert str(raised.value) == f"{line}: KeyError: 'mask' (in the data set 'mine')"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, r"^the function of the data set 'mine' returned NoneType, not a RawDataset$"),
        (["a.png"], r"^the function of the data set 'mine' returned list, not a RawDataset$"),
        (
            changed(samples=["a.png"]),
            "^the samples of the data set 'mine' contain str, not",
        ),
    ],
)
def test_a_function_that_returns_something_else(tmp_path, register, returned, message):
    register(lambda data: returned)
    with pytest.raises(UserError, match=message):
        open_dataset(settings(tmp_path / "", "mine"))


def test_a_palette_may_be_a_list_of_colours(tmp_path, register):
    colours = [(0, 0, 0), (255, 0, 0)]
    Image.new("RGB", (5, 4), colours[1]).save(tmp_path / "m.png")
    samples = [Sample("train", image(), tmp_path / "m.png")]
    register(lambda data: changed(samples=samples, palette=colours))
    label = open_dataset(settings(tmp_path / "", "mine")).split("train").label(0)
    np.testing.assert_array_equal(label, np.ones((4, 5)))
    for wrong in ([0, 0, 0], [(0, 0, 256)], [(0.5, 0, 0)]):
        with pytest.raises(ValueError, match="`palette` must"):
            changed(palette=wrong)


def test_remedies_for_a_data_set_in_code_name_neither_lists_nor_settings_of_a_folder(
    tmp_path, register
):
    Image.new("RGB", (5, 4), (9, 9, 9)).save(tmp_path / "m.png")
    samples = [Sample("train", image(), tmp_path / "m.png")]
    register(lambda data: changed(samples=samples, palette=[(0, 0, 0), (255, 0, 0)]))
    with pytest.raises(UserError, match=r"colour 9 9 9 \(R G B\) is not in the palette") as raised:
        open_dataset(settings(tmp_path / "", "mine"))
    assert "mask_palette" not in str(raised.value)
    remedies = {kind: found.remedy for kind, found in examine(tmp_path, "mine").items()}
    assert {"split_missing", "mask_stray_colours"} <= remedies.keys()
    for remedy in remedies.values():
        assert not re.search(r"mask_palette|\blists?\b|palette's file", remedy)


def test_a_file_that_the_function_misses_is_named(tmp_path, register):
    register(lambda data: (Path(data.root) / "list.txt").read_text())
    with pytest.raises(UserError, match=r"list\.txt: No such file or directory$"):
        open_dataset(settings(tmp_path / "", "mine"))


def test_every_builtin_data_set_is_described():
    config = Config()
    for name in ("shapes", "voc"):
        config.data.name = name
        assert isinstance(registry.datasets[name](config.data), RawDataset)
