"""A data set of LabelMe's files, registered as a fork would: images, and polygons in JSON files."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fcn_jax.config import DataConfig
from fcn_jax.data.raw import RawDataset, Sample, SourceFile, data_root
from fcn_jax.registry import register_dataset

CLASSES = ("background", "cell", "nucleus")


@register_dataset("labelme")
def labelme(data: DataConfig) -> RawDataset:
    files = sorted(data_root(data).glob("*.json"))
    return RawDataset(
        class_names=CLASSES,
        samples=[
            Sample(
                split="val" if index % 4 == 0 else "train",
                image=path.with_suffix(".jpg"),
                mask=SourceFile(path, rasterise),
            )
            for index, path in enumerate(files)
        ],
    )


def rasterise(path: Path) -> np.ndarray:
    document = json.loads(path.read_text())
    mask = Image.new("L", (document["imageWidth"], document["imageHeight"]))
    pen = ImageDraw.Draw(mask)
    for shape in document["shapes"]:
        points = [(x, y) for x, y in shape["points"]]
        pen.polygon(points, fill=CLASSES.index(shape["label"]))
    return np.asarray(mask)
