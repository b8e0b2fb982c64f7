"""The plot of a confusion matrix."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fcn_jax.pictures.plots import plot_confusion


def test_plot_confusion_draws_absent_classes_and_large_matrices(tmp_path):
    for k in (2, 60):
        confusion = np.diag(np.arange(k))  # class 0 is absent
        plot_confusion(confusion, [f"class {i}" for i in range(k)], tmp_path / f"{k}.png")
        with Image.open(tmp_path / f"{k}.png") as plot:
            dark = np.asarray(plot.convert("L")) < 80
        assert dark.mean() > 0.001
    with pytest.raises(ValueError, match="must have 2 names"):
        plot_confusion(np.eye(2, dtype=int), ["one"], tmp_path / "c.png")


@pytest.mark.parametrize("name", ["$x^$", "a_{", "5 $ or 6 $", r"\frac{"])
def test_class_names_are_not_parsed_as_formulas(tmp_path, name):
    plot_confusion(np.eye(2, dtype=int), ["ground", name], tmp_path / "c.png")
    assert (tmp_path / "c.png").is_file()


def test_import_does_not_load_matplotlib():
    modules = "fcn_jax.pictures.overlays, fcn_jax.pictures.sheets"
    code = f"import sys, {modules}; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
