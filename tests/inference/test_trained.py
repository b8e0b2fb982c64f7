"""Predictors of models that were trained in a loop of one's own."""

from pathlib import Path

import jax
import numpy as np
import pytest

from fcn_jax import Config, Predictor, init_model, load_run

CLASS_NAMES = ("ground", "road", "car")


def test_a_model_of_an_own_loop_is_saved_and_loaded(tmp_path: Path) -> None:
    config = Config()
    model = init_model(config.model, 3, seed=0)
    predictor = Predictor.from_model(model, config=config, label_maps={"": CLASS_NAMES}, step=7)
    predictor.save(tmp_path / "mine.safetensors")
    loaded = load_run(tmp_path / "mine.safetensors")
    assert (loaded.step, loaded.class_names, loaded.channels) == (7, CLASS_NAMES, 3)
    assert loaded.config.data == config.data
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, predictor.variables)
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        predictor.save(tmp_path / "mine")


def test_settings_of_another_model_are_refused() -> None:
    config = Config()
    model = init_model(config.model, 4, seed=0)
    with pytest.raises(ValueError, match=r"do not describe `model`: they differ in head/score"):
        Predictor.from_model(model, config=config, label_maps={"": CLASS_NAMES})
