"""PyTorch's networks compute what ours compute."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.workloads import random_variables, workloads
from fcn_jax.models.build import QUICKLY_COMPILED

BY_BACKBONE = {w.config.model.backbone: w for w in workloads(small=True)}


@pytest.mark.parametrize("backbone", BY_BACKBONE)
def test_pytorchs_network_is_ours(
    torch: Any, request: pytest.FixtureRequest, backbone: str
) -> None:
    from benchmarks.torch_networks import Normaliser, torch_network

    if backbone == "resnet50":
        request.getfixturevalue("torchvision")
    workload = BY_BACKBONE[backbone].changed(model__compute_dtype="float32")
    network = workload.network
    variables = random_variables(network)
    image = np.random.default_rng(0).integers(0, 256, (2, 45, 70, 3)).astype(np.uint8)
    logits = jax.jit(lambda *inputs: network(*inputs)[0], compiler_options=QUICKLY_COMPILED)
    expected = np.asarray(logits(variables, image)["logits"])
    assert np.ptp(expected.argmax(-1)) > 0
    pixels = torch.tensor(image).permute(0, 3, 1, 2)
    normalised = Normaliser(workload, torch.device("cpu"))(pixels)
    np.testing.assert_allclose(
        normalised.permute(0, 2, 3, 1), network.preprocessing(jnp.asarray(image)), atol=1e-5
    )
    module, _ = torch_network(workload, variables)
    for layout in (torch.channels_last, torch.contiguous_format):
        module = module.to(memory_format=layout).eval()
        with torch.no_grad():
            found = module(normalised.contiguous(memory_format=layout))["out"].permute(0, 2, 3, 1)
        np.testing.assert_allclose(found, expected, atol=1e-4 * float(np.abs(expected).max()))


def test_every_parameter_has_our_name(torch: ModuleType) -> None:
    from benchmarks.torch_networks import torch_network

    workload = BY_BACKBONE["squeezenet"]
    module, names = torch_network(workload, random_variables(workload.network))
    assert names["backbone.fire2.squeeze1x1.weight"] == "backbone/fire2/squeeze1x1/kernel"
    assert {name for name, _ in module.named_parameters()} == names.keys()
