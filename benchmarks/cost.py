"""What a program computes, and how much of what the device could.

Operations are those of XLA's own analysis of the compiled program, of one device: a multiplication
and an addition count as two, products with the zeros of padding and dilation not at all. That
analysis counts the body of a loop once, however often it runs, and calls of libraries (cuDNN's and
cuBLAS's on a GPU, where XLA makes such) not at all. So the convolutions and matrix products of the
program as traced are counted here as well, and the larger number holds: the bodies of `lax.scan` as
often as they run, those of other loops, whose trips nothing tells, once; of branches the one with
the most.

Peaks are those of dense products that the makers publish: NVIDIA's data sheets of the H100, H200,
A100, L4 and V100 (where those quote sparse products, half of it), Google Cloud's pages on each TPU.
float32 is what XLA makes of it by default: TF32 on GPUs that have it, bfloat16 on TPUs. CPUs have
no published peak.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
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
"""Operations per second, by what a device's kind contains: the first that it does."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """flops: of one device. dtype: that its products are of: float32 or bfloat16."""

    flops: float
    dtype: str


def peak(device_kind: str, dtype: str) -> float | None:
    """Operations per second that a device is made for; None where it is not known."""
    if "MIG" in device_kind:  # a part of one
        return None
    words = device_kind.replace("Tesla ", "").replace("NVIDIA ", "")
    for part, peaks in PEAKS.items():
        if words == part or words.startswith((f"{part} ", f"{part}-", f"{part}p", f"{part}e")):
            return peaks.get(dtype)
    return None


def share_of_peak(flops_per_second: float, dtype: str) -> float | None:
    """Of the first device's peak."""
    most = peak(jax.devices()[0].device_kind, dtype)
    return flops_per_second / most if most else None


def flops(lowered: jax.stages.Lowered, traced: core.ClosedJaxpr) -> float:
    """Of one run of a program on one device. One that has run is not compiled again."""
    analysis: Any = lowered.compile().cost_analysis() or {}
    return max(analysis.get("flops", 0.0), products(traced.jaxpr))


def products(jaxpr: Any) -> float:
    """Operations of the convolutions and matrix products of a traced program."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            total += float(convolution(equation))
        elif equation.primitive.name == "dot_general":
            total += float(matrix_product(equation))
        elif equation.primitive.name == "cond":
            total += max(map(products, _inner(equation.params["branches"])))
        else:
            runs = equation.params["length"] if equation.primitive.name == "scan" else 1
            total += runs * sum(map(products, _inner(equation.params.values())))
    return total


def _inner(values: Any) -> Iterator[Any]:
    """The programs among an equation's parameters."""
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _inner(value)


def matrix_product(equation: Any) -> float:
    left = equation.invars[0].aval
    (contracted, _), _ = equation.params["dimension_numbers"]
    return 2 * equation.outvars[0].aval.size * np.prod([left.shape[axis] for axis in contracted])


def convolution(equation: Any) -> float:
    """Two for each pair of an output and an input that a filter's tap brings together."""
    image, kernel = (variable.aval.shape for variable in equation.invars)
    output = equation.outvars[0].aval.shape
    parameters = equation.params
    axes = parameters["dimension_numbers"]
    # A kernel holds the inputs of one group alone.
    pairs = output[axes.out_spec[0]] * kernel[axes.rhs_spec[0]] * kernel[axes.rhs_spec[1]]
    for axis in range(len(image) - 2):
        pairs *= taps_inside(
            image[axes.lhs_spec[2 + axis]],
            kernel[axes.rhs_spec[2 + axis]],
            output[axes.out_spec[2 + axis]],
            stride=parameters["window_strides"][axis],
            before=parameters["padding"][axis][0],
            image_dilation=parameters["lhs_dilation"][axis],
            kernel_dilation=parameters["rhs_dilation"][axis],
        )
    return 2.0 * pairs


def taps_inside(
    image: int,
    kernel: int,
    output: int,
    *,
    stride: int,
    before: int,
    image_dilation: int,
    kernel_dilation: int,
) -> int:
    """Pairs of output and tap on one axis that meet a pixel, not the padding or a hole."""
    position = np.arange(output)[:, None] * stride + np.arange(kernel) * kernel_dilation - before
    inside = (position >= 0) & (position < (image - 1) * image_dilation + 1)
    return int(np.sum(inside & (position % image_dilation == 0)))
