"""Records what a model computes on the way: the calls of its modules, and its feature maps."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import nnx

from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.layers import rectify


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a module: its name in the backbone, its input and its output.

    depth: number of modules within which it was called.
    """

    name: str = dataclasses.field(metadata={"static": True})
    depth: int = dataclasses.field(metadata={"static": True})
    keywords: tuple[tuple[str, Any], ...] = dataclasses.field(metadata={"static": True})
    input: FeatureMap
    output: FeatureMap


def modules_by_name(model: nnx.Module) -> dict[str, nnx.Module]:
    """Returns the modules of a model by name; its own name is empty."""
    return {".".join(map(str, path)): module for path, module in nnx.iter_modules(model)}


@contextlib.contextmanager
def record_calls(model: nnx.Module, calls: list[Any] | None = None) -> Iterator[list[Any]]:
    """Records the calls of a model's modules in the order in which they end.

    Args:
        model: the model.
        calls: the list to append each `Call` to; None for a new one.
    """
    names = {id(module): name for name, module in modules_by_name(model).items() if name}
    kinds = {type(module) for module in modules_by_name(model).values() if module is not model}
    calls = [] if calls is None else calls
    active: list[int] = []

    def recording(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def run(module: nnx.Module, *arguments: Any, **keywords: Any) -> Any:
            if id(module) in active:  # the method of a base class
                return call(module, *arguments, **keywords)
            active.append(id(module))
            result = call(module, *arguments, **keywords)
            active.pop()
            if isinstance(result, FeatureMap) and isinstance(arguments[0], FeatureMap):
                name, options = names[id(module)], tuple(keywords.items())
                calls.append(Call(name, len(active), options, arguments[0], result))
            return result

        return run

    originals = {kind: vars(kind)["__call__"] for kind in kinds if "__call__" in vars(kind)}
    try:
        for kind, call in originals.items():
            kind.__call__ = recording(call)  # type: ignore[method-assign]
        yield calls
    finally:
        for kind, call in originals.items():
            kind.__call__ = call  # type: ignore[method-assign]


def record_maps(model: nnx.Module, run: Callable[[], Any]) -> tuple[dict[str, FeatureMap], Any]:
    """Records the feature maps after each module, activation and pooling of a model.

    Args:
        model: the model.
        run: calls the model.

    Returns:
        The maps by name, in order, and the result of `run`. A module's map is called like the
        module, such as "backbone.conv1"; what functions make of it "backbone.conv1, relu" and
        "backbone.conv1, pooling". A name that is there already gets a number.
    """
    events: list[Any] = []
    patched: Any = FeatureMap  # its methods are replaced while the model runs
    originals = patched.map, patched.windowed

    def mapped(x: FeatureMap, function: Callable[[jax.Array], jax.Array]) -> FeatureMap:
        result = originals[0](x, function)
        name = getattr(function, "__name__", "")
        name = "relu" if function is rectify else name.strip("_")
        if name.isidentifier():  # no lambda, which layers use for arithmetic
            events.append((name, result))
        return result

    def windowed(x: FeatureMap, values: jax.Array, windows: Any) -> FeatureMap:
        result = originals[1](x, values, windows)
        events.append(("pooling", result))
        return result

    try:
        patched.map, patched.windowed = mapped, windowed
        with record_calls(model, events):
            result = run()
    finally:
        patched.map, patched.windowed = originals
    # A convolution's windows are no pooling: its map is the module's own.
    of_modules = {id(event.output) for event in events if isinstance(event, Call)}
    maps: dict[str, FeatureMap] = {}
    last = "image"
    for event in events:
        if isinstance(event, Call):
            name, output = event.name, event.output
            last = name
        elif id(event[1]) in of_modules:
            continue
        else:
            name, output = f"{last}, {event[0]}", event[1]
        unique, number = name, 2
        while unique in maps:
            unique, number = f"{name} ({number})", number + 1
        maps[unique] = output
    return maps, result
