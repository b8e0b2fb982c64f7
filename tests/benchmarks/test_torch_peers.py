"""The peers do the same work: PyTorch's networks, steps and upsampling give what ours give."""

import dataclasses
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import upsample
from benchmarks.workloads import NUM_CLASSES, Workload, random_canvases, random_variables, workloads

BY_BACKBONE = {w.config.model.backbone: w for w in workloads(small=True)}


@pytest.fixture(params=BY_BACKBONE)
def workload(request: pytest.FixtureRequest, torch: ModuleType) -> Workload:
    if request.param == "resnet50":
        request.getfixturevalue("torchvision")
    return BY_BACKBONE[request.param].changed(model__compute_dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_contenders_upsample_alike(torch: ModuleType, dtype: str) -> None:
    # A bilinear kernel is the same flipped, so all conventions give one result.
    from benchmarks.torch_peer import Peer

    contenders = upsample.contenders(8, (32, 64), False, dtype, Peer())
    found: dict[str, Any] = {name: contender.call() for name, contender in contenders.items()}
    expected = found.pop("fcn_jax learned")
    assert expected.dtype == dtype
    assert len(found) == 5
    for name, result in found.items():
        if name.startswith("PyTorch"):
            assert str(result.dtype) == f"torch.{dtype}"
            result = result.permute(0, 2, 3, 1).float()
        np.testing.assert_allclose(
            np.asarray(result, np.float32),
            np.asarray(expected, np.float32),
            atol=1e-5 if dtype == "float32" else 0.05,
            err_msg=name,
        )


def test_pytorchs_network_is_ours(torch: Any, workload: Workload) -> None:
    from benchmarks.torch_networks import peer_network

    network = workload.network()
    variables = random_variables(network)
    image = np.random.default_rng(0).integers(0, 256, (2, 45, 70, 3)).astype(np.uint8)
    values, _ = jax.jit(lambda variables, image: network(variables, image))(variables, image)
    expected = np.asarray(values["logits"])
    assert np.ptp(expected.argmax(-1)) > 0
    normalised = np.asarray(network.preprocessing(jnp.asarray(image)))
    for layout in (torch.channels_last, torch.contiguous_format):
        module = peer_network(workload, variables).module.to(memory_format=layout).eval()
        pixels = torch.tensor(normalised).permute(0, 3, 1, 2).contiguous(memory_format=layout)
        with torch.no_grad():
            logits = module(pixels)["out"].permute(0, 2, 3, 1)
        np.testing.assert_allclose(logits, expected, atol=1e-4 * float(np.abs(expected).max()))


def without_chance(workload: Workload) -> Workload:
    """Whole canvases as crops, nothing drawn."""
    side = workload.canvas_px
    return workload.changed(
        augment__crop_px=(side, side),
        augment__scale=(1.0, 1.0),
        augment__flip=False,
        model__dropout=0.0,
    )


@pytest.mark.parametrize(
    "backbone",
    ["squeezenet", *(pytest.param(b, marks=pytest.mark.slow) for b in ("resnet50", "vgg16"))],
)
def test_pytorchs_step_is_ours(torch: Any, request: pytest.FixtureRequest, backbone: str) -> None:
    from benchmarks.torch_networks import peer_network
    from benchmarks.torch_peer import Treatment
    from benchmarks.torch_step import TorchStep

    if backbone == "resnet50":
        request.getfixturevalue("torchvision")
    workload = without_chance(BY_BACKBONE[backbone]).changed(model__compute_dtype="float32")
    workload = dataclasses.replace(workload, canvas_px=64)
    network = workload.network()
    variables = random_variables(network)
    batch = random_canvases(workload.config.train.batch_size, 64)
    batch["label"][:, :20] = 255
    state, metrics = workload.step(network)(workload.state(network, variables), batch)
    step = TorchStep(workload, variables, torch.device("cpu"), Treatment(channels_last=False))
    loss = step(batch)
    gradients = [p.grad for p in step.module.parameters()]
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    np.testing.assert_allclose(float(loss), float(metrics["loss"]), rtol=1e-4)
    np.testing.assert_allclose(float(norm), float(metrics["gradient_norm"]), rtol=1e-3)
    if workload.config.optim.name == "adamw":  # whose first step is the gradients' signs
        return
    before = dict(peer_network(workload, variables).module.named_parameters())
    after = (state.params, state.batch_stats)
    expected = dict(peer_network(workload, after).module.named_parameters())
    for name, parameter in step.module.named_parameters():
        moved = (expected[name] - before[name]).detach().numpy()
        update = (parameter - before[name]).detach().numpy()
        # As vectors: where a rectifier sees about zero, rounding decides on single numbers.
        length = np.linalg.norm(moved)
        assert length > 0, name
        assert np.linalg.norm(update - moved) < 0.02 * length, name


def test_a_pytorch_step_learns(torch: Any) -> None:
    from benchmarks.torch_peer import Treatment
    from benchmarks.torch_step import TorchStep

    workload = BY_BACKBONE["squeezenet"]
    variables = random_variables(workload.network())
    step = TorchStep(workload, variables, torch.device("cpu"), Treatment(channels_last=True))
    before = {name: p.detach().clone() for name, p in step.module.named_parameters()}
    batch = random_canvases(2, 64)
    step(batch)
    assert all(not torch.equal(before[name], p) for name, p in step.module.named_parameters())
    image, label = step.augment(batch)
    assert tuple(image.shape) == (2, 3, 32, 32)
    assert set(np.unique(label)) <= {*range(NUM_CLASSES), 255}
    # BGR with the mean subtracted, and nothing else: −122.7 … 151.
    assert -122.68 <= float(image.min()) < -60
    assert 60 < float(image.max()) <= 255 - 104


def test_mixed_precision_is_bfloat16s(torch: Any) -> None:
    from benchmarks.torch_peer import Treatment
    from benchmarks.torch_step import TorchStep

    workload = BY_BACKBONE["squeezenet"].changed(model__compute_dtype="bfloat16")
    variables = random_variables(workload.network())
    step = TorchStep(workload, variables, torch.device("cpu"), Treatment(channels_last=True))
    seen: list[Any] = []
    step.module.backbone["conv1"].register_forward_hook(lambda *a: seen.append(a[-1].dtype))
    loss = step(random_canvases(2, 64))
    assert seen == [torch.bfloat16]
    assert loss.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in step.module.parameters())


