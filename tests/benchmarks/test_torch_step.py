"""PyTorch's training step computes what ours computes."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.workloads import NUM_CLASSES, Workload, random_variables, workloads
from fcn_jax.models.build import QUICKLY_COMPILED
from fcn_jax.parallel.data_parallel import DATA_AXIS

BY_BACKBONE = {w.config.model.backbone: w for w in workloads(small=True)}


def without_chance(workload: Workload) -> Workload:
    """The workload with whole canvases as crops, in which nothing is random."""
    side = workload.canvas_px
    return workload.changed(
        augment__crop_px=(side, side),
        augment__scale=(1.0, 1.0),
        augment__flip=False,
        model__dropout=0.0,
        model__compute_dtype="float32",
    )


def test_pytorchs_step_is_ours(torch: Any, torchvision: ModuleType) -> None:
    """The network with batch normalisation and an auxiliary head, trained by SGD."""
    from benchmarks.torch_networks import torch_network
    from benchmarks.torch_step import TorchStep

    workload = without_chance(BY_BACKBONE["resnet50"])
    batch = workload.batch()
    batch["label"][:, :20] = 255
    state = workload.state()
    before, _ = torch_network(workload, (state.params, state.batch_stats))
    one_device = jax.vmap(workload.device_step(), in_axes=(None, 0), axis_name=DATA_AXIS)
    ours = jax.jit(one_device, compiler_options=QUICKLY_COMPILED)
    state, metrics = jax.tree.map(
        lambda x: x[0], ours(state, jax.tree.map(lambda x: x[None], batch))
    )
    step = TorchStep(workload, torch.device("cpu"), torch.contiguous_format)
    loss = step(batch)
    gradients = [p.grad for p in step.module.parameters()]
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    np.testing.assert_allclose(float(loss), float(metrics["loss"]), rtol=1e-4)
    np.testing.assert_allclose(float(norm), float(metrics["gradient_norm"]), rtol=1e-3)
    after, _ = torch_network(workload, (state.params, state.batch_stats))
    expected, start = (dict(module.named_parameters()) for module in (after, before))
    for name, parameter in step.module.named_parameters():
        moved = (expected[name] - start[name]).detach().numpy()
        update = (parameter - start[name]).detach().numpy()
        # Compared as vectors: if a rectifier's input is about zero, rounding decides on elements.
        length = np.linalg.norm(moved)
        assert length > 0, name
        assert np.linalg.norm(update - moved) < 0.02 * length, name


@pytest.mark.parametrize("backbone", BY_BACKBONE)
def test_rates_and_decays_are_ours(
    torch: Any, request: pytest.FixtureRequest, backbone: str
) -> None:
    """An update without gradients is the decay of each part at its rate."""
    from benchmarks.torch_networks import torch_network
    from benchmarks.torch_step import optimizer

    if backbone == "resnet50":
        request.getfixturevalue("torchvision")
    workload = BY_BACKBONE[backbone].changed(
        optim__learning_rate=0.5, optim__backbone_rate=0.5, optim__weight_decay=0.1
    )
    params, batch_stats = jax.tree.map(jnp.asarray, random_variables(workload.network))
    zeros = jax.tree.map(jnp.zeros_like, params)
    ours = workload.optimizer
    updates, _ = jax.jit(ours.update)(zeros, ours.init(params), params)
    expected, _ = torch_network(workload, (optax.apply_updates(params, updates), batch_stats))
    module, names = torch_network(workload, (params, batch_stats))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimizer(workload.config.optim, module, names).step()
    after = dict(expected.named_parameters())
    decayed = set()
    for name, parameter in module.named_parameters():
        found, wanted = (values.detach().numpy() for values in (parameter, after[name]))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, err_msg=name)
        if not torch.equal(parameter, before[name]):
            decayed.add(names[name].rpartition("/")[2])
    assert decayed == {"kernel"}


def test_a_pytorch_step_learns(torch: Any) -> None:
    from benchmarks.torch_step import TorchStep

    workload = BY_BACKBONE["squeezenet"]
    step = TorchStep(workload, torch.device("cpu"), torch.channels_last)
    before = {name: p.detach().clone() for name, p in step.module.named_parameters()}
    batch = workload.batch()
    step(batch)
    assert all(not torch.equal(before[name], p) for name, p in step.module.named_parameters())
    image, label = step.augment(batch)
    assert tuple(image.shape) == (2, 3, 32, 32)
    assert set(np.unique(label)) <= {*range(NUM_CLASSES), 255}
    # BGR with the mean subtracted, and nothing else: −122.7 … 151.
    assert -122.68 <= float(image.min()) < -60
    assert 60 < float(image.max()) <= 255 - 104


def test_mixed_precision_is_bfloat16s(torch: Any) -> None:
    from benchmarks.torch_step import TorchStep

    workload = BY_BACKBONE["squeezenet"].changed(model__compute_dtype="bfloat16")
    step = TorchStep(workload, torch.device("cpu"), torch.channels_last)
    dtypes: list[Any] = []
    step.module.backbone["conv1"].register_forward_hook(lambda *a: dtypes.append(a[-1].dtype))
    loss = step(workload.batch())
    assert dtypes == [torch.bfloat16]
    assert loss.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in step.module.parameters())
