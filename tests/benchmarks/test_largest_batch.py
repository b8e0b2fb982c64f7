"""The search for the largest batch."""

from types import ModuleType
from typing import Any

import pytest

from benchmarks import largest_batch
from benchmarks.largest_batch import fits, largest, two_steps
from benchmarks.measuring import NotMeasuredError
from benchmarks.workloads import Workload
from tests.benchmarks.tiny import tiny_workload, torch_two_layers


@pytest.mark.parametrize("true", [0, 1, 2, 3, 7, 8, 20, 32])
def test_the_largest_batch_is_found(true: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= true

    assert largest(fits, maximum=20) == min(true, 20)
    assert len(tried) == len(set(tried)) <= 10
    assert max(tried) <= 20


def test_only_a_lack_of_memory_ends_the_search() -> None:
    def run(workload: Workload) -> None:
        if workload.config.train.batch_size > 5:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        if workload.config.train.batch_size == 1:
            raise ValueError("a mistake")

    workload = tiny_workload()
    assert [fits(run, workload, size) for size in (5, 6)] == [True, False]
    with pytest.raises(ValueError, match="a mistake"):
        fits(run, workload, 1)


def test_two_steps_run_ours() -> None:
    assert fits(two_steps, tiny_workload(), 2)


def test_two_steps_run_pytorchs(torch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import torch_networks

    monkeypatch.setitem(torch_networks.NETWORKS, "small", torch_two_layers)
    assert fits(largest_batch.torch_steps, tiny_workload(), 2)


def test_the_program_prints_the_batch_of_its_contender(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, Any]] = []

    def record(name: str) -> Any:
        return lambda workload: ran.append((name, workload.config))

    monkeypatch.setattr(largest_batch, "two_steps", record("ours"))
    monkeypatch.setattr(largest_batch, "torch_steps", record("PyTorch"))
    for contender in ("fcn_jax", "fcn_jax with remat", "PyTorch"):
        largest_batch.main(contender, small=True)
    assert capsys.readouterr().out == "2\n" * 3  # the most that is tried at small sizes
    assert [(name, c.train.batch_size, c.model.remat) for name, c in ran] == [
        ("ours", 1, False),
        ("ours", 2, False),
        ("ours", 1, True),
        ("ours", 2, True),
        ("PyTorch", 1, False),
        ("PyTorch", 2, False),
    ]
    assert {config.model.backbone for _, config in ran} == {"resnet50"}

    def missing(workload: Workload) -> None:
        raise NotMeasuredError("torchvision is not installed")

    monkeypatch.setattr(largest_batch, "torch_steps", missing)
    with pytest.raises(SystemExit, match="torchvision is not installed"):
        largest_batch.main("PyTorch", small=True)
