"""The ISBI 2012 challenge: membranes of neurons in 30 electron-microscopy slices.

    root/
      image/   0.png … 29.png   512×512 grey
      label/   0.png … 29.png   255 inside of cells, 0 on membranes

The set that U-Net was first trained on (Ronneberger et al. 2015, table 1). The labels of the
challenge's own test slices are not public, so the last 6 of the 30 in the order of their numbers
(24.png … 29.png) are the split "val", and the other 24 are "train".
"""

from pathlib import Path

import numpy as np

from fcn_jax.config import DataConfig
from fcn_jax.data.images import read_image
from fcn_jax.data.raw import RawDataset, Sample, SourceFile, data_root
from fcn_jax.errors import UserError

CLASS_NAMES = ("cell", "membrane")

VALIDATION_SLICES = 6


def raw_dataset(data: DataConfig) -> RawDataset:
    """Lists the slices.

    Raises:
      UserError: no root, or too few slices in it.
    """
    root = data_root(data)
    images = sorted((root / "image").glob("*.png"), key=lambda path: (len(path.stem), path.stem))
    if len(images) <= VALIDATION_SLICES:
        raise UserError(
            f"{root}: {len(images)} files in image/*.png, more than {VALIDATION_SLICES} are "
            "needed: give the folder that holds image/ and label/"
        )
    first = len(images) - VALIDATION_SLICES
    return RawDataset(
        CLASS_NAMES,
        [
            Sample(
                "train" if index < first else "val",
                image,
                SourceFile(root / "label" / image.name, _membranes),
            )
            for index, image in enumerate(images)
        ],
    )


def _membranes(path: Path) -> np.ndarray:
    """Reads a label image: 1 on membranes, 0 inside of cells, uint8 (h, w).

    Raises:
      UserError: the image has other values than 0 and 255.
    """
    values = read_image(path)[..., 0]
    if not np.isin(values, (0, 255)).all():
        raise UserError(f"{path}: has other values than 0 (membrane) and 255 (cell)")
    return (values == 0).astype(np.uint8)
