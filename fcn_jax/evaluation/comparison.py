"""Compares two runs that were scored on the same images, from the files that evaluate wrote."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fcn_jax.errors import UserError
from fcn_jax.evaluation import bootstrap, conventions
from fcn_jax.evaluation.bootstrap import Intervals
from fcn_jax.evaluation.image_counts import ImageCounts
from fcn_jax.evaluation.metrics import Scores, number_or_none, to_json
from fcn_jax.runs import evaluation_folder


@dataclasses.dataclass(frozen=True)
class EvaluatedRun:
    """A run as evaluate scored it.

    Attributes:
        workdir: its folder, as given.
        numbers: the content of SPLIT.json.
        counts: the content of SPLIT_images.npz.
    """

    workdir: Path
    numbers: Mapping[str, Any]
    counts: ImageCounts

    @property
    def folder(self) -> Path:
        return evaluation_folder(self.workdir)

    @property
    def name(self) -> str:
        return self.folder.parent.resolve().name

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.numbers["per_class_iou"])

    @property
    def scores(self) -> Scores:
        return self.counts.total


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two runs on the same images, with the intervals of each and of b − a."""

    a: EvaluatedRun
    b: EvaluatedRun
    intervals_a: Intervals
    intervals_b: Intervals
    intervals_of_difference: Intervals


class ImageChange(NamedTuple):
    """The mIoU of an image in each run, over the classes in its truth."""

    image: str
    a: float
    b: float


def read_evaluation(workdir: Path, split: str) -> EvaluatedRun:
    """Reads the files that evaluate wrote for a run.

    Args:
        workdir: the run's folder, or its model file.
        split: the beginning of the files' names.

    Raises:
        UserError: the run has not been evaluated on the split, or the files cannot be read or
            belong to different evaluations.
    """
    folder = evaluation_folder(workdir)
    path, counts_path = folder / f"{split}.json", folder / f"{split}_images.npz"
    evaluate = f"python -m fcn_jax.evaluate --workdir={workdir}"
    if not workdir.exists() and not folder.exists():
        raise UserError(f"{workdir} does not exist")
    if workdir.is_file() and folder.parent == workdir:
        raise UserError(f"{workdir} is a file: give the folder of a run")
    try:
        numbers = _current_names(json.loads(path.read_text(encoding="utf-8")))
        per_class_iou, images, _ = numbers["per_class_iou"], numbers["images"], int(numbers["step"])
        per_class_iou = np.array(list(per_class_iou.values()), float)
    except FileNotFoundError:
        _check_means(split.rpartition("_")[2], f"split (={split}) is of", evaluate)
        found = sorted(file.name.removesuffix(".json") for file in folder.glob("*.json"))
        others = f"; there are scores of: {', '.join(found)}" if found else ""
        raise UserError(
            f"{workdir} has no scores of {split}: {evaluate} --split={split}{others}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); evaluate again: {evaluate}") from error
    if not counts_path.exists():
        raise UserError(
            f"{folder} contains {split}.json but not {counts_path.name}, the counts of each image: "
            f"{evaluate} writes both"
        )
    _check_means(
        numbers.get("convention", conventions.NATIVE.name), f"{path} was scored by", evaluate
    )
    counts = ImageCounts.load(counts_path)
    iou = counts.total.per_class_iou
    if (
        images != len(counts.names)
        or len(per_class_iou) != len(iou)
        or not np.allclose(per_class_iou, iou, rtol=0, atol=1e-9, equal_nan=True)
    ):
        raise UserError(f"{path} and {counts_path.name} are of different evaluations: {evaluate}")
    return EvaluatedRun(workdir, numbers, counts)


def _current_names(numbers: dict[str, Any]) -> dict[str, Any]:
    """Renames the scores of earlier versions, which wrote "mean_iu" for "mean_iou"."""
    return {
        f"{name.removesuffix('_iu')}_iou" if name.endswith("_iu") else name: value
        for name, value in numbers.items()
    }


def _check_means(convention: str, subject: str, evaluate: str) -> None:
    """Refuses the scores of a convention whose means are not those of the intervals."""
    known = conventions.CONVENTIONS.get(convention)
    if known is not None and known.mean_over != "truth":
        raise UserError(
            f"{subject} the convention {convention}, whose means are over other classes than those "
            f"of the intervals: compare native scores, {evaluate}"
        )


