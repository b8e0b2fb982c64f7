"""Settings as dataclass fields that have a help line, a type and a range.

    @dataclasses.dataclass
    class TrainConfig(Section):
        batch_size: int = setting(8, "images per step", at_least=1)

`check_ranges` checks every value of a config against the type and the range of its field, and
`parse` converts text from the command line to a value. The settings are in `sections.py`.

The type of a setting is `bool`, `int`, `float`, `str`, `Literal[...]`, a tuple of numbers or
strings, or a union of these and None.
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
"""Default upper limit of whole numbers: the devices count steps in int32."""

MAX_FLOAT = 3.4e38
"""Default upper limit of other numbers: the devices compute in float32."""

MAX_TEXT_LENGTH, MAX_TUPLE_LENGTH = 4096, 256
"""Upper limits of the length of strings (mostly paths) and of tuples (one number per class)."""

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
"""Descriptions of the types, for error messages."""


class Pattern(NamedTuple):
    """A regular expression that a string must match in full, and its description for messages."""

    expression: str
    description: str


class Setting(NamedTuple):
    """One setting of a config: a dataclass field and its value.

    Attributes:
        name: the dotted name, such as "train.steps".
        value: the value in this config.
        default: the value in a new config.
        kind: the annotated type.
        rules: the arguments of `setting` that are not None, by name.
    """

    name: str
    value: Any
    default: Any
    kind: Any
    rules: Mapping[str, Any]

    @property
    def is_optional(self) -> bool:
        """True if the setting may be None."""
        return type(None) in _members(self.kind)

    @property
    def is_text(self) -> bool:
        """True if the setting may be a string, not only one of a few literals."""
        return str in _members(self.kind)

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values that the setting accepts; empty if it is not limited to a list."""
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
        choices: the accepted values, or the registry of the accepted names.
        examples: a registry whose names `--help` shows; other values are accepted too.
        at_least, at_most, above, below: the range of a number, or of each number in a tuple.
        pattern: what a string, or each string in a tuple, must match.
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
    """Yields every setting of a section and of the sections in it, in the order of `--help`.

    Raises:
        ArgumentError: the value of a section is not of the section's class.
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
    """Sets the setting with a dotted name, such as "train.steps"."""
    *sections, last = name.split(".")
    for inner in sections:
        section = getattr(section, inner)
    setattr(section, last, value)


def check_ranges(section: Any, prefix: str = "", *, may_be_unregistered: str = "") -> None:
    """Checks the type, the range and the choices of every setting.

    The names in the setting `may_be_unregistered` need not be in its registry.

    Raises:
        ArgumentError: names the first setting whose value has another type, is out of range, or is
            not among the choices.
    """
    for item in settings(section, prefix):
        if item.value is None and item.is_optional:
            continue
        if not any(_fits(item, kind) for kind in _members(item.kind)):
            _refuse(item, item.value)
        choices = item.rules.get("choices")
        if isinstance(choices, Registry):
            if item.name != may_be_unregistered:
                names = item.value if isinstance(item.value, tuple) else (item.value,)
                for name in names:
                    choices.check(name)
        elif choices and item.value not in choices:
            _refuse(item, item.value)


def parse(item: Setting, text: str) -> Any:
    """Converts text from the command line to the setting's type; "" and "None" mean None.

    Raises:
        ArgumentError: the text cannot be converted to the setting's type.
    """
    if item.is_optional and text.strip().lower() in ("", "none"):
        return None
    for kind in _members(item.kind):
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
    """Returns whether the value has one type of the setting and is in range.

    The value has the type if its command-line text is converted to an equal value.
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
    """Converts command-line text to a type; raises ValueError if this is impossible."""
    if typing.get_origin(kind) is tuple:
        element, *others = typing.get_args(kind)
        parts = [part.strip() for part in text.strip().strip("()[]").split(",")]
        if parts[-1] == "":  # Python writes a tuple of one as (1,)
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
