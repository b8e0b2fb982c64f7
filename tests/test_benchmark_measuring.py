from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fcn_jax.benchmark import cost
from fcn_jax.benchmark.largest_batch import largest
from fcn_jax.benchmark.measuring import (
    Case,
    Contender,
    NotMeasuredError,
    Row,
    add_pace,
    measure,
    run_case,
    summarize,
    with_ratios,
)
from fcn_jax.errors import UserError


def told(**numbers: list[float] | NotMeasuredError) -> dict[str, Contender | NotMeasuredError]:
    """Contenders that return these numbers in turn."""

    def contender(values: list[float]) -> Contender:
        left = iter(values)
        return Contender(lambda: next(left))

    return {
        name.replace("_", " "): made if isinstance(made, Exception) else contender(made)
        for name, made in numbers.items()
    }


def rows_of(unit: str = "bytes", **numbers: list[float] | NotMeasuredError) -> list[Row]:
    case = Case("case", lambda: told(**numbers), unit=unit, timed=False, warm_up_calls=0)
    return run_case("suite", case, repeats=5)


def test_ratios_are_of_medians() -> None:
    ours, theirs = rows_of(ours=[2, 1, 3, 100, 2], theirs=[5, 6, 7, 8, 0])
    assert ours["median"] == 2
    assert (ours["lower_quartile"], ours["upper_quartile"]) == (2, 3)
    assert ours["ratio"] == 1
    assert theirs["median"] == 6
    assert theirs["ratio"] == 3
    assert (theirs["suite"], theirs["case"], theirs["contender"]) == ("suite", "case", "theirs")
    assert (theirs["repeats"], theirs["note"]) == (5, "")


def test_of_images_more_are_better() -> None:
    ours, theirs = rows_of("images", ours=[24] * 5, theirs=[16] * 5)
    assert (ours["ratio"], theirs["ratio"]) == (1, 1.5)


def test_one_contender_alone_has_no_ratio() -> None:
    (row,) = rows_of(ours=[3] * 5)
    assert (row["median"], row["ratio"]) == (3, None)


def test_of_two_layouts_the_faster_counts() -> None:
    numbers = {"ours": 2.0, "peer (a)": 8.0, "peer (b)": 5.0}
    case = Case(
        "c",
        lambda: {name: Contender(lambda n=n: n) for name, n in numbers.items()},  # type: ignore[misc]
        timed=False,
        warm_up_calls=0,
        most_repeats=1,
    )
    rows = run_case("s", case, repeats=9)
    assert [(row["contender"], row["ratio"]) for row in rows] == [("ours", 1), ("peer (b)", 2.5)]


def test_contenders_take_turns_after_a_warm_up_and_are_prepared_and_closed() -> None:
    calls: list[str] = []

    def contender(name: str) -> Contender:
        return Contender(
            lambda: calls.append(name),
            prepare=lambda: calls.append("p"),
            close=lambda: calls.append("c"),
        )

    case = Case("case", lambda: {name: contender(name) for name in "ab"})
    rows = run_case("suite", case, repeats=3)
    assert "".join(calls) == "aabb" + "papb" * 3 + "cc"
    assert [row["repeats"] for row in rows] == [3, 3]


def test_numbers_are_of_one_iteration_and_pace_of_the_median() -> None:
    numbers, results, failures = measure(
        {"ours": Contender(lambda: 12.0, iterations=4)}, 2, timed=False
    )
    assert (numbers, results, failures) == ({"ours": [3.0, 3.0]}, {"ours": 12.0}, {})
    row = summarize("s", Case("c", dict), "ours", [0.5, 0.25, 1.0])
    contender = Contender(lambda: None, images=8, cost=lambda: cost.Cost(6e9, "float32"))
    add_pace(row, contender)
    assert (row["images_per_second"], row["flops"], row["flops_per_second"]) == (16, 6e9, 12e9)
    assert row["share_of_peak"] is None  # of a CPU


def failing(error: Exception) -> Any:
    def call() -> None:
        raise error

    return Contender(call)


