"""Weights go out under the names of torchfcn, and come back the same."""

import dataclasses
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

from fcn_jax import pretrained
from fcn_jax.config import Config, ModelConfig
from fcn_jax.data.voc import VOC_CLASSES
from fcn_jax.errors import UserError
from fcn_jax.formats import torch_names
from fcn_jax.models.build import abstract_model
from fcn_jax.models.pure_model import PureModel
from fcn_jax.pretrained import Provenance

PAPER = ModelConfig(backbone="vgg16", padding="paper")


def random_tensors(model: ModelConfig) -> dict[str, np.ndarray]:
    network = PureModel(abstract_model(model, 21))
    random = np.random.default_rng(0)
    shapes = pretrained.flatten(network.variables)
    return {
        name: np.broadcast_to(random.random(leaf.shape[-1:], np.float32), leaf.shape)
        for name, leaf in shapes.items()
    }


@pytest.mark.parametrize(
    ("peer", "settings"),
    [
        ("FCN32s", {"skips": 0}),
        ("FCN16s", {"skips": 1, "score_scales": (1.0, 1.0)}),
        ("FCN8s", {"skips": 2}),
        ("FCN8sAtOnce", {"skips": 2, "score_scales": (1.0, 0.01, 0.0001)}),
    ],
)
def test_out_to_torchfcn_and_back_is_the_same_to_the_bit(
    torch: ModuleType,
    torchfcn: ModuleType,
    narrow: None,
    peer: str,
    settings: dict[str, Any],
) -> None:
    model = dataclasses.replace(PAPER, **settings)
    tensors = random_tensors(model)
    provenance = Provenance(Config(model=model), {"": VOC_CLASSES})
    call, state = torch_names.torchfcn_state(provenance, tensors)
    assert call == f"torchfcn.models.{peer}(n_class=21)"
    with torch.device("meta"):
        network = getattr(torchfcn, peer)(n_class=21)
    expected = {name: tensor.ndim for name, tensor in network.state_dict().items()}
    assert {name: tensor.ndim for name, tensor in state.items()} == expected
    back = torch_names.torchfcn.torchfcn(list(torch_names.torchfcn.SKIP_LAYERS)[model.skips])
    for name, (theirs, layout) in back.table.items():
        np.testing.assert_array_equal(layout(state[theirs]), tensors[name])


def test_fixed_upsampling_becomes_bilinear_filters(narrow: None) -> None:
    learned, fixed = (
        dataclasses.replace(PAPER, skips=2, upsampling=kind) for kind in ("learned", "fixed")
    )
    states = []
    for model in (learned, fixed):
        provenance = Provenance(Config(model=model), {"": VOC_CLASSES})
        tensors = random_tensors(fixed)
        if model is learned:
            start = PureModel(abstract_model(model, 21))
            upsample = {n: x.shape for n, x in pretrained.flatten(start.variables).items()}
            sizes = torch_names.torchfcn_filters(2)
            assert {s: upsample[f"head/upsample{s}/kernel"][0] for s in sizes} == sizes
        states.append(torch_names.torchfcn_state(provenance, tensors)[1])
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_another_network_does_not_go_to_torchfcn() -> None:
    for settings in (
        {"padding": "same"},
        {"upsampling": "interpolate"},
        {"score_scales": (1.0, 0.5, 0.1)},
    ):
        model = dataclasses.replace(PAPER, **settings)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="needs a run of the paper's network"):
            torch_names.torchfcn_state(Provenance(Config(model=model), {"": VOC_CLASSES}), {})
    model = dataclasses.replace(PAPER, preprocessing="torchvision")
    with pytest.raises(UserError, match="format=torchfcn needs a run with caffe's preprocessing"):
        torch_names.torchfcn_state(Provenance(Config(model=model), {"": VOC_CLASSES}), {})
