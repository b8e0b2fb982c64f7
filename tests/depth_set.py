"""A folder with two label maps and a depth channel, and the settings of a run on it."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fcn_jax.config import Config


def write_set(root: Path, stems: str = "abcdefghijkl", height: int = 48, width: int = 56) -> None:
    """Writes images of red discs on noise, and of near blocks that only the depth shows.

    The label map `masks` has the classes ground and disc, `geometry` has far and near. Discs and
    blocks are anywhere, also over each other.
    """
    for name in ("images", "depth", "masks", "geometry"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("ground\ndisc\n")
    (root / "geometry.txt").write_text("far\nnear\n")
    rows, columns = np.mgrid[:height, :width]
    for index, stem in enumerate(stems):
        random = np.random.default_rng(index)
        disc = (rows - random.integers(10, 38)) ** 2 + (columns - random.integers(10, 46)) ** 2
        disc = disc < 12**2
        image = random.integers(60, 140, (height, width, 3)).astype(np.uint8)
        image[disc] = [220, 40, 40]
        near = np.zeros((height, width), bool)
        top, left = random.integers(0, [height - 32, width - 36])
        near[top : top + 32, left : left + 36] = True
        depth = np.where(near, 60, 200) + random.integers(-20, 20, near.shape)
        Image.fromarray(image).save(root / "images" / f"{stem}.png")
        Image.fromarray(depth.astype(np.uint8)).save(root / "depth" / f"{stem}.png")
        masks = {"masks": disc.astype(np.uint8), "geometry": near.astype(np.uint8)}
        masks["geometry"][:2] = 255
        for name, mask in masks.items():
            Image.fromarray(mask).save(root / name / f"{stem}.png")


def config_of(folder: Path, **data: Any) -> Config:
    config = Config()
    config.data.name, config.data.root = "folder", str(folder)
    config.data.prepared_dir = str(folder.parent / "prepared")
    config.data.extra_channels, config.data.label_maps = ("depth",), ("masks", "geometry")
    for name, value in data.items():
        setattr(config.data, name, value)
    config.augment.crop_px, config.augment.scale = None, (1.0, 1.0)
    config.model.skips = 2
    config.model.upsampling = "fixed"
    config.optim.learning_rate = 1e-2
    config.train.batch_size = config.eval.batch_size = 4
    config.train.steps = 80
    config.train.eval_every_steps = 80
    return config
