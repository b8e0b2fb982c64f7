"""Settings that suit a data set, each with its reason."""

from typing import NamedTuple

import numpy as np

from fcn_jax.config import Config
from fcn_jax.data.canvases import one_canvas
from fcn_jax.doctor.survey import LARGE, Survey
from fcn_jax.errors import width_by_height
from fcn_jax.training.class_weights import enet_weights, median_frequency_weights

STRIDE_PX = 32  # of the coarsest features of most backbones
MAX_CROP_PX = 512
IMBALANCE = 10  # largest share over smallest from which weights are worth a try
LARGE_PERCENT = 95  # of the images lie whole on the canvas that is suggested


class Advice(NamedTuple):
    """setting: as it is given on the command line; "" where nothing needs to be."""

    setting: str
    why: str


def advise(survey: Survey, config: Config) -> list[Advice]:
    """What `config.loss.class_weights`, `augment.crop_px` and `data.canvas_px` should be."""
    sizes = np.array(
        [size for split in survey.train_splits for size in survey.sizes.get(split, [])]
    )
    return [
        *_class_weights(survey),
        *([_crop(sizes, config), *_canvas(sizes)] if len(sizes) else []),
    ]


def crop_px(sizes: np.ndarray) -> tuple[int, int]:
    """Height and width of a training crop for images of those sizes, int (n, 2).

    The median image, to the nearest multiple of `STRIDE_PX`, and at most `MAX_CROP_PX`.
    """
    cells = np.floor(np.median(sizes, axis=0) / STRIDE_PX + 0.5)
    height, width = np.clip(cells * STRIDE_PX, STRIDE_PX, MAX_CROP_PX)
    return int(height), int(width)


def _crop(sizes: np.ndarray, config: Config) -> Advice:
    crop = crop_px(sizes)
    setting = f"--config.augment.crop_px={crop[0]},{crop[1]}"
    median = width_by_height(np.median(sizes, axis=0).astype(int))
    why = (
        f"height,width: of the median training image ({median}) to the nearest {STRIDE_PX}, the "
        f"coarsest stride, and at most {MAX_CROP_PX}; less if memory runs short"
    )
    as_is = "as it is now; " if crop == tuple(config.augment.crop_px) else ""
    return Advice(setting, as_is + why)


def _canvas(sizes: np.ndarray) -> list[Advice]:
    whole = one_canvas(sizes)
    fits = np.percentile(sizes, LARGE_PERCENT, axis=0, method="higher")
    height, width = one_canvas(fits[None])
    times = whole[0] * whole[1] / (height * width)
    if times == 1 or sizes.prod(axis=1).max() <= LARGE * np.median(sizes.prod(axis=1)):
        return []
    return [
        Advice(
            f"--config.data.canvas_px={height},{width}",
            f"height,width: the canvas that holds every training image is "
            f"{width_by_height(whole)}, {times:.1f} times as large; {LARGE_PERCENT} of 100 images "
            "fit on this one whole",
        )
    ]


def _class_weights(survey: Survey) -> list[Advice]:
    advice = []
    for label_map, names in survey.label_maps.items():
        tally = survey.training(label_map)
        pixels = tally.pixels[: len(names)]
        present = pixels > 0
        if present.sum() < 2:
            continue
        rarest = int(np.flatnonzero(present)[pixels[present].argmin()])
        commonest = int(pixels.argmax())
        shares = (
            f"{names[rarest]} has {100 * pixels[rarest] / pixels.sum():.2g} % of the pixels to "
            f"train on, {names[commonest]} {100 * pixels[commonest] / pixels.sum():.2g} %"
        )
        if pixels[commonest] < IMBALANCE * pixels[rarest]:
            advice.append(Advice("", f"no class weights are called for: {shares}"))
            continue
        enet = enet_weights(pixels)[present]
        advice.append(
            Advice(
                "--config.loss.class_weights=balanced",
                f"{shares}; ENet's weights go from {enet.min():.1f} to {enet.max():.1f}",
            )
        )
        if len(survey.label_maps) == 1:
            weights = median_frequency_weights(pixels, tally.pixels_with[: len(names)])
            numbers = ",".join(f"{weight:.3g}" for weight in weights)
            advice.append(
                Advice(
                    f"--config.loss.class_weights={numbers}",
                    "or median-frequency weights, by a class's share of the images that have it",
                )
            )
    return list(dict.fromkeys(advice))
