"""Marks layers, whose calls can be noted while a network runs (see `tape.py`)."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class Call(NamedTuple):
    """A call of a layer: its qualified name, its arguments by name, and its result."""

    name: str
    arguments: dict[str, Any]
    result: Any


_calls: ContextVar[list[Call] | None] = ContextVar("calls", default=None)


def recorded(function: F) -> F:
    """Decorator that marks a layer: its calls are noted within `recording`."""

    @functools.wraps(function)
    def run(*arguments: Any, **keywords: Any) -> Any:
        calls = _calls.get()
        if calls is None:
            return function(*arguments, **keywords)
        with _set_to(None):  # what a layer itself calls is not noted
            result = function(*arguments, **keywords)
        bound = inspect.signature(function).bind(*arguments, **keywords)
        bound.apply_defaults()
        calls.append(Call(function.__qualname__, dict(bound.arguments), result))
        return result

    return run  # type: ignore[return-value]


@contextlib.contextmanager
def recording() -> Iterator[list[Call]]:
    """Notes the calls of layers in this context, without those within other layers."""
    calls: list[Call] = []
    with _set_to(calls):
        yield calls


@contextlib.contextmanager
def _set_to(calls: list[Call] | None) -> Iterator[None]:
    token = _calls.set(calls)
    try:
        yield
    finally:
        _calls.reset(token)
