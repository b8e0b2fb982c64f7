"""Model files of strangers ask for nothing, and files of others are not replaced."""

import itertools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from fcn_jax import pretrained, registry
from fcn_jax.config import Config, ModelConfig
from fcn_jax.errors import UserError
from fcn_jax.inference.trained import load_run
from fcn_jax.models.backbones.preprocess import TORCHVISION
from fcn_jax.models.build import abstract_model
from fcn_jax.models.geometry import PIXELS
from fcn_jax.models.layers import BatchNorm, Conv
from fcn_jax.models.pure_model import PureModel
from fcn_jax.pretrained import Provenance, flatten, model_file, zeros
from tests.in_process import run_command
from tests.pretrained.test_weight_files import peak_below

CLASSES = ("ground", "disc", "square")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of a small network."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    config = Config(model=ModelConfig("small"))
    tensors = flatten(zeros(PureModel(abstract_model(config.model, len(CLASSES)))))
    model_file.save(path, tensors, Provenance(config, {"": CLASSES}, step=3))
    return path


def with_metadata(model_path: Path, folder: Path, change: Any) -> Path:
    """Writes the model file again with changed provenance; `change` is a function or the text."""
    path = folder / "m.safetensors"
    if callable(change):
        values = json.loads(model_path.with_suffix(".json").read_text())
        change(values)
        change = json.dumps(values)
    save_file(load_file(model_path), path, {"format": "fcn_jax", "fcn_jax": change})
    return path


def test_a_model_file_gives_back_what_was_saved(model_path: Path) -> None:
    predictor = load_run(model_path)
    assert predictor.provenance == Provenance(
        Config(model=ModelConfig("small")), {"": CLASSES}, step=3
    )
    assert predictor(np.zeros((5, 7, 3), np.uint8)).shape == (5, 7)
    jax.tree.map(np.testing.assert_array_equal, predictor.variables, zeros(predictor.network))


class Listed(nnx.Module):
    """A backbone whose layers are in a list, which nnx numbers by integers."""

    def __init__(self, *, preprocessing=TORCHVISION, axis_name=None, rngs):
        self.preprocessing = preprocessing
        convs = [Conv(c, 4, (3, 3), stride=2, rngs=rngs) for c in (preprocessing.channels, 4)]
        self.blocks = nnx.List(convs)
        self.norms = nnx.List([BatchNorm(4, axis_name=axis_name)])
        self.channels, self.grids = {4: 4}, {4: PIXELS.after(3, stride=2).after(3, stride=2)}

    def __call__(self, image, *, train=False, keys=None):
        return {4: self.blocks[1](self.norms[0](self.blocks[0](image), train=train))}


def test_a_backbone_with_a_list_is_saved_loaded_and_an_initialisation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(registry.backbones, "_registered", {"listed": Listed})
    config = Config(model=ModelConfig("listed", skips=0))
    network = PureModel(abstract_model(config.model, len(CLASSES)))
    numbers = itertools.count(1)
    variables = jax.tree.map(
        lambda leaf: np.full(leaf.shape, next(numbers), leaf.dtype), network.variables
    )
    tensors = flatten(variables)
    assert {"backbone/blocks/1/kernel", "backbone/norms/0/mean"} <= tensors.keys()
    path = tmp_path / "m.safetensors"
    model_file.save(path, tensors, Provenance(config, {"": CLASSES}, step=3))
    loaded = load_run(path)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
    loaded.save(tmp_path / "again.safetensors")
    assert load_file(tmp_path / "again.safetensors").keys() == tensors.keys()
    initialised, _ = pretrained.read(path).apply(zeros(network))
    jax.tree.map(np.testing.assert_array_equal, initialised, variables)


def test_a_changed_byte_is_noticed(model_path: Path, tmp_path: Path) -> None:
    whole = model_path.read_bytes()
    path = tmp_path / "m.safetensors"
    for position in (*range(200, 2000, 90), len(whole) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"m\.safetensors"):
            load_run(path)
    path.write_bytes(whole)
    load_run(path)


