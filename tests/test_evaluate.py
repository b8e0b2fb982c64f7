"""The function `fcn_jax.evaluate`, and the command that writes its scores to a run's folder."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import fcn_jax
from fcn_jax.data.datasets import Dataset, open_dataset
from fcn_jax.errors import ArgumentError, UserError
from fcn_jax.evaluate import evaluate_all
from fcn_jax.evaluation.confusion import count_confusion
from fcn_jax.evaluation.conventions import CONVENTIONS
from fcn_jax.evaluation.evaluator import Evaluation, Evaluator
from fcn_jax.evaluation.metrics import scores
from fcn_jax.evaluation.report import report
from fcn_jax.export import read_metrics
from fcn_jax.inference.options import Inference
from fcn_jax.inference.trained import Predictor
from fcn_jax.models.build import init_model
from fcn_jax.models.pure_model import PureModel
from fcn_jax.pretrained import Provenance, flatten, model_file
from tests.in_process import run_command
from tests.own_folder import small_config, write_split_folder

CLASSES = 6


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A network whose score layers are random, of a folder with five and two images."""
    folder = tmp_path_factory.mktemp("run")
    write_split_folder(folder / "data")
    config = small_config(folder)
    config.model.skips = 0
    network = PureModel(init_model(config.model, CLASSES, seed=0))
    params, batch_stats = network.variables
    random = np.random.default_rng(0)
    for layer in params["head"].values():
        kernel = random.standard_normal(layer["kernel"].shape)
        layer["kernel"] = jnp.asarray(kernel, jnp.float32)
    names = open_dataset(config.data).label_maps
    return Predictor(network, (params, batch_stats), Provenance(config, names, step=7))


@pytest.fixture(scope="module")
def dataset(predictor: Predictor) -> Dataset:
    return open_dataset(predictor.config.data)


@pytest.fixture(scope="module")
def evaluation(predictor: Predictor) -> Evaluation:
    return fcn_jax.evaluate(predictor, examples=True)


def test_scores_are_those_of_the_predictions(
    predictor: Predictor, dataset: Dataset, evaluation: Evaluation
) -> None:
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    for record in map(dataset.split("val").__getitem__, range(2)):
        confusion += count_confusion(record["label"], predictor(record["image"]), CLASSES)
    assert (confusion.sum(axis=0) > 0).sum() > 1  # it predicts more than one class
    np.testing.assert_array_equal(evaluation.by_map[""].confusion, confusion)
    assert evaluation.scores.mean_iou == scores(confusion).mean_iou
    assert evaluation.names == ("train_005", "train_006")


