"""Volumes from files to label maps, by the commands: train, evaluate, predict and doctor."""

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcn_jax.config import Config
from fcn_jax.data import nifti
from fcn_jax.data.datasets import open_dataset
from fcn_jax.data.plan import Plan
from fcn_jax.data.volumes import VolumeDataset
from fcn_jax.errors import UserError
from fcn_jax.evaluate import evaluate
from fcn_jax.evaluation.case_scores import hausdorff95_mm
from fcn_jax.evaluation.temperature_fit import fit_temperature
from fcn_jax.inference.resume import UnfinishedTiles
from fcn_jax.inference.trained import load_run
from fcn_jax.inference.volumes import VolumePredictor
from fcn_jax.runs import save_or_check_plan
from tests.in_process import run_command
from tests.volume_files import SHAPE, drawn, save, write_set

pytest.importorskip("nibabel", reason="nibabel is not installed")


def config_of(folder: Path) -> Config:
    config = Config()
    config.data.name = "volumes"
    config.data.root = str(folder / "set")
    config.data.prepared_dir = str(folder / "prepared")
    config.volumes.flip_axes = (0,)
    config.model.backbone = config.model.decoder = "unet"
    config.model.features = (8, 8)
    config.model.norm = "instance"
    config.model.dropout = 0.0
    config.model.score_init = "normal"
    config.loss.names = ("cross_entropy", "dice")
    config.optim.learning_rate = 1e-2
    config.train.batch_size = 2
    config.train.steps = 60
    config.train.eval_every_steps = 60
    config.train.log_every_steps = 1
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set of five volumes, set/, and a run that is trained on it, run/."""
    from fcn_jax.train import train

    folder = tmp_path_factory.mktemp("volumes")
    write_set(folder / "set", count=5, spacing=(1, 1.5, 1))
    train(config_of(folder), folder / "run")
    return folder


def test_training_learns_and_scores_by_case(trained: Path) -> None:
    document = json.loads((trained / "run" / "evaluation" / "val.json").read_text())
    assert document["step"] == 60
    by_case = document["by_case"]
    assert list(by_case["cases"]) == ["case_0"]
    # The boxes are 10 standard deviations of the noise brighter than the ground.
    assert by_case["foreground_mean"]["dice"] > 0.6
    assert by_case["mean"]["dice"]["class_1"] == document["per_class_dice"]["class_1"]
    with Image.open(trained / "run" / "evaluation" / "val_sheet.png") as sheet:
        assert sheet.size[0] > 500
    log = [json.loads(line) for line in (trained / "run" / "log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if entry["kind"] == "train"]
    assert losses[-1] < 0.6 * losses[0]


def test_evaluate_and_predict_agree_and_predict_goes_on(trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ("predict", f"--workdir={trained}/run", f"--output={output}")
    result = run_command(*arguments, trained / "set" / "images")
    assert result.returncode == 0, result.stderr
    predicted, header = nifti.read_label(output / "case_0.nii.gz")
    like = nifti.read_header(trained / "set" / "images" / "case_0.nii.gz")
    np.testing.assert_array_equal(header.affine, like.affine)
    truth = drawn(0)[1]
    document = json.loads((trained / "run" / "evaluation" / "val.json").read_text())
    scores = document["by_case"]["cases"]["case_0"]
    for label, name in ((1, "class_1"), (2, "class_2")):
        both = ((truth == label) & (predicted == label)).sum()
        dice = 2 * both / ((truth == label).sum() + (predicted == label).sum())
        assert scores["dice"][name] == pytest.approx(dice)
        distance = hausdorff95_mm(truth == label, predicted == label, (1, 1.5, 1))
        assert scores["hd95_mm"][name] == pytest.approx(distance)

    (output / "case_3.nii.gz").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    result = run_command(*arguments, trained / "set" / "images")
    assert "4 of 5 were up to date" in result.stderr + result.stdout
    after = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert after.keys() == {f"case_{n}.nii.gz" for n in range(5)}
    assert {name: after[name] for name in times} == times


def test_an_interrupted_volume_goes_on_after_its_last_row_of_tiles(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(tmp_path / "case_0.nii.gz", drawn(0, (40, 14, 10))[0], (1, 1.5, 1))
    arguments = ["predict", f"--workdir={trained}/run"]
    whole = run_command(*arguments, f"--output={tmp_path}/whole", source)
    assert whole.returncode == 0, whole.stderr
    append = UnfinishedTiles.append

    def interrupted(self: UnfinishedTiles, labels: Any) -> None:
        append(self, labels)
        if self.count == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(UnfinishedTiles, "append", interrupted)
    output = tmp_path / "out"
    stopped = run_command(*arguments, f"--output={output}", source)
    assert stopped.returncode == 130
    assert "rows of tiles of case_0 are kept; start again to go on" in stopped.stdout
    assert not (output / "case_0.nii.gz").exists()
    result = run_command(*arguments, f"--output={output}", source)
    assert result.returncode == 0, result.stderr
    assert "case_0: 1 of " in result.stdout
    assert [path.name for path in output.iterdir()] == ["case_0.nii.gz"]
    labels = [
        nifti.read_label(folder / "case_0.nii.gz")[0] for folder in (tmp_path / "whole", output)
    ]
    np.testing.assert_array_equal(*labels)


def test_mirrored_views_are_those_of_predict(trained: Path, tmp_path: Path) -> None:
    result = run_command("evaluate", f"--workdir={trained}/run", "--flip")
    assert result.returncode == 0, result.stderr
    document = json.loads((trained / "run" / "evaluation" / "val_flip.json").read_text())
    images, output = trained / "set" / "images", tmp_path / "out"
    arguments = ("predict", f"--workdir={trained}/run", f"--output={output}", "--flip")
    assert run_command(*arguments, images / "case_0.nii.gz").returncode == 0
    predicted, _ = nifti.read_label(output / "case_0.nii.gz")
    truth = drawn(0)[1]
    dice = (
        2 * ((truth == 1) & (predicted == 1)).sum() / ((truth == 1).sum() + (predicted == 1).sum())
    )
    assert document["by_case"]["cases"]["case_0"]["dice"]["class_1"] == pytest.approx(dice)


def test_uncertainty_of_volumes_is_in_nats_on_the_grid_of_the_image(
    trained: Path, tmp_path: Path
) -> None:
    images, output = trained / "set" / "images", tmp_path / "out"
    arguments = (
        "predict",
        f"--workdir={trained}/run,{trained}/run",
        f"--output={output}",
        "--uncertainty",
        images / "case_0.nii.gz",
    )
    result = run_command(*arguments)
    assert result.returncode == 0, result.stderr
    like = nifti.read_header(images / "case_0.nii.gz")
    maps = {}
    for name in ("entropy", "mutual_information"):
        maps[name], header = nifti.read_image(output / name / "case_0.nii.gz")
        assert header.nifti.get_data_dtype() == np.float32
        np.testing.assert_array_equal(header.affine, like.affine)
    # The ensemble is one network twice: certain of the ground, and in agreement everywhere.
    np.testing.assert_allclose(maps["mutual_information"], 0, atol=1e-6)
    truth = drawn(0)[1]
    edge = (truth == 2) ^ (nifti.read_label(output / "case_0.nii.gz")[0] == 2)
    assert 0 < maps["entropy"][truth == 0].mean() < maps["entropy"][edge].mean() < np.log(3)
    assert "1 of 1 were up to date" in run_command(*arguments).stdout
    (output / "entropy" / "case_0.nii.gz").unlink()
    assert run_command(*arguments).returncode == 0
    np.testing.assert_array_equal(
        nifti.read_image(output / "entropy" / "case_0.nii.gz")[0], maps["entropy"]
    )


def test_the_temperature_of_volumes_is_the_best_of_a_search(trained: Path, tmp_path: Path) -> None:
    predictor = load_run(trained / "run")
    dataset = open_dataset(predictor.config.data)
    assert isinstance(dataset, VolumeDataset)
    network, variables = predictor.network, predictor.variables
    found = fit_temperature(network, variables, dataset, "val", predictor.config.eval)[""]
    record = dataset.split("val")[0]
    views = VolumePredictor(network, dataset.plan.patch)
    blocks = views.probability_blocks([variables], record["image"])
    logits = np.log(np.concatenate([block for _, (block,) in blocks]).astype(np.float64))

    def mean_nll(temperature: float) -> float:
        powers = np.exp(logits / temperature)
        probabilities = powers / powers.sum(-1, keepdims=True)
        of_label = np.take_along_axis(probabilities, record["label"][..., None].astype(int), -1)
        return float(-np.log(of_label).mean())

    assert found.nll_before == pytest.approx(mean_nll(1), rel=1e-4)
    assert found.nll_after == pytest.approx(mean_nll(found.temperature), rel=1e-3)
    for factor in (0.98, 1.02):
        assert mean_nll(found.temperature) < mean_nll(found.temperature * factor)
    counted = evaluate(predictor, dataset=dataset).by_map[""].calibration
    assert counted is not None
    # Nothing is resampled here, and no voxel is ignored.
    assert counted.counts[:, 0].sum() == record["label"].size
    assert counted.counts[:, 1].sum() == (logits.argmax(-1) == record["label"]).sum()


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("orientation", "has the orientation LPS, but the plan RAS"),
        ("metres", "its voxels are 1000 × 1000 × 1000 mm, and the plan's 1 × 1.5 × 1 mm"),
        ("foreign", "exists and was not written by predict"),
        ("channels", "has 2 channel files, but the network was trained on 1"),
        ("nothing", "no NIfTI file"),
        ("truncated", "cannot be read, damaged or incomplete"),
        ("flag", "must be given: this network averages over the whole image"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(
    trained: Path, tmp_path: Path, kind: str, problem: str
) -> None:
    image, output = drawn(0)[0], tmp_path / "out"
    path, flags = save(tmp_path / "in" / "a.nii.gz", image), []
    match kind:
        case "orientation":
            save(path, image, axes="LPS")
        case "metres":
            save(path, image, spacing=(1000, 1000, 1000))
        case "foreign":
            save(output / "a.nii.gz", image)
        case "channels":
            for number in range(2):
                save(tmp_path / "in" / f"b_000{number}.nii.gz", image)
        case "nothing":
            path.unlink()
        case "truncated":
            path.write_bytes(path.read_bytes()[:1000])
        case "flag":
            flags = ["--tile=64"]
    result = run_command(
        "predict", f"--workdir={trained}/run", f"--output={output}", *flags, tmp_path / "in"
    )
    assert result.returncode == 1
    assert problem in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_keeps_its_plan(trained: Path, tmp_path: Path) -> None:
    path = trained / "run" / "plan.json"
    plan = Plan.load(path)
    assert plan.spacing_mm == (1, 1.5, 1)
    save_or_check_plan(trained / "run", plan)
    other = dataclasses.replace(plan, spacing_mm=(2.0, 2.0, 2.0))
    with pytest.raises(UserError, match=f"set --config.data.plan={path} to resume"):
        save_or_check_plan(trained / "run", other)
    assert Plan.load(path) == plan
    # The plan next to the prepared volumes has changed since; the run is scored by its own.
    (beside,) = (trained / "prepared").glob("volumes/*/plan.json")
    text = beside.read_text()
    other.save(beside)
    try:
        evaluation = evaluate(trained / "run")
    finally:
        beside.write_text(text)
    scored = json.loads((trained / "run" / "evaluation" / "val.json").read_text())
    assert evaluation.scores.mean_dice == scored["mean_dice"]


def test_what_is_for_images_is_refused(trained: Path, tmp_path: Path) -> None:
    result = run_command("evaluate", f"--workdir={trained}/run", "--convention=mmseg")
    assert result.returncode == 1
    assert "convention (=mmseg) must be native, paper or nnunet for volumes" in result.stderr
    result = run_command("export", f"--workdir={trained}/run", f"--output={tmp_path}/out")
    assert result.returncode == 1
    assert "is trained on volumes, and export is for images" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_doctor_finds_what_is_wrong_and_draws_what_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_set(tmp_path / "set", count=4)
    arguments = ("doctor.__main__", "--config.data.name=volumes", f"--config.data.root={root}")
    result = run_command(*arguments)
    assert result.returncode == 0, result.stderr
    assert "no faults" in result.stdout + result.stderr
    assert (tmp_path / "doctor_set.png").exists()
    image, label = drawn(1)
    image[0, 0, 0] = np.nan
    save(root / "images" / "case_1.nii.gz", image)
    save(root / "labels" / "case_2.nii.gz", label[1:])
    save(root / "labels" / "case_3.nii.gz", np.zeros(SHAPE, np.uint8))
    result = run_command(*arguments)
    printed = result.stdout + result.stderr
    assert result.returncode == 1
    assert "case_1.nii.gz: 1 voxels are NaN" in printed
    assert "case_2.nii.gz: the label map has 11 × 14 × 10 voxels" in printed
    assert "remark: " in printed
    assert "case_3.nii.gz: has no foreground" in printed
    assert "2 faults in" in printed


def test_volumes_larger_than_two_patches_are_read_by_windows(tmp_path: Path) -> None:
    from fcn_jax.data.canvases import training_canvas
    from fcn_jax.data.pipeline import training_batches

    write_set(tmp_path / "set", count=2)
    config = config_of(tmp_path)
    config.volumes.patch = (4, 4, 20)
    dataset = open_dataset(config.data)
    canvas = training_canvas(config, dataset.statistics("all").sizes)
    assert canvas == (8, 8, 10)
    batches = training_batches(
        dataset.split("all"), canvas_px=canvas, batch_size=2, seed=0, workers=0, steps=range(2)
    )
    batch = next(batches)
    batches.close()
    assert batch["image"].shape == (2, 8, 8, 10, 1)
    assert batch["image"].dtype == np.float32
    assert batch["size"].tolist() == [[8, 8, 10]] * 2
    # Each window is a part of one of the volumes, and every second one has foreground inside.
    whole = [dataset.split("all")[n] for n in range(2)]
    for image, label in zip(batch["image"], batch["label"], strict=True):
        assert any(
            np.array_equal(image, record["image"][x : x + 8, y : y + 8])
            and np.array_equal(label, record["label"][x : x + 8, y : y + 8])
            for record in whole
            for x in range(5)
            for y in range(7)
        )
