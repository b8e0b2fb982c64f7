"""The names that a fork imports from `fcn_jax` itself."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import fcn_jax
from fcn_jax.errors import ArgumentError
from fcn_jax.models.build import build_model
from fcn_jax.training import losses


def test_every_public_name_is_there():
    public = set(fcn_jax._PUBLIC)
    assert public >= {
        *("Config", "build_model", "init_model", "load_weights", "load_run", "Predictor"),
        *("losses", "open_dataset", "train", "evaluate"),
    }
    assert all(hasattr(fcn_jax, name) for name in public)
    assert public <= set(dir(fcn_jax))
    assert fcn_jax.build_model is build_model
    assert fcn_jax.losses is losses


def test_importing_the_package_imports_no_other_module_of_it():
    code = "import fcn_jax, sys; sys.exit(any(m.startswith('fcn_jax.') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_training_is_a_function_under_the_name_of_its_module():
    importlib.import_module("fcn_jax.train")  # which sets the attribute of the package
    with pytest.raises(ArgumentError, match=r"train\.steps \(=None\) must be given"):
        fcn_jax.train(fcn_jax.Config(), "never_made")
    assert not Path("never_made").exists()
