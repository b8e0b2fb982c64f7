"""Label maps: labels that are no classes are refused."""

import numpy as np
import pytest

from fcn_jax.data import labels
from fcn_jax.errors import UserError


def test_check_labels_names_file_and_values():
    labels.check_labels(np.array([[0, 2, 255]], np.uint8), 3, "a.png")
    with pytest.raises(UserError, match=r"a\.png: label 3, 9 is outside 0 to 2"):
        labels.check_labels(np.array([[9, 3, 255, 3, 0]], np.uint8), 3, "a.png")
    with pytest.raises(UserError, match=r"label 2, 3, 4, 5, 6, 7, 8, 9 and 190 more is outside"):
        labels.check_labels(np.arange(200, dtype=np.uint8)[None], 2, "a.png")
