"""Total and available memory of the host and of a device."""

import contextlib
import os
from pathlib import Path

import jax

from fcn_jax.terminal.allocator import return_freed_memory


def machine_bytes() -> int | None:
    """Returns the host's total memory in bytes, or None if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None


def device_bytes() -> int | None:
    """Returns the bytes that JAX may allocate on the first device, or None if unknown (CPUs)."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit")


def free_bytes() -> int | None:
    """Returns the free bytes on each device, or None if unknown.

    The CPU devices share the host's available memory equally.
    """
    device, *_ = jax.local_devices()
    if device.platform == "cpu":
        return available_bytes() // jax.local_device_count()
    limit = device_bytes()
    if limit is None:
        return None
    return limit - (device.memory_stats() or {}).get("bytes_in_use", 0)


def available_bytes(root: Path = Path("/")) -> int:
    """Returns the bytes that this process can still allocate on the host.

    This is Linux's `MemAvailable`, within the limit of the container (cgroup v2). Elsewhere it is
    half of the host's memory, or 4 GiB if that is unknown. Freed memory that the process has kept
    is returned first, so that it counts as available.

    Args:
        root: the file system's root, in which `proc` and `sys` are read.
    """
    return_freed_memory()
    with contextlib.suppress(OSError, KeyError, ValueError):
        lines = (root / "proc/meminfo").read_text().splitlines()
        meminfo = dict(line.split(":", 1) for line in lines)
        available = int(meminfo["MemAvailable"].split()[0]) * 1024
        group = root / "sys/fs/cgroup"
        # A group without a limit has "max" in `memory.max`, which is a ValueError here.
        with contextlib.suppress(OSError, KeyError, ValueError):
            limit, used = (
                int((group / name).read_text()) for name in ("memory.max", "memory.current")
            )
            # The page cache counts as used, but the kernel reclaims it when memory is needed.
            statistics = dict(
                line.split() for line in (group / "memory.stat").read_text().splitlines()
            )
            used -= int(statistics["inactive_file"])
            available = min(available, max(limit - used, 0))
        return available
    machine = machine_bytes()
    return 4 << 30 if machine is None else machine // 2
