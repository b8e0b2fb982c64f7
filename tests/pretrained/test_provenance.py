"""Provenance is stored as JSON, and every value that is read is checked."""

import dataclasses
import json
from typing import Any

import pytest

from fcn_jax.config import Config, ModelConfig, default_config
from fcn_jax.errors import UserError
from fcn_jax.pretrained import Provenance


@pytest.mark.parametrize(
    "provenance",
    [
        Provenance(default_config(), {"": ("a", "b")}, step=7, source="a run", train_images="5"),
        Provenance(Config(), {"masks": ("a", "b"), "heights": ("c", "d", "e")}, channels=4),
        Provenance(
            Config(model=ModelConfig("vgg16", score_scales=(1.0, 0.01, 0.0001))),
            metrics={"val": {"mean_iou": 0.5}},
        ),
    ],
    ids=["run", "two label maps", "classifier"],
)
def test_json_gives_it_back(provenance: Provenance) -> None:
    assert Provenance.from_json(json.loads(json.dumps(provenance.to_json()))) == provenance


def test_class_names_of_earlier_model_files_are_read() -> None:
    values = {"source": "x", "config": {"model": {}}, "channels": 3, "step": 0, "metrics": {}}
    provenance = Provenance.from_json(values | {"classes": {"": ["a", "b"]}})
    assert provenance == Provenance(Config(), {"": ("a", "b")}, source="x")


def test_paths_are_reduced_to_names() -> None:
    config = Config(init="/a/b.npz,../c.pth")
    config.data.root, config.data.prepared_dir, config.data.mask_palette = "/x", "/y", "/z/p.txt"
    config = Provenance(config).without_paths().config
    assert (config.init, config.data.mask_palette) == ("b.npz,c.pth", "p.txt")
    assert config.data.root is config.data.prepared_dir is None
    assert Provenance(Config()).without_paths() == Provenance(Config())


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": {"..": ["a", "b"]}},
        {"class_names": {"/etc": ["a", "b"]}},
        {"class_names": {"a/b": ["a", "b"], "c": ["a"]}},
        {"class_names": {"images": ["a", "b"]}},
        {"class_names": {"": ["a"], "b": ["a"]}},
        {"class_names": {f"map{n}": ["a"] for n in range(17)}},
        {"class_names": [f"class {n}" for n in range(256)]},
        {"class_names": []},
        {"class_names": [["a"]]},
        {"class_names": ["a" * 2000]},
        {"class_names": 3},
        {"channels": 0},
        {"channels": 10**9},
        {"channels": "3"},
        {"channels": True},
        {"step": -1},
        {"step": 1.5},
        {"step": 2**80},
        {"source": ["x"]},
        {"metrics": ["val"]},
        {"metrics": {"val": 3}},
        {"unknown": 1},
        {"config": None},
        {"config": nested(500)},
        {"config": {"model": {"backbone": "resnet9000"}}},
        {"config": {"model": {"backbone": ["small"]}}},
        {"config": {"model": {"context_features": 10**9}}},
        {"config": {"model": {"dropout": float("nan")}}},
        {"config": {"model": {"padding": {"a": 1}}}},
        {"config": {"data": {"label_maps": ["..", "a"]}}},
        {"config": {"data": {"extra_channels": ["../../etc"]}}},
    ],
    ids=lambda change: repr(change)[:60],
)
def test_what_cannot_be_used_is_refused(change: dict[str, Any]) -> None:
    values = Provenance(Config(), {"": ("a", "b")}).to_json() | change
    with pytest.raises((ValueError, UserError)):
        Provenance.from_json(values)


@pytest.mark.parametrize("values", [None, [], "x", {}, {"channels": 3}])
def test_other_json_is_refused(values: Any) -> None:
    with pytest.raises((ValueError, UserError)):
        Provenance.from_json(values)


def test_the_weights_preprocessing_is_never_auto() -> None:
    for backbone, preprocessing in {"vgg16": "caffe", "googlenet": "inception"}.items():
        provenance = Provenance(Config(model=ModelConfig(backbone)))
        assert provenance.config.model.preprocessing == "auto"
        assert provenance.preprocessing == preprocessing
    model = dataclasses.replace(ModelConfig("vgg16"), preprocessing="torchvision")
    assert Provenance(Config(model=model)).preprocessing == "torchvision"
