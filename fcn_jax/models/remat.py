"""Rematerialisation: the backward pass recomputes the activations inside a block, to save memory.

The backward pass needs the output of every layer, which is most of the memory for large crops. A
block with rematerialisation stores its input only, and its forward pass runs again when its
gradient is computed (Chen et al. 2016, 'Training Deep Nets with Sublinear Memory Cost'). On a CPU,
XLA undoes most of the saving.
"""

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx

from fcn_jax.errors import ArgumentError


def remat_block(call: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a module's method (self, x, **static) -> y as a block; a decorator."""

    @functools.wraps(call)
    def run(self: nnx.Module, x: Any, **static: Any) -> Any:
        if not getattr(self, "remat", False):
            return call(self, x, **static)
        return nnx.remat(lambda module, x: call(module, x, **static))(self, x)

    run.is_block = True  # type: ignore[attr-defined]
    return run


def modules_with_blocks(model: nnx.Module) -> list[nnx.Module]:
    """Returns the modules of a model that have a method marked by `remat_block`."""
    return [
        module
        for _, module in nnx.iter_modules(model)
        if any(
            getattr(getattr(type(module), name), "is_block", False) for name in dir(type(module))
        )
    ]


def remat_blocks(model: nnx.Module) -> None:
    """Turns on rematerialisation in all blocks of a model.

    Raises:
        ArgumentError: the model has no blocks.
    """
    modules = modules_with_blocks(model)
    if not modules:
        raise ArgumentError(
            "model.remat", True, "needs a backbone with blocks that are marked by `remat_block`"
        )
    for module in modules:
        setattr(module, "remat", True)  # noqa: B010  # nnx.Module declares no such attribute
