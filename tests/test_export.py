"""An exported run replaces the run, here and in torchvision."""

import dataclasses
import importlib
import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from fcn_jax import pretrained
from fcn_jax.config import Config, ModelConfig
from fcn_jax.data import shapes
from fcn_jax.data.voc import VOC_CLASSES
from fcn_jax.errors import UserError
from fcn_jax.export import export, export_to_torchvision, read_metrics
from fcn_jax.inference.trained import Predictor, load_run, load_weights
from fcn_jax.models.build import build_model
from fcn_jax.models.pure_model import PureModel
from fcn_jax.pretrained import Provenance, model_file
from tests.in_process import run_command


def test_an_exported_run_replaces_the_run(trained_run: Path, tmp_path: Path) -> None:
    run = load_run(trained_run)
    export(run, tmp_path / "out", read_metrics(trained_run, 6)[0])
    elsewhere = tmp_path / "elsewhere"
    shutil.move(tmp_path / "out", elsewhere)
    again = load_run(elsewhere)
    assert again.class_names == run.class_names == shapes.CLASSES
    assert again.step == 6
    assert again.config.model == dataclasses.replace(run.config.model, preprocessing="torchvision")
    jax.tree.map(np.testing.assert_array_equal, again.variables, run.variables)
    image, _ = shapes.draw("val_000")
    np.testing.assert_array_equal(again(image), run(image))
    # The export contains no paths of the machine that it was written on.
    assert str(trained_run.parent) not in (elsewhere / "model.json").read_text()


def test_the_model_card_has_classes_scores_and_settings(trained_run: Path, tmp_path: Path) -> None:
    metrics, others = read_metrics(trained_run, 6)
    assert not others
    export(load_run(trained_run), tmp_path, metrics)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: fcn_jax\n")
    assert "0 background, 1 disc, 2 square" in card
    written = json.loads((trained_run / "evaluation/val.json").read_text())
    assert f"| val | {written['images']} | {written['mean_iou']:.4g} |" in card
    assert '"backbone": "small"' in card


def test_an_exported_run_is_a_start_for_another(trained_run: Path, tmp_path: Path) -> None:
    run = load_run(trained_run)
    export(run, tmp_path / "out", {})
    from_run, _ = load_weights(trained_run).apply(pretrained.zeros(run.network))
    from_export, report = load_weights(tmp_path / "out").apply(pretrained.zeros(run.network))
    jax.tree.map(np.testing.assert_array_equal, from_run, from_export)
    assert "unchanged" not in report


def test_an_exported_run_scores_as_the_run_did(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FCN_JAX_DATA", str(tmp_path / "prepared"))
    export(load_run(trained_run), tmp_path / "out", {})
    data_root = trained_run.parent / "data"
    result = run_command("evaluate", f"--workdir={tmp_path / 'out'}", f"--data_root={data_root}")
    assert result.returncode == 0, result.stderr
    before, now = (
        json.loads((folder / "evaluation/val.json").read_text())
        for folder in (trained_run, tmp_path / "out")
    )
    assert now == before


def test_drawn_images_are_scored_without_a_root(trained_run: Path) -> None:
    result = run_command(
        "evaluate", f"--workdir={trained_run}", "--data=shapes", "--data_root=mine"
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "evaluate: --data_root (=mine) is of no use to shapes, which are drawn: --data=folder or "
        "voc?"
    )


@pytest.fixture(scope="module")
def torchvision_run() -> Predictor:
    """A run of torchvision's FCN-ResNet-50 with numbers drawn at random."""
    model = ModelConfig(
        backbone="resnet50",
        output_stride=8,
        skips=0,
        head="hidden",
        auxiliary_weight=0.5,
        upsampling="interpolate",
    )
    network = PureModel(nnx.eval_shape(lambda: build_model(model, 21, rngs=nnx.Rngs(0))))
    random = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: random.random(leaf.shape, np.float32) + 0.1, pretrained.zeros(network)
    )
    return Predictor(network, variables, Provenance(Config(model=model), {"": VOC_CLASSES}, step=7))


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_out_to_torchvision_and_back_is_the_same_to_the_bit(
    torch: ModuleType,
    torchvision: ModuleType,
    torchvision_run: Predictor,
    tmp_path: Path,
    ending: str,
) -> None:
    path = tmp_path / f"fcn.{ending}"
    export_to_torchvision(torchvision_run, path)
    again, report = pretrained.read(path).apply(pretrained.zeros(torchvision_run.network))
    jax.tree.map(np.testing.assert_array_equal, again, torchvision_run.variables)
    assert "unchanged" not in report
    state: Any
    if ending == "pth":
        state = torch.load(path, weights_only=True)
    else:
        from safetensors.torch import load_file

        state = load_file(path)
    with torch.device("meta"):
        peer = torchvision.models.segmentation.fcn_resnet50(
            weights=None, weights_backbone=None, aux_loss=True
        )
    peer.load_state_dict(state, strict=True, assign=True)
    ours = torchvision_run.variables[0]["head"]["score32"]["score"]["kernel"]
    theirs = peer.classifier[4].weight.detach().numpy()
    np.testing.assert_array_equal(theirs[:, :, 0, 0], ours[0, 0].T)


def test_a_run_of_another_network_does_not_go_to_torchvision(
    trained_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="needs a run of torchvision's FCN"):
        export_to_torchvision(load_run(trained_run), tmp_path / "fcn.pth")


