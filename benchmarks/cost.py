"""Operations of a program, and the share of the device's peak that they amount to.

A multiplication and an addition count as two operations; products with the zeros of padding and
dilation do not count. XLA's own analysis of the compiled program counts the body of a loop once,
however often it runs, and calls of libraries (cuDNN, cuBLAS) not at all. The convolutions and
matrix products of the traced program are therefore counted here as well, and the larger of the two
numbers is reported. The body of `lax.scan` counts as often as it runs, that of other loops, whose
number of iterations is unknown, once; of several branches the most expensive one counts.

The peaks are those of dense products that the makers publish: NVIDIA's data sheets of the H100,
H200, A100, L4 and V100 (half the number where they quote sparse products), Google Cloud's pages on
each TPU. float32 means what XLA uses for it by default: TF32 on GPUs that have it, bfloat16 on
TPUs. CPUs have no published peak; the rates of every machine are measured.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

PEAKS = {
    "H100 PCIe": {"bfloat16": 756e12, "float32": 378e12},
    "H100 NVL": {"bfloat16": 835e12, "float32": 417e12},
    "H100": {"bfloat16": 989e12, "float32": 494e12},
    "H200": {"bfloat16": 989e12, "float32": 494e12},
    "A100": {"bfloat16": 312e12, "float32": 156e12},
    "L4": {"bfloat16": 121e12, "float32": 60e12},
    "V100-PCIE": {"float32": 14e12},
    "V100": {"float32": 15.7e12},
    "TPU v4": {"bfloat16": 275e12, "float32": 275e12},
    "TPU v5e": {"bfloat16": 197e12, "float32": 197e12},
    "TPU v5 lite": {"bfloat16": 197e12, "float32": 197e12},
    "TPU v5": {"bfloat16": 459e12, "float32": 459e12},
    "TPU v6": {"bfloat16": 918e12, "float32": 918e12},
}
"""Operations per second by device; the first name that begins a device's kind applies."""


def peak(device_kind: str, dtype: str) -> float | None:
    """Returns the peak operations per second of a device; None if unknown."""
    if "MIG" in device_kind:  # a slice of a GPU
        return None
    kind = device_kind.replace("Tesla ", "").replace("NVIDIA ", "")
    for name, peaks in PEAKS.items():
        if kind == name or kind.startswith((f"{name} ", f"{name}-", f"{name}p", f"{name}e")):
            return peaks.get(dtype)
    return None


def share_of_peak(flops_per_second: float, dtype: str) -> float | None:
    """Returns the share of the first device's peak; None if that is unknown."""
    maximum = peak(jax.devices()[0].device_kind, dtype)
    return flops_per_second / maximum if maximum else None


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one run of a program on one device.

    Attributes:
        flops: operations.
        bytes: bytes of the arguments and results, each counted once.
    """

    flops: float
    bytes: float

    def limit(self, dtype: str) -> float:
        """Returns the seconds that the run takes at least, by the machine's measured rates."""
        return max(self.flops / product_rate(dtype), self.bytes / copy_rate())


def program_cost(lowered: jax.stages.Lowered, traced: core.ClosedJaxpr) -> Cost:
    """Returns the cost of one run on one device; a program that has run is not recompiled."""
    compiled = lowered.compile()
    analysis: Any = compiled.cost_analysis() or {}
    operations = max(analysis.get("flops", 0.0), product_flops(traced.jaxpr))
    memory: Any = compiled.memory_analysis()
    sizes = (memory.argument_size_in_bytes, memory.output_size_in_bytes) if memory else ()
    return Cost(operations, float(sum(sizes)))


@functools.cache
def product_rate(dtype: str) -> float:
    """Measures the operations per second of a product of square matrices.

    Their side is 2048 on a CPU and 8192 elsewhere, where a small product is shorter than its call.
    """
    side = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((side, side), dtype)
    return 2 * side**3 / _fastest(jax.jit(jnp.dot), matrix, matrix)


@functools.cache
def copy_rate() -> float:
    """Measures the bytes per second, read and written, of adding 1 to 256 MB (on a CPU) or 4 GB."""
    values = jnp.ones(64_000_000 if jax.default_backend() == "cpu" else 10**9, jnp.float32)
    return 2 * values.nbytes / _fastest(jax.jit(lambda x: x + 1), values)


def _fastest(run: Any, *arguments: jax.Array) -> float:
    """Returns the seconds of the fastest of ten calls."""
    seconds = []
    for _ in range(11):
        start = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def product_flops(jaxpr: Any) -> float:
    """Returns the operations of the convolutions and matrix products of a traced program."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            total += _convolution_flops(equation)
        elif equation.primitive.name == "dot_general":
            left = equation.invars[0].aval
            (contracted, _), _ = equation.params["dimension_numbers"]
            length = np.prod([left.shape[axis] for axis in contracted])
            total += 2.0 * equation.outvars[0].aval.size * length
        elif equation.primitive.name == "cond":
            total += max(map(product_flops, _inner_jaxprs(equation.params["branches"])))
        else:
            runs = equation.params["length"] if equation.primitive.name == "scan" else 1
            total += runs * sum(map(product_flops, _inner_jaxprs(equation.params.values())))
    return total


def _inner_jaxprs(values: Any) -> Iterator[Any]:
    """Yields the programs among an equation's parameters."""
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _inner_jaxprs(value)


def _convolution_flops(equation: Any) -> float:
    """Two for each pair of an output and an input pixel that a tap of the kernel joins."""
    image, kernel = (variable.aval.shape for variable in equation.invars)
    output = equation.outvars[0].aval.shape
    parameters = equation.params
    axes = parameters["dimension_numbers"]
    # The kernel's input channels are those of a single group.
    pairs = output[axes.out_spec[0]] * kernel[axes.rhs_spec[0]] * kernel[axes.rhs_spec[1]]
    for axis in range(len(image) - 2):
        outputs = np.arange(output[axes.out_spec[2 + axis]]) * parameters["window_strides"][axis]
        taps = np.arange(kernel[axes.rhs_spec[2 + axis]]) * parameters["rhs_dilation"][axis]
        position = outputs[:, None] + taps - parameters["padding"][axis][0]
        dilation = parameters["lhs_dilation"][axis]
        last = (image[axes.lhs_spec[2 + axis]] - 1) * dilation
        pairs *= int(np.sum((position >= 0) & (position <= last) & (position % dilation == 0)))
    return 2.0 * pairs
