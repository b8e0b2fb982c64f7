"""Memory against time: what lies within a block is computed again for the backward pass.

The backward pass wants what every layer gave, and for large crops that is most of the memory. A
block that is told to keeps its input alone, and runs forward a second time when its turn comes
(Chen et al. 2016, 'Training Deep Nets with Sublinear Memory Cost'). XLA on a CPU undoes most of it.
"""

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx

from fcn_jax.errors import ArgumentError


def remat_block(call: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a module's method (self, x, **static) -> y as a block: see `rematerialize_blocks`."""

    @functools.wraps(call)
    def run(self: nnx.Module, x: Any, **static: Any) -> Any:
        if not getattr(self, "rematerialize", False):
            return call(self, x, **static)
        return nnx.remat(lambda module, x: call(module, x, **static))(self, x)

    run.is_block = True  # type: ignore[attr-defined]
    return run


def remat_blocks(model: nnx.Module) -> None:
    """Tells all blocks of a model to keep their input alone. Raises UserError if it has none."""
    holders = [
        module
        for _, module in nnx.iter_modules(model)
        if any(getattr(member, "is_block", False) for member in vars(type(module)).values())
    ]
    if not holders:
        raise ArgumentError(
            "model.remat", True, "needs a backbone with blocks that are marked by `remat_block`"
        )
    for module in holders:
        setattr(module, "rematerialize", True)  # noqa: B010  # not an attribute that all have
