"""Peak memory, and the activations saved for the backward pass: by hand and of whole networks."""

from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from benchmarks import suite_memory
from benchmarks.measuring import Contender, NotMeasuredError, run_case
from benchmarks.settings import Settings
from benchmarks.suite_memory import fits, largest, saved_bytes_per_image, two_steps
from benchmarks.workloads import Workload, workloads
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.layers import relu
from tests.benchmarks.tiny import tiny_workload, torch_two_layers

BY_BACKBONE = {w.config.model.backbone: w for w in workloads(small=True)}
SIDE, FEATURES = 8, 4


def test_peak_memory_of_a_compiled_step(settings: Settings) -> None:
    workload = settings.workloads[0]
    peak = suite_memory.compiled_peak(workload)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(workload.network.variables[0]))
    state = 4 * 3 * parameters
    batch = 2 * 64 * 64 * 4
    crops = 4 * 2 * 32 * 32 * 3
    logits = 4 * 2 * 32 * 32 * 21
    assert state + batch + crops < peak < state + batch + crops + 8 * logits


def test_every_variant_that_changes_something_is_measured(settings_with_torch: Settings) -> None:
    cases = {case.name: case for case in suite_memory.cases(settings_with_torch)}
    assert list(cases) == [
        "FCN-ResNet-50 512×512 bfloat16: largest batch",
        "tiny 32×32 batch 2 float32: activations saved per image",
        "tiny 32×32 batch 2 float32: a training step",
        "large 32×32 batch 2 float32: activations saved per image",
        "large 32×32 batch 2 float32: a training step",
    ]
    largest, _, ours, _, large = cases.values()
    (row,) = run_case("memory", largest, 1)
    assert row.note == "not measured: no GPU"
    made = ours.build()
    assert list(made) == [
        "fcn_jax",
        "fcn_jax in bfloat16",
        "fcn_jax in 2 parts",
        "fcn_jax with remat",
        "PyTorch",
    ]
    assert str(made["PyTorch"]) == "PyTorch does not report it on a CPU"
    (row,) = run_case("memory", large, 1)
    assert row.note == "not measured: no GPU (--all runs it nevertheless)"


def test_the_largest_batch_is_found_by_processes(
    settings_with_torch: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> Any:
        calls.append((*command[1:], env["XLA_PYTHON_CLIENT_PREALLOCATE"]))
        ended = {"returncode": 0, "stdout": "noise\n24\n", "stderr": ""}
        if command[3] == "PyTorch":
            ended = {"returncode": 1, "stdout": "", "stderr": "a\ntorchvision is not installed\n"}
        return SimpleNamespace(**ended)

    monkeypatch.setattr(suite_memory, "device_bytes", lambda: 2**30)
    monkeypatch.setattr(suite_memory.subprocess, "run", run)
    case, *_ = suite_memory.cases(settings_with_torch)
    rows = run_case("memory", case, 1)
    assert [(row.contender, row.median, row.note) for row in rows] == [
        ("fcn_jax", 24, ""),
        ("fcn_jax with remat", 24, ""),
        ("PyTorch", None, "not measured: torchvision is not installed"),
    ]
    assert calls == [
        ("-m", "benchmarks.suite_memory", "fcn_jax", "1", "true"),
        ("-m", "benchmarks.suite_memory", "fcn_jax with remat", "1", "true"),
        ("-m", "benchmarks.suite_memory", "PyTorch", "1", "false"),
    ]


class OneLayer:
    """A 3×3 convolution to four features and a rectifier; its loss is the sum of their squares."""

    variables = ({"kernel": jax.ShapeDtypeStruct((3, 3, 3, FEATURES), jnp.float32)}, {})

    def logits_in_blocks(self, variables: Any, image: jax.Array, *, train: bool) -> Any:
        assert train
        kernel = variables[0]["kernel"]
        convolved = lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        features = relu(FeatureMap(convolved)).values
        return {
            "": SimpleNamespace(
                total=lambda loss, label: (jnp.sum(features * features), label.size),
                layout=SimpleNamespace(to_blocks=lambda label, fill: label),
            )
        }, None


def test_ours_saves_the_input_and_the_result_of_one_layer() -> None:
    workload: Any = SimpleNamespace(
        network=OneLayer(),
        crop_px=(SIDE, SIDE),
    )
    # The result is saved once, for the rectifier and for the square.
    assert saved_bytes_per_image(workload) == 4 * SIDE**2 * 3 + 4 * SIDE**2 * FEATURES


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_pytorch_saves_the_input_the_result_and_the_loss_s_arrays_of_one_layer(
    torch: Any, monkeypatch: pytest.MonkeyPatch, dtype: str, size: int
) -> None:
    from benchmarks import torch_networks

    class Layer(torch.nn.Module):
        def __init__(self, workload: Workload):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, FEATURES, 3, padding=1)

        def forward(self, image: Any) -> dict[str, Any]:
            return {"out": torch.relu(self.conv(image))}

    monkeypatch.setitem(torch_networks.NETWORKS, "squeezenet", Layer)
    workload = BY_BACKBONE["squeezenet"].changed(
        augment__crop_px=(SIDE, SIDE), model__compute_dtype=dtype
    )
    image, features = size * SIDE**2 * 3, size * SIDE**2 * FEATURES
    log_probabilities, labels = 4 * SIDE**2 * FEATURES, 8 * SIDE**2
    expected = image + features + log_probabilities + labels
    assert torch_networks.saved_bytes_per_image(workload) == expected


