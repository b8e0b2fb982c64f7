"""Every mistake ends in one line, with the status of a failure: one table for all commands.

Add a row to `ROWS` for each mistake that a command or a setting can be given. `{name}` in a row is
replaced by a path of the fixture `places`, {new} by one that does not exist and must not exist
afterwards. A row is run in the test's process, so it should fail before anything is compiled; those
that need a process of their own are marked as slow.
"""

import datetime
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.in_process import run_command
from tests.own_folder import ROOT, write_split_folder
from tests.test_heatmap import squeezenet_file

CONFIG_FILES = {
    "syntax": "def get_config(:\n",
    "raises": "def get_config():\n    return 1 / 0\n",
    "import": "import no_such_module\n",
    "nothing": "x = 1\n",
    "returns_int": "def get_config():\n    return 3\n",
    "returns_none": "def get_config():\n    pass\n",
    "returns_dict": "def get_config():\n    return {}\n",
    "misspelt": "from fcn_jax.config import default_config\n"
    "def get_config():\n    c = default_config()\n    c.train.epoch = 3\n    return c\n",
    "wrong_type": "from fcn_jax.config import default_config\n"
    "def get_config():\n    c = default_config()\n    c.train.steps = 'x'\n    return c\n",
    "section": "from fcn_jax.config import default_config\n"
    "def get_config():\n    c = default_config()\n    c.train = 3\n    return c\n",
    "exits": "raise SystemExit\n",
    "binary": "\0\1\2",
}


