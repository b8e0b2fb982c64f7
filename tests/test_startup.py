"""A second start of a run compiles nothing; one program draws the weights as the layers would."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from fcn_jax.config import ModelConfig
from fcn_jax.models.build import INIT_STREAM, abstract_model, build_model, init_key, init_model
from tests.own_folder import ROOT, write_folder


@pytest.mark.slow
def test_the_second_start_and_a_resumed_one_compile_nothing(tmp_path: Path):
    write_folder(tmp_path / "data", [f"train_{n:03}" for n in range(6)])
    home = {**os.environ, "HOME": str(tmp_path / "home")}
    home.pop("JAX_COMPILATION_CACHE_DIR", None)

    def start(workdir: str) -> tuple[dict[str, int], str]:
        """Returns the programs that JAX asked its cache for and compiled, and the output."""
        events = tmp_path / "events"
        events.write_text("")
        arguments = [
            "--config.data.name=folder",
            f"--config.data.root={tmp_path / 'data'}",
            "--config.augment.crop_px=64,64",
            "--config.train.batch_size=2",
            "--config.eval.batch_size=2",
            "--config.model.skips=0",
            "--config.eval.canvases=1",
            "--config.train.steps=2",
            "--config.train.eval_every_steps=1",
            "--config.train.log_every_steps=1",
            f"--workdir={tmp_path / workdir}",
        ]
        ended = subprocess.run(
            [sys.executable, "-m", "tests.watched_train", str(events), *arguments],
            cwd=ROOT,
            env=home,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode == 0, ended.stderr
        assert "arning" not in ended.stderr
        words = events.read_text().split()
        asked, hits = words.count("requests"), words.count("hits")
        return {"asked": asked, "compiled": asked - hits}, ended.stdout

    first, _ = start("first")
    assert first["compiled"] > 0
    second, _ = start("second")
    assert second == {"asked": first["asked"], "compiled": 0}
    # This leaves the folder of a run that was interrupted after its first checkpoint.
    shutil.rmtree(tmp_path / "second/checkpoints/2")
    resumed, output = start("second")
    assert "resumed from step 1" in output
    assert resumed["compiled"] == 0
    assert resumed["asked"] < second["asked"]


def test_first_weights_are_the_same_as_drawn_one_by_one():
    """In a process of its own, as users run it: the tests' compiler options change last bits."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    program = [
        sys.executable,
        "-c",
        "from tests.test_startup import *; compare_first_weights()",
    ]
    ended = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def compare_first_weights():
    config = ModelConfig(backbone="small", upsampling="learned")
    one_by_one = build_model(config, 5, channels=4, rngs=nnx.Rngs(init_key(3)))
    together = init_model(config, 5, channels=4, seed=3)
    graph, expected = nnx.split(one_by_one)
    assert nnx.split(together)[0] == graph
    jax.tree.map(
        np.testing.assert_array_equal,
        nnx.to_pure_dict(nnx.state(together)),
        nnx.to_pure_dict(expected),
    )


def test_the_initial_weights_have_a_key_that_no_step_has():
    """A step's key is folded from the seed's by its number, and so were once the weights' keys."""
    seed = jax.random.key(0)
    of_steps = {key_bits(seed)} | {key_bits(jax.random.fold_in(seed, step)) for step in range(100)}
    rngs = nnx.Rngs(init_key(0))
    of_weights = [init_key(0), *(rngs.params() for _ in range(100))]
    assert of_steps.isdisjoint(map(key_bits, of_weights))
    # The largest step there can be, an int32, does not reach what the seed's key is folded with.
    assert np.iinfo(np.int32).max < INIT_STREAM


def key_bits(key: jax.Array) -> tuple[int, ...]:
    return tuple(jax.random.key_data(key).tolist())


def test_an_abstract_model_has_the_shapes_and_no_weights():
    config = ModelConfig(backbone="small")
    shapes = nnx.to_pure_dict(nnx.state(abstract_model(config, 5)))
    weights = nnx.to_pure_dict(nnx.state(build_model(config, 5, rngs=nnx.Rngs(0))))
    leaves = jax.tree.leaves(shapes)
    assert not any(isinstance(leaf, jax.Array) for leaf in leaves)
    assert [(x.shape, x.dtype) for x in leaves] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(weights)
    ]
