"""The slices of ISBI 2012: which are held out, and what their labels mean."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax.config import DataConfig
from fcn_jax.data.datasets import open_dataset
from fcn_jax.data.raw import open_raw
from fcn_jax.errors import UserError

SLICES = Path(__file__).parents[3] / "shared/data/isbi2012"


def write_slices(root: Path, count: int = 12) -> None:
    """Draws slices 0.png … whose membrane is a column of the number of the slice."""
    for index in range(count):
        label = np.full((16, 20), 255, np.uint8)
        label[:, index] = 0
        for name, values in (("image", label // 2 + index), ("label", label)):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(root / name / f"{index}.png")


def settings(root: Path, tmp_path: Path) -> DataConfig:
    return DataConfig(name="isbi2012", root=str(root), prepared_dir=str(tmp_path / "prepared"))


def test_the_last_six_by_number_are_held_out_and_zero_is_membrane(tmp_path: Path) -> None:
    write_slices(tmp_path / "raw")
    dataset = open_dataset(settings(tmp_path / "raw", tmp_path))
    assert dataset.class_names == ("cell", "membrane")
    names = {
        split: [dataset.split(split)[index]["name"] for index in range(6)]
        for split in ("train", "val")
    }
    assert names == {"train": list("012345"), "val": ["6", "7", "8", "9", "10", "11"]}
    record = dataset.split("val")[0]
    assert np.array_equal(record["label"][0], np.arange(20) == 6)
    assert record["image"].shape == (16, 20, 3)


def test_the_real_slices() -> None:
    if not SLICES.is_dir():
        pytest.skip("the ISBI 2012 slices are not here")
    raw = open_raw(DataConfig(name="isbi2012", root=str(SLICES)))
    assert raw is not None
    samples = list(raw.samples)
    assert [sample.name for sample in samples if sample.split == "val"] == [
        str(number) for number in range(24, 30)
    ]
    assert len(samples) == 30


def test_a_wrong_folder_and_other_values_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"0 files in image/\*.png, more than 6 are needed"):
        open_dataset(settings(tmp_path, tmp_path))
    write_slices(tmp_path / "raw")
    Image.fromarray(np.full((16, 20), 7, np.uint8)).save(tmp_path / "raw/label/3.png")
    with pytest.raises(UserError, match=r"label/3.png: has other values than 0 .* and 255"):
        open_dataset(settings(tmp_path / "raw", tmp_path))
