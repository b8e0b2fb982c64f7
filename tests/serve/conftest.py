from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.inference.trained import Predictor, load_run


@pytest.fixture(scope="session")
def model_file(trained_run, tmp_path_factory) -> Path:
    """The tiny run's network with random score layers, which predicts many classes."""
    predictor = load_run(trained_run)
    random = np.random.default_rng(0)
    for name, layer in predictor.variables[0]["head"].items():
        if name.startswith("score"):
            kernel = random.standard_normal(layer["kernel"].shape)
            layer["kernel"] = jnp.asarray(kernel, jnp.float32)
    path = tmp_path_factory.mktemp("network") / "network.safetensors"
    predictor.save(path)
    return path


@pytest.fixture(scope="module")
def predictor(model_file) -> Predictor:
    """The same network, for one file of tests: a server changes its canvases."""
    return load_run(model_file)
