"""Small folder data sets for tests, a config to train on them, and running commands."""

import subprocess
import sys
from pathlib import Path

from PIL import Image

from fcn_jax.config import Config, default_config
from fcn_jax.data import shapes

ROOT = Path(__file__).parents[1]


def write_folder(root: Path, names: list[str]) -> None:
    """Writes a folder data set of drawn images."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "classes.txt").write_text("\n".join(shapes.CLASSES) + "\n")
    for name in names:
        image, label = shapes.draw(name)
        Image.fromarray(image).save(root / "images" / f"{name}.png")
        Image.fromarray(label).save(root / "masks" / f"{name}.png")


def write_split_folder(root: Path) -> None:
    """Writes a folder data set of seven images: five in train, two in val."""
    write_folder(root, [f"train_{n:03}" for n in range(7)])
    (root / "train.txt").write_text("".join(f"train_{n:03}\n" for n in range(5)))
    (root / "val.txt").write_text("train_005\ntrain_006\n")


def small_config(folder: Path) -> Config:
    config = default_config()
    config.data.name = "folder"
    config.data.root = str(folder / "data")
    config.data.prepared_dir = str(folder / "prepared")
    config.augment.crop_px = (64, 64)
    config.optim.warmup_steps = 0
    config.train.batch_size = 2
    config.train.epochs = None
    config.train.steps = 6
    config.train.eval_every_steps = 3
    config.train.log_every_steps = 1
    config.eval.batch_size = 2
    config.eval.canvases = 1
    return config


def command(module: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"fcn_jax.{module}", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
