"""The doctor's sheet of augmented samples, against the crops that a training step gets."""

import jax
import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.datasets import open_dataset
from fcn_jax.data.order import image_at
from fcn_jax.doctor import augmented
from tests.in_process import run_command
from tests.own_folder import small_config, write_split_folder
from tests.volume_files import write_set


def test_the_samples_are_the_first_of_a_training(tmp_path):
    write_split_folder(tmp_path / "data")
    config = small_config(tmp_path)
    config.augment.scale = (1.0, 1.0)
    config.augment.crop_px = None  # the image whole, mirrored or not
    config.augment.flip = True
    for name in ("brightness", "contrast", "saturation"):
        setattr(config.augment, name, 0.0)
    entries = list(augmented.augmented_entries(config))
    assert len(entries) == augmented.SAMPLES
    records = open_dataset(config.data).split("train")
    mirrored = []
    for position, entry in enumerate(entries):
        record = records[image_at(position, count=len(records), seed=config.seed)]
        assert entry.caption == f"{position + 1}: {record['name']}"
        # The key of the sample, as in the determinism contract: seed, step, index in the batch.
        step, index = divmod(position, config.train.batch_size)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), step), index)
        flip_key = jax.random.split(jax.random.split(key)[0], 5)[3]
        is_mirrored = bool(jax.random.bernoulli(flip_key))
        mirrored.append(is_mirrored)
        height, width = record["label"].shape
        for shown, original in ((entry.image, record["image"]), (entry.mask, record["label"])):
            expected = original[:, ::-1] if is_mirrored else original
            np.testing.assert_array_equal(shown[:height, :width], expected)
        assert (entry.mask[height:] == 255).all()
    assert any(mirrored)
    assert not all(mirrored)


def test_the_command_draws_patches_of_volumes_in_three_views(tmp_path, monkeypatch):
    pytest.importorskip("nibabel", reason="nibabel is not installed")
    monkeypatch.chdir(tmp_path)
    root = write_set(tmp_path / "set", count=4)
    result = run_command(
        "doctor.__main__",
        "--config.data.name=volumes",
        f"--config.data.root={root}",
        f"--config.data.prepared_dir={tmp_path}/prepared",
        "--config.model.backbone=unet",
        "--config.model.decoder=unet",
        "--config.model.features=4,4",
        "--config.volumes.patch=8,8,6",
        "--augmented",
    )
    assert result.returncode == 0, result.stderr
    assert "the first 10 samples of seed 0: doctor_set_augmented.png" in result.stdout
    with Image.open("doctor_set_augmented.png") as sheet:
        # Two columns of five samples: image, classes, and the classes over the image.
        assert sheet.size[0] == 2 * (3 * 230 + 10)
        assert sheet.size[1] > 5 * 70