@pytest.fixture(scope="session")
def places(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Good and bad files by name; no row changes them."""
    folder = tmp_path_factory.mktemp("bad_input")
    for name, text in CONFIG_FILES.items():
        (folder / f"{name}.py").write_text(text)
    pixels = np.random.default_rng(0).integers(256, size=(60, 90, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    os.mkfifo(folder / "fifo.png")
    (folder / "script.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    )
    (folder / "words.png").write_text("no image")
    flipped = bytearray((folder / "photo.png").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (folder / "flipped.png").write_bytes(flipped)
    (folder / "empty").mkdir()
    _write_weights(folder)
    shutil.copytree(trained_folder / "data", folder / "void")
    for mask in (folder / "void/masks").iterdir():
        with Image.open(mask) as image:
            Image.new("L", image.size, 255).save(mask)
    write_split_folder(folder / "lossy")
    for mask in list((folder / "lossy/masks").iterdir()):
        with Image.open(mask) as image:
            image.convert("L").save(mask.with_suffix(".tif"), compression="jpeg")
        mask.unlink()
    named = {path.name: path for path in folder.iterdir()}
    data, run = trained_folder / "data", trained_folder / "run"
    return named | {
        "data": data,
        "prepared": trained_folder / "prepared",
        "run": run,
        "image": next((data / "images").iterdir()),
    }


def _write_weights(folder: Path) -> None:
    squeezenet_file(folder / "classifier.npz")
    np.savez(folder / "strings.npz", x=np.array(["a", "b"]))
    np.savez(folder / "complex.npz", x=np.array([1j]))
    np.savez(folder / "dates.npz", x=np.array([datetime.date(2000, 1, 1)], "datetime64[D]"))
    np.savez(folder / "pickle.npz", x=np.array([{}], dtype=object))
    np.savez(folder / "unknown.npz", x=np.zeros(3))
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(100 << 20))
    (folder / "page.pth").write_text("<!doctype html><html>")
    (folder / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    (folder / "nothing.pth").write_bytes(b"")
    (folder / "words.safetensors").write_text("no tensors")


class Row(NamedTuple):
    """A command line, and what it must end in.

    Attributes:
        command: the command and its arguments, separated by spaces.
        line: part of the one line on stderr.
        status: the exit status: 1, or 2 for mistakes in flags.
    """

    command: str
    line: str
    status: int = 1


FOLDER = (
    "--config.data.name=folder --config.data.root={data} --config.data.prepared_dir={prepared} "
    "--workdir={new} --config.optim.warmup_steps=0 "
)


def settings(*rows: tuple[str, str]) -> list[Row]:
    """Returns rows of `train` with one setting each, whose line begins with its name."""
    return [
        Row(
            f"train --workdir={{new}} --config.{setting}",
            f"config.{setting.replace('=', ' (=', 1)}) must {rule}",
        )
        for setting, rule in rows
    ]


ROWS = {
    "settings": [
        *settings(
            ("augment.crop_px=0,64", "be two whole numbers, each in 1…"),
            ("augment.crop_px=-64,-64", "be two whole numbers, each in 1…"),
            ("augment.crop_px=1000000,1000000", "be two whole numbers, each in 1…"),
            ("data.canvas_px=-64,-64", "be two whole numbers, each in 1…"),
            ("data.canvas_px=512,0", "be two whole numbers, each in 1…"),
            ("augment.scale=nan,nan", "be two finite numbers"),
            ("augment.scale=0.5,inf", "be two finite numbers"),
            ("augment.scale=0.001,0.001", "be two finite numbers, each in 0.1…"),
            ("augment.brightness=2.0", "be a finite number, in 0…1"),
            ("train.epochs=inf", "be a finite number"),
            ("train.epochs=-1.0", "be a finite number"),
            ("train.eval_every_steps=0", "be a whole number, in 1…"),
            ("train.checkpoint_every_steps=-5", "be a whole number, in 1…"),
            ("optim.warmup_steps=-1", "be a whole number, in 0…"),
            ("optim.momentum=1.0", "be a finite number, at least 0 and below 1"),
            ("optim.weight_decay=nan", "be a finite number, in 0…1"),
            ("optim.learning_rate=nan", "be a finite number, above 0"),
            ("optim.learning_rate=1e+39", "be a finite number, above 0"),
            ("optim.backbone_rate=-1.0", "be a finite number"),
            ("model.auxiliary_weight=1e+30", "be a finite number, in 0…100"),
            ("model.context_features=0", "be a whole number, in 1…"),
            ("model.dropout=1.0", "be a finite number, at least 0 and below 1"),
            ("loss.class_weights=-1.0,1.0", "be balanced, or finite numbers"),
        ),
        Row("train --config.augment.crop_px=64", "config.augment.crop_px (=64) must be two", 2),
        Row("train --config.augment.crop_px=abc", "config.augment.crop_px (=abc) must be two", 2),
        Row("train --config.augment.crop_px=64,64,64", "(=64,64,64) must be two", 2),
        Row("train --config.data.canvas_px=512", "config.data.canvas_px (=512) must be two", 2),
        Row("train --config.augment.scale=1", "config.augment.scale (=1) must be two", 2),
        Row("train --config.seed=99999999999999999999", "must be a whole number, in 0…4294967295"),
        Row("train --config.train.steps=99999999999999999999", "must be a whole number, in 1…"),
        Row(
            "train --config.optim.poly_power=2", "there is no setting --config.optim.poly_power", 2
        ),
    ],
    "config files": [
        Row("train --config={syntax.py}", "syntax.py:1: SyntaxError", 2),
        Row("train --config={syntax.py} --help", "syntax.py:1: SyntaxError", 2),
        Row("train --config={raises.py}", "raises.py:2: ZeroDivisionError", 2),
        Row("train --config={import.py}", "No module named 'no_such_module'", 2),
        Row("train --config={nothing.py}", "has no function get_config()", 2),
        Row("train --config={returns_int.py}", "returned int, not a fcn_jax.config.Config", 2),
        Row("train --config={returns_none.py}", "returned NoneType", 2),
        Row("train --config={returns_dict.py}", "returned dict", 2),
        Row("train --config={misspelt.py}", "'epoch'; did you mean epochs?", 2),
        Row("train --config={wrong_type.py}", "config.train.steps (=x) must be a whole number"),
        Row("train --config={section.py}", "must be a TrainConfig"),
        Row("train --config={exits.py}", "exits.py:1: SystemExit", 2),
        Row("train --config={binary.py}", "binary.py", 2),
        Row("train --config={empty}", "there is no config file", 2),
    ],
    "data": [
        Row(
            "train --config.data.name=folder --config.data.root={void} --workdir={new} "
            "--config.data.prepared_dir={scratch}",
            "are void (255) everywhere",
        ),
        Row(
            "train --config.data.name=folder --config.data.root={lossy} --workdir={new} "
            "--config.data.prepared_dir={scratch}",
            "TIFF with loss changes pixel values",
        ),
        Row("train --config.data.name=folder --config.data.root={empty}", "no such folder"),
        Row(
            "train --config.data.name=shapez",
            "called 'shapez'; if your own code registers it, give its module by --import=FILE; did "
            "you mean shapes",
        ),
        Row(f"train {FOLDER} --config.loss.class_weights=0,0,0,0,0,0", "and not all 0"),
        Row(f"train {FOLDER} --config.loss.class_weights=1,2", "6 numbers, one for each class"),
        Row(f"train {FOLDER} --config.loss.options=gamma=1", "'gamma'"),
        Row(
            f"train {FOLDER} --config.loss.names=dice --config.loss.options=smooth=inf",
            "finite numbers",
        ),
        Row("doctor --config.data.name=folder --config.data.root={empty}", "no such folder"),
        Row(
            "doctor --config.data.name=folder --config.data.root={data} --output={image}",
            "--output",
        ),
    ],
    "memory": [
        Row(
            f"train {FOLDER} --config.train.batch_size=1000000 --config.data.cache=none",
            "config.train.batch_size (=1000000) with crops of 128 × 128 pixels needs about",
        ),
        Row(
            f"train {FOLDER} --config.train.batch_size=1000000000",
            "config.train.batch_size (=1000000000) with crops",
        ),
        Row(
            f"train {FOLDER} --config.data.canvas_px=16000,16000 "
            "--config.augment.crop_px=16000,15000",
            "config.train.batch_size (=8) with crops of 15000 × 16000 pixels needs about",
        ),
        Row(
            f"train {FOLDER} --config.data.canvas_px=16000,16000 --config.augment.crop_px=None",
            "config.augment.crop_px (=None) trains on whole images, here of up to 16000 × 16000",
        ),
        Row(
            "heatmap --weights={classifier.npz} --output={new}/h.png --window=10000 {photo.png}",
            "the heat map of 90 × 60 pixels needs about",
        ),
        Row(
            "heatmap --weights={classifier.npz} --output={new}/h.png --top=1000 {photo.png}",
            "--top (=1000) must be at most 20",
        ),
    ],
    "images": [
        Row("predict --workdir={run} --output={new} {fifo.png}", "is not a regular file"),
        Row("predict --workdir={run} --output={new} /dev/null", "is not a regular file"),
        Row("predict --workdir={run} --output={new} {empty}", "holds no images"),
        Row("predict --workdir={run} --output={new} {script.png}", "not an image"),
        Row("predict --workdir={run} --output={new} {words.png}", "words.png: not an image"),
        Row("predict --workdir={run} --output={new} {flipped.png}", "flipped.png: the image is"),
        Row(
            "predict --workdir={run} --output={new} --windows=gaussian --window_px=1,1 {photo.png}",
            "photo.png: window_px (=1,1) and overlap (=0.25) cut this image",
        ),
    ],
    "outputs": [
        Row("heatmap --weights={classifier.npz} --output={photo.png} {photo.png}", "the file"),
        Row("predict --workdir={run} --output={data}/images {image}", "is the folder of"),
        Row("export --workdir={run} --output={words.png}", "words.png"),
    ],
    "runs": [
        Row("predict --workdir={empty} --output={new} {photo.png}", "is not the folder of a run"),
        Row("evaluate --workdir={empty}", "is not the folder of a run"),
        Row("evaluate --workdir={run} --data_root={empty}", "no such folder"),
        Row("evaluate --workdir={run} --split=testing", "has no split 'testing'"),
        Row("evaluate --workdir={run} --checkpoint=²", "has no checkpoint ²"),
        Row("evaluate --workdir={run} --checkpoint=5", "has no checkpoint 5"),
        Row("evaluate --workdir={words.safetensors}", "words.safetensors cannot be read"),
        Row("export --workdir={empty} --output={new}", "is not the folder of a run"),
        Row("compare {empty} {run}", "empty"),
        Row("predict --workdir={unknown.npz} --output={new} {photo.png}", "unknown.npz"),
    ],
    "weights": [
        Row("pretrained {strings.npz} --output={new}/m.safetensors", "must be real numbers"),
        Row("pretrained {complex.npz} --output={new}/m.safetensors", "must be real numbers"),
        Row("pretrained {dates.npz} --output={new}/m.safetensors", "must be real numbers"),
        Row("pretrained {pickle.npz} --output={new}/m.safetensors", "cannot be read"),
        Row("pretrained {unknown.npz} --output={new}/m.safetensors", "is of no known source"),
        Row("pretrained {bomb.npz} --output={new}/m.safetensors", "bytes of memory"),
        Row("pretrained {page.pth} --output={new}/m.safetensors", "is a web page, not weights"),
        Row("pretrained {lfs.pth} --output={new}/m.safetensors", "is a pointer of git-lfs"),
        Row("pretrained {nothing.pth} --output={new}/m.safetensors", "is empty"),
        Row("pretrained {words.safetensors} --output={new}/m.safetensors", "cannot be read"),
        Row("pretrained {empty} --output={new}/m.safetensors", "is a folder"),
        Row("pretrained {new} --output={new}/m.safetensors", "there is no file"),
        Row("pretrained {classifier.npz} --output={classifier.npz}", "must end in .safetensors"),
    ],
}


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=f"{kind}: {row.command}") for kind, r in ROWS.items() for row in r]
)
def test_a_mistake_is_one_line(row: Row, places: dict[str, Path], tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *arguments = row.command.split()
    new, scratch = tmp_path / "new", tmp_path / "scratch"
    for place, path in {**places, "new": new, "scratch": scratch}.items():
        arguments = [argument.replace(f"{{{place}}}", str(path)) for argument in arguments]
    result = run_command(name, *arguments)
    lines = [line for line in result.stderr.splitlines() if line.startswith(f"{name}: ")]
    assert len(lines) == 1, result.stderr
    assert row.line in lines[0]
    assert result.returncode == row.status
    assert result.stderr.rstrip().endswith(lines[0])
    assert not new.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "row"),
    [
        (
            {"JAX_PLATFORMS": "nonsense"},
            Row(f"train {FOLDER}", "JAX finds no devices with JAX_PLATFORMS=nonsense"),
        ),
        (
            {"PYTHONIOENCODING": "ascii"},
            Row("predict --workdir={run} --output={new} gr€y.png", "gr\\u20acy.png: no such file"),
        ),
    ],
)
def test_a_mistake_of_the_environment_is_one_line(
    environment: dict[str, str], row: Row, places: dict[str, Path], tmp_path: Path
):
    name, *arguments = row.command.split()
    for place, path in {**places, "new": tmp_path / "new"}.items():
        arguments = [argument.replace(f"{{{place}}}", str(path)) for argument in arguments]
    result = subprocess.run(
        [sys.executable, "-m", f"fcn_jax.{name}", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == row.status
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith(f"{name}: ")
    assert row.line in result.stderr
    assert not (tmp_path / "new").exists()
