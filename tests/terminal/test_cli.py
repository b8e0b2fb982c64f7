"""The common part of the commands: flags and settings, `--help`, and one-line errors."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tensorstore as ts
from absl import flags

from fcn_jax import registry
from fcn_jax.config import Config, settings
from fcn_jax.terminal import cli
from tests.own_folder import ROOT, command

COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in (ROOT / "fcn_jax").rglob("*.py")
    if "cli.begin(" in path.read_text() and path.name != "cli.py"
)
SLOW_TO_IMPORT = {"jax", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "matplotlib"}


@pytest.fixture
def own_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    own = flags.FlagValues()
    flags.DEFINE_string("data_root", None, "", flag_values=own)
    flags.DEFINE_bool("keep_all", False, "", flag_values=own)
    monkeypatch.setattr(flags, "FLAGS", own)


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        ("--data-root=my-data/a-b=c", "--data_root=my-data/a-b=c"),
        ("--data_root=--data-root", "--data_root=--data-root"),
        ("-data-root my-data", "-data_root my-data"),
        ("--keep-all --nokeep-all", "--keep_all --nokeep_all"),
        ("--config.data.eval-split=val-2", "--config.data.eval_split=val-2"),
        ("--data-rot=x", "--data-rot=x"),
        ("data-root -1e-3 - --1-2 ---data-root", "data-root -1e-3 - --1-2 ---data-root"),
        ("--keep-all -- --data-root --", "--keep_all -- --data-root --"),
    ],
)
def test_hyphens_in_the_names_of_flags_are_underscores(own_flags, given, understood):
    assert cli.with_underscores(given.split(" ")) == understood.split(" ")


def test_help_shows_flags_with_underscores():
    shown = command("evaluate", "--data-root=x", "--help")
    assert "\n  --data_root: folder of its raw files (default: the run's)\n" in shown.stdout


def test_a_setting_takes_hyphens():
    refused = command("train", "--config.train.batch-size=0", "--workdir=x-y")
    assert "config.train.batch_size (=0) must be a whole number, in 1…2147483647" in refused.stderr


def test_help_shows_the_values_of_the_config_that_is_given():
    result = command("train", "--config=configs/folder.py", "--help", "--config.seed=7")
    assert result.returncode == 0
    assert "with values from configs/folder.py:" in result.stdout
    assert "  model.backbone=resnet18 " in result.stdout
    assert "  train.epochs=50 " in result.stdout
    assert "  seed=7 " in result.stdout


def test_help_lists_every_setting_with_its_choices_and_needs_no_data(monkeypatch):
    for names in (registry.backbones, registry.losses, registry.datasets):
        monkeypatch.setattr(names, "_registered", {})  # other tests register code in this process
    result = command("train", "--help")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    for setting in settings(Config()):
        (line,) = (line for line in lines if line.startswith(f"  {setting.name}="))
        assert setting.help in line
        assert all(str(choice) in line for choice in setting.choices)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.optim.learning_rte=1", "did you mean --config.optim.learning_rate?"),
        ("--config.learning_rate=1", "did you mean --config.optim.learning_rate?"),
        ("--config.train.batch_size=many", "config.train.batch_size (=many) must be a whole"),
        ("--config.train.batch_size", "Missing value for flag --config.train.batch_size"),
        ("--workdri=x", "workdri"),
        ("--config=configs/none.py", "there is no config file configs/none.py"),
        ("--config.model.backbone=resnet", "must be one of small, alexnet"),
        ("--config.train.steps=1e400", "config.train.steps (=1e400) must be a whole number"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(argument, message):
    result = command("train", argument)
    assert result.returncode in (1, 2)
    assert message in result.stderr
    assert result.stderr.strip().count("\n") == 0, result.stderr


def test_settings_are_changed_from_the_command_line(tmp_path):
    shown = command(
        "train",
        "--config.augment.crop_px=64,96",
        "--config.augment.crop_px=32,48",  # the last one holds
        "--config=configs/folder.py",  # also after the settings that change it
        "--config.train.batch_size",
        "3",
        "--config.model.remat",
        "--noconfig.augment.flip",
        "--config.init=",
        "--help",
    ).stdout
    for line in (
        "augment.crop_px=32,48",
        "train.batch_size=3",
        "model.remat=True",
        "augment.flip=False",
        "init=None",
    ):
        assert f"\n  {line} " in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_help_waits_for_no_slow_import(name):
    shown, imported = imports_of(name, "--help")
    assert shown.returncode == 0
    assert f"python -m {name}" in shown.stdout
    assert "\nFlags:\n" in shown.stdout
    assert "fcn_jax.terminal.cli" in imported
    assert not SLOW_TO_IMPORT & {module.partition(".")[0] for module in imported}


def test_nothing_slow_is_imported_with_the_package():
    imported = imports_of("-c", "import fcn_jax")[1]
    assert "fcn_jax" in imported
    assert {module for module in imported if module.startswith("fcn_jax.")} == set()


def test_the_server_is_imported_by_its_command_alone():
    others = "fcn_jax.train, fcn_jax.evaluate, fcn_jax.predict, fcn_jax.compare, fcn_jax.inspect"
    imported = imports_of("-c", f"import {others}")[1]
    assert set(others.split(", ")) <= imported
    assert not {"starlette", "uvicorn", "fcn_jax.serve"} & imported


def test_a_command_ignores_the_backend_that_a_notebook_hands_on(tmp_path: Path):
    (tmp_path / "own.py").write_text(
        "from fcn_jax.terminal import cli\ncli.begin()\n"
        "import matplotlib\nprint(matplotlib.get_backend())\n"
    )
    environment = {**os.environ, "MPLBACKEND": "module://not_installed", "PYTHONPATH": str(ROOT)}
    command_line = [sys.executable, "-m", "own"]
    ended = subprocess.run(
        command_line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.stdout.strip() == "agg", ended.stderr


@pytest.mark.parametrize(
    ("name", "mistake", "status", "told"),
    [
        ("fcn_jax.predict", "--wrokdir=x", 2, "no flag --wrokdir; did you mean --workdir? (see"),
        ("fcn_jax.train", "--conifg=x.py", 2, "no flag --conifg; did you mean --config? (see"),
        ("fcn_jax.train", "--config.train.stesp=5", 2, "did you mean --config.train.steps?"),
        ("fcn_jax.train", "--config.train.steps=five", 2, "steps"),
        ("fcn_jax.train", "--config.eval.canvases=0", 1, "config.eval.canvases (=0) must be a"),
        ("fcn_jax.doctor", "--config=nowhere.py", 2, "there is no config file nowhere.py"),
    ],
)
def test_mistakes_in_flags_wait_for_no_slow_import(name, mistake, status, told):
    refused, imported = imports_of(name, mistake)
    assert refused.returncode == status
    message, *_ = (line for line in refused.stderr.splitlines() if "import time:" not in line)
    assert told in message
    assert not SLOW_TO_IMPORT & {module.partition(".")[0] for module in imported}


def imports_of(*arguments: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Returns the finished command, and the modules that it imported."""
    if arguments[0] != "-c":
        arguments = ("-m", *arguments)
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    return result, {line.rpartition("|")[2].strip() for line in lines}


