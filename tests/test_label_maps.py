"""Several label maps and a depth channel: from a folder to training, evaluation and prediction."""

import json
import shutil
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from fcn_jax.data.datasets import open_dataset
from fcn_jax.data.masks import read_mask
from fcn_jax.data.pipeline import ToCanvas
from fcn_jax.errors import UserError
from fcn_jax.inference import image_files
from fcn_jax.inference.trained import load_run
from fcn_jax.models.build import abstract_model
from fcn_jax.models.pure_model import PureModel, predict
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.train import train
from fcn_jax.training.class_weights import class_weights
from fcn_jax.training.optim import build_optimizer
from fcn_jax.training.train_step import create_train_state, make_train_step
from tests.depth_set import config_of, write_set
from tests.in_process import run_command
from tests.own_folder import ROOT


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "set"
    write_set(path)
    return path


@pytest.fixture
def own(drawn: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(drawn, tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture(scope="module")
def run_folder(drawn: Path) -> Path:
    train(config_of(drawn), drawn.parent / "run")
    return drawn.parent / "run"


def test_the_map_that_only_depth_shows_is_learned_from_depth(run_folder: Path, drawn: Path) -> None:
    written = {
        name: json.loads((run_folder / f"evaluation/val_{name}.json").read_text())
        for name in ("masks", "geometry")
    }
    assert list(written["geometry"]["per_class_iou"]) == ["far", "near"]
    assert written["masks"]["pixel_accuracy"] > 0.9
    assert written["geometry"]["pixel_accuracy"] > 0.9
    for name in ("val_masks_sheet.png", "val_geometry_confusion.png"):
        assert (run_folder / "evaluation" / name).stat().st_size > 0
    # The same pictures with each other's depth: the masks stay, the geometry goes with the depth.
    run = load_run(run_folder)
    one, other = (image_files.read_input(run, drawn / f"images/{stem}.png") for stem in ("a", "b"))
    swapped = run(np.concatenate([one[..., :3], other[..., 3:]], axis=-1))
    assert isinstance(swapped, dict)
    for name, stem in (("masks", "a"), ("geometry", "b")):
        truth = read_mask(drawn / name / f"{stem}.png")
        assert (swapped[name] == truth)[truth != 255].mean() > 0.9


def test_the_run_records_channels_classes_and_scores(run_folder: Path) -> None:
    stored = json.loads((run_folder / "run.json").read_text())
    assert stored["channels"] == 4
    assert stored["class_names"] == {"masks": ["ground", "disc"], "geometry": ["far", "near"]}
    run = load_run(run_folder, "best")
    assert run.label_maps == {"masks": ("ground", "disc"), "geometry": ("far", "near")}
    with pytest.raises(
        ValueError, match=r"shape \(8, 8, 3\)\) must be uint8 \(h, w, 4\), RGB and d"
    ):
        run(np.zeros((8, 8, 3), np.uint8))
    lines = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    last = next(line for line in lines if line["kind"] == "eval")
    masks, geometry = (
        json.loads((run_folder / f"evaluation/val_{name}.json").read_text())["mean_iou"]
        for name in ("masks", "geometry")
    )
    assert (last["mean_iou_masks"], last["mean_iou_geometry"]) == (masks, geometry)


def test_predict_finds_the_channels_and_writes_each_map(
    run_folder: Path, own: Path, tmp_path: Path
) -> None:
    (own / "depth/b.png").unlink()
    options = (f"--workdir={run_folder}", "--overlay")
    result = run_command("predict", *options, f"--output={tmp_path}/out", own / "images/[ab].png")
    assert result.returncode == 1
    assert "1 of 2 images failed" in result.stderr
    assert f"its depth must be one file {own}/depth/b.png" in result.stderr
    expected = load_run(run_folder).predict_maps(
        image_files.read_input(load_run(run_folder), own / "images/a.png")
    )
    for name in ("masks", "geometry"):
        np.testing.assert_array_equal(read_mask(tmp_path / f"out/{name}/a.png"), expected[name])
        assert (tmp_path / f"out/{name}/overlay/a.png").exists()
    before = (own / "masks/a.png").read_bytes()
    result = run_command("predict", *options, f"--output={own}", own / "images/a.png")
    assert "and perhaps folders of masks" in result.stderr
    assert (own / "masks/a.png").read_bytes() == before


def test_evaluate_scores_each_map(run_folder: Path) -> None:
    result = run_command("evaluate", f"--workdir={run_folder}", "--split=train")
    assert result.returncode == 0, result.stderr
    assert result.stdout.index("label map masks") < result.stdout.index("label map geometry")
    for name in ("masks", "geometry"):
        numbers = json.loads((run_folder / f"evaluation/train_{name}.json").read_text())
        assert numbers["images"] == 10
        assert numbers["pixel_accuracy"] > 0.9


def test_late_fusion_trains_on_the_same_data(drawn: Path) -> None:
    """Shapes are enough: tests/pretrained/test_load.py has the numbers of late fusion."""
    config = config_of(drawn)
    config.model.fusion = "late"
    dataset = open_dataset(config.data)
    statistics = dataset.statistics("train")
    model = PureModel(
        abstract_model(config.model, dataset.num_classes, channels=4, axis_name=DATA_AXIS)
    )
    optimizer = build_optimizer(config.optim, model.decay_mask, total_steps=1)
    weights = class_weights("balanced", dataset.num_classes, statistics.label_counts)
    step = make_train_step(model, optimizer, config, weights)
    canvas = ToCanvas((48, 56))(dataset.split("train")[0])
    batch = {name: np.stack([value] * 4)[None] for name, value in canvas.items()}
    create = partial(create_train_state, optimizer=optimizer)
    state = jax.eval_shape(create, model.variables)
    parallel = jax.vmap(step, in_axes=(None, 0), out_axes=None, axis_name=DATA_AXIS)
    next_state, metrics = jax.eval_shape(parallel, state, batch)
    assert next_state == state
    assert all(metric.shape == () for metric in metrics.values())
    labels = jax.eval_shape(
        partial(predict, model), model.variables, batch["image"][0], batch["size"][0]
    )
    assert {name: label.shape for name, label in labels.items()} == {
        "masks": (4, 48, 56),
        "geometry": (4, 48, 56),
    }


def test_settings_that_do_not_match_the_data_are_refused(
    run_folder: Path, drawn: Path, tmp_path: Path
) -> None:
    config = config_of(drawn)
    config.loss.class_weights = (1.0, 2.0)
    with pytest.raises(UserError, match=r"must be balanced or None with several label maps"):
        train(config, tmp_path / "numbers")
    config.data.extra_channels, config.model.fusion = (), "late"
    with pytest.raises(UserError, match=r"needs images of more than 3 channels, not 3"):
        train(config, tmp_path / "colour")
    config.loss.class_weights, config.model.fusion = None, "early"
    with pytest.raises(UserError, match=r"its images have 4 channels, not 3"):
        train(config, run_folder)


def test_settings_from_the_terminal(drawn: Path, tmp_path: Path) -> None:
    result = run_command(
        "train",
        f"--config={ROOT}/configs/folder.py",
        f"--config.data.root={drawn}",
        f"--config.data.prepared_dir={tmp_path}",
        "--config.data.extra_channels=depth",
        "--config.data.label_maps=masks,parts",
        f"--workdir={tmp_path}/run",
    )
    assert result.returncode == 1
    assert result.stderr == (
        f"train: {drawn}/parts: no such folder; config.data.label_maps names folders in {drawn}, "
        "which has depth, geometry, images, masks\n"
    )