def test_networks_are_compiled_for_the_size_at_hand(
    torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.torch_peer import Peer, Treatment
    from benchmarks.torch_step import TorchStep

    graphs: list[Any] = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **o: compiler(f, backend=counting, **o))
    workload = BY_BACKBONE["squeezenet"]
    variables = random_variables(workload.network())
    treatment = Treatment(channels_last=False, compiled=True)
    peer = Peer()
    for batch_size in (2, 3):  # as where the largest batch is looked for
        step = TorchStep(workload, variables, peer.device, treatment)
        step(random_canvases(batch_size, 64))
    assert len(graphs) == 2
    for graph, batch_size in zip(graphs, (2, 3), strict=True):
        placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
        examples = [node.meta["example_value"] for node in placeholders]
        assert not any(isinstance(example, torch.SymInt) for example in examples)
        sizes = [size for example in examples for size in example.shape]
        assert all(isinstance(size, int) for size in sizes)
        assert (batch_size, 3, 32, 32) in [tuple(example.shape) for example in examples]


def test_what_was_compiled_is_forgotten_between_cases(
    torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.torch_peer import Peer

    peer = Peer()
    peer.device = torch.device("cuda")  # where alone it compiles
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    graphs: list[Any] = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    @torch.compile(backend=counting, dynamic=False)
    def doubled(x: Any) -> Any:
        return 2 * x

    limit = torch._dynamo.config.recompile_limit
    for size in range(2, limit + 4):
        doubled(torch.ones(size))
        peer.release()
    assert len(graphs) == limit + 2


def test_on_a_gpu_upsampling_is_waited_for_after_many_calls(
    torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.torch_peer import Peer

    monkeypatch.setattr(upsample, "on_gpu", lambda: True)
    peer = Peer()
    made = upsample.contenders(8, (32, 64), True, "float32", peer)
    assert {contender.iterations for contender in made.values()} == {20}
    waits: list[None] = []
    convolutions: list[None] = []
    function = torch.nn.functional.conv_transpose2d
    monkeypatch.setattr(peer, "wait", lambda: waits.append(None))
    monkeypatch.setattr(
        torch.nn.functional,
        "conv_transpose2d",
        lambda *a, **o: convolutions.append(None) or function(*a, **o),
    )
    made["PyTorch (contiguous)"].call()
    assert (len(waits), len(convolutions)) == (1, 20)


def test_steps_on_crops_made_before_cut_none(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.torch_peer import Peer
    from benchmarks.torch_step import TorchStep

    workload = BY_BACKBONE["squeezenet"]
    cut: list[None] = []
    updates: list[Any] = []
    augment, update = TorchStep.augment, TorchStep.update
    monkeypatch.setattr(TorchStep, "augment", lambda *a: cut.append(None) or augment(*a))
    monkeypatch.setattr(TorchStep, "update", lambda *a: updates.append(a[1]) or update(*a))
    variables = random_variables(workload.network())
    made = Peer().training_steps(workload, variables, random_canvases(2, 64))
    for _ in range(3):
        made["PyTorch, crops made before (contiguous)"].call()
    assert (len(cut), len(updates)) == (1, 3)
    made["PyTorch (contiguous)"].call()
    assert (len(cut), len(updates)) == (2, 4)
