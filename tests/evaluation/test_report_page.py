"""The report of an evaluation as one HTML file."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

import fcn_jax
from fcn_jax.evaluation.confusion import count_confusion
from fcn_jax.evaluation.metrics import scores
from fcn_jax.evaluation.report_page import largest_confusions, read_log
from tests.in_process import run_command


def test_the_largest_confusions_are_named_with_their_share_and_pixels():
    confusion = np.array([[90, 10, 0], [30, 60, 10], [0, 0, 0]])
    assert largest_confusions(confusion, ["sky", "road", "boat"]) == [
        "30.0 % of road is predicted as sky (30 pixels)",
        "10.0 % of sky is predicted as road (10 pixels)",
        "10.0 % of road is predicted as boat (10 pixels)",
    ]
    assert largest_confusions(np.diag([3, 4]), ["a", "b"]) == ["no pixel is wrong"]


def test_a_damaged_log_is_read_as_far_as_it_goes(tmp_path):
    path = tmp_path / "log.jsonl"
    good = {"kind": "train", "step": 3, "loss": 1.5}
    path.write_bytes(json.dumps(good).encode() + b'\n{"kind": "tr\n[1]\n\xff\xfe\n{"step": "x"}\n')
    assert read_log(path) == [good]
    assert read_log(tmp_path / "none") == []


def test_a_log_of_an_earlier_version_is_read(tmp_path):
    """The scores were written as "mean_iu"."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"kind": "eval", "step": 3, "mean_iu": 0.5, "mean_iu_geometry": 0.4}\n')
    assert read_log(path) == [
        {"kind": "eval", "step": 3, "mean_iou": 0.5, "mean_iou_geometry": 0.4}
    ]


@pytest.fixture(scope="module")
def page(trained_run, tmp_path_factory) -> str:
    """The page that training wrote at its end."""
    return (trained_run / "evaluation/val_report.html").read_text(encoding="utf-8")


def test_training_ends_with_a_page_that_loads_nothing(page, trained_run):
    numbers = json.loads((trained_run / "evaluation/val.json").read_text())
    assert f"{100 * numbers['mean_iou']:.1f} %" in page
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert loaded
    assert all(address.startswith(("data:", "#")) for address in loaded)
    assert "@import" not in page
    assert "url(http" not in page
    for name in numbers["per_class_iou"]:
        assert f"</span>{name}</td>" in page


def test_the_page_has_the_curves_and_the_settings_that_were_changed(page):
    assert "<svg" in page
    assert "best: step" in page
    assert "--config.augment.crop_px=64,64" in page
    assert "--config.train.steps=6" in page
    assert "--config.model.backbone" not in page  # the default
    assert "Seed 0" in page


def test_the_worst_images_are_shown_with_their_own_score(page, trained_run):
    shown = re.findall(r"<figcaption>(\S+): mIoU ([\d.]+) %", page)
    assert {name for name, _ in shown} == {"train_005", "train_006"}
    values = [float(value) for _, value in shown]
    assert values == sorted(values)


def test_examples_are_predicted_as_they_were_scored(trained_run):
    """Evaluating again shows the same images: their pixels are counted again from the pictures."""
    evaluation = fcn_jax.evaluate(trained_run, examples=True)
    scored = evaluation.by_map[""]
    assert [row[3] for row in scored.worst] == [
        scored.counts.names[index] for index in np.argsort(scored.counts.mean_iou_by_image)
    ]
    for _, truth, predicted, name in scored.worst:
        own = scores(count_confusion(truth, predicted, len(scored.class_names))).mean_iou
        index = scored.counts.names.index(name)
        assert own == pytest.approx(scored.counts.mean_iou_by_image[index], abs=1e-12)


def test_two_runs_are_compared_on_a_page_with_the_images_that_changed(
    trained_run, trained_folder, tmp_path
):
    other = fcn_jax.load_run(trained_run)
    random = np.random.default_rng(0)
    for layer in other.variables[0]["head"].values():
        kernel = random.standard_normal(layer["kernel"].shape)
        layer["kernel"] = jnp.asarray(kernel, jnp.float32)
    other.save(tmp_path / "b.safetensors")
    data = ["--data=folder", f"--data_root={trained_folder}/data"]
    ended = run_command("evaluate", f"--workdir={tmp_path}/b.safetensors", *data)
    assert ended.returncode == 0, ended.stderr
    for file in (tmp_path / "b/evaluation").iterdir():
        file.rename(file.with_name(file.name.removeprefix("folder_")))
    output = tmp_path / "out"
    ended = run_command("compare", trained_run, tmp_path / "b.safetensors", f"--output={output}")
    assert ended.returncode == 0, ended.stderr
    assert "without images" not in ended.stdout
    page = (output / "val.html").read_text(encoding="utf-8")
    numbers = json.loads((output / "val.json").read_text())
    changed = [x["image"] for x in numbers["mean_iou_by_image"] if x["a"] != x["b"]]
    assert sorted(re.findall(r"<figcaption>(\S+): mIoU", page)) == sorted(changed)
    assert page.count('type="range"') == len(changed) > 0
    assert all(x.startswith("data:") for x in re.findall(r'src="([^"]*)"', page))
