"""Suggests settings that suit a data set, each with its reason."""

from typing import NamedTuple

import numpy as np

from fcn_jax.config import Config
from fcn_jax.data.canvases import one_canvas
from fcn_jax.doctor.set_checks import LARGE_FACTOR
from fcn_jax.doctor.survey import Survey
from fcn_jax.errors import width_by_height
from fcn_jax.training.class_weights import enet_weights, median_frequency_weights

STRIDE_PX = 32  # of the coarsest features of most backbones
MAX_CROP_PX = 512
MIN_IMBALANCE = 10  # largest class share over smallest; below, class weights are not suggested
CANVAS_PERCENTILE = 95  # percentage of images that fit on the suggested canvas


class Advice(NamedTuple):
    """A setting as the command line takes it, or None if no setting is needed; and the reason."""

    setting: str | None
    reason: str


def advise(survey: Survey, config: Config) -> list[Advice]:
    """Suggests `config.loss.class_weights`, `augment.crop_px` and `data.canvas_px`."""
    advice = _suggest_class_weights(survey)
    sizes = survey.sizes(survey.train_splits)
    if len(sizes):
        advice += [_suggest_crop(sizes, config), *_suggest_canvas(sizes)]
    return advice


def crop_px(sizes: np.ndarray) -> tuple[int, int]:
    """Returns height and width of a training crop for images of these sizes, int (n, 2).

    The crop is the median image, rounded to a multiple of `STRIDE_PX`, at most `MAX_CROP_PX`.
    """
    cells = np.floor(np.median(sizes, axis=0) / STRIDE_PX + 0.5)
    height, width = np.clip(cells * STRIDE_PX, STRIDE_PX, MAX_CROP_PX)
    return int(height), int(width)


def _suggest_crop(sizes: np.ndarray, config: Config) -> Advice:
    height, width = crop_px(sizes)
    median = width_by_height(np.median(sizes, axis=0).astype(int))
    unchanged = "unchanged; " if (height, width) == config.augment.crop_px else ""
    return Advice(
        f"--config.augment.crop_px={height},{width}",
        f"{unchanged}height,width: the median training image ({median}) rounded to a multiple of "
        f"{STRIDE_PX}, the coarsest stride, at most {MAX_CROP_PX}; smaller if memory runs out",
    )


def _suggest_canvas(sizes: np.ndarray) -> list[Advice]:
    areas = sizes.prod(axis=1)
    whole = one_canvas(sizes)
    height, width = one_canvas(
        np.percentile(sizes, CANVAS_PERCENTILE, axis=0, method="higher")[None]
    )
    factor = whole[0] * whole[1] / (height * width)
    if factor == 1 or areas.max() <= LARGE_FACTOR * np.median(areas):
        return []
    return [
        Advice(
            f"--config.data.canvas_px={height},{width}",
            f"height,width: the canvas that holds every training image is "
            f"{width_by_height(whole)}, {factor:.1f} times as large; {CANVAS_PERCENTILE} % of the "
            "images fit on this one",
        )
    ]


def _suggest_class_weights(survey: Survey) -> list[Advice]:
    advice = []
    for label_map, names in survey.label_maps.items():
        statistics = survey.statistics(label_map, survey.train_splits)
        pixels = statistics.pixels[: len(names)]
        present = pixels > 0
        if present.sum() < 2:
            continue
        rarest = int(np.flatnonzero(present)[pixels[present].argmin()])
        commonest = int(pixels.argmax())
        shares = (
            f"{names[rarest]} has {100 * pixels[rarest] / pixels.sum():.2g} % of the training "
            f"pixels, {names[commonest]} {100 * pixels[commonest] / pixels.sum():.2g} %"
        )
        if pixels[commonest] < MIN_IMBALANCE * pixels[rarest]:
            advice.append(Advice(None, f"no class weights are needed: {shares}"))
            continue
        enet = enet_weights(pixels)[present]
        advice.append(
            Advice(
                "--config.loss.class_weights=balanced",
                f"{shares}; ENet's weights range from {enet.min():.1f} to {enet.max():.1f}",
            )
        )
        if len(survey.label_maps) == 1:
            weights = median_frequency_weights(
                pixels, statistics.pixels_where_present[: len(names)]
            )
            advice.append(
                Advice(
                    f"--config.loss.class_weights={','.join(f'{w:.3g}' for w in weights)}",
                    "or median-frequency weights, from a class's share of the images that have it",
                )
            )
    return list(dict.fromkeys(advice))
