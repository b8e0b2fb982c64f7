"""The entries of a legend."""

import numpy as np

from fcn_jax.data.palettes import voc_palette
from fcn_jax.pictures.legend import legend_entries


def test_only_the_first_values_outside_the_classes_are_listed():
    entries = legend_entries(np.array([0, 2, 3, 4, 5, 6, 255]), ["a", "b"], voc_palette())
    names = [entry.name for entry in entries]
    assert names == ["a", "class 2", "class 3", "class 4", "class 5, …", "void"]
    names = [entry.name for entry in legend_entries(np.arange(2, 6), ["a", "b"], voc_palette())]
    assert names == ["class 2", "class 3", "class 4", "class 5"]
