"""The command: its options, its JSON file, and what an interruption leaves."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import pytest

from benchmarks import __main__ as command
from benchmarks import suite_memory, suite_upsample
from benchmarks.measuring import Case, Contender, Row
from benchmarks.settings import Settings
from fcn_jax.config import DataConfig
from fcn_jax.errors import UserError

UPSAMPLERS = ("fcn_jax learned", "fcn_jax fixed", "flax nnx.ConvTranspose", "lax.conv_transpose")


def test_a_suite_is_printed_and_written(
    tmp_path: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "made" / "report.json"
    report = command.run(["upsample"], settings, 2, written)
    assert json.loads(written.read_text()) == report
    assert report["small"] is True
    assert report["repeats"] == 2
    machine = report["hardware"]
    assert machine["devices"]
    assert machine["cpu"]
    assert 1 <= machine["cores_used"] <= machine["cores"]
    assert {"python", "jax", "flax"} <= report["versions"].keys()
    assert "torch" not in report["versions"]
    rows = report["results"]
    assert all(row.keys() == {field.name for field in dataclasses.fields(Row)} for row in rows)
    assert [(row["case"], row["contender"]) for row in rows] == [
        (f"stride {stride}{gradients} float32", contender)
        for stride in (2, 8)
        for gradients in ("", " + gradients")
        for contender in UPSAMPLERS
    ] + [
        (f"U-Net{gradients} float32", contender)
        for gradients in ("", " + gradients")
        for contender in ("fcn_jax blocks", "fcn_jax in phases", "lax.conv_transpose")
    ]
    # A transposed convolution brings every input together with every tap inside the output: with a
    # stride of 8 and a kernel of 16, cropped by 4, 16 · 8 − 2 · 4 taps on an axis of 8 inputs.
    stride_8 = {row["contender"]: row for row in rows if row["case"] == "stride 8 float32"}
    assert stride_8["lax.conv_transpose"]["flops"] == (2 * 2 * 21**2 * (16 * 4 - 8) * (16 * 8 - 8))
    lines = capsys.readouterr().out.splitlines()
    assert sum("lax.conv_transpose" in line for line in lines) == 6
    assert any(line == "stride 2 + gradients float32" for line in lines)
    assert lines[-1] == "Small sizes: the times mean nothing."


def test_an_interrupted_suite_prints_and_writes_what_it_has_measured(
    tmp_path: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted() -> float:
        raise KeyboardInterrupt

    def cases(settings: Settings) -> Iterator[Case]:
        for name, call in {"first": lambda: 21.0, "second": interrupted}.items():
            contenders = {"ours": Contender(call)}
            yield Case(name, lambda c=contenders: c, unit="images", timed=False)  # type: ignore[misc]

    monkeypatch.setattr(suite_upsample, "cases", lambda settings: iter([]))
    monkeypatch.setattr(suite_memory, "cases", cases)
    path = tmp_path / "report.json"
    with pytest.raises(KeyboardInterrupt):
        command.run(["upsample", "memory"], settings, 1, path)
    assert [row["case"] for row in json.loads(path.read_text())["results"]] == ["first"]
    table = capsys.readouterr().out.strip().splitlines()[-4:]
    assert [line.split() for line in table] == [
        ["memory", "median"],
        ["─" * len(table[0])],
        ["first"],
        ["ours", "21", "images"],
    ]


def test_without_pytorch_the_comparison_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "benchmarks.torch_peer", raising=False)
    with pytest.raises(UserError, match="--against=torch needs PyTorch"):
        command.torch_peer(small=True)


def test_pytorch_without_a_gpu_is_no_peer_on_one(
    torch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"JAX is on a GPU, and PyTorch .* install a CUDA build"):
        command.torch_peer(small=True)


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


def test_a_wrong_folder_of_images_is_reported_by_its_flag(tmp_path: Path) -> None:
    settings = Settings((), data=DataConfig(name="voc", root=str(tmp_path)))
    with pytest.raises(UserError, match="--voc_root") as error:
        _ = settings.dataset
    assert "data.root" not in str(error.value)


def test_a_file_that_cannot_be_written_is_refused_before_measuring(
    tmp_path: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x.json", tmp_path):
        with pytest.raises(UserError, match=rf"cannot write {path} \("):
            command.run(["upsample"], settings, 1, path)
    assert capsys.readouterr().out == ""