@pytest.mark.parametrize(
    ("name", "output", "message"),
    [
        ("onnx", "fcn.pb", r"--output=.*fcn\.pb must end in \.onnx"),
        ("stablehlo", "fcn.onnx", r"--output=.*fcn\.onnx must end in \.stablehlo"),
        ("pytorch", "taken", r"taken exists and is no export to PyTorch: give another --output"),
        ("torchfcn", "fcn.pth", r"--format=torchfcn needs a run of the paper's network"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    trained_run: Path, tmp_path: Path, name: str, output: str, message: str
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine.txt").write_text("")
    path = tmp_path / output
    result = run_command(
        "export", f"--workdir={trained_run}", f"--output={path}", f"--format={name}"
    )
    assert result.returncode == 1
    assert re.search(message, result.stderr.splitlines()[-1])
    assert sorted(found.name for found in tmp_path.rglob("*")) == ["mine.txt", "taken"]


def test_a_run_goes_to_onnx_and_pytorch(
    torch: ModuleType, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    for name, output in (("onnx", "fcn.onnx"), ("pytorch", "fcn")):
        command = (f"--workdir={trained_run}", f"--output={tmp_path / output}", f"--format={name}")
        result = run_command("export", *command)
        assert result.returncode == 0, result.stderr
    image, _ = shapes.draw("val_000")
    expected = load_run(trained_run)(image)
    session = onnxruntime.InferenceSession(tmp_path / "fcn.onnx")
    classes, _ = session.run(["classes", "logits"], {"image": image[None]})
    np.testing.assert_array_equal(classes[0], expected)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == {"": list(shapes.CLASSES)}
    assert json.loads(metadata["colours"])[1] == [128, 0, 0]
    monkeypatch.syspath_prepend(str(tmp_path / "fcn"))
    network = importlib.import_module("fcn_torch").load(tmp_path / "fcn")
    with torch.no_grad():
        logits = network(torch.tensor(image[None]))[""]
    np.testing.assert_array_equal(logits[0].argmax(0).numpy(), expected)


def test_a_file_of_another_version_is_refused(trained_run: Path, tmp_path: Path) -> None:
    tensors = {"backbone/x": np.zeros(2, np.float32)}
    model_file.save(tmp_path / "w.safetensors", tensors, Provenance(Config()))
    text = (tmp_path / "w.json").read_text().replace("channels", "chanzels")
    save_file(tensors, tmp_path / "other.safetensors", {"format": "fcn_jax", "fcn_jax": text})
    with pytest.raises(UserError, match="metadata that this version of fcn_jax cannot use"):
        pretrained.read(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="features of a classifier"):
        load_run(tmp_path / "w.safetensors")


def test_what_would_mix_up_runs_and_exports_is_refused(trained_run: Path, tmp_path: Path) -> None:
    run = load_run(trained_run)
    with pytest.raises(UserError, match="is the folder of a run: give another"):
        export(run, trained_run, {})
    export(run, tmp_path / "out", {})
    with pytest.raises(UserError, match="has no checkpoint best"):
        load_run(tmp_path / "out", "best")
    with pytest.raises(UserError, match=r"there is no file .*none\.safetensors"):
        load_run(tmp_path / "none.safetensors")
    (tmp_path / "fcn.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"convert it first, python -m fcn_jax\.pretrained"):
        load_run(tmp_path / "fcn.pth")


@pytest.mark.parametrize("name", ["README.md", "model.json", "model.safetensors"])
def test_files_of_others_are_not_replaced(trained_run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"{name} exists and .* give another (--)?output"):
        export(load_run(trained_run), tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "{}"


def test_an_export_replaces_an_export(trained_run: Path, tmp_path: Path) -> None:
    for _ in range(2):
        export(load_run(trained_run), tmp_path, {})


def test_a_run_is_not_exported_onto_itself(trained_run: Path, tmp_path: Path) -> None:
    export(load_run(trained_run), tmp_path / "out", {})
    model = tmp_path / "out/model.safetensors"
    before = model.read_bytes()
    for workdir in (tmp_path / "out", model):
        result = run_command(
            "export", f"--workdir={workdir}", f"--output={model}", "--format=torchvision"
        )
        assert result.returncode == 1
        assert "is the run itself, or inside it" in result.stderr
    assert model.read_bytes() == before


def test_scores_of_another_step_are_left_out(trained_run: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_run / "evaluation", tmp_path / "evaluation")
    assert read_metrics(tmp_path, 7) == ({}, {"val": 6})
    (tmp_path / "evaluation/val.json").write_text("{")
    with pytest.raises(UserError, match=r"val\.json cannot be read"):
        read_metrics(tmp_path, 7)


def test_an_export_that_cannot_be_written_is_one_line(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        export(load_run(trained_run), tmp_path / "file" / "out", {})


def test_features_scaled_before_the_head_do_not_go_to_torchvision(
    torchvision_run: Predictor, tmp_path: Path
) -> None:
    model = dataclasses.replace(torchvision_run.config.model, score_scales=(0.1,))
    provenance = Provenance(Config(model=model), {"": VOC_CLASSES}, step=7)
    run = Predictor(torchvision_run.network, torchvision_run.variables, provenance)
    with pytest.raises(UserError, match="needs a run of torchvision's FCN"):
        export_to_torchvision(run, tmp_path / "fcn.pth")
