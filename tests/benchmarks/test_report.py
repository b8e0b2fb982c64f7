"""The table of a suite and the heading above all of them."""

import dataclasses

from benchmarks.measuring import Row
from benchmarks.report import display_unit, heading, suite_table


def test_notes_are_below_their_row_and_empty_columns_are_left_out() -> None:
    row = Row("memory", "batch 8", "fcn_jax", "bytes", 2e8, 2e8, 2e8, repeats=1, ratio=1.0)
    missing = Row("memory", "batch 8", "PyTorch", "bytes", note="not measured: no GPU")
    assert suite_table("memory", [row, missing]).splitlines() == [
        "memory       median  ratio",
        "──────────────────────────",
        "batch 8",
        "  fcn_jax  200.0 MB  1.000",
        "  PyTorch",
        "    not measured: no GPU",
    ]


def test_spread_speeds_and_the_share_of_the_peak_are_shown() -> None:
    row = Row("s", "case", "ours", "s", 0.2, 0.1, 0.4, repeats=3, ratio=1.0)
    row.images_per_second, row.flops, row.flops_per_second = 40.0, 2e9, 1e10
    peak = dataclasses.replace(row, contender="theirs", share_of_peak=0.345)
    assert [line.split() for line in suite_table("s", [row, peak]).splitlines()] == [
        ["s", "median", "ratio", "images/s", "GFLOP", "GFLOP/s", "of", "peak"],
        ["─" * 67],
        ["case"],
        ["ours", "200.0", "±150.0", "ms", "1.000", "40.0", "2.00", "10", "–"],
        ["theirs", "200.0", "±150.0", "ms", "1.000", "40.0", "2.00", "10", "34.5%"],
    ]


def test_the_heading_describes_machine_versions_and_date() -> None:
    report = {
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
    }
    assert heading(report).splitlines() == [
        "a CPU, 1 of 2 cores, 16 GiB; gpu:NVIDIA H100 with 80 GiB",
        "jax 0.10",
        "2026-11-23",
    ]


def test_units() -> None:
    assert display_unit("s", 0.5) == (1e3, 1, "ms")
    assert display_unit("s", 59.7) == (1, 1, "s")
    assert display_unit("programs", 12) == (1, 0, "programs")
