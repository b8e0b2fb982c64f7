import io
import json
import sys
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from fcn_jax.benchmark import __main__ as benchmarks
from fcn_jax.benchmark.__main__ import Peer, TorchStep, benchmark, measure, results_table, summarize
from fcn_jax.errors import UserError
from fcn_jax.models.build import build
from fcn_jax.step import Network

ROW_KEYS = {
    "suite",
    "case",
    "contender",
    "median_s",
    "lower_quartile_s",
    "upper_quartile_s",
    "ratio",
}


def test_ratios_are_of_medians() -> None:
    rows = summarize(
        "suite",
        "case",
        {"ours": [2.0, 1.0, 3.0, 100.0, 2.0], "theirs": [5.0, 6.0, 7.0, 8.0, 0.0]},
    )
    ours, theirs = rows
    assert ours["median_s"] == 2
    assert (ours["lower_quartile_s"], ours["upper_quartile_s"]) == (2, 3)
    assert ours["ratio"] == 1
    assert theirs["median_s"] == 6
    assert theirs["ratio"] == 3
    assert theirs.keys() == ROW_KEYS


def test_of_two_layouts_the_faster_counts() -> None:
    rows = summarize("s", "c", {"ours": [2.0], "peer (a)": [8.0], "peer (b)": [5.0]})
    assert [(row["contender"], row["ratio"]) for row in rows] == [("ours", 1), ("peer (b)", 2.5)]


def test_contenders_take_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    seconds = measure({name: lambda n=name: calls.append(n) for name in "ab"}, repeats=3)  # type: ignore[misc]
    assert "".join(calls) == "aabb" + "ababab"
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_upsampling_is_measured_at_every_stride() -> None:
    report = benchmark(["upsample"], repeats=2, small=True)
    assert json.loads(json.dumps(report)) == report
    assert report["small"] is True
    assert report["repeats"] == 2
    assert report["hardware"]["devices"]
    assert report["hardware"]["cpu"]
    assert {"python", "jax", "flax"} <= report["versions"].keys()
    assert "torch" not in report["versions"]
    assert all(row.keys() == ROW_KEYS for row in report["results"])
    assert [(row["case"], row["contender"]) for row in report["results"]] == [
        (f"stride {stride}{way}", contender)
        for stride in (2, 8)
        for way in ("", " + gradients")
        for contender in (
            "fcn_jax learned",
            "fcn_jax fixed",
            "flax nnx.ConvTranspose",
            "lax.conv_transpose",
        )
    ]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(results_table(report))
    lines = console.export_text().splitlines()
    assert sum("lax.conv_transpose" in line for line in lines) == 4
    assert any("upsample stride 2 + gradients " in line for line in lines)


def test_all_contenders_upsample_alike(torch: ModuleType) -> None:
    # A bilinear kernel is the same flipped, so all conventions give one result.
    contenders = benchmarks.upsampling_contenders(8, (32, 64), False, Peer())
    results: dict[str, Any] = {name: call() for name, call in contenders.items()}
    expected = np.asarray(results.pop("fcn_jax learned"))
    assert len(results) == 5
    for name, result in results.items():
        if name.startswith("PyTorch"):
            result = result.permute(0, 2, 3, 1)
        np.testing.assert_allclose(np.asarray(result), expected, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("channels_last", [False, True])
def test_pytorchs_network_is_ours(torch: Any, channels_last: bool, randomised: Any) -> None:
    config = benchmarks.train_step_config(small=True)
    network = Network(
        randomised(lambda: build(config.model, benchmarks.NUM_CLASSES, rngs=nnx.Rngs(0)))
    )
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3)).astype(np.uint8)
    values, _ = jax.jit(lambda image: network(network.variables, image))(image)
    expected = values["logits"]
    step = TorchStep(Peer(), network.variables[0], config, channels_last=channels_last)
    normalised = np.array(network.preprocessing(jnp.asarray(image)))
    with torch.no_grad():
        logits = step.logits(step.peer.images(normalised, channels_last), train=False)
    np.testing.assert_allclose(
        logits.permute(0, 2, 3, 1), expected, atol=1e-4 * float(jnp.abs(expected).max())
    )


def test_a_pytorch_step_learns(torch: Any, randomised: Any) -> None:
    config = benchmarks.train_step_config(small=True)
    network = Network(
        randomised(lambda: build(config.model, benchmarks.NUM_CLASSES, rngs=nnx.Rngs(0)))
    )
    step = TorchStep(Peer(), network.variables[0], config, channels_last=False)
    before = {name: weight.detach().clone() for name, weight in step.weights.items()}
    batch = benchmarks.canvases(2, 64)
    step(batch)
    assert all(not torch.equal(before[name], weight) for name, weight in step.weights.items())
    image, label = step.augment(batch)
    assert tuple(image.shape) == (2, 3, 32, 32)
    assert set(np.unique(label)) <= {*range(benchmarks.NUM_CLASSES), 255}


def test_without_pytorch_the_comparison_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="--against=torch needs PyTorch"):
        Peer()


def test_unknown_suites_and_no_repeats_are_refused() -> None:
    with pytest.raises(UserError, match=r"--suites \(='train'\) must be among upsample, train_"):
        benchmark(["train"], repeats=1)
    with pytest.raises(UserError, match=r"--repeats \(=0\)"):
        benchmark(["upsample"], repeats=0)


def test_a_file_that_cannot_be_written_is_refused_before_measuring() -> None:
    with pytest.raises(UserError, match=r"--json \(=/nowhere/x.json\) cannot be written"):
        benchmarks.check_writable("/nowhere/x.json")
