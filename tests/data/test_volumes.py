"""Sets of volumes: their files, the plan, and what is refused in one line."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fcn_jax.config import DataConfig
from fcn_jax.data import nifti
from fcn_jax.data.datasets import open_dataset
from fcn_jax.data.plan import Plan, make_plan
from fcn_jax.data.resample import resample_image, resample_label
from fcn_jax.errors import UserError
from tests.volume_files import SHAPE, drawn, save, write_set

pytest.importorskip("nibabel", reason="nibabel is not installed")


def config_of(root: Path, **changes) -> DataConfig:
    config = DataConfig(name="volumes", root=str(root), prepared_dir=str(root.parent / "prepared"))
    return dataclasses.replace(config, **changes)


def header(shape, spacing):
    return nifti.Header(tuple(shape), np.eye(4), tuple(spacing), "RAS", None)


def test_records_are_the_files_normalised_and_every_fifth_is_for_validation(tmp_path):
    write_set(tmp_path / "set", count=6)
    dataset = open_dataset(config_of(tmp_path / "set"))
    assert dataset.class_names == ("background", "class_1", "class_2")
    assert (dataset.ndim, dataset.channels) == (3, 1)
    names = {name: [r["name"] for r in dataset.split(name)] for name in ("train", "val", "all")}
    assert names["val"] == ["case_0", "case_5"]
    assert names["train"] == ["case_1", "case_2", "case_3", "case_4"]
    assert len(names["all"]) == 6
    image, label = drawn(1)
    record = dataset.split("train")[0]
    np.testing.assert_array_equal(record["label"], label)
    expected = (image - image.mean()) / image.std()
    np.testing.assert_allclose(record["image"][..., 0], expected, atol=1e-4)
    statistics = dataset.statistics("train")
    assert statistics.sizes.tolist() == [list(SHAPE)] * 4
    # Each box of 6³ holds one of 4³.
    assert statistics.label_counts[""][1:3].tolist() == [4 * (6**3 - 4**3), 4 * 4**3]
    label[0, 0, 0] = 1
    save(tmp_path / "set" / "labels" / "case_1.nii.gz", label)
    corrected = open_dataset(config_of(tmp_path / "set"))
    assert corrected.statistics("train").contents_digest != statistics.contents_digest
    validation = dataset.statistics("val").contents_digest
    assert corrected.statistics("val").contents_digest == validation
    with pytest.raises(UserError, match="has no split 'test'; it has train, val, all"):
        dataset.split("test")


def test_nnunets_layout_with_two_channels(tmp_path):
    root = tmp_path / "Dataset001"
    for number in range(2):
        image, label = drawn(number)
        save(root / "imagesTr" / f"liver_{number}_0000.nii.gz", image)
        save(root / "imagesTr" / f"liver_{number}_0001.nii.gz", -image)
        save(root / "labelsTr" / f"liver_{number}.nii.gz", label)
    text = {"channel_names": {"0": "CT", "1": "T2"}, "labels": {"background": 0, "a": 1, "b": 2}}
    (root / "dataset.json").write_text(json.dumps(text))
    dataset = open_dataset(config_of(root))
    assert dataset.class_names == ("background", "a", "b")
    assert dataset.channels == 2
    assert dataset.plan.normalisation == "ct"
    image, label = drawn(1)
    low, high, mean, std = dataset.plan.intensities[0]
    every = np.concatenate([drawn(n)[0][drawn(n)[1] > 0] for n in range(2)])
    np.testing.assert_allclose((low, high), np.percentile(every, (0.5, 99.5)), rtol=1e-5)
    np.testing.assert_allclose((mean, std), (every.mean(), every.std()), rtol=1e-5)
    record = dataset.split("train")[0]
    expected = (np.clip(image, low, high) - mean) / std
    np.testing.assert_allclose(record["image"][..., 0], expected, rtol=1e-4, atol=1e-5)
    # Version 1 of dataset.json has the numbers as keys.
    version_1 = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "a", "2": "b"}}
    (root / "dataset.json").write_text(json.dumps(version_1))
    assert open_dataset(config_of(root)).class_names == ("background", "a", "b")
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "all": [1, 2]}}))
    with pytest.raises(UserError, match="regions of several classes are not supported"):
        open_dataset(config_of(root))


def test_a_changed_plan_changes_the_records_and_a_wrong_one_is_refused(tmp_path):
    write_set(tmp_path / "set")
    config = config_of(tmp_path / "set")
    plan = open_dataset(config).plan
    assert plan.spacing_mm == (1, 1, 1)
    path = tmp_path / "mine.json"
    dataclasses.replace(plan, spacing_mm=(2.0, 1.0, 1.0)).save(path)
    split = open_dataset(dataclasses.replace(config, plan=str(path))).split("all")
    assert split[0]["label"].shape == (6, 14, 10)
    np.testing.assert_array_equal(split.native_label(0), drawn(0)[1])
    path.write_text(path.read_text().replace("zscore", "magic"))
    with pytest.raises(UserError, match=r"is no plan of volumes \(normalisation must be zscore or"):
        open_dataset(dataclasses.replace(config, plan=str(path)))


def test_the_plan_of_the_hippocampus_is_nnunets():
    headers = [header((36, 50, 35), (1, 1, 1))] * 3 + [header((31, 40, 24), (1, 1, 1))]
    plan = make_plan(
        headers,
        np.ones((5, 1)),
        normalisation="zscore",
        class_names=("a", "b"),
        platform="cpu",
    )
    assert (plan.spacing_mm, plan.patch, plan.levels) == ((1, 1, 1), (40, 56, 40), 4)


def test_a_thick_axis_keeps_more_of_its_resolution_and_large_volumes_get_smaller_patches():
    spacings = [(0.5, 0.5, thickness) for thickness in np.linspace(2, 8, 11)]
    plan = make_plan(
        [header((512, 512, 60), spacing) for spacing in spacings],
        np.ones((5, 1)),
        normalisation="zscore",
        class_names=("a", "b"),
        platform="cpu",
    )
    # The median of the thickness is 5, its 10th percentile 2.6.
    np.testing.assert_allclose(plan.spacing_mm, (0.5, 0.5, 2.6))
    assert np.prod(plan.patch) < 2 * 40 * 56 * 40


def test_resampling_keeps_borders_in_place():
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None, None], (8, 4, 4, 1))
    finer = resample_image(ramp, (16, 4, 4), order=1)
    # The centres of the halves of voxel i are at i ∓ 1/4.
    np.testing.assert_allclose(finer[1:-1, 0, 0, 0], np.arange(0.25, 7.2, 0.5), atol=1e-5)
    label = np.arange(8, dtype=np.uint8)[:, None, None]
    assert resample_label(label, (4, 1, 1))[:, 0, 0].tolist() == [1, 3, 5, 7]
    assert resample_label(label, (16, 2, 1))[:, 1, 0].tolist() == np.repeat(range(8), 2).tolist()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        ("4-D", r"case_1.nii.gz: has 4 axes \(12 × 14 × 10 × 2\), where volumes have 3"),
        ("truncated", r"images/case_1.nii.gz: cannot be read, damaged or incomplete"),
        ("text", r"images/case_1.nii.gz: cannot be read, damaged or incomplete"),
        ("nan", r"images/case_1.nii.gz: 1 voxels are NaN or infinite"),
        ("size", r"labels/case_1.nii.gz: the label map has 12 × 14 × 9 voxels, but its image"),
        ("grid", r"labels/case_1.nii.gz: the label map is on another grid than its image"),
        ("orientation", r"different orientations \(case_1 is LPS, case_0 is RAS\)"),
        ("classes", r"labels/case_0.nii.gz: label 2 is outside 0 to 1"),
        ("fraction", r"labels/case_1.nii.gz: labels must be whole numbers"),
        ("negative", r"labels/case_1.nii.gz: labels from -1 to 2"),
        ("overflow", r"labels/case_1.nii.gz: labels from 0 to 258, but classes are 0…254"),
        ("no label", r"labels: 1 volumes have no label map: case_1"),
        ("no labels", r"labels: no such folder; volumes are images/ and labels/"),
        ("empty", r"images: holds no NIfTI files"),
        ("background", r"labels: no label map has a foreground voxel"),
    ],
)
def test_what_is_wrong_with_files_is_said_in_one_line(tmp_path, spoil, problem):
    root = write_set(tmp_path / "set", count=2)
    image, label = drawn(1)
    image_path, label_path = (root / kind / "case_1.nii.gz" for kind in ("images", "labels"))
    match spoil:
        case "4-D":
            save(image_path, np.stack([image, image], axis=-1))
        case "truncated":
            image_path.write_bytes(image_path.read_bytes()[:2000])
        case "text":
            image_path.write_text("no volume")
        case "nan":
            image[3, 3, 3] = np.nan
            save(image_path, image)
        case "size":
            save(label_path, label[..., 1:])
        case "grid":
            save(label_path, label, spacing=(1, 1, 2))
        case "orientation":
            save(image_path, image, axes="LPS")
            save(label_path, label, axes="LPS")
        case "classes":
            (root / "classes.txt").write_text("background\nthing\n")
        case "fraction":
            save(label_path, label + np.float32(0.5))
        case "negative":
            save(label_path, label.astype(np.int16) - np.int16(1) * (label == 0))
        case "overflow":
            save(label_path, label.astype(np.int16) * np.int16(129))  # 258 would be 2 in 8 bits
        case "no label":
            label_path.unlink()
        case "no labels":
            shutil.rmtree(root / "labels")
        case "empty":
            shutil.rmtree(root / "images")
            (root / "images").mkdir()
        case "background":
            for path in (root / "labels").iterdir():
                save(path, np.zeros_like(label))
    with pytest.raises(UserError, match=problem) as raised:
        open_dataset(config_of(root))
    assert "\n" not in str(raised.value)


def test_a_written_label_map_has_the_grid_and_the_header_of_its_image(tmp_path):
    image, label = drawn(0)
    path = save(tmp_path / "image.nii.gz", image, spacing=(0.5, 1, 2), axes="LPS")
    like = nifti.read_header(path)
    nifti.write_label(tmp_path / "label.nii.gz", label, like, "made by a test")
    read, written = nifti.read_label(tmp_path / "label.nii.gz")
    np.testing.assert_array_equal(read, label)
    np.testing.assert_array_equal(written.affine, like.affine)
    assert (written.spacing_mm, written.orientation) == ((0.5, 1, 2), "LPS")
    voxels = {"datatype", "bitpix", "descrip", "scl_slope", "scl_inter", "cal_min", "cal_max"}
    for name in set(like.nifti.keys()) - voxels:
        np.testing.assert_array_equal(written.nifti[name], like.nifti[name], err_msg=name)
    assert written.nifti.get_data_dtype() == np.uint8


def test_plans_are_written_as_they_are_read(tmp_path):
    plan = Plan(
        (1.0, 1.0, 2.5),
        "RAS",
        "ct",
        ((-100.0, 200.0, 50.0, 30.0),),
        (8, 16, 8),
        2,
        3,
        1,
        ("a", "b"),
    )
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert plan.resampled_shape((100, 50, 30), (0.5, 1, 5)) == (50, 50, 60)
