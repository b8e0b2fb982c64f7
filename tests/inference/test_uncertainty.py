"""Entropy and mutual information, against NumPy and by the command `fcn_jax.predict`."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data import shapes
from fcn_jax.data.datasets import open_dataset
from fcn_jax.data.masks import read_mask
from fcn_jax.errors import UserError
from fcn_jax.evaluate import evaluate
from fcn_jax.evaluation.confusion import count_confusion
from fcn_jax.inference.options import Inference
from fcn_jax.inference.trained import load_ensemble, load_run
from fcn_jax.inference.uncertainty import UncertaintyPredictor, UncertaintySums
from tests.in_process import run_command


def entropy(probabilities: np.ndarray) -> np.ndarray:
    values = probabilities.astype(np.float64)
    return -(values * np.log(np.where(values > 0, values, 1))).sum(-1)


def test_draws_that_agree_have_no_mutual_information_and_certain_ones_that_disagree_only_it():
    unsure = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    sums = UncertaintySums()
    sums.add(unsure)
    sums.add(unsure)
    agreeing = sums.result()
    np.testing.assert_allclose(agreeing.entropy, [math.log(2), 0], rtol=1e-6)
    np.testing.assert_array_equal(agreeing.mutual_information, [0, 0])
    sums = UncertaintySums()
    for label in range(3):
        sums.add(np.eye(3)[[label, 0]])
    disagreeing = sums.result()
    np.testing.assert_allclose(disagreeing.entropy, [math.log(3), 0], rtol=1e-6)
    np.testing.assert_allclose(disagreeing.mutual_information, [math.log(3), 0], rtol=1e-6)


@pytest.fixture(scope="module")
def earlier(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run after its third step: another network."""
    copy = tmp_path_factory.mktemp("earlier") / "run"
    shutil.copytree(trained_run, copy)
    shutil.rmtree(copy / "checkpoints/6")
    return copy


def test_predict_maps_what_numpy_computes_from_the_members(trained_run, earlier, tmp_path):
    image, _ = shapes.draw("val_000")
    Image.fromarray(image).save(tmp_path / "x.png")
    given = [f"--output={tmp_path}/out", tmp_path / "x.png"]
    both = ["predict", f"--workdir={trained_run},{earlier}", "--uncertainty", *given]
    result = run_command(*both)
    assert result.returncode == 0, result.stderr
    assert "entropy and mutual information over 2 members" in result.stdout
    members = [load_run(run).probabilities(image) for run in (trained_run, earlier)]
    mean = np.mean(members, axis=0)
    total = entropy(mean)
    expected = {
        "entropy": total,
        "mutual_information": total - np.mean([entropy(p) for p in members], axis=0),
    }
    assert expected["mutual_information"].max() > 1e-3
    for name, values in expected.items():
        with Image.open(tmp_path / f"out/{name}/x.png") as picture:
            assert picture.mode == "I;16"
            scale = float(picture.text["FCN_JAX_SCALE"].split()[4])
            assert scale == pytest.approx(math.log(mean.shape[-1]))
            nats = np.asarray(picture) * (scale / 65535)
        np.testing.assert_allclose(nats, values, atol=1e-4)
    with Image.open(tmp_path / "out/uncertainty/x.png") as picture:
        assert picture.width > 3 * image.shape[1]
    np.testing.assert_array_equal(read_mask(tmp_path / "out/x.png"), mean.argmax(-1))

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    assert "1 of 1 are up to date" in run_command(*both).stdout
    (tmp_path / "out/entropy/x.png").unlink()
    assert "up to date" not in run_command(*both).stdout
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    changed = {path.parent.name for path, when in after.items() if written[path] != when}
    assert changed == {"entropy", "mutual_information", "uncertainty"}


def test_a_single_network_has_entropy_only_and_its_label_map_does_not_change(trained_run, tmp_path):
    image, _ = shapes.draw("val_000")
    Image.fromarray(image).save(tmp_path / "x.png")
    for name, more in (("plain", []), ("unsure", ["--uncertainty"])):
        result = run_command(
            "predict",
            f"--workdir={trained_run}",
            f"--output={tmp_path}/{name}",
            *more,
            tmp_path / "x.png",
        )
        assert result.returncode == 0, result.stderr
    assert "entropy only" in result.stdout
    assert not (tmp_path / "unsure/mutual_information").exists()
    plain, unsure = (tmp_path / f"{name}/x.png" for name in ("plain", "unsure"))
    assert plain.read_bytes() == unsure.read_bytes()


def test_views_are_averaged_before_the_entropy(trained_run, earlier):
    image, _ = shapes.draw("val_001")
    ensemble = load_ensemble([trained_run, earlier])
    flipped = Inference(flip=True)
    found = UncertaintyPredictor(ensemble, flipped)(image)[""]
    members = [load_run(run).probabilities(image, flipped) for run in (trained_run, earlier)]
    total = entropy(np.mean(members, axis=0))
    np.testing.assert_allclose(found.entropy, total, atol=1e-5)
    information = total - np.mean([entropy(p) for p in members], axis=0)
    np.testing.assert_allclose(found.mutual_information, information, atol=1e-5)


def test_an_ensemble_is_scored_by_the_mean_of_its_probabilities(trained_run, earlier):
    ensemble = load_ensemble([trained_run, earlier])
    dataset = open_dataset(ensemble.config.data)
    members = [load_run(run) for run in (trained_run, earlier)]
    confusion = 0
    for record in map(dataset.split("val").__getitem__, range(2)):
        mean = np.mean([member.probabilities(record["image"]) for member in members], axis=0)
        predicted = mean.argmax(-1).astype(np.uint8)
        confusion = confusion + count_confusion(record["label"], predicted, mean.shape[-1])
    np.testing.assert_array_equal(evaluate(ensemble).by_map[""].confusion, confusion)


def test_runs_of_other_networks_are_no_ensemble(trained_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(trained_run, other)
    settings = json.loads((other / "run.json").read_text())
    settings["class_names"][-1] = "comet"
    (other / "run.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="differ in classes: the members of an ensemble have one"):
        load_ensemble([trained_run, other])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dropout_samples=20"], "--dropout_samples needs --uncertainty"),
        (["--uncertainty", "--tile=64"], "--uncertainty cannot be combined with --tile"),
        (["--uncertainty", "--dropout_samples=1"], "--dropout_samples (=1) must be in 2"),
        (["--uncertainty", "--dropout_samples=5"], "needs a network with dropout"),
    ],
)
def test_what_cannot_be_mapped_is_refused_in_one_line(trained_run, tmp_path, flags, message):
    image, _ = shapes.draw("val_000")
    Image.fromarray(image).save(tmp_path / "x.png")
    given = [f"--workdir={trained_run}", f"--output={tmp_path}/out", tmp_path / "x.png"]
    result = run_command("predict", *flags, *given)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
