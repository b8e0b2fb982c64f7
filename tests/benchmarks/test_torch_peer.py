"""PyTorch's contenders: what they compile, wait for and cut."""

from typing import Any

import numpy as np
import pytest

from benchmarks import suite_upsample
from tests.benchmarks.tiny import tiny_workload, torch_two_layers


@pytest.fixture
def counted_graphs(torch: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Makes torch.compile run eagerly, and collects the graphs that it would compile."""
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **o: compiler(f, backend=count, **o))
    return graphs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_contenders_upsample_alike(torch: Any, dtype: str) -> None:
    # A bilinear kernel is symmetric, so all conventions give one result.
    from benchmarks.torch_peer import Peer

    contenders = suite_upsample.contenders(8, (32, 64), False, dtype, Peer())
    found: dict[str, Any] = {name: contender.call() for name, contender in contenders.items()}  # type: ignore[union-attr]
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


def test_the_contenders_of_a_u_net_upsample_alike(torch: Any) -> None:
    from benchmarks.torch_peer import Peer

    contenders: Any = suite_upsample.unet_contenders((8, 12), False, "float32", Peer())
    found = {name: contender.call() for name, contender in contenders.items()}
    del found["lax.conv_transpose"]  # with its kernel flipped in space
    expected = np.asarray(found.pop("fcn_jax blocks"))
    assert len(found) == 3
    for name, result in found.items():
        ours = result.permute(0, 2, 3, 1) if name.startswith("PyTorch") else result
        np.testing.assert_allclose(ours, expected, atol=1e-4, err_msg=name)


def test_on_a_gpu_upsampling_is_waited_for_after_many_calls(
    torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.torch_peer import Peer

    monkeypatch.setattr(suite_upsample, "on_gpu", lambda: True)
    peer = Peer()
    made = suite_upsample.contenders(8, (32, 64), True, "float32", peer)
    assert {contender.iterations for contender in made.values()} == {20}  # type: ignore[union-attr]
    waits: list[None] = []
    convolutions: list[None] = []
    function = torch.nn.functional.conv_transpose2d
    monkeypatch.setattr(peer, "wait", lambda: waits.append(None))
    monkeypatch.setattr(
        torch.nn.functional,
        "conv_transpose2d",
        lambda *a, **o: convolutions.append(None) or function(*a, **o),
    )
    made["PyTorch (contiguous)"].call()  # type: ignore[union-attr]
    assert (len(waits), len(convolutions)) == (1, 20)


def test_steps_on_crops_made_before_cut_none(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import torch_networks
    from benchmarks.torch_peer import Peer
    from benchmarks.torch_step import TorchStep

    monkeypatch.setitem(torch_networks.NETWORKS, "small", torch_two_layers)
    cut: list[None] = []
    updates: list[Any] = []
    augment, update = TorchStep.augment, TorchStep.update
    monkeypatch.setattr(TorchStep, "augment", lambda *a: cut.append(None) or augment(*a))
    monkeypatch.setattr(TorchStep, "update", lambda *a: updates.append(a[1]) or update(*a))
    made = Peer().training_steps(tiny_workload())
    for _ in range(3):
        made["PyTorch, crops made before (contiguous)"].call()
    assert (len(cut), len(updates)) == (1, 3)
    made["PyTorch (contiguous)"].call()
    assert (len(cut), len(updates)) == (2, 4)


def test_networks_are_compiled_for_their_batch_size(
    torch: Any, monkeypatch: pytest.MonkeyPatch, counted_graphs: list[Any]
) -> None:
    from benchmarks import torch_networks
    from benchmarks.torch_step import TorchStep

    monkeypatch.setitem(torch_networks.NETWORKS, "small", torch_two_layers)
    for batch_size in (2, 3):  # as in the search for the largest batch
        workload = tiny_workload().changed(train__batch_size=batch_size)
        step = TorchStep(workload, torch.device("cpu"), torch.contiguous_format, compiled=True)
        step(workload.batch())
    assert len(counted_graphs) == 2
    for graph, batch_size in zip(counted_graphs, (2, 3), strict=True):
        placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
        examples = [node.meta["example_value"] for node in placeholders]
        assert not any(isinstance(example, torch.SymInt) for example in examples)
        sizes = [size for example in examples for size in example.shape]
        assert all(isinstance(size, int) for size in sizes)
        assert (batch_size, 3, 32, 32) in [tuple(example.shape) for example in examples]


def test_on_a_gpu_compiled_programs_are_forgotten_between_cases(
    torch: Any, monkeypatch: pytest.MonkeyPatch, counted_graphs: list[Any]
) -> None:
    from benchmarks.torch_peer import Peer

    peer = Peer()
    peer.device = torch.device("cuda")  # it compiles nowhere else
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    doubled = torch.compile(lambda x: 2 * x, dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=2):
        for size in range(2, 6):
            doubled(torch.ones(size))
            peer.release()
    assert len(counted_graphs) == 4
