"""The allocator's settings, each in a process of its own, because they cannot be taken back."""

import os
import platform
import subprocess
import sys

import pytest

ALLOCATE = """
import resource
import numpy as np
from fcn_jax.terminal.allocator import keep_freed_memory, return_freed_memory

def faults_of_five_blocks():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(100 << 18)  # 200 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

assert keep_freed_memory() == {kept}
np.ones(100 << 18)
kept = resident_bytes()
faults = faults_of_five_blocks()
return_freed_memory()
print(faults, kept - resident_bytes())
"""


def measure(*, kept: bool, **environment: str) -> tuple[int, int]:
    """Returns the page faults of five blocks, and the bytes that were returned in the end."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    # NumPy asks for huge pages, which are a few faults each.
    own |= {"NUMPY_MADVISE_HUGEPAGE": "0", **environment}
    code = ALLOCATE.replace("{kept}", str(kept))
    run = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    faults, returned = run.stdout.split()
    return int(faults), int(returned)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
class TestOnGlibc:
    def test_freed_memory_is_used_again_and_returned_when_asked(self):
        faults, returned = measure(kept=True)
        assert faults < 100  # of 256,000 pages
        assert returned > 150 << 20

    def test_settings_of_the_environment_stay(self):
        faults, _ = measure(kept=False, MALLOC_ARENA_MAX="2")
        assert faults > 5 * 40_000