def test_what_is_not_measured_is_told_and_the_rest_is_measured() -> None:
    class OutOfMemoryError(RuntimeError):  # as PyTorch's is called
        pass

    made = {
        "ours": Contender(lambda: 1.0),
        "short": failing(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")),
        "theirs": failing(OutOfMemoryError("CUDA out of memory")),
        "other": NotMeasuredError("torchvision is not installed"),
    }
    rows = run_case("suite", Case("case", lambda: made, timed=False), repeats=1)
    assert [(row["contender"], row["median"], row["ratio"], row["note"]) for row in rows] == [
        ("ours", 1.0, 1.0, ""),
        ("short", None, None, "not measured: out of memory"),
        ("theirs", None, None, "not measured: out of memory"),
        ("other", None, None, "not measured: torchvision is not installed"),
    ]


def test_a_case_that_cannot_be_built_is_one_row() -> None:
    def build() -> Any:
        raise NotMeasuredError("no GPU")

    (row,) = run_case("suite", Case("case", build), repeats=1)
    assert (row["case"], row["contender"], row["note"]) == ("case", "", "not measured: no GPU")


@pytest.mark.parametrize("error", [UserError("no such file"), ValueError("a mistake")])
def test_other_errors_are_not_swallowed(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        run_case("suite", Case("case", lambda: {"ours": failing(error)}), repeats=1)


def test_ratios_where_the_first_was_not_measured() -> None:
    rows = rows_of(ours=NotMeasuredError("no GPU"), theirs=[1.0] * 5)
    assert [row["ratio"] for row in rows] == [None, None]
    assert with_ratios(rows)[1]["median"] == 1


# --- Operations


def flops_of(function: Any, *arguments: Any) -> tuple[float, float]:
    """As traced, and as XLA's own analysis of the compiled program has it."""
    compiled: Any = jax.jit(function).lower(*arguments).compile().cost_analysis()
    return cost.products(jax.make_jaxpr(function)(*arguments).jaxpr), compiled["flops"]


def test_operations_of_a_matrix_product() -> None:
    a, b = jnp.ones((5, 7)), jnp.ones((7, 11))
    assert flops_of(jnp.matmul, a, b) == (2 * 5 * 7 * 11, 2 * 5 * 7 * 11)
    batched = jnp.ones((3, 5, 7)), jnp.ones((3, 7, 11))
    assert flops_of(jnp.matmul, *batched)[0] == 3 * 2 * 5 * 7 * 11


def convolved(x: jax.Array, k: jax.Array, **settings: Any) -> jax.Array:
    settings = {"window_strides": (1, 1), "padding": "SAME"} | settings
    return lax.conv_general_dilated(x, k, dimension_numbers=("NHWC", "HWIO", "NHWC"), **settings)


def test_operations_of_a_convolution_leave_out_the_padding() -> None:
    # On an axis of 4 positions, a filter of 3 taps misses at both ends: 3 · 4 − 2 = 10 pairs.
    x, k = jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 3, 5))
    assert flops_of(convolved, x, k)[0] == 2 * (2 * 3 * 5) * 10 * 10


@pytest.mark.parametrize(
    ("channels", "settings"),
    [
        (3, {}),
        (3, {"window_strides": (2, 3)}),
        (3, {"rhs_dilation": (2, 2), "padding": ((2, 2), (0, 1))}),
        (3, {"lhs_dilation": (2, 2), "padding": ((2, 1), (1, 2))}),
        (1, {"feature_group_count": 3}),
    ],
)
def test_operations_of_convolutions_and_their_gradients_are_xlas(
    channels: int, settings: dict[str, Any]
) -> None:
    x, k = jnp.ones((2, 9, 8, 3)), jnp.ones((3, 3, channels, 6))
    if settings.get("feature_group_count", 1) == 1:
        traced, compiled = flops_of(lambda x, k: convolved(x, k, **settings), x, k)
        assert traced == compiled

    def forward(x: jax.Array, k: jax.Array) -> jax.Array:
        return convolved(x, k, **settings)

    def forward_and_backward(x: jax.Array, k: jax.Array, g: jax.Array) -> Any:
        result, pull_back = jax.vjp(forward, x, k)
        return result, pull_back(g)

    g = jax.eval_shape(forward, x, k)
    traced = cost.products(jax.make_jaxpr(forward_and_backward)(x, k, g).jaxpr)
    # Each pair of the forward pass is met once for either gradient.
    assert traced == 3 * cost.products(jax.make_jaxpr(forward)(x, k).jaxpr)


def test_a_loops_body_counts_as_often_as_it_runs() -> None:
    x = jnp.ones((6, 6))

    def loop(x: jax.Array) -> jax.Array:
        return lax.scan(lambda carry, _: (carry @ x, None), x, length=10)[0]

    traced, compiled = flops_of(jax.jit(loop), x)
    assert traced == 10 * 2 * 6**3
    assert compiled < traced
    run = jax.jit(loop)
    assert cost.flops(run.lower(x), jax.make_jaxpr(run)(x)) == traced


@pytest.mark.parametrize(
    ("device_kind", "dtype", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 80GB HBM3", "float32", 494e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16", None),
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312e12),
        ("NVIDIA L40S", "bfloat16", None),
        ("Tesla V100-SXM2-16GB", "float32", 15.7e12),
        ("Tesla V100-SXM2-16GB", "bfloat16", None),
        ("TPU v5 lite", "bfloat16", 197e12),
        ("TPU v5e", "bfloat16", 197e12),
        ("TPU v5p", "bfloat16", 459e12),
        ("TPU v6e", "bfloat16", 918e12),
        ("cpu", "float32", None),
    ],
)
def test_peaks(device_kind: str, dtype: str, expected: float | None) -> None:
    assert cost.peak(device_kind, dtype) == expected


@pytest.mark.parametrize("true", [0, 1, 2, 3, 7, 8, 20, 32])
def test_the_largest_batch_is_found(true: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= true

    assert largest(fits, most=20) == min(true, 20)
    assert len(tried) == len(set(tried)) <= 10
    assert np.max(tried) <= 20
