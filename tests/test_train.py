"""Training from a config to a score: runs that are interrupted, resumed, and refused."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fcn_jax.data import shapes
from fcn_jax.errors import UserError
from fcn_jax.evaluation.evaluator import Evaluator
from fcn_jax.inference.trained import load_run
from fcn_jax.pretrained import flatten
from fcn_jax.runs import read_settings
from fcn_jax.terminal import signals
from fcn_jax.train import train
from fcn_jax.training import run_lock
from fcn_jax.training.checkpoint import CheckpointReader
from fcn_jax.training.feed import open_feed
from tests.in_process import run_command
from tests.own_folder import ROOT, small_config, write_folder


def test_a_run_leaves_its_numbers_its_pictures_and_its_curves(trained_run):
    lines = [json.loads(line) for line in (trained_run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [3, 6]
    assert all(line["loss"] > 0 for line in lines if line["kind"] == "train")
    for name in ("val.json", "val_confusion.png", "val_sheet.png"):
        assert (trained_run / "evaluation" / name).stat().st_size > 0
    assert list((trained_run / "tensorboard").glob("events*"))


def test_scores_are_those_of_each_image_labelled_alone(trained_run, trained_folder):
    """Batched on canvases by `evaluate`, and one by one from the files by `load_run`."""
    run = load_run(trained_run)
    k = len(shapes.CLASSES)
    confusion = np.zeros((k, k), np.int64)
    for name in ("train_005", "train_006"):
        image = np.asarray(Image.open(trained_folder / "data/images" / f"{name}.png"))
        truth = np.asarray(Image.open(trained_folder / "data/masks" / f"{name}.png"))
        valid = truth != 255
        np.add.at(confusion, (truth[valid], run(image)[valid]), 1)
    right = np.diag(confusion)
    present = confusion.sum(1) > 0
    iou = right[present] / (confusion.sum(1) + confusion.sum(0) - right)[present]
    written = json.loads((trained_run / "evaluation/val.json").read_text())
    assert written["images"] == 2
    assert written["pixel_accuracy"] == pytest.approx(right.sum() / confusion.sum(), abs=1e-12)
    assert written["mean_iou"] == pytest.approx(iou.mean(), abs=1e-12)
    assert set(written["per_class_iou"]) == set(shapes.CLASSES)


@pytest.mark.parametrize(
    "how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_run_that_is_stopped_in_a_step_ends_in_the_same_bits(
    how, trained_run, trained_folder, tmp_path, monkeypatch
):
    def open_stopping(*arguments):
        feed = open_feed(*arguments)
        run = feed.__call__

        class Stopping(type(feed)):
            def __call__(self, state, steps):
                if int(state.step) == 3:
                    signal.raise_signal(how)
                return run(state, steps)

        feed.__class__ = Stopping
        return feed

    config = small_config(trained_folder)
    config.data.cache = "device"  # also for the four images that are left
    with monkeypatch.context() as patched:
        patched.setattr("fcn_jax.train.open_feed", open_stopping)
        with pytest.raises(SystemExit) as ended:
            train(config, tmp_path / "run")
    assert ended.value.code == 128 + how
    checkpoints = CheckpointReader(tmp_path / "run/checkpoints")
    assert (checkpoints.latest, checkpoints.best) == (4, 3)
    train(config, tmp_path / "run")
    check_same_run(tmp_path / "run", trained_run)


@pytest.mark.slow
def test_a_run_that_is_killed_ends_in_the_same_bits(trained_run, tmp_path):
    config = read_settings(trained_run).config
    workdir = tmp_path / "run"
    arguments = [
        f"--config.{name}={value}"
        for name, value in {
            "data.root": config.data.root,
            "data.prepared_dir": config.data.prepared_dir,
            "data.name": "folder",
            "augment.crop_px": "64,64",
            "optim.warmup_steps": 0,
            "train.batch_size": 2,
            "train.steps": 6,
            "train.eval_every_steps": 3,
            "train.log_every_steps": 1,
            "eval.batch_size": 2,
            "eval.canvases": 1,
        }.items()
    ]
    started = subprocess.Popen(
        [sys.executable, "-m", "fcn_jax.train", *arguments, f"--workdir={workdir}"],
        cwd=ROOT,
        env={**os.environ, "JAX_DEFAULT_MATMUL_PRECISION": "highest"},  # as in conftest.py
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # A checkpoint is made at step 3: strike after it is begun, before the end.
    deadline = time.monotonic() + 240
    log = workdir / "log.jsonl"
    while started.poll() is None and not (log.exists() and '"step": 4' in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started.kill()
    assert started.wait(timeout=120) == -signal.SIGKILL
    train(config, workdir)
    check_same_run(workdir, trained_run)
    assert CheckpointReader(workdir / "checkpoints").steps == [3, 6]


def check_same_run(one: Path, other: Path) -> None:
    """Checks that two finished runs have the same weights and logs, bit for bit."""
    once, again = load_run(one), load_run(other)
    assert once.step == again.step == 6
    jax.tree.map(np.testing.assert_array_equal, once.variables, again.variables)

    def numbers(path):
        lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
        return [
            {key: value for key, value in line.items() if key != "images_per_second"}
            for line in lines
        ]

    assert numbers(one) == numbers(other)


@pytest.mark.parametrize("stopped_at", [pytest.param(3, marks=pytest.mark.slow), 6])
def test_a_run_that_is_stopped_in_an_evaluation_ends_in_the_same_bits(
    stopped_at, trained_run, trained_folder, tmp_path, monkeypatch, capsys
):
    class StoppedEvaluator(Evaluator):
        batches = 0

        def __call__(self, variables, should_stop, **options):
            def signal_then_stop():
                StoppedEvaluator.batches += 1
                signal.raise_signal(signal.SIGTERM)
                return should_stop()

            return super().__call__(variables, signal_then_stop, **options)

    workdir = tmp_path / "run"
    config = small_config(trained_folder)
    config.eval.batch_size = 1  # two batches
    if stopped_at == 6:  # resumed from step 3
        shutil.copytree(trained_run, workdir)
        shutil.rmtree(workdir / "checkpoints/6")
    with monkeypatch.context() as patched:
        patched.setattr("fcn_jax.train.Evaluator", StoppedEvaluator)
        with pytest.raises(SystemExit) as ended:
            train(config, workdir)
    assert ended.value.code == 128 + signal.SIGTERM
    assert StoppedEvaluator.batches == 1
    assert f"stopped and saved at step {stopped_at} of 6" in capsys.readouterr().out
    checkpoints = workdir / "checkpoints"
    assert CheckpointReader(checkpoints).latest == stopped_at
    assert not (checkpoints / f"{stopped_at}/metrics").exists()
    train(config, workdir)
    check_same_run(workdir, trained_run)
    assert CheckpointReader(checkpoints).steps == [3, 6]
    for step in (3, 6):
        score = (checkpoints / f"{step}/metrics/metrics").read_text()
        assert score == (trained_run / f"checkpoints/{step}/metrics/metrics").read_text()
    assert CheckpointReader(checkpoints).best == CheckpointReader(trained_run / "checkpoints").best


def test_a_run_whose_newest_checkpoint_is_damaged_ends_in_the_same_bits(
    trained_run, trained_folder, tmp_path, capsys
):
    shutil.copytree(trained_run, tmp_path / "run")
    part = next((tmp_path / "run/checkpoints/6/model/ocdbt.process_0/d").iterdir())
    part.write_bytes(part.read_bytes()[:-1])
    train(small_config(trained_folder), tmp_path / "run")
    assert "training continues from step 3: steps 4 to 6 are lost" in capsys.readouterr().out
    check_same_run(tmp_path / "run", trained_run)
    assert CheckpointReader(tmp_path / "run/checkpoints").steps == [3, 6]


@pytest.mark.slow
def test_two_images_are_memorised(tmp_path):
    write_folder(tmp_path / "data", ["train_000", "train_001"])
    names = "train_000\ntrain_001\n"
    (tmp_path / "data/train.txt").write_text(names)
    (tmp_path / "data/val.txt").write_text(names)
    config = small_config(tmp_path)
    config.augment.crop_px = None
    config.augment.scale = (1.0, 1.0)
    config.augment.flip = False
    config.optim.learning_rate = 1e-2
    config.train.steps = 150
    config.train.eval_every_steps = 150
    scores = train(config, tmp_path / "run").scores
    assert scores.mean_iou > 0.99
    assert scores.pixel_accuracy > 0.999


def test_a_finished_run_started_again_only_reports(trained_run, trained_folder, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    before = (run / "log.jsonl").read_text()
    config = small_config(trained_folder)
    # A resumed run may change these settings.
    config.model.remat = True
    config.train.steps_per_dispatch = 3
    evaluation = train(config, run)
    assert (run / "log.jsonl").read_text() == before
    written = json.loads((run / "evaluation/val.json").read_text())
    assert evaluation.scores.mean_iou == written["mean_iou"]


def counting_step(*_):
    """Stands for `make_train_step`: counts steps, and changes no parameter."""

    def step(state, batch):
        state = dataclasses.replace(state, step=state.step + 1)
        return state, {"loss": state.step / 2}

    return step


def test_an_evaluation_that_does_not_stop_is_abandoned_after_saving_its_step(
    trained_folder, tmp_path, monkeypatch
):
    """As if the evaluation was being compiled: the main thread does not return from it."""
    ended = threading.Event()
    found = []

    def end(number: int) -> None:
        steps = CheckpointReader(tmp_path / "run/checkpoints").steps
        found.append((number, steps, (tmp_path / "run" / run_lock.FILE).exists()))
        ended.set()

    class BlockedEvaluator(Evaluator):
        def __call__(self, variables, should_stop, **options):
            signal.raise_signal(signal.SIGTERM)
            assert ended.wait(60)
            raise SystemExit(3)

    monkeypatch.setattr("fcn_jax.train.make_train_step", counting_step)
    monkeypatch.setattr("fcn_jax.train.Evaluator", BlockedEvaluator)
    monkeypatch.setattr(signals, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(signals, "_end", end)
    config = small_config(trained_folder)
    config.train.eval_every_steps, config.train.checkpoint_every_steps = 2, 6
    with pytest.raises(SystemExit, match="3"):
        train(config, tmp_path / "run")
    assert found == [(signal.SIGTERM, [2], False)]


def test_a_finished_run_goes_on_when_it_is_given_more_steps(
    trained_run, trained_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("fcn_jax.train.make_train_step", counting_step)
    shutil.copytree(trained_run, tmp_path / "run")
    config = small_config(trained_folder)
    config.train.steps, config.train.eval_every_steps = 7, 7
    train(config, tmp_path / "run")
    assert "the schedule grows from 6 to 7 steps" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6, 7]
    last = next(line for line in lines if line["step"] == 7)
    assert last["learning_rate"] == pytest.approx(6e-3 * (1 / 7) ** 0.9)


def test_a_folder_of_other_settings_is_left_alone(trained_run, trained_folder):
    config = small_config(trained_folder)
    config.optim.learning_rate = 0.5
    with pytest.raises(UserError, match=r"optim\.learning_rate is 0\.006 there and 0\.5 now"):
        train(config, trained_run)


def test_a_run_whose_training_images_have_changed_is_not_resumed(
    trained_run, trained_folder, tmp_path
):
    shutil.copytree(trained_folder / "data", tmp_path / "data")
    with (tmp_path / "data/train.txt").open("a") as file:
        file.write("train_005\n")
    before = (trained_run / "run.json").read_bytes()
    config = small_config(trained_folder)
    config.data.root = str(tmp_path / "data")
    with pytest.raises(
        UserError, match=r"its training images are 5 images \(names .*\) there and 6 images .* now"
    ):
        train(config, trained_run)
    assert (trained_run / "run.json").read_bytes() == before


def test_a_run_that_never_began_does_not_bind_its_folder(trained_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("fcn_jax.train.make_train_step", counting_step)
    config = small_config(trained_folder)
    config.train.steps = 1
    config.init = "none.npz"
    with pytest.raises(UserError, match=r"there is no file none\.npz"):
        train(config, tmp_path / "run")
    config.init = None
    train(config, tmp_path / "run")
    assert load_run(tmp_path / "run").step == 1


def test_a_run_starts_from_another_run_and_names_what_it_lacks(
    trained_run, trained_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("fcn_jax.train.make_train_step", counting_step)
    config = small_config(trained_folder)
    config.init = str(trained_run)
    config.model.skips = 3
    config.train.steps = 1
    train(config, tmp_path / "run")
    output = capsys.readouterr()
    assert "fcn_jax on folder, step 6; not in the file, so unchanged: head/score4" in output.out
    assert re.search(r"^training: 0/1 steps, \d+ s, compiling the first step$", output.err, re.M)
    before, after = (flatten(load_run(run).variables) for run in (trained_run, tmp_path / "run"))
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_what_to_do(
    trained_folder, tmp_path, monkeypatch
):
    def diverging_step(*_):
        step = counting_step()

        def diverge(state, batch):
            state, metrics = step(state, batch)
            return state, {"loss": jnp.where(state.step < 2, metrics["loss"], jnp.nan)}

        return diverge

    monkeypatch.setattr("fcn_jax.train.make_train_step", diverging_step)
    with pytest.raises(
        UserError, match=r"the loss is nan at step 2: try a lower .* that of no step"
    ):
        train(small_config(trained_folder), tmp_path / "run")


def test_an_unwritable_workdir_is_refused(trained_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot write .*train\.lock .* give a workdir that you may write to"
    ):
        train(small_config(trained_folder), tmp_path / "file" / "run")
    if os.geteuid() != 0:  # root may write anywhere
        tmp_path.chmod(0o500)
        with pytest.raises(
            UserError, match=r"cannot write .*train\.lock .* give a workdir that you may write to"
        ):
            train(small_config(trained_folder), tmp_path / "run")


def test_class_weights_must_fit_the_classes(trained_folder, tmp_path):
    config = small_config(trained_folder)
    config.loss.class_weights = (1.0, 2.0)
    with pytest.raises(
        UserError, match=r"class_weights \(=1\.0,2\.0\) must be balanced, or 6 numbers"
    ):
        train(config, tmp_path / "run")


def test_an_option_that_the_loss_does_not_take_leaves_no_run(trained_folder, tmp_path):
    config = small_config(trained_folder)
    config.loss.options = ("alpha=0.9",)
    with pytest.raises(UserError, match=r"'alpha' that loss\.names=cross_entropy does not"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_an_evaluation_that_cannot_be_made_leaves_no_run(trained_folder, tmp_path):
    config = small_config(trained_folder)
    config.data.eval_split = "valid"
    with pytest.raises(UserError, match="no split 'valid'"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_classes_without_a_training_pixel_are_named(tmp_path, capsys):
    write_folder(tmp_path / "data", ["train_000", "train_001", "val_000"])
    for path in (tmp_path / "data" / "masks").glob("*.png"):
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask == 0, 0, 255).astype(np.uint8)).save(path)
    config = small_config(tmp_path)
    config.loss.options = ("alpha=0.9",)  # refused after the data has been read
    with pytest.raises(UserError, match="'alpha'"):
        train(config, tmp_path / "run")
    others = ", ".join(shapes.CLASSES[1:])
    note = f"note: no training pixel is {others}; python -m fcn_jax.doctor examines the masks\n"
    assert note in capsys.readouterr().out


def test_without_a_workdir_the_run_is_under_the_name_of_its_config(
    trained_run, trained_folder, tmp_path, monkeypatch
):
    """It finds the run there, which has other settings."""
    shutil.copytree(trained_run, tmp_path / "runs/mine")
    (tmp_path / "mine.py").write_text("from fcn_jax.config import default_config as get_config\n")
    monkeypatch.chdir(tmp_path)
    data = small_config(trained_folder).data
    flags = [f"--config.data.{n}={getattr(data, n)}" for n in ("name", "root", "prepared_dir")]
    ended = run_command("train", "--config=mine.py", *flags)
    assert ended.returncode == 1
    assert (
        "runs/mine holds a run with other settings (augment.crop_px is 64,64 there" in ended.stderr
    )
