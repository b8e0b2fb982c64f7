"""JAX's cache of compiled programs, so that a second start compiles nothing."""

import hashlib
import os
import platform
import tempfile
import warnings
from pathlib import Path

from fcn_jax.errors import UserError


def use_compilation_cache() -> None:
    """Turns on JAX's persistent compilation cache. JAX reads the environment when it is imported.

    The folder is $JAX_COMPILATION_CACHE_DIR, by default one in ~/.cache/fcn_jax/compiled. Every
    program is cached, also those that JAX considers too small, because there are many. The folder
    grows without limit; it may be deleted at any time, or limited by
    $JAX_COMPILATION_CACHE_MAX_SIZE (bytes; JAX then needs the package filelock).

    Raises:
        UserError: the default folder cannot be written; nothing is cached then.
    """
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    # Printed for each program when the disk is full.
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache")
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = Path.home() / ".cache" / "fcn_jax" / "compiled" / _processor()
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        raise UserError(
            f"compiled programs cannot be cached ({error}), so every start compiles again; "
            "$JAX_COMPILATION_CACHE_DIR may name another folder"
        ) from error
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)


def _processor() -> str:
    """Identifies the processor: a home may be shared, and XLA's programs for one crash others."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        features = platform.processor()
    digest = hashlib.sha256(features.encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"