@pytest.mark.parametrize("backbone", ["resnet50", "vgg16"])
def test_half_the_precision_saves_half_and_remat_less(backbone: str) -> None:
    single = BY_BACKBONE[backbone].changed(model__compute_dtype="float32")
    saved = saved_bytes_per_image(single)
    # Masks, and the arrays of the logits, are the same in both.
    half = saved_bytes_per_image(single.changed(model__compute_dtype="bfloat16"))
    assert 2 * half == pytest.approx(saved, rel=0.05)
    assert saved_bytes_per_image(single.changed(model__remat=True)) < 0.5 * saved


def test_saved_activations_of_all_contenders(torch: ModuleType) -> None:
    from benchmarks.torch_peer import Peer

    settings = Settings((BY_BACKBONE["squeezenet"],), small=True, peer=Peer())
    _, case, _ = suite_memory.cases(settings)
    contenders = case.build()
    assert all(isinstance(contender, Contender) for contender in contenders.values())
    ours, half, remat, theirs = run_case("memory", case, 1)
    assert [row.contender for row in (ours, half, remat, theirs)] == [
        "fcn_jax",
        "fcn_jax in bfloat16",
        "fcn_jax with remat",
        "PyTorch",
    ]
    assert half.median < remat.median < ours.median < theirs.median  # type: ignore[operator]


@pytest.mark.parametrize("start", [1, 10, 20, 600])
@pytest.mark.parametrize("true", [0, 1, 2, 3, 7, 8, 20, 32, 100, 609, 2000])
def test_the_largest_size_is_found_to_within_a_part(true: int, start: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= true

    found = largest(fits, start, maximum=1024)
    assert found <= true
    assert min(true, 1024) < found + max(1, found / 32)
    assert len(tried) == len(set(tried))
    assert max(tried) <= 1024
    if start == 600 and true == 609:
        assert len(tried) <= 5


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
    assert fits(suite_memory.torch_steps, tiny_workload(), 2)


def test_the_program_prints_the_batch_of_its_contender(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, Any]] = []

    def record(name: str) -> Any:
        return lambda workload: ran.append((name, workload.config))

    monkeypatch.setattr(suite_memory, "two_steps", record("ours"))
    monkeypatch.setattr(suite_memory, "torch_steps", record("PyTorch"))
    for contender in ("fcn_jax", "fcn_jax with remat", "PyTorch"):
        suite_memory.find_largest_batch(contender, small=True)
    assert capsys.readouterr().out == "2\n" * 3  # the most that is tried at small sizes
    # Without a GPU there is no guess of what fits, so the first size is 1.
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

    monkeypatch.setattr(suite_memory, "torch_steps", missing)
    with pytest.raises(SystemExit, match="torchvision is not installed"):
        suite_memory.find_largest_batch("PyTorch", small=True)
