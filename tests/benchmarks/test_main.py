"""The command, its report, and the suites at small sizes."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from benchmarks import __main__ as command
from benchmarks import (
    device_memory,
    evaluation_rate,
    input_rate,
    largest_batch,
    startup,
    train_step,
)
from benchmarks.measuring import Case, Contender, Row, run_case
from benchmarks.report import Report, heading, multiple, suite_table
from benchmarks.settings import Settings
from benchmarks.workloads import workloads
from fcn_jax.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def _prepared_in_a_home_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Several suites run the same step."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


SMALL = Settings(small=True, gpu_cases=False, voc_root="", peer=None)


def with_peer(settings: Settings = SMALL) -> Settings:
    return dataclasses.replace(settings, peer=command.torch_peer())


def measured(cases: Any, settings: Settings, repeats: int = 1) -> list[Row]:
    return [row for case in cases(settings) for row in run_case("suite", case, repeats)]


def test_upsampling_is_measured_at_every_stride(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "made" / "report.json"
    report = command.benchmark(
        ["upsample"],
        repeats=2,
        settings=SMALL,
        keep=lambda report: command.write_json(str(written), report),
    )
    assert json.loads(written.read_text()) == report
    assert report["small"] is True
    assert report["repeats"] == 2
    machine = report["hardware"]
    assert machine["devices"]
    assert machine["cpu"]
    assert 1 <= machine["cores_used"] <= machine["cores"]
    assert {"python", "jax", "flax"} <= report["versions"].keys()
    assert "torch" not in report["versions"]
    assert all(row.keys() == Row.__annotations__.keys() for row in report["results"])
    assert [(row["case"], row["contender"]) for row in report["results"]] == [
        (f"stride {stride}{way} float32", contender)
        for stride in (2, 8)
        for way in ("", " + gradients")
        for contender in (
            "fcn_jax learned",
            "fcn_jax fixed",
            "flax nnx.ConvTranspose",
            "lax.conv_transpose",
        )
    ]
    # A transposed convolution brings every input together with every tap inside the output: with a
    # stride of 8 and a kernel of 16, cropped by 4, 16 · 8 − 2 · 4 taps on an axis of 8 inputs.
    of_lax = next(
        row
        for row in report["results"]
        if (row["case"], row["contender"]) == ("stride 8 float32", "lax.conv_transpose")
    )
    assert of_lax["flops"] == 2 * 2 * 21**2 * (16 * 4 - 8) * (16 * 8 - 8)
    lines = capsys.readouterr().out.splitlines()
    assert sum("lax.conv_transpose" in line for line in lines) == 4
    assert any(line == "stride 2 + gradients float32" for line in lines)


def test_the_training_step_beside_pytorchs(torch: ModuleType) -> None:
    ours, theirs, on_crops, resnet, vgg = measured(train_step.cases, with_peer())
    assert ours["contender"] == "fcn_jax"
    assert theirs["contender"].startswith("PyTorch (")
    assert on_crops["contender"].startswith("PyTorch, crops made before (")
    for row in (ours, theirs, on_crops):
        assert row["median"]
        assert row["images_per_second"] == pytest.approx(2 / row["median"])
    assert theirs["ratio"] == theirs["median"] / ours["median"]  # type: ignore[operator]
    # Three passes over the network; conv1 alone makes 2 · 2 · 16² · 27 · 64 of the first.
    assert ours["flops"] > 3 * 2 * 2 * 15**2 * 27 * 64  # type: ignore[operator]
    for row in (resnet, vgg):
        assert row["note"] == "not measured: no GPU (--all runs it nevertheless)"


@pytest.mark.slow
def test_what_is_for_a_gpu_runs_elsewhere_where_asked(
    torch: ModuleType, torchvision: ModuleType
) -> None:
    rows = measured(train_step.cases, with_peer(dataclasses.replace(SMALL, gpu_cases=True)))
    contenders = ["fcn_jax", "PyTorch", "PyTorch, crops made before"]
    assert [row["contender"].partition(" (")[0] for row in rows] == contenders * 3
    assert all(row["median"] for row in rows)


def test_an_iteration_is_set_beside_the_bare_step() -> None:
    bare, *fed, resnet, vgg, batches, one_by_one = measured(input_rate.cases, SMALL)
    assert [row["contender"] for row in (bare, *fed)] == [
        "bare step",
        "streaming",
        "on the device",
        "on the device, 2 steps a call",
    ]
    for row in fed:
        assert row["overhead"]
        assert row["ratio"] == row["median"] / bare["median"]  # type: ignore[operator]
    assert "drawn shapes" in bare["case"]
    assert resnet["note"] == vgg["note"] == "not measured: no GPU (--all runs it nevertheless)"
    assert batches["images_per_second"] == pytest.approx(8 / batches["median"])  # type: ignore[operator]
    assert one_by_one["images_per_second"]


@pytest.mark.parametrize("at_once", [1, 2])
def test_the_loop_makes_every_step_and_waits_for_the_last(at_once: int) -> None:
    class Counting:
        def __init__(self) -> None:
            self.at_once = at_once

        def __call__(self, state: int, steps: int) -> tuple[int, dict[str, Any]]:
            return state + steps, {"loss": np.float32(state)}

        def close(self) -> None: ...

    loop = input_rate.Loop(0)
    loop.run(Counting(), 4)
    loop.run(Counting(), 2)
    assert loop.state == 6


def test_both_evaluations_count_the_same_pixels(torch: ModuleType) -> None:
    workload = next(workloads(True))
    made = evaluation_rate.contenders(workload, with_peer())
    ours = made.pop("fcn_jax").call()  # type: ignore[union-attr]
    confusion = ours.by_map[""].confusion
    assert len(np.flatnonzero(confusion.sum(axis=0))) > 1  # not all pixels of one class
    assert sorted(made) == ["PyTorch (channels_last)", "PyTorch (contiguous)"]
    for contender in made.values():
        theirs = contender.call()  # type: ignore[union-attr]
        assert theirs.sum() == confusion.sum()
        assert np.abs(theirs - confusion).sum() <= 1e-4 * confusion.sum()  # ties of rounding
        note = contender.note(theirs)  # type: ignore[union-attr]
        assert note == evaluation_rate.accuracy_note(np.trace(theirs) / theirs.sum())


def test_peak_memory_of_a_compiled_step(torch: ModuleType) -> None:
    workload = next(workloads(True))
    peak = device_memory.compiled_peak(workload)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(workload.network().variables[0]))
    # The parameters, AdamW's two moments, and a batch of canvases and their crops.
    state = 4 * 3 * parameters
    batch = 2 * 64 * 64 * 4
    crops = 4 * 2 * 32 * 32 * 3
    assert state + batch + crops < peak < 2 * state
    largest, _, ours, *_ = device_memory.cases(with_peer())
    (row,) = run_case("memory", largest, 1)
    assert row["note"] == "not measured: no GPU"
    made = ours.build()
    assert list(made) == [
        "fcn_jax",
        "fcn_jax in bfloat16",
        "fcn_jax in 2 parts",
        "fcn_jax with remat",
        "PyTorch",
    ]
    assert str(made["PyTorch"]) == "PyTorch does not tell it of a CPU"


def test_what_is_kept_of_an_image_is_told_of_all(torch: ModuleType) -> None:
    _, kept, *_ = device_memory.cases(with_peer())
    ours, half, rematerialized, theirs = run_case("memory", kept, 1)
    assert [row["contender"] for row in (ours, half, rematerialized, theirs)] == [
        "fcn_jax",
        "fcn_jax in bfloat16",
        "fcn_jax with remat",
        "PyTorch",
    ]
    assert half["median"] < rematerialized["median"] < ours["median"] < theirs["median"]  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.parametrize("contender", ["fcn_jax", "fcn_jax_remat", "torch"])
def test_the_largest_batch_is_looked_for(
    contender: str, torch: ModuleType, torchvision: ModuleType, capsys: Any
) -> None:
    largest_batch.main(contender, small=True)
    assert json.loads(capsys.readouterr().out) == 2  # the most that is tried at small sizes


def test_imports_and_help_are_started(torch: ModuleType) -> None:
    imports, helps, *_ = startup.cases(with_peer())
    assert list(imports.build()) == ["fcn_jax", "jax", "torch"]
    rows = run_case("startup", helps, 1)
    assert [(row["unit"], row["median"] is not None) for row in rows] == [("s", True)]


@pytest.mark.slow
def test_a_second_start_compiles_less_and_a_resumed_one_goes_on() -> None:
    *_, compiled = startup.cases(SMALL)
    first, second, resumed = run_case("startup", compiled, 1)
    assert first["median"] > second["median"]  # type: ignore[operator]
    assert resumed["contender"] == "resumed"
    assert resumed["median"] is not None


def test_a_training_that_ends_at_once_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    *_, training, _ = startup.cases(SMALL)
    rows = run_case("startup", training, 1)
    assert [row["note"] for row in rows] == ["not measured: training ended with 1: "] * 3


def test_a_remark_stands_below_its_row_and_empty_columns_are_left_out() -> None:
    row: Row = {
        "suite": "memory",
        "case": "batch 8",
        "contender": "fcn_jax",
        "unit": "bytes",
        "median": 2e8,
        "lower_quartile": 2e8,
        "upper_quartile": 2e8,
        "repeats": 1,
        "ratio": 1.0,
        "overhead": False,
        "images_per_second": None,
        "flops": None,
        "flops_per_second": None,
        "share_of_peak": None,
        "note": "",
    }
    missing: Row = {**row, "contender": "PyTorch", "median": None, "ratio": None}
    missing["note"] = "not measured: no GPU"
    report: Report = {
        "date": "2026-11-23",
        "hardware": {
            "cpu": "a CPU",
            "cores": 2,
            "cores_used": 1,
            "memory_bytes": 2**34,
            "devices": ["gpu:NVIDIA H100"],
            "device_memory_bytes": 80 * 2**30,
        },
        "versions": {"jax": "0.10"},
        "repeats": 1,
        "small": False,
        "results": [row, missing],
    }
    assert heading(report).splitlines() == [
        "a CPU, 1 of 2 cores, 16 GiB; gpu:NVIDIA H100 with 80 GiB",
        "jax 0.10",
        "2026-11-23",
    ]
    assert suite_table("memory", report["results"]).splitlines() == [
        "memory       median  ratio",
        "──────────────────────────",
        "batch 8",
        "  fcn_jax  200.0 MB   1.00",
        "  PyTorch",
        "    not measured: no GPU",
    ]


def test_units() -> None:
    assert multiple("s", 0.5) == (1e3, 1, "ms")
    assert multiple("s", 59.7) == (1, 1, "s")
    assert multiple("programs", 12) == (1, 0, "programs")


def test_without_pytorch_the_comparison_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="--against=torch needs PyTorch"):
        command.torch_peer()


def test_pytorch_without_a_gpu_is_no_peer_on_one(
    torch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"JAX is on a GPU, and PyTorch .* install a CUDA build"):
        command.torch_peer()


def test_suites_run_in_their_own_order() -> None:
    assert command.in_order(["evaluate", "memory", "startup", "memory"]) == [
        "startup",
        "memory",
        "evaluate",
    ]
    with pytest.raises(UserError, match=r"--suites \(='train'\) must be among startup, memory, up"):
        command.in_order(["upsample", "train"])


def test_no_repeats_are_refused() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--repeats=0"], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "--repeats=0" in ended.stderr


def test_an_interrupted_suite_tells_what_it_has_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> float:
        raise KeyboardInterrupt

    def cases(settings: Settings) -> Iterator[Case]:
        for name, call in {"first": lambda: 21.0, "second": interrupted}.items():
            yield Case(name, lambda c=call: {"ours": Contender(c)}, unit="images", timed=False)  # type: ignore[misc]

    monkeypatch.setitem(command.SUITES, "upsample", lambda settings: iter([]))
    monkeypatch.setitem(command.SUITES, "memory", cases)
    kept: list[Report] = []
    with pytest.raises(KeyboardInterrupt):
        command.benchmark(["upsample", "memory"], repeats=1, settings=SMALL, keep=kept.append)
    assert [[row["case"] for row in report["results"]] for report in kept] == [["first"]]
    table = capsys.readouterr().out.strip().splitlines()[-4:]
    assert [line.split() for line in table] == [
        ["memory", "median"],
        ["─" * len(table[0])],
        ["first"],
        ["ours", "21", "images"],
    ]


def test_a_wrong_folder_of_images_is_told_by_its_flag(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--voc_root") as error:
        dataclasses.replace(SMALL, voc_root=str(tmp_path)).dataset()
    assert "config.data" not in str(error.value)


def test_a_file_that_cannot_be_written_is_refused_before_measuring(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--json \(=/nowhere/x.json\) cannot be written"):
        command.check_writable("/nowhere/x.json")
    with pytest.raises(UserError, match="cannot be written: it is no file"):
        command.check_writable(str(tmp_path))
    before = tmp_path / "before.json"
    before.write_text("{}")
    command.check_writable(str(before))
    command.check_writable(str(tmp_path / "new.json"))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("before.json", "{}")]
