"""What the scores of a split need of each of its images: DIR/evaluation/SPLIT_images.npz.

The scores are not averages over images, so they cannot be had again from scores of images, but they
can from these counts: of a part of the split, or of images drawn from it (`bootstrap.py`).
"""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from fcn_jax.errors import UserError
from fcn_jax.evaluation.confusion import class_counts
from fcn_jax.evaluation.metrics import Scores, mean_of_present, scores_of_counts
from fcn_jax.terminal.atomic_files import write_whole


@dataclass(frozen=True)
class ImageCounts:
    """Pixels counted image by image and class by class; void is in none of the counts.

    names: of n images. hits, truth, predicted: int64 (n, k), the pixels of a class that were found,
    those that are of it, and those predicted as it.

    Raises:
      ValueError: the shapes or the types differ from these.
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
        """From the confusion matrix of each image: integers (n, k, k), rows true classes."""
        return cls(tuple(names), *class_counts(confusions.astype(np.int64)))

    @cached_property
    def total(self) -> Scores:
        """The scores of all the images together."""
        return scores_of_counts(
            self.hits.sum(axis=0), self.truth.sum(axis=0), self.predicted.sum(axis=0)
        )

    @cached_property
    def mean_iou_by_image(self) -> np.ndarray:
        """float64 (n,): the mIoU of each image by itself, over the classes that it shows.

        nan for an image that is all void.
        """
        rows = zip(self.hits, self.truth, self.predicted, strict=True)
        return np.array([mean_of_present(scores_of_counts(*row).per_class_iou) for row in rows])

    @property
    def images_by_class(self) -> np.ndarray:
        """int64 (k,): how many images show each class."""
        return (self.truth > 0).sum(axis=0)

    def save(self, path: Path) -> None:
        """Writes an .npz, whole or not at all.

        Raises:
          UserError: it cannot be written.
        """

        def write(part: Path) -> None:
            with part.open("wb") as file:  # by a name without .npz, NumPy would write elsewhere
                np.savez_compressed(
                    file,
                    names=np.array(self.names, dtype=np.str_),
                    hits=self.hits,
                    truth=self.truth,
                    predicted=self.predicted,
                )

        write_whole(path, write)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` has written.

        Raises:
          UserError: the file is missing, damaged, or holds something else.
        """
        try:
            # Opened here: of a damaged file NumPy would leave it open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                names = tuple(stored["names"].tolist())
                return cls(names, stored["hits"], stored["truth"], stored["predicted"])
        except FileNotFoundError:
            raise UserError(f"there is no {path}: run fcn_jax.evaluate") from None
        except (
            OSError,
            EOFError,
            KeyError,
            ValueError,
            TypeError,
            AttributeError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{path} cannot be read ({reason}): run fcn_jax.evaluate again"
            ) from error
