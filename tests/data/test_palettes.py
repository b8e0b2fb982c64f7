"""Palette files."""

import numpy as np
import pytest

from fcn_jax.data import palettes
from fcn_jax.errors import UserError


def test_palette_file(tmp_path):
    path = tmp_path / "palette.txt"
    path.write_text("0 0 0\n10, 20, 30\n\n")
    np.testing.assert_array_equal(palettes.read_palette(str(path)), [[0, 0, 0], [10, 20, 30]])
    path.write_text("0 0 0\nred\n")
    with pytest.raises(UserError, match=r"palette\.txt, line 2: 'red'"):
        palettes.read_palette(str(path))
    path.write_text("0 0 0\n1 1 1\n0 0 0\n")
    with pytest.raises(UserError, match=r"lines 1 and 3 are the same colour, 0 0 0"):
        palettes.read_palette(str(path))
    with pytest.raises(UserError, match="No such file"):
        palettes.read_palette(str(tmp_path / "gone.txt"))
