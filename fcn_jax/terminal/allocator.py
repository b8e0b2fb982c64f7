"""The C library's allocator: whether freed memory stays with the process.

A program of XLA allocates its intermediate arrays anew at every call, hundreds of megabytes on a
CPU. By default glibc maps such blocks from the kernel and returns them when they are freed, and the
kernel clears every page anew: a third of the time of a training step (docs/measurements.md).
"""

import ctypes
import os
from collections.abc import Mapping
from typing import Any

# From glibc's malloc.h: https://man7.org/linux/man-pages/man3/mallopt.3.html
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Makes the C library keep freed memory for the next allocation.

    Call it before JAX is imported: threads that have an arena of their own keep it.

    Args:
        environment: if it sets the allocator ($GLIBC_TUNABLES, $MALLOC_…), nothing is changed.

    Returns:
        Whether the allocator was set: False outside of glibc.
    """
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in environment):
        return False
    set_option = _function("mallopt")
    # One arena for all threads, as others than the first cannot hold blocks of more than 64 MB.
    return set_option is not None and all(
        [set_option(*pair) for pair in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1))]
    )


def return_freed_memory() -> None:
    """Returns all freed memory to the kernel, where the C library can do so."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(ctypes.c_size_t(0))


def _function(name: str) -> Any:
    """Returns a function of the C library that the process runs with, or None."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return None