def compare(a: EvaluatedRun, b: EvaluatedRun) -> Comparison:
    """Resamples the images of two runs together.

    Raises:
        UserError: the images, their truth or the classes differ.
    """
    if a.class_names != b.class_names:
        raise UserError(
            f"{a.workdir} and {b.workdir} have different classes: {', '.join(a.class_names)}; "
            f"{', '.join(b.class_names)}"
        )
    names_a, names_b = a.counts.names, b.counts.names
    if names_a != names_b:
        in_a, in_b = set(names_a), set(names_b)
        only = [f"{name} in {a.workdir}" for name in names_a if name not in in_b]
        only += [f"{name} in {b.workdir}" for name in names_b if name not in in_a]
        raise UserError(
            f"{a.workdir} and {b.workdir} were scored on different images: {len(names_a)} and "
            f"{len(names_b)}, {f'only {only[0]}' if only else 'in another order'}"
        )
    if not names_a:
        raise UserError(f"{a.workdir} was scored on no images")
    different = np.flatnonzero((a.counts.truth != b.counts.truth).any(axis=1))
    if len(different):
        raise UserError(
            f"{a.workdir} and {b.workdir} were scored against different masks: {len(different)} of "
            f"{len(names_a)} differ, such as {names_a[different[0]]}; evaluate both on the same "
            "data"
        )
    return Comparison(
        a,
        b,
        bootstrap.intervals(a.counts),
        bootstrap.intervals(b.counts),
        bootstrap.intervals_of_difference(a.counts, b.counts),
    )


def verdict(comparison: Comparison) -> str:
    """Says in a sentence whether the difference is larger than the choice of images explains."""
    a, b = comparison.a.scores.mean_iou, comparison.b.scores.mean_iou
    low, high = (100 * bound for bound in comparison.intervals_of_difference.mean_iou)
    difference = 100 * (b - a)
    if math.isnan(difference):
        return "No pixel is valid: there is nothing to compare."
    ahead = f"B's mIoU is {abs(difference):.1f} points {'below' if difference < 0 else 'above'}"
    images = len(comparison.a.counts.names)
    if low == high == 0:
        return "A and B have the same mIoU in every resample of the images."
    if math.isnan(low):
        return f"{ahead} A's, on a single image: there is no interval."
    found = f"{ahead} A's; the 95 % interval of the difference, {low:+.1f} to {high:+.1f}, "
    if low <= 0 <= high:
        found += f"contains 0: the choice of the {images} images may explain it."
    else:
        found += f"does not contain 0: the choice of the {images} images does not explain it."
    return f"{found} The interval does not include the variation over training seeds."


def comparison_to_json(comparison: Comparison) -> dict[str, Any]:
    """Returns all numbers as fractions, None instead of nan.

    The images are sorted from the largest loss to the largest gain of their own mIoU; images that
    are all void come last.
    """
    a, b = comparison.a, comparison.b
    names = a.class_names
    images = len(a.counts.names)
    own_a, own_b = a.counts.mean_iou_by_image, b.counts.mean_iou_by_image

    def run_to_json(run: EvaluatedRun, intervals: Intervals) -> dict[str, Any]:
        return {
            "run": str(run.workdir),
            "step": run.numbers["step"],
            **to_json(run.scores, names, images),
            "intervals": intervals.to_json(names),
        }

    per_class = b.scores.per_class_iou - a.scores.per_class_iou
    return {
        "images": images,
        "level": bootstrap.LEVEL,
        "resamples": bootstrap.RESAMPLES,
        "images_by_class": dict(zip(names, a.counts.images_by_class.tolist(), strict=True)),
        "a": run_to_json(a, comparison.intervals_a),
        "b": run_to_json(b, comparison.intervals_b),
        "b_minus_a": {
            "mean_iou": number_or_none(b.scores.mean_iou - a.scores.mean_iou),
            "pixel_accuracy": number_or_none(b.scores.pixel_accuracy - a.scores.pixel_accuracy),
            "per_class_iou": dict(zip(names, map(number_or_none, per_class), strict=True)),
            "intervals": comparison.intervals_of_difference.to_json(names),
        },
        "mean_iou_by_image": [
            {
                "image": a.counts.names[i],
                "a": number_or_none(own_a[i]),
                "b": number_or_none(own_b[i]),
            }
            for i in np.argsort(own_b - own_a, kind="stable")
        ],
    }


def largest_changes(
    comparison: Comparison, count: int
) -> tuple[list[ImageChange], list[ImageChange]]:
    """Returns up to `count` images with the largest gains in B, then those with the losses.

    The mIoU of each image, over the classes in its truth, decides: pixel accuracy would hide what
    happens to small objects.
    """
    counts = comparison.a.counts
    a, b = counts.mean_iou_by_image, comparison.b.counts.mean_iou_by_image
    order = np.argsort(b - a, kind="stable")
    gains = [i for i in order[::-1] if b[i] > a[i]][:count]
    losses = [i for i in order if b[i] < a[i]][:count]
    gained, lost = (
        [ImageChange(counts.names[i], a[i], b[i]) for i in indices] for indices in (gains, losses)
    )
    return gained, lost
