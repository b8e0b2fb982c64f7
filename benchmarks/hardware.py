"""The machine and the versions of the software that a benchmark ran with."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import jax

from fcn_jax.parallel.memory import device_bytes, machine_bytes

PACKAGES = ("fcn_jax", "jax", "jaxlib", "flax", "grain", "pillow")
DEVICE_LIBRARIES = (
    *("jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
    "libtpu",
)


def usable_cores() -> int:
    """Returns how many cores this process may run on; XLA uses all of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


def hardware() -> dict[str, Any]:
    """Describes the machine: CPU, cores, memory, and JAX's devices with their memory."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)", info.read_text(), re.M) if info.exists() else None
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "cores_used": usable_cores(),
        "memory_bytes": machine_bytes(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "device_memory_bytes": device_bytes(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python, of the packages, and of the device libraries installed."""
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, *DEVICE_LIBRARIES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            if package in PACKAGES:  # a checkout that is not installed
                found[package] = "unknown"
    return found
