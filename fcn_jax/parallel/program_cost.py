"""The cost of a compiled program on each device: memory, operations, traffic and collectives.

The numbers are those of XLA's analysis of the compiled program and of the text of its operations
(HLO). XLA counts the body of a loop once, and counts the operands of every operation as traffic,
also those that stay in on-chip memory.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax

from fcn_jax.parallel.tpu import TpuChip

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)

_BITS = {"pred": 8, "token": 0}
"""Sizes of HLO's element types whose name does not end in them."""

_OPERATION = re.compile(
    rf"^\s*(?:ROOT )?\S+ = (\(.*?\)|\S+) ({'|'.join(COLLECTIVES)}|copy)(?:-start)?\(",
    re.MULTILINE,
)


@dataclasses.dataclass(frozen=True)
class Operations:
    """The operations of one kind in a program.

    Attributes:
        kind: HLO's name, such as "all-reduce".
        sizes: bytes of the result of each operation, in the program's order.
        arrays: number of arrays in the results together; a collective may combine several.
    """

    kind: str
    sizes: Sequence[int]
    arrays: int

    @property
    def total_bytes(self) -> int:
        return sum(self.sizes)


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """The cost of one run of a program on one device.

    Attributes:
        argument_bytes: state and batch.
        temporary_bytes: activations, gradients and other intermediate values.
        output_bytes: results that do not take the memory of arguments.
        code_bytes: the program itself.
        flops: operations; a multiplication and an addition are two.
        traffic_bytes: bytes that all operations read and write.
        collectives: by kind; kinds that do not occur are left out.
        copies: HLO's copy operations, most of which change the layout of an array.
    """

    argument_bytes: int
    temporary_bytes: int
    output_bytes: int
    code_bytes: int
    flops: float
    traffic_bytes: float
    collectives: tuple[Operations, ...]
    copies: Operations

    @property
    def memory_bytes(self) -> int:
        return self.argument_bytes + self.temporary_bytes + self.output_bytes + self.code_bytes


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least time that each resource of a chip needs for a program, in seconds.

    Attributes:
        arithmetic: operations at the peak rate.
        memory: traffic at the bandwidth of the memory.
        interconnect: collectives at the bandwidth of the links; a chip sends and receives about
            twice the bytes of an all-reduce (a ring).
    """

    arithmetic: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """The largest of the three: they may overlap."""
        return max(self.arithmetic, self.memory, self.interconnect)


def program_cost(compiled: jax.stages.Compiled) -> ProgramCost:
    """Reads the cost of a compiled program."""
    memory: Any = compiled.memory_analysis()
    analysis: Any = compiled.cost_analysis() or {}
    operations = list_operations(compiled.as_text() or "")
    return ProgramCost(
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        flops=float(analysis.get("flops", math.nan)),
        traffic_bytes=float(analysis.get("bytes accessed", math.nan)),
        collectives=tuple(operations[kind] for kind in COLLECTIVES if operations[kind].sizes),
        copies=operations["copy"],
    )


def roofline(cost: ProgramCost, chip: TpuChip) -> Roofline:
    """Computes the least time of each resource."""
    sent = sum(
        found.total_bytes * (2 if found.kind == "all-reduce" else 1) for found in cost.collectives
    )
    return Roofline(
        arithmetic=cost.flops / chip.flops,
        memory=cost.traffic_bytes / chip.hbm_bandwidth,
        interconnect=sent / chip.ici_bandwidth,
    )


def list_operations(hlo: str) -> dict[str, Operations]:
    """Finds the collectives and copies in the text of a compiled program, by kind.

    An asynchronous operation is counted once, at its start. The result of a start holds first the
    operands and then the results, except that of an all-reduce, which holds the results alone.
    """
    sizes: dict[str, list[int]] = {kind: [] for kind in (*COLLECTIVES, "copy")}
    arrays = dict.fromkeys(sizes, 0)
    for match in _OPERATION.finditer(hlo):
        shape, kind = match[1], match[2]
        found = re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", shape)
        if f" {kind}-start(" in match[0]:
            if kind == "copy":  # a prefetch into on-chip memory: no change of layout
                continue
            if kind == "collective-permute":  # (operand, result, two semaphores)
                found = found[1:2]
            elif kind != "all-reduce":
                found = found[len(found) // 2 :]
        sizes[kind].append(sum(_array_bytes(*array) for array in found))
        arrays[kind] += len(found)
    return {kind: Operations(kind, tuple(sizes[kind]), arrays[kind]) for kind in sizes}


def _array_bytes(element: str, dimensions: str) -> int:
    digits = re.search(r"\d+", element)
    bits = _BITS[element] if element in _BITS else int(digits[0]) if digits else 32
    count = math.prod(int(size) for size in dimensions.split(",") if size)
    return count * bits // 8
