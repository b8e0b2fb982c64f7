"""Memory against time: the inside of a block is computed again for the backward pass.

The backward pass needs the output of every layer, which for large crops is most of the memory. A
block with rematerialisation keeps its input alone, and runs forward a second time when its gradient
is computed (Chen et al. 2016, 'Training Deep Nets with Sublinear Memory Cost'). XLA on a CPU undoes
most of it.
"""

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx

from fcn_jax.errors import ArgumentError


def remat_block(call: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator that marks a module's method (self, x, **static) -> y as a block."""

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
    """Makes all blocks of a model keep their input alone for the backward pass.

    Raises:
        ArgumentError: the model has no blocks.
    """
    modules = modules_with_blocks(model)
    if not modules:
        raise ArgumentError(
            "model.remat", True, "needs a backbone with blocks that are marked by `remat_block`"
        )
    for module in modules:
        setattr(module, "remat", True)  # noqa: B010  # not an attribute that all have
