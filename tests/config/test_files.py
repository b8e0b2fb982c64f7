"""Config files, the command line's values, and the configs that older runs have stored."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fcn_jax.config import Config, default_config, from_dict, load
from fcn_jax.errors import ArgumentError, UserError
from tests.own_folder import ROOT

OLD_RUNS = json.loads((Path(__file__).parent / "old_runs.json").read_text())
"""Two run.json as versions wrote them that had 0, "" and (0, 0) for None."""


def write(path: Path, get_config: str, before: str = "") -> Path:
    lines = ["from fcn_jax.config import Config, load", before, "def get_config():"]
    path.write_text("\n".join([*lines, *(f"    {line}" for line in get_config.splitlines())]))
    return path


# --- Config files


def test_a_file_inherits_from_another_anywhere(tmp_path):
    (tmp_path / "a").mkdir()
    base = write(tmp_path / "a/base.py", "c = Config()\nc.train.steps = 7\nreturn c")
    beside = write(
        tmp_path / "a/beside.py",
        "c = load(Path(__file__).with_name('base.py'))\nc.seed = 1\nreturn c",
        "from pathlib import Path",
    )
    elsewhere = write(tmp_path / "other.py", f"c = load({str(beside)!r})\nc.seed += 1\nreturn c")
    config = load(elsewhere)
    assert (config.seed, config.train.steps) == (2, 7)
    assert load(base).seed == 0


def test_a_file_imports_modules_beside_it(tmp_path):
    (tmp_path / "my_numbers_for_a_test.py").write_text("SEED = 5\n")
    file = write(
        tmp_path / "c.py",
        "c = Config()\nfrom my_numbers_for_a_test import SEED\nc.seed = SEED\nreturn c",
    )
    assert load(file).seed == 5


@pytest.mark.parametrize("name", ["voc_fcn8s_vgg16", "voc_fcn16s_vgg16"])
def test_our_files_that_inherit_load_from_another_folder(name, tmp_path):
    result = train("--help", f"--config={ROOT}/configs/{name}.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "  model.backbone=vgg16 " in result.stdout
    assert "  model.padding=paper " in result.stdout


def test_a_changed_file_is_read_again(tmp_path):
    """Not from Python's cache of compiled modules, which goes by seconds and sizes."""
    for seed in range(3):
        file = write(tmp_path / "c.py", f"return Config(seed={seed})")
        assert load(file).seed == seed
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"def get_config(:\n", r":1: SyntaxError: invalid syntax"),
        (b"x = 1\n\nimport nowhere_at_all\n", r":3: ModuleNotFoundError: No module named"),
        (b"import sys\nsys.exit('no')\n", r":2: SystemExit: no"),
        (b"x = 1\n", r": has no function get_config\(\)"),
        (b"get_config = 3\n", r": has no function get_config\(\)"),
        (b"def get_config():\n    return 3\n", r": get_config\(\) returned int, not a fcn_jax"),
        (b"def get_config():\n    pass\n", r": get_config\(\) returned NoneType, not a fcn_jax"),
        (b"def get_config():\n    return {}\n", r": get_config\(\) returned dict, not a fcn_jax"),
        (b"def get_config(x):\n    return x\n", r": TypeError: get_config\(\) missing 1 required"),
        (b"def get_config():\n    a = 1\n    return a.b\n", r":3: AttributeError: 'int' object"),
        (b"def get_config():\n    raise ValueError('a\\nb')\n", r":2: ValueError: a b$"),
        (
            b"from fcn_jax.config import Config\ndef get_config():\n    c = Config()\n"
            b"    c.train.epoch = 3\n    return c\n",
            r":4: AttributeError: there is no setting 'epoch'; did you mean epochs\?",
        ),
        (b"\x89PNG\r\n\x1a\n\0\0", r": SyntaxError: "),
        (b"a\0b", r": (Syntax|Value)Error: source code string cannot contain null bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_line(tmp_path, content, message):
    file = tmp_path / "c.py"
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{file}(:\d+)?{message}") as refused:
        load(file)
    assert "\n" not in str(refused.value)


def test_an_error_in_an_imported_module_is_named_by_the_line_of_the_import(tmp_path):
    (tmp_path / "broken_module_of_a_test.py").write_text("x = (\n")
    file = tmp_path / "c.py"
    file.write_text("\nimport broken_module_of_a_test\n")
    with pytest.raises(UserError, match=rf"^{file}:2: SyntaxError: .*broken_module_of_a_test"):
        load(file)


def test_a_file_that_is_missing_is_named(tmp_path):
    for path in (tmp_path / "none.py", tmp_path):
        with pytest.raises(UserError, match=f"there is no config file {path}"):
            load(path)


@pytest.mark.parametrize("further", [(), ("--help",)])
def test_a_broken_file_is_one_line_on_the_command_line(tmp_path, further):
    (tmp_path / "c.py").write_text("import nowhere_at_all\n")
    result = train("--config=c.py", *further, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "train: c.py:1: ModuleNotFoundError: No module named 'nowhere_at_all' "
        "(see python -m fcn_jax.train --help)\n"
    )


def train(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fcn_jax.train", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


# --- Stored configs


def test_stored_settings_read_back_equal():
    config = default_config()
    config.model.score_scales = (1.0, 0.01, 0.0001)
    config.data.extra_channels = ("depth",)
    config.loss.class_weights = (1.0, 2.0)
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    assert from_dict(stored) == config
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(Config())))) == Config()


def test_the_default_run_of_an_earlier_version_reads_back_as_todays():
    assert from_dict(OLD_RUNS["shapes"]["config"]) == default_config()


def test_settings_of_an_earlier_version_are_translated():
    expected = Config()
    expected.init = "a.npz,runs/b"
    expected.data.name, expected.data.root = "folder", "mine"
    expected.data.mask_palette, expected.data.num_classes = "voc", 3
    expected.data.extra_channels = ("hha", "depth")
    expected.data.label_maps = ("masks", "geometry")
    expected.data.canvas_px = (512, 640)
    expected.augment.crop_px, expected.augment.scale = None, (1.0, 1.0)
    expected.model.remat, expected.model.context_features = True, 256
    expected.model.score_scales = (1.0, 0.1, 0.02)
    expected.loss.class_weights = (1.0, 2.5)
    expected.train.steps, expected.train.checkpoint_every_steps = 100, 10
    expected.eval.batch_size = 2
    assert from_dict(OLD_RUNS["mine"]["config"]) == expected
    expected.check()


def test_a_removed_setting_is_refused_unless_it_had_its_usual_value():
    assert from_dict({"optim": {"poly_power": 0.9}}) == Config()
    with pytest.raises(UserError, match=r"config\.optim\.poly_power \(=2\.0\) is not a setting"):
        from_dict({"optim": {"poly_power": 2.0}})


@pytest.mark.parametrize("stored", [{"model": {"colour": "red"}}, {"model": 3}, {"colour": 1}])
def test_a_stored_setting_that_is_unknown_is_named(stored):
    with pytest.raises(UserError, match=r"config\.(model|model\.colour|colour) \(=\w+\) is not a"):
        from_dict(stored)


def test_a_stored_value_that_cannot_be_used_is_named():
    with pytest.raises(ArgumentError, match=r"data.label_maps \(=..\) must be different names"):
        from_dict({"data": {"label_maps": ".."}})
    with pytest.raises(ArgumentError, match=r"model.dropout \(=\{\}\) must be a finite number"):
        from_dict({"model": {"dropout": {}}})
