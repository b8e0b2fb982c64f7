"""Estimates the memory that a program needs, before it is compiled or anything is allocated."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

STORED_OPERATIONS = frozenset(
    {
        "concatenate",
        "conv_general_dilated",
        "dot_general",
        "gather",
        "reduce_window_max",
        "reduce_window_sum",
        "select_and_scatter_add",
        "scan",
        "while",
    }
)
"""JAX's operations whose operands and results are arrays in memory. XLA fuses most others."""


class _Operation(NamedTuple):
    """An operation of a traced function; arrays are numbered."""

    is_stored: bool
    operands: list[int]
    results: list[int]
    inner_bytes: int
    """Peak memory of the body of a loop."""


def estimated_bytes(
    function: Callable[..., Any], *arguments: Any, axis: tuple[str, int] | None = None
) -> int:
    """Estimates the peak memory of a function on one device, in bytes, from its trace.

    Counts the arguments, and the operands and results of `STORED_OPERATIONS` from their first to
    their last use in the order of the trace. What XLA allocates is known after a compilation only.
    For FCNs on the backbones small, squeezenet and resnet18 it was 1.1 to 1.2 times the estimate
    of a prediction, and 1.0 to 1.5 times that of a training step (JAX 0.10 on a CPU).

    Args:
        function: takes and returns trees of arrays.
        arguments: trees of arrays, or of shapes and dtypes.
        axis: name and size of the mapped axis that a device's part of a step sums over.
    """
    trace = jax.make_jaxpr(function, axis_env=[axis] if axis else None)
    return _peak_bytes(trace(*arguments).jaxpr)


def _peak_bytes(jaxpr: Any) -> int:
    sizes: dict[int, int] = {}
    numbers: dict[Any, int] = {}
    operations = list(_operations(jaxpr, numbers, sizes, itertools.count()))
    inputs = {numbers[variable] for variable in (*jaxpr.invars, *jaxpr.constvars)}
    outputs = {numbers[variable] for variable in jaxpr.outvars if variable in numbers}
    stored = inputs.union(*(x.operands + x.results for x in operations if x.is_stored))
    last_use = {
        array: index for index, x in enumerate(operations) for array in x.operands + x.results
    }
    live = set(inputs)
    now = peak = sum(sizes[array] for array in live)
    for index, operation in enumerate(operations):
        new = (stored & set(operation.results)) - live
        live |= new
        now += sum(sizes[array] for array in new)
        peak = max(peak, now + operation.inner_bytes)
        ended = {
            array for array in operation.operands + operation.results if last_use[array] == index
        }
        ended &= live - outputs - inputs
        live -= ended
        now -= sum(sizes[array] for array in ended)
    return peak


def _operations(
    jaxpr: Any, numbers: dict[Any, int], sizes: dict[int, int], fresh: Iterator[int]
) -> Iterator[_Operation]:
    """Yields the operations of a trace, with those of called functions in the place of the call.

    Args:
        jaxpr: the trace.
        numbers: numbers of arrays by variable; those of the caller are given, others are added.
        sizes: receives the bytes of each array.
        fresh: yields unused numbers.
    """

    def number(variable: Any) -> int:
        if variable not in numbers:
            numbers[variable] = next(fresh)
            sizes[numbers[variable]] = _bytes(variable)
        return numbers[variable]

    for variable in (*jaxpr.invars, *jaxpr.constvars):
        number(variable)
    for equation in jaxpr.eqns:
        operands = [number(x) for x in equation.invars if not _is_literal(x)]
        results = [number(x) for x in equation.outvars]
        bodies = [body for value in equation.params.values() for body in _bodies(value)]
        is_stored = equation.primitive.name in STORED_OPERATIONS
        if len(bodies) == 1 and not is_stored:
            # The last operands of a call are those of its function.
            given = equation.invars[len(equation.invars) - len(bodies[0].invars) :]
            inner = {
                a: number(b)
                for a, b in zip(bodies[0].invars, given, strict=True)
                if not _is_literal(b)
            }
            yield from _operations(bodies[0], inner, sizes, fresh)
            returned = [inner[x] for x in bodies[0].outvars if not _is_literal(x)]
            yield _Operation(False, operands + returned, results, 0)
            # A result is the array that the function returns, under a second number.
            for a, b in zip(bodies[0].outvars, equation.outvars, strict=True):
                if not _is_literal(a):
                    numbers[b] = inner[a]
        else:
            inner_bytes = max(map(_peak_bytes, bodies), default=0)
            yield _Operation(is_stored, operands, results, inner_bytes)


def _bodies(value: Any) -> list[Any]:
    """Returns the traces in a parameter of an operation: those of the functions that it calls."""
    if isinstance(value, tuple | list):
        return [body for element in value for body in _bodies(element)]
    jaxpr = getattr(value, "jaxpr", value)
    return [jaxpr] if hasattr(jaxpr, "eqns") else []


def _is_literal(variable: Any) -> bool:
    return hasattr(variable, "val")


def _bytes(variable: Any) -> int:
    kind = variable.aval
    if not hasattr(kind, "shape") or not hasattr(kind.dtype, "itemsize"):
        return 0
    return math.prod(kind.shape) * kind.dtype.itemsize
