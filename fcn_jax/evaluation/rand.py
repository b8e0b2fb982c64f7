"""Rand F-score of a segmentation into cells: counts the pairs of pixels that share a cell.

It is for images whose one class, such as membranes, separates cells: it does not matter where
exactly a boundary is, but whether cells are split or merged (Arganda-Carreras et al. 2015, on the
ISBI 2012 challenge).
"""

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array


def rand_f_score(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Returns the adapted Rand F-score, between 0 and 1, of a segmentation.

    With p_ij the number of pixels of cell i in the truth and segment j in the prediction, a_i and
    b_j its sums over j and i, and n = Σ p_ij, it is

        F = 2 (Σ p_ij² − n) / (Σ a_i² − n + Σ b_j² − n),

    the harmonic mean of the precision and the recall of pairs of pixels. Pixels of cell 0 of the
    truth, the boundaries, are left out; segment 0 of the prediction counts as a segment. It is one
    minus the `adapted_rand_error` of scikit-image.

    Args:
        truth, predicted: whole numbers (h, w), such as those of `label_cells`.

    Raises:
        ValueError: the shapes differ.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"`predicted` has the shape {predicted.shape}, `truth` {truth.shape}")
    inside = truth != 0
    cells, segments = truth[inside], predicted[inside]
    table = coo_array((np.ones(len(cells)), (cells, segments))).tocsr()
    total = len(cells)

    def pairs(counts: np.ndarray) -> float:
        return float(np.sum(counts**2)) - total

    both, of_truth, of_prediction = (
        pairs(counts) for counts in (table.data, table.sum(axis=1), table.sum(axis=0))
    )
    return 2 * both / (of_truth + of_prediction) if of_truth + of_prediction else 1.0


def label_cells(boundary: np.ndarray, *, diagonal: bool = False) -> np.ndarray:
    """Numbers the connected regions between boundaries: int32 (h, w), 0 on the boundaries.

    Args:
        boundary: bool (h, w).
        diagonal: whether pixels that touch at a corner are connected, as in scikit-image's `label`.
    """
    structure = ndimage.generate_binary_structure(boundary.ndim, 2 if diagonal else 1)
    labels, _ = ndimage.label(~boundary, structure)
    return np.asarray(labels)
