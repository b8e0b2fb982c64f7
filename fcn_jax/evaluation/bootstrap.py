"""Bootstrap confidence intervals: how far a score varies over images drawn from the same source.

The images of a split are resampled with replacement, as many as there are, and scored again; the
interval is bounded by percentiles of these scores (the percentile interval: Efron & Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13). Images are resampled, not pixels: the pixels of an
image are correlated, and intervals from pixels would be far too narrow.

The intervals do not include how the score varies over trainings with other seeds. With few images
they are too narrow. A class in very few images is missing from some resamples, whose mIoU is the
mean over the others. Such a class usually has a low IoU, so that these resamples have a higher mIoU
and the interval extends upwards; `rare_classes` names such classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fcn_jax.errors import listed
from fcn_jax.evaluation.image_counts import ImageCounts
from fcn_jax.evaluation.metrics import ratio

RESAMPLES = 1000
LEVEL = 0.95

MIN_IMAGES = 5
"""A class in four images is missing from nearly e⁻⁴ = 1.8 % of the resamples."""

MAX_NAMED = 8
"""The number of classes that `rare_classes` names."""

_CHUNK_WEIGHTS = 2**21
"""Weights of images, float64, that are held in memory: 16 MiB."""


class Interval(NamedTuple):
    """The bounds of an interval; both are nan if there is none."""

    low: float
    high: float


NO_INTERVAL = Interval(math.nan, math.nan)


@dataclass(frozen=True)
class Resampled:
    """The scores of b resamples of the same images, as fractions; see `metrics.scores`.

    A class that is absent from the truth of a resample has the IoU nan, and the mIoU of the
    resample is the mean over the others. All scores of a resample without valid pixels are nan.

    Attributes:
        mean_iou: float64 (b,).
        pixel_accuracy: float64 (b,).
        per_class_iou: float64 (b, k).
    """

    mean_iou: np.ndarray
    pixel_accuracy: np.ndarray
    per_class_iou: np.ndarray

    def __sub__(self, other: "Resampled") -> "Resampled":
        """Subtracts the scores of another network on the same resampled images."""
        return Resampled(
            self.mean_iou - other.mean_iou,
            self.pixel_accuracy - other.pixel_accuracy,
            self.per_class_iou - other.per_class_iou,
        )


@dataclass(frozen=True)
class Intervals:
    """The interval of each score at `LEVEL`; `per_class_iou` has one for each class."""

    mean_iou: Interval
    pixel_accuracy: Interval
    per_class_iou: tuple[Interval, ...]

    def to_json(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Returns each interval as [low, high], None if there is none; those of classes by name."""

        def bounds(interval: Interval) -> list[float] | None:
            return None if math.isnan(interval.low) else list(interval)

        return {
            "mean_iou": bounds(self.mean_iou),
            "pixel_accuracy": bounds(self.pixel_accuracy),
            "per_class_iou": dict(zip(class_names, map(bounds, self.per_class_iou), strict=True)),
        }


def intervals(counts: ImageCounts) -> Intervals:
    """Computes the 95 % intervals of a split's scores from 1,000 resamples; nan for one image.

    Raises:
        ValueError: there are no images.
    """
    return _intervals(resample(counts), len(counts.names))


def intervals_of_difference(a: ImageCounts, b: ImageCounts) -> Intervals:
    """Computes the intervals of the scores of `b` minus those of `a` on the same resamples.

    The difference of two networks on the same images varies less than their scores if the same
    images are hard for both.

    Raises:
        ValueError: the images, their order or the number of classes differ.
    """
    if a.names != b.names or a.truth.shape != b.truth.shape:
        raise ValueError(
            f"`a` ({len(a.names)} images, shape {a.truth.shape}) and `b` ({len(b.names)}, "
            f"{b.truth.shape}) must be of the same images and classes"
        )
    return _intervals(resample(b) - resample(a), len(a.names))


def resample(counts: ImageCounts, resamples: int = RESAMPLES, seed: int = 0) -> Resampled:
    """Draws all images with replacement, b times, and scores each of these resamples.

    The draws depend only on the number of images and the seed, so that two networks scored on the
    same images can be compared resample by resample.

    Args:
        counts: the counts of n ≥ 1 images.
        resamples: b.
        seed: seed of the draws.

    Raises:
        ValueError: there are no images.
    """
    images = len(counts.names)
    if not images:
        raise ValueError("`counts` must be of at least one image")
    # float64, which BLAS multiplies, holds the sums of pixels exactly: they are far below 2⁵³.
    per_image = np.concatenate([counts.hits, counts.truth, counts.predicted], axis=1)
    per_image = per_image.astype(np.float64)
    random = np.random.default_rng(seed)
    sums = np.empty((resamples, per_image.shape[1]))
    chunk_size = max(1, _CHUNK_WEIGHTS // images)
    for start in range(0, resamples, chunk_size):
        chunk = sums[start : start + chunk_size]
        drawn = random.integers(images, size=(len(chunk), images))
        drawn += images * np.arange(len(chunk))[:, None]
        weights = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        chunk[...] = weights.astype(np.float64) @ per_image
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
    """Returns the bounds of the middle 95 % of the resampled values, by linear interpolation.

    nan is left out: the interval of a class's IoU is over the resamples that contain the class.
    """
    present = values[~np.isnan(values)]
    if not len(present):
        return NO_INTERVAL
    low, high = np.quantile(present, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def describe(name: str, score: float, interval: Interval, images: int) -> str:
    """Describes a score and its interval in a line.

    Example:
        >>> describe("mIoU", 0.2190, Interval(0.2013, 0.2341), 445)
        'mIoU 21.9 % (95 % interval 20.1 to 23.4 over 445 images)'
    """
    if math.isnan(score):
        return f"{name} – (no valid pixel)"
    if math.isnan(interval.low):
        return f"{name} {100 * score:.1f} % ({images} image: no interval)"
    return (
        f"{name} {100 * score:.1f} % ({100 * LEVEL:.0f} % interval {100 * interval.low:.1f} to "
        f"{100 * interval.high:.1f} over {images} images)"
    )


def rare_classes(counts: ImageCounts, class_names: Sequence[str]) -> str | None:
    """Names the classes in so few images that they widen the intervals; None if there are none."""
    rare = [
        f"{name} ({images})"
        for name, images in zip(class_names, counts.images_by_class, strict=True)
        if 0 < images < MIN_IMAGES
    ]
    if not rare or len(counts.names) == 1:
        return None
    return f"few images show {listed(rare, MAX_NAMED)}: the interval of mIoU is rough"


def _intervals(resampled: Resampled, images: int) -> Intervals:
    if images == 1:  # every resample is that image
        return Intervals(
            NO_INTERVAL, NO_INTERVAL, (NO_INTERVAL,) * resampled.per_class_iou.shape[1]
        )
    return Intervals(
        mean_iou=percentile_interval(resampled.mean_iou),
        pixel_accuracy=percentile_interval(resampled.pixel_accuracy),
        per_class_iou=tuple(percentile_interval(column) for column in resampled.per_class_iou.T),
    )