def test_a_file_a_split_a_convention_and_views_can_be_named(
    predictor: Predictor, dataset: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "network.safetensors"
    tensors = {name: np.asarray(value) for name, value in flatten(predictor.variables).items()}
    model_file.save(path, tensors, predictor.provenance)
    evaluation = fcn_jax.evaluate(
        str(path),
        "val",
        dataset=dataset,
        convention="paper",
        inference=Inference(flip=True),
        boundary=True,
    )
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    for record in map(dataset.split("val").__getitem__, range(2)):
        predicted = predictor(record["image"], Inference(flip=True))
        confusion += count_confusion(record["label"], predicted, CLASSES)
    np.testing.assert_array_equal(evaluation.by_map[""].confusion, confusion)
    assert evaluation.scores.mean_iou == scores(confusion, "union").mean_iou
    assert evaluation.scores.mean_boundary_iou is not None


def test_what_cannot_be_evaluated_is_named(predictor: Predictor, dataset: Dataset) -> None:
    with pytest.raises(ArgumentError, match=r"^convention \(=coco\) must be one of native, paper"):
        fcn_jax.evaluate(predictor, convention="coco")
    renamed = dataclasses.replace(dataset, label_maps={"": ("sky", *dataset.class_names[1:])})
    with pytest.raises(UserError, match=r"trained on the classes background, .* folder has sky,"):
        fcn_jax.evaluate(predictor, dataset=renamed)
    provenance = dataclasses.replace(predictor.provenance, channels=4)
    deeper = Predictor(predictor.network, predictor.variables, provenance)
    with pytest.raises(UserError, match="images of 4 channels; those of the data set folder have"):
        fcn_jax.evaluate(deeper)
    with pytest.raises(UserError, match="nowhere is not the folder of a run"):
        fcn_jax.evaluate("nowhere")


def test_the_report_writes_numbers_counts_and_pictures(
    evaluation: Evaluation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(evaluation, tmp_path, "val", step=7)
    folder = tmp_path / "evaluation"
    assert sorted(path.name for path in folder.iterdir()) == [
        "val.json",
        "val_confusion.png",
        "val_images.npz",
        "val_reliability.png",
        "val_report.html",
        "val_sheet.png",
    ]
    numbers = json.loads((folder / "val.json").read_text())
    assert numbers["mean_iou"] == evaluation.scores.mean_iou
    assert (numbers["step"], numbers["images"], numbers["convention"]) == (7, 2, "native")
    assert numbers["intervals"]["mean_iou"][0] <= numbers["mean_iou"]
    calibration = evaluation.by_map[""].calibration
    assert calibration is not None
    assert numbers["calibration"]["ece"] == calibration.error
    assert sum(numbers["calibration"]["pixels"]) == evaluation.by_map[""].confusion.sum()
    for name in ("val_confusion.png", "val_reliability.png", "val_sheet.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 100
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 7 on val: 2 images, whole images on canvases of ")
    assert lines[-2] == f"pictures and numbers: {folder}/val_sheet.png, _confusion.png, " + (
        "_reliability.png, .json"
    )
    assert lines[-1] == f"page: {folder}/val_report.html"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/evaluation"):
        report(evaluation, tmp_path / "file", "val", step=7)


def test_another_host_reports_nothing(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    report(evaluation, tmp_path, "val", step=7)
    assert not list(tmp_path.iterdir())


def test_the_command_names_files_by_data_convention_and_views(
    predictor: Predictor, tmp_path: Path
) -> None:
    path = tmp_path / "network.safetensors"
    tensors = {name: np.asarray(value) for name, value in flatten(predictor.variables).items()}
    model_file.save(path, tensors, predictor.provenance)
    root = predictor.config.data.root
    ended = run_command(
        "evaluate",
        f"--workdir={path}",
        "--data=folder",
        f"--data_root={root}",
        "--convention=paper",
        "--scales=0.5",
    )
    assert ended.returncode == 0, ended.stderr
    assert "convention paper: as the authors' code" in ended.stdout
    written = json.loads(
        (tmp_path / "network/evaluation/folder_val_paper_scales_0.5.json").read_text()
    )
    assert written["inference"] == "whole images, in sizes 0.5"
    assert written["intervals"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "evaluate: --workdir=DIR is needed: the folder of a run"),
        (["--workdir=x", "y"], "evaluate: unexpected argument 'y' (see --help)"),
        (["--workdir=FILE"], "evaluate: --data=NAME is needed, with --data_root=DIR except for"),
        (
            ["--workdir=FILE", "--data=folder"],
            "evaluate: the folder data set needs --data_root=DIR",
        ),
        (
            ["--workdir=FILE", "--data=folder", "--data_root=ROOT", "--convention=d2l"],
            "evaluate: --convention (=d2l) includes none of the 2 images of val: as 'Dive into",
        ),
    ],
)
def test_mistakes_are_reported_by_the_flag(
    predictor: Predictor, tmp_path: Path, flags: list[str], message: str
) -> None:
    path = tmp_path / "network.safetensors"
    tensors = {name: np.asarray(value) for name, value in flatten(predictor.variables).items()}
    model_file.save(path, tensors, predictor.provenance)
    root = str(predictor.config.data.root)
    given = [flag.replace("FILE", str(path)).replace("ROOT", root) for flag in flags]
    ended = run_command("evaluate", *given)
    assert ended.returncode == 1
    *progress, line = ended.stderr.splitlines()
    assert line.startswith(message)
    assert all(re.match("(preparing|measuring) .* images", line) for line in progress)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split=tset"], "tset"),
        (["--checkpoint=5"], "has no checkpoint 5 (it holds: 3, 6)"),
    ],
)
def test_what_a_run_lacks_is_reported(trained_run: Path, flags: list[str], message: str) -> None:
    ended = run_command("evaluate", f"--workdir={trained_run}", *flags)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_scores_by_another_convention_are_not_what_a_run_is_judged_by(trained_run: Path) -> None:
    ended = run_command(
        "evaluate", f"--workdir={trained_run}", "--convention=torchvision", "--boundary"
    )
    assert ended.returncode == 0, ended.stderr
    assert "convention torchvision: as its reference scripts" in ended.stdout
    written = json.loads((trained_run / "evaluation/val_torchvision.json").read_text())
    assert (written["convention"], written["inference"]) == ("torchvision", "whole images")
    assert written["intervals"] is None
    assert 0 <= written["mean_boundary_iou"] <= 1
    assert set(read_metrics(trained_run, 6)[0]) == {"val"}


def test_all_conventions_are_those_one_by_one(
    predictor: Predictor, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    score = Evaluator.__call__

    def counting(evaluator: Evaluator, *arguments: Any, **options: Any) -> Evaluation:
        passes.append(evaluator)
        return score(evaluator, *arguments, **options)

    monkeypatch.setattr(Evaluator, "__call__", counting)
    together = evaluate_all(predictor, dataset=dataset)
    # The images are too small for a window of d2l, and five conventions share a pass.
    assert set(CONVENTIONS) - set(together) == {"d2l"}
    assert len(passes) == 3
    for name in ("paper", "cityscapes", "ultralytics", "nnunet"):
        alone = fcn_jax.evaluate(predictor, dataset=dataset, convention=name).scores
        np.testing.assert_array_equal(together[name].scores.mean_iou, alone.mean_iou)
    with pytest.raises(ValueError, match=r"`convention` \(=mmseg\) changes images or labels"):
        together["native"].under(CONVENTIONS["mmseg"])


def test_the_command_compares_conventions(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    result = run_command("evaluate", f"--workdir={run}", "--all_conventions", "--boundary")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "evaluate: --all_conventions cannot be combined with --boundary"
    )
    result = run_command("evaluate", f"--workdir={run}", "--all_conventions")
    assert result.returncode == 0, result.stderr
    written = json.loads((run / "evaluation/conventions/val.json").read_text())
    alone = json.loads((run / "evaluation/val.json").read_text())
    assert written["native"]["mean_iou"] == alone["mean_iou"]
    # They are not what the run is exported with.
    assert set(read_metrics(run, 6)[0]) == {"val"}
