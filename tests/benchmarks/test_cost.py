"""Operations of programs against numbers worked out by hand and XLA's own, and peaks."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from benchmarks import cost


def flops_of(function: Any, *arguments: Any) -> tuple[float, float]:
    """Returns them as traced, and by XLA's analysis of the compiled program."""
    compiled: Any = jax.jit(function).lower(*arguments).compile().cost_analysis()
    return cost.product_flops(jax.make_jaxpr(function)(*arguments).jaxpr), compiled["flops"]


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
    traced = cost.product_flops(jax.make_jaxpr(forward_and_backward)(x, k, g).jaxpr)
    # Each pair of the forward pass counts once more for either gradient.
    assert traced == 3 * cost.product_flops(jax.make_jaxpr(forward)(x, k).jaxpr)


def test_a_loops_body_counts_as_often_as_it_runs() -> None:
    x = jnp.ones((6, 6))

    def loop(x: jax.Array) -> jax.Array:
        return lax.scan(lambda carry, _: (carry @ x, None), x, length=10)[0]

    traced, compiled = flops_of(jax.jit(loop), x)
    assert traced == 10 * 2 * 6**3
    assert compiled < traced
    run = jax.jit(loop)
    assert cost.program_cost(run.lower(x), jax.make_jaxpr(run)(x)).flops == traced


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


def test_of_branches_the_one_with_the_most_operations_counts() -> None:
    x = jnp.ones((6, 6))

    def branches(index: jax.Array, x: jax.Array) -> jax.Array:
        return lax.switch(index, [lambda x: x, lambda x: x @ x @ x, lambda x: x @ x], x)

    traced = jax.make_jaxpr(branches)(0, x)
    assert cost.product_flops(traced.jaxpr) == 2 * 2 * 6**3


def test_a_program_for_each_platform_counts_once() -> None:
    x = jnp.ones((6, 6))

    def product(x: jax.Array) -> jax.Array:
        return lax.platform_dependent(x, cpu=lambda x: x @ x, default=lambda x: x @ x)

    assert cost.product_flops(jax.make_jaxpr(product)(x).jaxpr) == 2 * 6**3


def test_the_limit_is_the_slower_of_products_and_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "product_rate", {"float32": 2e9}.get)
    monkeypatch.setattr(cost, "copy_rate", lambda: 1e9)
    assert cost.Cost(flops=6e9, bytes=1e9).limit("float32") == 3.0
    assert cost.Cost(flops=6e9, bytes=5e9).limit("float32") == 5.0


def test_arguments_and_results_count_once() -> None:
    x = jnp.ones((10, 20), jnp.float32)
    run = jax.jit(lambda x: (x @ x.T).sum(1))
    found = cost.program_cost(run.lower(x), jax.make_jaxpr(run)(x))
    assert found.bytes == 4 * (200 + 10)
    assert found.flops >= 2 * 10 * 10 * 20
