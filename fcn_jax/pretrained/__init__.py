"""Weights made elsewhere: one explicit table of names per source, and one way to apply it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcn_jax.pretrained.load import Weights, flat, read, zeros

__all__ = ["Weights", "flat", "read", "zeros"]


def __getattr__(name: str) -> Any:
    # Not at once: `python -m fcn_jax.pretrained --help` imports this package, and needs no JAX.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fcn_jax.pretrained import load

    return getattr(load, name)
