"""How much memory there is, and how much of it is free: of the machine, and of a device."""

import contextlib
import os
from pathlib import Path

import jax


def machine_bytes() -> int | None:
    """All that the machine has; None where it does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None


def device_bytes() -> int | None:
    """What programs may have of the first device; None where it does not tell, as on CPUs."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit")


def free_bytes() -> int | None:
    """Of each device's memory; of CPUs, an equal part of the machine's. None: it does not tell."""
    device, *_ = jax.local_devices()
    if device.platform == "cpu":
        return available_bytes() // jax.local_device_count()
    limit = device_bytes()
    if limit is None:
        return None
    return limit - (device.memory_stats() or {}).get("bytes_in_use", 0)


def available_bytes(root: Path = Path("/")) -> int:
    """What the machine can still give, and a container's limit lets it.

    Where that is not told, half of all it has; else 4 GiB.
    """
    with contextlib.suppress(OSError, KeyError, ValueError):
        lines = (root / "proc/meminfo").read_text().splitlines()
        told = dict(line.split(":", 1) for line in lines)
        available = int(told["MemAvailable"].split()[0]) * 1024
        group = root / "sys/fs/cgroup"
        with contextlib.suppress(OSError, KeyError, ValueError):  # no limit is written as "max"
            limit, used = (
                int((group / name).read_text()) for name in ("memory.max", "memory.current")
            )
            # What it has read of files counts as used, and is given up where memory is asked for.
            of_files = dict(
                line.split() for line in (group / "memory.stat").read_text().splitlines()
            )
            used -= int(of_files["inactive_file"])
            available = min(available, max(limit - used, 0))
        return available
    machine = machine_bytes()
    return 4 << 30 if machine is None else machine // 2
