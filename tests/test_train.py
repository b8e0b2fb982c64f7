"""The whole line: train, interrupt, resume, evaluate, predict, and what happens with bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from fcn_jax.data import shapes
from fcn_jax.data.canvases import Bucket
from fcn_jax.data.masks import read_mask
from fcn_jax.data.palettes import voc_palette
from fcn_jax.data.pipeline import evaluation_batches
from fcn_jax.errors import UserError
from fcn_jax.evaluation.evaluator import Evaluator
from fcn_jax.evaluation.image_counts import ImageCounts
from fcn_jax.export import read_metrics
from fcn_jax.inference.options import Inference
from fcn_jax.predict import load_run
from fcn_jax.train import train
from fcn_jax.training.checkpoint import CheckpointReader
from tests.own_folder import ROOT, command, small_config, write_folder


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


def test_evaluate_scores_by_other_conventions_and_in_other_ways(trained_run):
    by_torchvision = command(
        "evaluate", f"--workdir={trained_run}", "--convention=torchvision", "--boundary"
    )
    assert by_torchvision.returncode == 0, by_torchvision.stderr
    assert "convention torchvision: as its reference scripts" in by_torchvision.stdout
    scores = json.loads((trained_run / "evaluation/val_torchvision.json").read_text())
    assert (scores["convention"], scores["inference"]) == ("torchvision", "whole images")
    assert scores["intervals"] is None
    assert 0 <= scores["mean_boundary_iou"] <= 1

    in_views = command("evaluate", f"--workdir={trained_run}", "--scales=0.5,1", "--flip")
    assert in_views.returncode == 0, in_views.stderr
    assert "2 images, whole images, in sizes 0.5, 1, mirrored too" in in_views.stdout
    scores = json.loads((trained_run / "evaluation/val_scales_0.5_1_flip.json").read_text())
    run = load_run(trained_run)
    inference = Inference(scales=(0.5, 1), flip=True)
    right = pixels = 0
    for name in scored_names(trained_run, "val_scales_0.5_1_flip"):
        image, truth = shapes.draw(name)
        counted = truth != 255
        right += (run(image, inference) == truth)[counted].sum()
        pixels += counted.sum()
    assert scores["pixel_accuracy"] == pytest.approx(right / pixels, abs=1e-12)
    # Neither is taken for what the run is judged by.
    assert set(read_metrics(trained_run, run.step)[0]) == {"val"}


def scored_names(trained_run: Path, stem: str) -> tuple[str, ...]:
    names = ImageCounts.load(trained_run / f"evaluation/{stem}_images.npz").names
    assert len(names) == 2
    return tuple(Path(name).stem for name in names)


def test_every_image_is_scored_once_and_the_last_batch_is_filled_with_void():
    class Records:
        def __len__(self):
            return 5

        def __getitem__(self, index):
            side = 4 + index
            label = np.full((side, 3), index, np.uint8)
            return {"image": np.zeros((side, 3, 3), np.uint8), "label": label, "name": str(index)}

    buckets = [Bucket((6, 3), (0, 2)), Bucket((8, 4), (1, 3, 4))]
    batches = list(evaluation_batches(Records(), buckets, batch_size=2))
    assert [batch.images for batch in batches] == [(0, 2), (1, 3), (4,)]
    assert [[r["name"] for r in batch.records.values()] for batch in batches] == [
        ["0", "2"],
        ["1", "3"],
        ["4"],
    ]
    assert [b.canvases["label"].shape for b in batches] == [(2, 6, 3), (2, 8, 4), (2, 8, 4)]
    last = batches[-1].canvases
    assert last["size"].tolist() == [[8, 3], [8, 4]]
    assert (last["label"][0, :, :3] == 4).all()
    assert (last["label"][0, :, 3] == 255).all()
    assert (last["label"][1] == 255).all()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_ends_in_the_same_bits(trained_run, trained_folder, tmp_path, how):
    workdir = tmp_path / "run"
    config = small_config(trained_folder)
    arguments = [
        f"--config.data.root={config.data.root}",
        f"--config.data.prepared_dir={config.data.prepared_dir}",
        "--config.data.name=folder",
        "--config.augment.crop_px=64,64",
        "--config.optim.warmup_steps=0",
        "--config.train.batch_size=2",
        "--config.train.steps=6",
        "--config.train.eval_every_steps=3",
        "--config.train.log_every_steps=1",
        "--config.eval.batch_size=2",
        f"--workdir={workdir}",
    ]
    started = subprocess.Popen(
        [sys.executable, "-m", "fcn_jax.train", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # A checkpoint is made at step 3: strike after it is begun, before the end.
    deadline = time.monotonic() + 240
    log = workdir / "log.jsonl"
    while started.poll() is None and not (log.exists() and '"step": 4' in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started.send_signal(how)
    started.wait(timeout=120)

    resumed = command("train", *arguments)
    assert resumed.returncode == 0, resumed.stderr
    check_same_run(workdir, trained_run)


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
    steps = [CheckpointReader(run / "checkpoints").steps for run in (one, other)]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("stopped_at", [pytest.param(3, marks=pytest.mark.slow), 6])
def test_a_run_that_is_stopped_in_an_evaluation_ends_in_the_same_bits(
    stopped_at, trained_run, trained_folder, tmp_path, monkeypatch, capsys
):
    class StoppedEvaluator(Evaluator):
        batches = 0

        def __call__(self, variables, should_stop):
            def signal_then_stop():
                StoppedEvaluator.batches += 1
                signal.raise_signal(signal.SIGTERM)
                return should_stop()

            return super().__call__(variables, signal_then_stop)

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


@pytest.mark.slow
def test_two_images_are_learned_by_heart(tmp_path):
    write_folder(tmp_path / "data", ["train_000", "train_001"])
    names = "train_000\ntrain_001\n"
    (tmp_path / "data/train.txt").write_text(names)
    (tmp_path / "data/val.txt").write_text(names)
    config = small_config(tmp_path)
    config.augment.crop_px = None
    config.augment.scale = (1.0, 1.0)
    config.augment.flip = False
    config.optim.learning_rate = 1e-2
    config.train.steps = 300
    config.train.eval_every_steps = 300
    scores = train(config, tmp_path / "run").scores
    assert scores.mean_iou > 0.99
    assert scores.pixel_accuracy > 0.999


def test_a_finished_run_started_again_only_reports(trained_run, trained_folder):
    before = (trained_run / "log.jsonl").read_text()
    config = small_config(trained_folder)
    # Of another network or run the folder would be refused; these are free to change.
    config.model.remat = True
    config.train.steps_per_dispatch = 3
    evaluation = train(config, trained_run)
    assert (trained_run / "log.jsonl").read_text() == before
    written = json.loads((trained_run / "evaluation/val.json").read_text())
    assert evaluation.scores.mean_iou == written["mean_iou"]


def test_a_finished_run_goes_on_when_it_is_given_more_steps(
    trained_run, trained_folder, tmp_path, capsys
):
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


def test_a_run_that_never_began_does_not_bind_its_folder(trained_folder, tmp_path):
    config = small_config(trained_folder)
    config.train.steps = 1
    config.init = "none.npz"
    with pytest.raises(UserError, match=r"there is no file none\.npz"):
        train(config, tmp_path / "run")
    config.init = None
    train(config, tmp_path / "run")
    assert load_run(tmp_path / "run").step == 1


def test_a_run_starts_from_another_run_and_names_what_it_lacks(
    trained_run, trained_folder, tmp_path, capsys
):
    config = small_config(trained_folder)
    config.init = str(trained_run)
    config.model.skips = 3
    config.train.steps = 1
    train(config, tmp_path / "run")
    assert "fcn_jax on folder, step 6; not in the file, so unchanged: head/score4" in (
        capsys.readouterr().out
    )


def test_a_loss_that_is_not_finite_stops_the_run_and_says_what_to_do(trained_folder, tmp_path):
    config = small_config(trained_folder)
    config.optim.learning_rate = 1e30
    with pytest.raises(
        UserError, match=r"the (loss|gradient norm) is (nan|inf) at step \d: try a lower .*no step"
    ):
        train(config, tmp_path / "run")


def test_predict_labels_every_kind_of_image_at_its_own_size(trained_run, tmp_path):
    image, _ = shapes.draw("val_000")
    source = tmp_path / "in"
    source.mkdir()
    picture = Image.fromarray(image)
    picture.save(source / "colour.jpg")
    picture.resize((131, 97)).convert("L").save(source / "grey.png")
    picture.convert("RGBA").save(source / "rgba.webp", lossless=True)
    (source / "cut.jpg").write_bytes((source / "colour.jpg").read_bytes()[:2000])
    (source / "words.png").write_text("no image")
    result = command(
        "predict", f"--workdir={trained_run}", f"--output={tmp_path}/out", "--overlay", source
    )
    assert result.returncode == 1
    assert "2 of 5 images failed" in result.stderr
    assert "cut.jpg" in result.stderr
    assert "words.png" in result.stderr
    written = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert written == ["colour.png", "grey.png", "rgba.png"]
    with Image.open(tmp_path / "out/grey.png") as label:
        assert (label.mode, label.size) == ("P", (131, 97))
        assert label.getpalette()[:9] == voc_palette()[:3].ravel().tolist()
    # Lossless, so the file gives what the array gives.
    np.testing.assert_array_equal(
        read_mask(tmp_path / "out/rgba.png"), load_run(trained_run)(image)
    )
    with Image.open(tmp_path / "out/overlay/colour.png") as overlay:
        assert overlay.height > image.shape[0]


def test_predict_refuses_what_would_overwrite(trained_run, tmp_path):
    image, _ = shapes.draw("val_000")
    for name in ("x.png", "x.jpg"):
        Image.fromarray(image).save(tmp_path / name)
    before = (tmp_path / "x.png").read_bytes()
    onto_itself = command(
        "predict", f"--workdir={trained_run}", f"--output={tmp_path}", tmp_path / "x.png"
    )
    assert f"{tmp_path} is the folder of {tmp_path}/x.png" in onto_itself.stderr
    twice = command("predict", f"--workdir={trained_run}", f"--output={tmp_path}/out", tmp_path)
    assert "would both be written" in twice.stderr
    assert onto_itself.returncode == twice.returncode == 1
    assert (tmp_path / "x.png").read_bytes() == before


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("evaluate", ["--workdir={empty}"], "is not the folder of a run"),
        ("evaluate", ["--workdir={run}", "--split=tset"], "tset"),
        ("evaluate", ["--workdir={run}", "--checkpoint=5"], "has no checkpoint 5 (it holds: 3, 6)"),
        ("predict", ["--workdir={run}", "--output={empty}/o", "{empty}"], "holds no images"),
        ("predict", ["--workdir={run}", "--output={empty}/o", "none*.jpg"], "none*.jpg: no such"),
        ("predict", ["--workdir={run}"], "are needed"),
    ],
)
def test_a_mistake_is_told_in_one_line(trained_run, tmp_path, module, arguments, message):
    places = {"run": trained_run, "empty": tmp_path}
    result = command(module, *[argument.format(**places) for argument in arguments])
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr


def test_a_checkpoint_of_another_network_is_refused(trained_run, tmp_path):
    copy = tmp_path / "changed"
    shutil.copytree(trained_run, copy)
    settings = json.loads((copy / "run.json").read_text())
    settings["class_names"] = settings["class_names"][:-1]
    (copy / "run.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="does not hold this network"):
        load_run(copy)


def test_an_image_of_other_channels_is_refused_by_number(trained_run):
    image, _ = shapes.draw("val_000")
    with pytest.raises(ValueError, match=r"must be uint8 \(h, w, 3\), RGB"):
        load_run(trained_run)(image[..., :1])


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
    with pytest.raises(UserError, match=r"'alpha' that loss\.name=cross_entropy does not"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_without_a_workdir_the_run_lies_under_the_name_of_its_config(tmp_path):
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "fcn_jax.train",
            "--config.train.steps=1",
            "--config.data.eval_split=val[:2]",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FCN_JAX_DATA": str(tmp_path / "data")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert load_run(tmp_path / "runs" / "shapes").step == 1