def test_an_interruption_amid_the_imports_is_no_traceback(tmp_path: Path):
    """Here it comes when JAX is imported."""
    (tmp_path / "jax.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(10)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    ended = subprocess.run(
        [sys.executable, "-m", "fcn_jax.train"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


@pytest.mark.parametrize("home", ["none", "read-only"])
def test_a_home_that_cannot_be_written_names_the_other_way(tmp_path: Path, home: str):
    """`docker run -u` starts a program as a user without a name and a home."""
    (tmp_path / "sitecustomize.py").write_text(
        "import pwd\ndef getpwuid(uid): raise KeyError(uid)\npwd.getpwuid = getpwuid\n"
    )
    (tmp_path / "file").touch()
    environment = {name: os.environ[name] for name in os.environ if name != "HOME"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if home == "read-only":
        environment["HOME"] = str(tmp_path / "file")
    ended = subprocess.run(
        [sys.executable, "-m", "fcn_jax.evaluate"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    note, error = ended.stderr.splitlines()
    assert note.startswith("evaluate: compiled programs cannot be cached (")
    assert "$JAX_COMPILATION_CACHE_DIR may name another folder" in note
    assert error == "evaluate: --workdir=DIR is needed: the folder of a run"


async def _fail_beside(writing: ts.Future) -> None:
    """A save of two parts as Orbax does it, of which one fails while TensorStore writes one."""

    async def write() -> None:
        await writing

    async def fail() -> None:
        raise OSError("File too large")

    await asyncio.gather(write(), fail())


@pytest.mark.parametrize("silent", [False, True])
def test_a_write_that_ends_after_a_failed_save_prints_nothing(monkeypatch, capfd, silent):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    monkeypatch.setattr("absl.logging.set_verbosity", lambda level: None)
    if silent:
        cli.silence_libraries()
    promise, writing = ts.Promise.new()
    loop = asyncio.new_event_loop()
    with pytest.raises(OSError, match="File too large"):
        loop.run_until_complete(_fail_beside(writing))
    loop.close()
    promise.set_result(None)
    writing.result()
    time.sleep(0.1)  # the callback comes after the result
    assert ("Event loop is closed" in capfd.readouterr().err) != silent


def test_a_platform_without_devices_is_one_line(monkeypatch, capsys):
    def no_devices() -> None:
        raise AssertionError  # as JAX does for JAX_PLATFORMS=cuda without a GPU

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr("jax.devices", no_devices)
    monkeypatch.setattr(cli, "_command", lambda: "train")
    with pytest.raises(SystemExit, match="1"):
        cli.run(lambda _: no_devices())
    assert capsys.readouterr().err == (
        "train: JAX finds no devices with JAX_PLATFORMS=cuda (there are none of this platform): "
        "set it to cpu, or unset it for the best devices that there are\n"
    )
    monkeypatch.undo()
    with pytest.raises(AssertionError):  # an error of another cause stays as it is
        cli.run(lambda _: no_devices())
