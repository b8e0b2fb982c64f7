"""Settings: checked, listed, stored and read back, and changed from the terminal."""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fcn_jax.config import Config, default_config, from_dict, settings
from fcn_jax.errors import UserError

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("[a-z]*.py"))


def run_train(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fcn_jax.train", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_file_is_sound_and_says_how_to_run_it(name):
    module = importlib.import_module(f"configs.{name}")
    module.get_config().check()
    assert f"--config=configs/{name}.py" in module.__doc__


def test_stored_settings_read_back_equal():
    config = default_config()
    config.model.score_scales = (1.0, 0.01, 0.0001)
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    assert from_dict(stored) == config


def test_a_stored_setting_that_is_no_more_is_named():
    with pytest.raises(UserError, match=r"config\.model\.colour is not a setting"):
        from_dict({"model": {"colour": "red"}})


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        (
            "model.backbone",
            "vgg",
            r"config\.model\.backbone \(='vgg'\) must be one of small, alexnet",
        ),
        ("train.batch_size", 0, r"config\.train\.batch_size \(=0\) must be above 0"),
        ("eval.batch_size", -1, r"config\.eval\.batch_size \(=-1\) must not be below 0"),
        ("train.steps", 5, r"one of config\.train\.epochs \(=24\) and config\.train\.steps \(=5\)"),
        ("augment.scale", (2.0, 1.0), r"config\.augment\.scale \(=\(2\.0, 1\.0\)\)"),
        ("augment.crop_px", (0, 0), r"must be 1,1 where whole images"),
        ("model.dropout", 1.0, r"config\.model\.dropout \(=1\.0\)"),
        ("train.accumulation_steps", 3, r"batch_size \(=8\) must be divisible by .*\(=3\)"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name_and_value(setting, value, message):
    config = default_config()
    config.augment.scale = (0.5, 1.5)
    section, name = setting.split(".")
    setattr(getattr(config, section), name, value)
    with pytest.raises(UserError, match=message):
        config.check()


@pytest.mark.parametrize(
    ("name", "value"), [("alignment", "half_pixel"), ("upsampling", "interpolate")]
)
def test_the_papers_padding_needs_its_geometry(name, value):
    config = default_config()
    config.model.backbone, config.model.padding = "vgg16", "paper"
    config.check()
    setattr(config.model, name, value)
    with pytest.raises(UserError, match=f"{name}={value} does not go with padding=paper"):
        config.check()


def test_help_shows_the_values_of_the_config_that_is_given():
    result = run_train("--config=configs/folder.py", "--help")
    assert result.returncode == 0
    assert "with their values in configs/folder.py:" in result.stdout
    assert "  model.backbone=resnet18 " in result.stdout
    assert "  train.epochs=50 " in result.stdout
    wrong = run_train("--config=configs/none.py", "--help")
    assert wrong.returncode == 2
    assert "there is no file configs/none.py" in wrong.stderr


def test_help_lists_every_setting_and_needs_no_data():
    result = run_train("--help")
    assert result.returncode == 0
    for name, _, metadata in settings(Config()):
        assert f"  {name}=" in result.stdout
        assert metadata["help"] in result.stdout


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.optim.learning_rte=1", "did you mean --config.optim.learning_rate?"),
        ("--config.learning_rate=1", "did you mean --config.optim.learning_rate?"),
        ("--config.train.batch_size=many", "many"),
        ("--workdri=x", "workdri"),
        ("--config=configs/none.py", "configs/none.py"),
        ("--config.model.backbone=resnet", "must be one of small, alexnet"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(argument, message):
    result = run_train(argument)
    assert result.returncode in (1, 2)
    assert message in result.stderr
    assert result.stderr.strip().count("\n") == 0, result.stderr


def test_settings_are_changed_from_the_terminal(tmp_path):
    (tmp_path / "file").write_text("")
    # The folder cannot be made: the run stops right after its settings are read and shown.
    result = run_train(
        "--config.augment.crop_px=64,96",
        "--config.train.batch_size=3",
        "--config.train.accumulation_steps=2",
        f"--workdir={tmp_path}/file/run",
    )
    assert "batch_size (=3) must be divisible by config.train.accumulation_steps (=2)" in (
        result.stderr
    )
