"""The machinery of settings: dataclass fields with a help line, a type and a range.

    @dataclasses.dataclass
    class TrainConfig(Section):
        batch_size: int = setting(8, "images per step", at_least=1)

`check_ranges` compares every value of a config with the type and the range of its field, and
`parse` reads a value from the text of a command line. The settings are in `sections.py`.

Types are `bool`, `int`, `float`, `str`, `Literal[...]`, tuples of numbers or texts, and unions of
these with None.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn

from fcn_jax.errors import ArgumentError, suggestion
from fcn_jax.registry import Registry

MAX_INT = 2**31 - 1
"""Largest whole number unless a setting states another: the devices count steps in int32."""

MAX_FLOAT = 3.4e38
"""Largest number unless a setting states another: the devices compute in float32."""

MAX_TEXT_LENGTH, MAX_TUPLE_LENGTH = 4096, 256
"""Largest sizes of texts (paths, above all) and of tuples (a number for each class)."""

NOUNS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text that is not empty",
    tuple[int, int]: "two whole numbers",
    tuple[float, float]: "two finite numbers",
    tuple[float, ...]: "finite numbers separated by commas",
    type(None): "None",
}
"""The types of settings in words."""


class Pattern(NamedTuple):
    """Text that a setting accepts: a regular expression for all of it, and what it describes."""

    expression: str
    description: str


class Setting(NamedTuple):
    """One setting of a config: a dataclass field and its value.

    Attributes:
        name: the dotted name, such as "train.steps".
        value: the value in this config.
        default: the value in a new config.
        kind: the annotated type.
        rules: the arguments that `setting` was given, by name.
    """

    name: str
    value: Any
    default: Any
    kind: Any
    rules: Mapping[str, Any]

    @property
    def is_optional(self) -> bool:
        """The setting may be None."""
        return type(None) in _members(self.kind)

    @property
    def is_text(self) -> bool:
        """The setting may be text of any kind."""
        return str in _members(self.kind)

    @property
    def choices(self) -> tuple[Any, ...]:
        """The only values that the setting accepts; empty if it is not a choice."""
        choices = self.rules.get("choices", ())
        return choices.names if isinstance(choices, Registry) else choices

    @property
    def help(self) -> str:
        """The line that `--help` shows."""
        examples = self.rules["examples"].names if "examples" in self.rules else ()
        values = ", ".join(map(str, self.choices or examples))
        return self.rules["help"] + (f": {values}" if values else "")


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[Any] | Registry | None = None,
    examples: Registry | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    pattern: Pattern | None = None,
) -> Any:
    """Makes a dataclass field that `check_ranges` can check.

    Args:
        default: the value of a new config.
        help: the line that `--help` shows.
        choices: the only values, or the registry that knows their names.
        examples: a registry that knows names that can be given, among others.
        at_least, at_most, above, below: the range of a number, or of each number in a tuple.
        pattern: the texts that are accepted, or the texts in a tuple.
    """
    rules = {
        "help": help,
        "choices": choices,
        "examples": examples,
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "below": below,
        "pattern": pattern,
    }
    given = {name: rule for name, rule in rules.items() if rule is not None}
    return dataclasses.field(default=default, metadata=given)


class Section:
    """A group of settings, as a dataclass. Setting an unknown name raises AttributeError."""

    def __setattr__(self, name: str, value: Any) -> None:
        known = [entry.name for entry in dataclasses.fields(self)]  # type: ignore[arg-type]
        if name not in known:
            raise AttributeError(f"there is no setting {name!r}{suggestion(name, known)}")
        super().__setattr__(name, value)


def settings(section: Any, prefix: str = "") -> Iterator[Setting]:
    """Yields every setting of a section, those of its sections included, in the order of `--help`.

    Raises:
        ArgumentError: a section was replaced by something else.
    """
    for entry in dataclasses.fields(section):
        name, value = f"{prefix}{entry.name}", getattr(section, entry.name)
        kind: Any = entry.type
        is_section = dataclasses.is_dataclass(kind)
        if not is_section:
            yield Setting(name, value, entry.default, kind, entry.metadata)
        elif isinstance(value, kind):
            yield from settings(value, f"{name}.")
        else:
            raise ArgumentError(name, value, f"must be a {kind.__name__}")


def assign(section: Any, name: str, value: Any) -> None:
    """Changes the setting with a dotted name."""
    *sections, last = name.split(".")
    for inner in sections:
        section = getattr(section, inner)
    setattr(section, last, value)


def check_ranges(section: Any, prefix: str = "") -> None:
    """Checks the type and the range of every setting.

    Raises:
        ArgumentError: the first value of another type, outside its range, or not among its choices.
    """
    for item in settings(section, prefix):
        if item.value is None and item.is_optional:
            continue
        choices = item.rules.get("choices", (item.value,))
        if not any(_fits(item, kind) for kind in _members(item.kind)):
            _refuse(item, item.value)
        if isinstance(choices, Registry):
            choices.check(item.value)
        elif item.value not in choices:
            _refuse(item, item.value)


def parse(item: Setting, text: str) -> Any:
    """Returns the value that a text of the command line stands for; "" and "None" mean None.

    Raises:
        ArgumentError: the text does not stand for a value of the setting's type.
    """
    members = _members(item.kind)
    if item.is_optional and text.strip().lower() in ("", "none"):
        return None
    for kind in members:
        try:
            return _parsed(kind, text)
        except ValueError:
            continue
    _refuse(item, text)


def _refuse(item: Setting, value: Any) -> NoReturn:
    if item.choices:
        near = suggestion(str(value), list(map(str, item.choices)))
        choices = ", ".join(map(str, item.choices))
        raise ArgumentError(item.name, value, f"must be one of {choices}{near}")
    kinds = [_described(kind, item.rules) for kind in _members(item.kind)]
    raise ArgumentError(item.name, value, f"must be {', or '.join(kinds)}")


def _members(kind: Any) -> tuple[Any, ...]:
    """Returns the types of a union, or the type itself."""
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if is_union else (kind,)


def _fits(item: Setting, kind: Any) -> bool:
    """Returns whether a value has a type and is in its range.

    It has the type if its text, as given on the command line, is read as the same value.
    """
    value, rules = item.value, item.rules
    try:
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        parsed = _parsed(kind, text)
    except ValueError:
        return False
    if not isinstance(value, type(parsed) | int) or parsed != value:
        return False
    elements = parsed if isinstance(parsed, tuple) else (parsed,)
    if not elements or len(elements) > MAX_TUPLE_LENGTH:
        return value == item.default
    if isinstance(elements[0], str):
        expression = rules["pattern"].expression if "pattern" in rules else r"[^\0]+"
        return len(set(elements)) == len(elements) and all(
            len(element) <= MAX_TEXT_LENGTH and re.fullmatch(expression, element)
            for element in elements
        )
    limit = MAX_INT if isinstance(elements[0], int) else MAX_FLOAT
    return all(
        rules.get("at_least", -limit) <= element <= rules.get("at_most", limit)
        and rules.get("above", -math.inf) < element < rules.get("below", math.inf)
        for element in elements
    )


def _parsed(kind: Any, text: str) -> Any:
    """Returns the value of a type that a text stands for; raises ValueError if there is none."""
    if typing.get_origin(kind) is tuple:
        element, *others = typing.get_args(kind)
        parts = [part.strip() for part in text.strip().strip("()[]").split(",")]
        if parts[-1] == "":  # Python's own notation of a tuple may end with a comma
            parts.pop()
        if others != [...] and len(parts) != 1 + len(others):
            raise ValueError
        return tuple(_parsed(element, part) for part in parts)
    if typing.get_origin(kind) is Literal and text in typing.get_args(kind):
        return text
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind not in (int, float, str):
        raise ValueError
    return kind(text)


def _described(kind: Any, rules: Mapping[str, Any]) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(typing.get_args(kind))
    if "pattern" in rules and kind in (str, tuple[str, ...]):
        description = rules["pattern"].description
        return description if kind is str else f"different {description}, separated by commas"
    element = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
    if element not in (int, float):
        return NOUNS[kind]
    limits = ({"at_most": MAX_INT} if element is int else {}) | dict(rules)
    if "at_least" in limits and "at_most" in limits:
        bounds = f"in {limits['at_least']}…{limits['at_most']}"
    else:
        names = [rule for rule in ("above", "at_least", "below", "at_most") if rule in limits]
        bounds = " and ".join(f"{name.replace('_', ' ')} {limits[name]}" for name in names)
    return f"{NOUNS[kind]}, {bounds}" if element is kind else f"{NOUNS[kind]}, each {bounds}"