def test_paths_in_a_model_file_are_ignored(model_path: Path, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["config"]["data"] |= {"prepared_dir": "/victim", "root": "/victim"}
        values["config"]["data"]["mask_palette"] = "/victim/secret.txt"
        values["config"]["init"] = "/victim/weights.npz"

    config = load_run(with_metadata(model_path, tmp_path, change)).config
    assert "victim" not in str(config)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(class_names={"..": CLASSES}),
        lambda values: values.update(class_names=[f"class {n}" for n in range(300)]),
        lambda values: values.update(channels=2**30),
        lambda values: values["config"]["model"].update(context_features=10**12),
        lambda values: values["config"]["data"].update(name="kubric:kubric_frame"),
        "[" * 100_000,
        '{"config": ' + '{"a":' * 100_000,
        "9" * 10_000,
        "",
    ],
)
def test_metadata_that_cannot_be_used_is_one_line(
    model_path: Path, tmp_path: Path, change: Any
) -> None:
    path = with_metadata(model_path, tmp_path, change)
    with pytest.raises(UserError, match=r"holds metadata that this version .* cannot use") as error:
        load_run(path)
    assert "\n" not in str(error.value)


def test_the_code_of_a_model_file_is_never_imported_but_asked_for_if_it_predicts(
    model_path: Path, tmp_path: Path
) -> None:
    """Only training needs the loss."""

    def with_loss(values: dict[str, Any]) -> None:
        values["config"]["loss"]["names"] = ["os.system"]

    def with_backbone(values: dict[str, Any]) -> None:
        values["config"]["model"]["backbone"] = "os.system"

    assert load_run(with_metadata(model_path, tmp_path, with_loss)).config.loss.names == (
        "os.system",
    )
    message = r"m\.safetensors: model\.backbone \(=os\.system\) must .* import its module first$"
    with pytest.raises(UserError, match=message):
        load_run(with_metadata(model_path, tmp_path, with_backbone))


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["config"]["model"].update(context_features=60_000),
        lambda values: values.update(class_names=[f"class {n}" for n in range(100)]),
        lambda values: values.update(channels=200),
        lambda values: values["config"]["model"].update(backbone="vgg16"),
    ],
)
def test_a_network_that_the_file_does_not_hold_is_not_allocated(
    model_path: Path, tmp_path: Path, change: Any
) -> None:
    path = with_metadata(model_path, tmp_path, change)
    with peak_below(2**26), pytest.raises(UserError, match=r"do not fit its settings \(.+\)"):
        load_run(path)


def test_a_file_of_another_kind_is_not_replaced(model_path: Path, tmp_path: Path) -> None:
    provenance, tensors = Provenance(Config(), {"": CLASSES}), {"a": np.zeros(2, np.float32)}
    save_file(tensors, tmp_path / "theirs.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "theirs"}')
    (tmp_path / "text.safetensors").write_text("text")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for name, message in {
        "theirs": r"theirs\.safetensors exists and is not a model file",
        "text": r"text\.safetensors exists and is not a model file",
        "config": r"config\.json exists and does not describe a model",
    }.items():
        with pytest.raises(UserError, match=message):
            model_file.save(tmp_path / f"{name}.safetensors", tensors, provenance)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    for _ in range(2):  # its own files are replaced
        model_file.save(tmp_path / "ours.safetensors", tensors, provenance)


def test_converting_replaces_neither_its_input_nor_files_of_others(tmp_path: Path) -> None:
    from tests.pretrained.test_load import squeezenet_file

    squeezenet_file(tmp_path / "w.npz")
    with np.load(tmp_path / "w.npz") as tensors:
        save_file(dict(tensors), tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text("{}")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for output in ("w", "config"):
        result = run_command(
            "pretrained", tmp_path / "w.safetensors", f"--output={tmp_path}/{output}.safetensors"
        )
        assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
        assert "give another output" in result.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    result = run_command(
        "pretrained", tmp_path / "w.safetensors", f"--output={tmp_path}/ours.safetensors"
    )
    assert result.returncode == 0, result.stderr
