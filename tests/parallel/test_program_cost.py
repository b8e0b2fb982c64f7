"""Collectives, copies and the roofline of a compiled program, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from fcn_jax.parallel.program_cost import (
    Operations,
    ProgramCost,
    list_operations,
    program_cost,
    roofline,
)
from fcn_jax.parallel.tpu import TpuChip

HLO = """
  %all-reduce.1 = (f32[64]{0:T(128)S(1)}, f32[]{:T(128)}) all-reduce(%a, %b), channel_id=1
  %psum.2 = bf16[3,3,16,8]{3,2,1,0:T(8,128)} all-reduce(%fusion.66), to_apply=%region_4.8
  %start = (f32[10]{0}, f32[40]{0}) all-gather-start(%x), dimensions={0}
  %begun = f32[7]{0} all-reduce-start(%x), to_apply=%region_1
  %sent = (f32[6]{0}, f32[6]{0}, u32[], u32[]) collective-permute-start(%x)
  %done = f32[40]{0} all-gather-done(%start)
  ROOT %copy.3 = u8[4,5]{1,0} copy(%y), metadata={op_name="all-reduce(x)"}
  %prefetch = (f32[8]{0:S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%z)
  %fusion.4 = f32[2]{0} fusion(%all-reduce.1, %copy.3), kind=kLoop, calls=%copy
"""


def test_collectives_and_copies_are_found_with_their_sizes() -> None:
    found = list_operations(HLO)
    assert found["all-reduce"] == Operations("all-reduce", (64 * 4 + 4, 9 * 16 * 8 * 2, 28), 4)
    assert found["all-gather"] == Operations("all-gather", (160,), 1)
    assert found["collective-permute"] == Operations("collective-permute", (24,), 1)
    assert found["copy"] == Operations("copy", (20,), 1)
    assert found["all-to-all"].sizes == found["reduce-scatter"].sizes == ()


def test_the_slowest_resource_sets_the_time() -> None:
    sums = Operations("all-reduce", (3_000_000,), 1)
    gathers = Operations("all-gather", (1_000_000,), 1)
    none = Operations("copy", (), 0)
    cost = ProgramCost(1, 2, 3, 4, 1e12, 1e9, (sums, gathers), none)
    least = roofline(cost, TpuChip("chip", 100e12, 500e9, 16e9, 100e9))
    assert least.arithmetic == pytest.approx(0.01)
    assert least.memory == pytest.approx(0.002)
    assert least.interconnect == pytest.approx((2 * 3e6 + 1e6) / 100e9)
    assert (least.seconds, cost.memory_bytes) == (least.arithmetic, 10)


def test_a_program_of_this_machine_is_counted() -> None:
    matrix = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    cost = program_cost(jax.jit(lambda a, b: a @ b).lower(matrix, matrix).compile())
    assert cost.flops == 2 * 64**3
    assert cost.argument_bytes == 2 * 64 * 64 * 4
    assert cost.output_bytes == 64 * 64 * 4
    assert cost.collectives == ()
