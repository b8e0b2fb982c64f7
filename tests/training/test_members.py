"""An ensemble trained at once: its members against runs alone, and what can be done with it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fcn_jax import pretrained
from fcn_jax.config import Config
from fcn_jax.data import shapes
from fcn_jax.errors import ArgumentError, UserError
from fcn_jax.inference.inside import open_network
from fcn_jax.inference.trained import load_ensemble, load_run, load_weights
from fcn_jax.train import train
from tests.in_process import run_command
from tests.own_folder import small_config, write_split_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a tiny U-Net: together/ of the seeds 0 and 1 at once, alone_0/ and alone_1/."""
    folder = tmp_path_factory.mktemp("members")
    write_split_folder(folder / "data")
    train(settings(folder, members=2), folder / "together")
    train(settings(folder), folder / "alone_0")
    train(settings(folder, seed=1, order_seed=0), folder / "alone_1")
    return folder


def settings(folder: Path, members: int = 1, **changes: int) -> Config:
    config = dataclasses.replace(small_config(folder), **changes)
    config.model.backbone = "unet"
    config.model.decoder = "unet"
    config.model.features = (4, 6)
    config.model.upsampling = "learned"
    config.model.score_init = "normal"
    config.augment.crop_px = (32, 32)
    config.train.members = members
    config.train.eval_every_steps = 6
    return config


def test_each_member_equals_the_run_of_its_seed_alone(folder):
    ensemble = load_run(folder / "together")
    assert ensemble.num_members == 2
    for number in range(2):
        alone = folder / f"alone_{number}"
        member, expected = ensemble.member(number), load_run(alone)
        assert member.config.model == expected.config.model
        assert (member.config.seed, member.config.train.members) == (number, 1)
        tensors = expected.tensors()
        for name, tensor in member.tensors().items():
            np.testing.assert_allclose(tensor, tensors[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_members_differ_in_their_start_and_in_their_crops(folder):
    first, second = (load_run(folder / "together").member(number).tensors() for number in range(2))
    assert all(np.any(first[name] != second[name]) for name in first if "kernel" in name)


def test_a_run_of_members_predicts_and_is_scored_as_the_ensemble_of_the_runs(folder):
    image, _ = shapes.draw("val_000")
    ensemble, runs = (
        load_run(folder / "together"),
        load_ensemble([folder / "alone_0", folder / "alone_1"]),
    )
    np.testing.assert_allclose(ensemble.probabilities(image), runs.probabilities(image), atol=1e-5)
    together = load_ensemble([folder / "together", folder / "alone_0"])
    assert (together.num_members, together.config.train.members) == (3, 1)
    np.testing.assert_allclose(
        together.probabilities(image),
        (2 * ensemble.probabilities(image) + load_run(folder / "alone_0").probabilities(image)) / 3,
        atol=1e-5,
    )


def test_a_finished_run_of_members_is_read_again(folder):
    config = settings(folder, members=2)
    before = load_run(folder / "together").tensors()
    train(config, folder / "together")
    for name, tensor in load_run(folder / "together").tensors().items():
        np.testing.assert_array_equal(tensor, before[name])
    config.train.members = 3
    with pytest.raises(UserError, match=r"train\.members is 2 there and 3 now"):
        train(config, folder / "together")


def test_an_ensemble_and_a_member_of_it_are_exported(folder, tmp_path):
    ensemble = load_run(folder / "together")
    image, _ = shapes.draw("val_001")
    for name, more, expected in (
        ("all", [], ensemble),
        ("one", ["--member=1"], ensemble.member(1)),
    ):
        output = tmp_path / name
        result = run_command("export", f"--workdir={folder}/together", f"--output={output}", *more)
        assert result.returncode == 0, result.stderr
        exported = load_run(output)
        np.testing.assert_array_equal(
            exported.probabilities(image), expected.probabilities(image), err_msg=name
        )
        assert exported.num_members == expected.num_members
    assert (
        load_weights(tmp_path / "one").tensors.keys()
        == pretrained.flatten(exported.variables).keys()
    )


def test_what_needs_a_single_network_says_how_to_take_one(folder, tmp_path):
    result = run_command(
        "export", f"--workdir={folder}/together", f"--output={tmp_path}/x.onnx", "--format=onnx"
    )
    assert result.returncode == 1
    assert f"{folder}/together holds 2 members, and this needs a single network" in result.stderr
    assert "--member=0" in result.stderr
    with pytest.raises(UserError, match="holds 2 members"):
        load_weights(folder / "together")
    with pytest.raises(ArgumentError, match=r"must be in 0…1"):
        load_run(folder / "together").member(2)


def test_the_first_member_is_looked_inside_and_named(folder):
    assert "member 0 of 2" in open_network(folder / "together").description


def test_seeds_beyond_the_largest_are_refused(folder, tmp_path):
    config = settings(folder, members=2, seed=2**32 - 1)
    with pytest.raises(ArgumentError, match="seed"):
        train(config, tmp_path / "run")
