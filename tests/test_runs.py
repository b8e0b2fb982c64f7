"""A run's folder: who may resume it, and with which settings."""

import dataclasses
import json
from pathlib import Path

import pytest

from fcn_jax import runs
from fcn_jax.config import Config, default_config
from fcn_jax.errors import ArgumentError, UserError
from fcn_jax.pretrained import Provenance
from tests.config.test_files import OLD_RUNS

MAPS = {"": ("background", "disc")}


def create_or_check(workdir: Path, config: Config, channels: int = 3, label_maps=MAPS) -> None:
    runs.create_or_check(workdir, Provenance(config, label_maps, channels), num_images=80)


@pytest.fixture
def config() -> Config:
    """A run of 24 epochs of 10 steps."""
    config = default_config()
    config.data.name, config.data.root = "folder", "/before"
    return config


@pytest.fixture
def begun(tmp_path: Path, config: Config) -> Path:
    """The folder of that run with a checkpoint of step 100, and of an interrupted save."""
    workdir = tmp_path / "runs" / "mine"
    create_or_check(workdir, config)
    (workdir / "checkpoints" / "100").mkdir(parents=True)
    (workdir / "checkpoints" / "120.orbax-checkpoint-tmp").mkdir()
    return workdir


def test_a_new_folder_holds_its_settings(tmp_path, config):
    assert not runs.has_checkpoint(tmp_path / "run")
    create_or_check(tmp_path / "run", config)
    assert not runs.has_checkpoint(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]
    assert runs.read_settings(tmp_path / "run") == Provenance(config, MAPS)
    config.seed = 1  # without a checkpoint nothing binds it
    create_or_check(tmp_path / "run", config)
    assert runs.read_settings(tmp_path / "run").config.seed == 1


def test_the_same_run_is_resumed(begun, config, capsys):
    assert runs.has_checkpoint(begun)
    before = (begun / "run.json").read_bytes()
    create_or_check(begun, config)
    assert (begun / "run.json").read_bytes() == before
    assert capsys.readouterr().out == ""


def test_another_run_is_refused_with_every_difference(begun, config):
    config.optim.learning_rate, config.augment.crop_px = 0.5, None
    with pytest.raises(UserError) as refused:
        create_or_check(begun, config, 4, {"": ("background", "ring")})
    assert str(refused.value) == (
        f"{begun} holds a run with other settings (augment.crop_px is 128,128 there and None now; "
        "optim.learning_rate is 0.006 there and 0.5 now; its images have 3 channels, not 4; its "
        "classes are background, disc): give another workdir, or the same settings and "
        "images to resume it"
    )


FIVE, NINE = "5 images (names 0a1b)", "9 images (names 2c3d)"


def test_changed_training_images_are_refused(begun, config):
    run = Provenance(config, MAPS, train_images=FIVE)
    runs.create_or_check(begun, run, num_images=80)
    runs.create_or_check(begun, run, num_images=80)
    with pytest.raises(UserError) as refused:
        runs.create_or_check(begun, dataclasses.replace(run, train_images=NINE), num_images=80)
    assert f"its training images are {FIVE} there and {NINE} now" in str(refused.value)
    assert runs.read_settings(begun) == run


def test_changed_masks_are_refused(begun, config, capsys):
    before, after = (runs.describe_images(5, "0a1b", contents) for contents in ("77", "88"))
    run = Provenance(config, MAPS, train_images=before)
    runs.create_or_check(begun, Provenance(config, MAPS, train_images=FIVE), num_images=80)
    capsys.readouterr()
    runs.create_or_check(begun, run, num_images=80)
    assert "only their names are compared" in capsys.readouterr().out
    runs.create_or_check(begun, run, num_images=80)
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError) as refused:
        runs.create_or_check(begun, dataclasses.replace(run, train_images=after), num_images=80)
    assert str(refused.value) == (
        f"{begun}: the training images or masks have changed since the run began: give another "
        "workdir, or the former images and masks to resume it"
    )
    assert runs.read_settings(begun) == run


def test_a_run_json_without_images_is_resumed_with_a_note_once(begun, config, capsys):
    run = Provenance(config, MAPS, train_images=FIVE)
    runs.create_or_check(begun, run, num_images=80)
    assert capsys.readouterr().out == (
        f"note: {begun}/run.json does not record the training images, so they are not compared\n"
    )
    runs.create_or_check(begun, run, num_images=80)
    assert capsys.readouterr().out == ""


def test_the_data_may_have_moved(begun, config, capsys):
    config.data.root = "/after"
    create_or_check(begun, config)
    assert runs.read_settings(begun).config.data.root == "/after"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("epochs", "steps", "said"),
    [
        (48, None, "grows from 240 to 480 steps: the learning rate follows the longer one"),
        (None, 241, "grows from 240 to 241 steps: the learning rate follows the longer one"),
        (None, 100, "shrinks from 240 to 100 steps: the learning rate follows the shorter one"),
        (None, 240, ""),
    ],
)
def test_the_schedule_may_change_and_that_is_said(begun, config, capsys, epochs, steps, said):
    config.train.epochs, config.train.steps = epochs, steps
    create_or_check(begun, config)
    assert capsys.readouterr().out == (f"the schedule {said}\n" if said else "")
    assert runs.read_settings(begun).config == config
    create_or_check(begun, config)
    assert capsys.readouterr().out == ""


def test_the_schedule_cannot_end_before_the_steps_that_are_done(begun, config):
    config.train.epochs = 9.9
    message = rf"^train.epochs \(=9.9\) ends at step 99, but {begun} is trained to step 100"
    with pytest.raises(ArgumentError, match=message):
        create_or_check(begun, config)


@pytest.mark.parametrize("name", OLD_RUNS)
def test_a_run_of_an_earlier_version_is_resumed(name, tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps(OLD_RUNS[name]))
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    run = runs.read_settings(tmp_path)
    assert run.channels == OLD_RUNS[name]["channels"]
    config = default_config() if name == "shapes" else run.config
    create_or_check(tmp_path, config, run.channels, run.label_maps)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "{}"]
    + [
        json.dumps({"config": config, "channels": 3, "class_names": ["a", "b"]})
        for config in (3, {"model": {"colour": 1}}, {"model": {"dropout": 3}})
    ],
)
def test_a_damaged_run_json_is_one_line(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(
        UserError, match=r"run\.json does not hold settings of a run .*: ."
    ) as refused:
        runs.read_settings(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_run_json_of_another_program_is_not_replaced(tmp_path, config):
    (tmp_path / "run.json").write_text('{"distance_km": 10}')
    with pytest.raises(UserError, match=r"run\.json does not hold settings .*another workdir$"):
        create_or_check(tmp_path, config)
    assert (tmp_path / "run.json").read_text() == '{"distance_km": 10}'


def test_a_run_needs_its_loss_to_train_and_its_backbone_always(tmp_path, config):
    config.loss.names = ("squared_hinge",)
    create_or_check(tmp_path, config)
    assert runs.read_settings(tmp_path).config.loss.names == ("squared_hinge",)
    with pytest.raises(ArgumentError, match=r"loss\.names \(=squared_hinge\) .* import its module"):
        config.check()
    config.model.backbone = "patches"
    create_or_check(tmp_path, config)
    message = r"run\.json: model\.backbone \(=patches\) must be one of .* import its module first"
    with pytest.raises(UserError, match=message):
        runs.read_settings(tmp_path)


def test_a_folder_of_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is not the folder of a run"):
        runs.read_settings(tmp_path)
