"""Label maps as arrays: class indices with `IGNORE_INDEX`, one map or several."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from fcn_jax.errors import UserError, listed

Array = TypeVar("Array", bound=Any)

IGNORE_INDEX = 255
"""Label of pixels that are neither trained on nor scored: VOC's object borders ("void") and the
part of a canvas outside the image."""

LABELS_SHOWN = 8
"""The number of labels that an error lists."""


def check_labels(label: np.ndarray, num_classes: int, name: str) -> None:
    """Checks that a label map, uint8 (h, w), holds only 0 to num_classes − 1 and `IGNORE_INDEX`.

    Raises:
      UserError: begins with `name` and lists the first values that are no classes.
    """
    stray = label[(label >= num_classes) & (label != IGNORE_INDEX)]
    if stray.size:
        shown = listed(np.unique(stray).tolist(), LABELS_SHOWN)
        raise UserError(
            f"{name}: label {shown} is outside 0 to {num_classes - 1} ({num_classes} classes, "
            f"{IGNORE_INDEX} is void); fix the mask or the list of classes"
        )


def label_feature(label_map: str) -> str:
    """The name of a label map's feature in a record; a single label map has no name."""
    return f"label_{label_map}" if label_map else "label"


def by_map(label: Array, label_maps: Sequence[str]) -> dict[str, Array]:
    """Splits the label of a record or batch into its label maps, each (…, h, w).

    Args:
      label: (…, h, w) if there is one label map, else (…, h, w, m); NumPy's or JAX's.
      label_maps: m names; ("",) for a single one.
    """
    if len(label_maps) == 1:
        return {label_maps[0]: label}
    return {name: label[..., index] for index, name in enumerate(label_maps)}
