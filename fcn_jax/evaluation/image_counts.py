"""The counts of each image that the scores need: DIR/evaluation/SPLIT_images.npz.

The scores are not averages over images, so the scores of images do not determine those of a subset
or a resample (`bootstrap.py`); these counts do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from fcn_jax.errors import UserError
from fcn_jax.evaluation import count_files
from fcn_jax.evaluation.confusion import class_counts
from fcn_jax.evaluation.metrics import Scores, mean_of_present, scores_from_counts


@dataclass(frozen=True)
class ImageCounts:
    """Pixels by image and class, without void pixels.

    Args:
        names: n names of images.
        hits: int64 (n, k), the correct pixels of each class.
        truth: int64 (n, k), the pixels of each class.
        predicted: int64 (n, k), the pixels predicted as each class.

    Raises:
        ValueError: an array has another shape or dtype.
    """

    names: tuple[str, ...]
    hits: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray

    def __post_init__(self) -> None:
        for name in ("hits", "truth", "predicted"):
            counts = getattr(self, name)
            shape = (len(self.names), *self.hits.shape[1:])
            if counts.ndim != 2 or counts.shape != shape or counts.dtype != np.int64:
                raise ValueError(
                    f"`{name}` ({counts.dtype}, shape {counts.shape}) must be int64 (n, k), "
                    f"with a row for each of {len(self.names)} names and as many columns as `hits`"
                )

    @classmethod
    def of(cls, names: Sequence[str], confusions: np.ndarray) -> Self:
        """Counts from the confusion matrix of each image: integers (n, k, k), rows true classes."""
        return cls(tuple(names), *class_counts(confusions.astype(np.int64)))

    @cached_property
    def total(self) -> Scores:
        """The scores of all images together."""
        return scores_from_counts(
            self.hits.sum(axis=0), self.truth.sum(axis=0), self.predicted.sum(axis=0)
        )

    @cached_property
    def mean_iou_by_image(self) -> np.ndarray:
        """The mIoU of each image alone, over the classes in its truth: float64 (n,).

        It is nan for an image that is all void.
        """
        rows = zip(self.hits, self.truth, self.predicted, strict=True)
        return np.array([mean_of_present(scores_from_counts(*row).per_class_iou) for row in rows])

    @property
    def images_by_class(self) -> np.ndarray:
        """The number of images that contain each class: int64 (k,)."""
        return (self.truth > 0).sum(axis=0)

    def save(self, path: Path) -> None:
        """Writes an .npz file atomically.

        Raises:
            UserError: it cannot be written.
        """
        arrays = {"hits": self.hits, "truth": self.truth, "predicted": self.predicted}
        count_files.save(path, {"names": np.array(self.names, dtype=np.str_), **arrays})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a file that `save` wrote.

        Raises:
            UserError: the file is missing, damaged, or holds something else.
        """
        if not path.exists():
            raise UserError(f"there is no {path}: run fcn_jax.evaluate")
        with count_files.opened(path, "run fcn_jax.evaluate again") as stored:
            names = tuple(stored["names"].tolist())
            return cls(names, stored["hits"], stored["truth"], stored["predicted"])
