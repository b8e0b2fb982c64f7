"""The platform that a program is traced for: the machine's own, or that of an absent device.

A few layers are written in another way for CPUs, which is decided while they are traced.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


def target_platform() -> str:
    """Returns "cpu", "gpu" or "tpu": what the program that is being traced will run on."""
    return _target.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """Traces programs in the `with` block for another platform than the machine's own."""
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)
