"""How far a score would move had other images been drawn: bootstrap confidence intervals.

The images of a split are resampled with replacement, as many as there are, and scored again; the
interval lies between percentiles of those scores (the percentile interval: Efron & Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13). Images are resampled, not pixels: the pixels of an
image are right or wrong together, and intervals from pixels would be far too narrow.

What the intervals do not hold: that another training of the same network, from another seed, scores
otherwise. With few images they are too narrow. A class on very few images is missing from some
resamples, whose mIoU is over the others: such a class has usually a low IoU, and without it the
mean is higher, so that the interval of the mean reaches up (`seldom_shown` names those classes).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fcn_jax.evaluation.image_counts import ImageCounts
from fcn_jax.evaluation.metrics import ratio

RESAMPLES = 1000
LEVEL = 0.95

SELDOM = 5
"""A class on four images is missing from nearly e⁻⁴ = 1.8 % of the resamples, on fewer of more."""

MAX_NAMED = 8
"""Classes that are named in a line."""

_WEIGHTS_AT_ONCE = 2**21
"""float64s, 16 MiB, however many images there are."""


class Interval(NamedTuple):
    """From low to high; both nan where there is nothing to say."""

    low: float
    high: float


NO_INTERVAL = Interval(math.nan, math.nan)


@dataclass(frozen=True)
class Resampled:
    """The scores of b resamples of the same images, as fractions.

    mean_iou, pixel_accuracy: float64 (b,). per_class_iou: float64 (b, k). They are computed as by
    `metrics.scores`: a class that the truth of a resample lacks has nan, and the mIoU of that
    resample is over the others. A resample without any scored pixel has nan throughout.
    """

    mean_iou: np.ndarray
    pixel_accuracy: np.ndarray
    per_class_iou: np.ndarray

    def __sub__(self, other: "Resampled") -> "Resampled":
        """The differences, resample by resample; of two networks on the same images."""
        return Resampled(
            self.mean_iou - other.mean_iou,
            self.pixel_accuracy - other.pixel_accuracy,
            self.per_class_iou - other.per_class_iou,
        )


@dataclass(frozen=True)
class Intervals:
    """Of each score its interval, at `LEVEL`; per_class_iou has k of them, by class."""

    mean_iou: Interval
    pixel_accuracy: Interval
    per_class_iou: tuple[Interval, ...]

    def to_json(self, class_names: Sequence[str]) -> dict[str, Any]:
        """As [low, high], None where there is nothing to say; per_class_iou by name."""

        def bounds(interval: Interval) -> list[float] | None:
            return None if math.isnan(interval.low) else list(interval)

        return {
            "mean_iou": bounds(self.mean_iou),
            "pixel_accuracy": bounds(self.pixel_accuracy),
            "per_class_iou": dict(zip(class_names, map(bounds, self.per_class_iou), strict=True)),
        }


def intervals(counts: ImageCounts) -> Intervals:
    """The 95 % intervals of the scores of a split, from 1000 resamples; nan for a single image.

    Raises:
      ValueError: there are no images.
    """
    return _intervals(resample(counts), len(counts.names))


def intervals_of_difference(a: ImageCounts, b: ImageCounts) -> Intervals:
    """The intervals of the scores of `b` minus those of `a`, on the same resampled images.

    The difference of two networks on the same images varies less than either's score, as far as
    what is hard for one is hard for the other.

    Raises:
      ValueError: they are not of the same images in the same order, or are of other classes.
    """
    if a.names != b.names or a.truth.shape != b.truth.shape:
        raise ValueError(
            f"`a` ({len(a.names)} images, shape {a.truth.shape}) and `b` ({len(b.names)}, "
            f"{b.truth.shape}) must be of the same images and classes"
        )
    return _intervals(resample(b) - resample(a), len(a.names))


def resample(counts: ImageCounts, resamples: int = RESAMPLES, seed: int = 0) -> Resampled:
    """Draw as many images as there are, with replacement, score them, and do that again and again.

    Which images are drawn depends on their number and the seed alone, so that two networks scored
    on the same images can be compared resample by resample.

    Args:
      counts: of n ≥ 1 images.
      resamples: b.
      seed: of the draws.

    Raises:
      ValueError: there are no images.
    """
    images = len(counts.names)
    if not images:
        raise ValueError("`counts` must be of at least one image")
    # Sums of pixels are far below 2⁵³, so that float64, which BLAS multiplies, holds them exactly.
    per_image = np.concatenate([counts.hits, counts.truth, counts.predicted], axis=1)
    per_image = per_image.astype(np.float64)
    random = np.random.default_rng(seed)
    sums = np.empty((resamples, per_image.shape[1]))
    at_once = max(1, _WEIGHTS_AT_ONCE // images)
    for start in range(0, resamples, at_once):
        part = sums[start : start + at_once]
        drawn = random.integers(images, size=(len(part), images))
        drawn += images * np.arange(len(part))[:, None]
        weights = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        part[...] = weights.astype(np.float64) @ per_image
    hits, truth, predicted = np.split(sums, 3, axis=1)
    present = truth > 0
    classes = present.sum(axis=1)
    iou = ratio(hits, truth + predicted - hits, where=present)
    return Resampled(
        mean_iou=ratio(np.nansum(iou, axis=1), classes, where=classes > 0),
        pixel_accuracy=ratio(hits.sum(axis=1), truth.sum(axis=1), where=classes > 0),
        per_class_iou=iou,
    )


def percentile_interval(values: np.ndarray) -> Interval:
    """The middle 95 % of the resampled values, interpolated between neighbours.

    nan is left out: the interval of a class's IoU is that over the resamples which hold the class.
    """
    present = values[~np.isnan(values)]
    if not len(present):
        return NO_INTERVAL
    low, high = np.quantile(present, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def in_words(name: str, score: float, interval: Interval, images: int) -> str:
    """A score with its interval for the terminal.

    Example:
      >>> in_words("mIoU", 0.2190, Interval(0.2013, 0.2341), 445)
      'mIoU 21.9 % (95 % interval 20.1 to 23.4 over 445 images)'
    """
    if math.isnan(score):
        return f"{name} – (no pixel to score)"
    if math.isnan(interval.low):
        return f"{name} {100 * score:.1f} % (of {images} image: no interval)"
    return (
        f"{name} {100 * score:.1f} % ({100 * LEVEL:.0f} % interval {100 * interval.low:.1f} to "
        f"{100 * interval.high:.1f} over {images} images)"
    )


def seldom_shown(counts: ImageCounts, class_names: Sequence[str]) -> str | None:
    """A line on the classes that blur the intervals, being on too few images; None without such."""
    seldom = [
        f"{name} ({images})"
        for name, images in zip(class_names, counts.images_by_class, strict=True)
        if 0 < images < SELDOM
    ]
    if not seldom or len(counts.names) == 1:
        return None
    listed = ", ".join(seldom[:MAX_NAMED])
    more = f" and {len(seldom) - MAX_NAMED} more" if len(seldom) > MAX_NAMED else ""
    return (
        f"on fewer than {SELDOM} images: {listed}{more}; resamples may lack them and take the mean "
        "IoU over the others, which widens its interval"
    )


def _intervals(resampled: Resampled, images: int) -> Intervals:
    if images == 1:  # each resample is that image again, which tells nothing of others
        return Intervals(
            NO_INTERVAL, NO_INTERVAL, (NO_INTERVAL,) * resampled.per_class_iou.shape[1]
        )
    return Intervals(
        mean_iou=percentile_interval(resampled.mean_iou),
        pixel_accuracy=percentile_interval(resampled.pixel_accuracy),
        per_class_iou=tuple(percentile_interval(column) for column in resampled.per_class_iou.T),
    )
