"""Reads configs from config files, the command line, and stored runs and models."""

import importlib
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from fcn_jax.config.fields import Setting, assign, check_ranges, parse, settings
from fcn_jax.config.sections import Config
from fcn_jax.errors import UserError, suggestion

RENAMED = {"model.rematerialize": "model.remat", "loss.name": "loss.names"}
"""Settings of earlier versions, and their names in this one."""

REMOVED = {"optim.poly_power": 0.9}
"""Settings of earlier versions, and the only value that this version still computes."""


def load(path: str | Path) -> Config:
    """Executes a config file and returns the `Config` that its `get_config()` returns.

    The file may be in any folder, and can import modules from this folder, which is appended to
    `sys.path`. A `get_config()` that changes another config file begins with
    `config = load(Path(__file__).with_name("base.py"))`.

    Raises:
        UserError: the file does not exist, or raises an error; the message names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no config file {path}")
    _make_importable(path)
    try:
        module = _execute(path.absolute())
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise UserError(f"{path}: has no function get_config()")
        config = get_config()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(_located(path, error)) from error
    if not isinstance(config, Config):
        raise UserError(
            f"{path}: get_config() returned {type(config).__name__}, not a fcn_jax.config.Config"
        )
    return config


def _execute(path: Path) -> ModuleType:
    module = ModuleType(f"config_file_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickle look up the module of a class
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module


def _located(path: Path, error: BaseException) -> str:
    """Formats an error as "FILE:LINE: ERROR: MESSAGE", with the last line of FILE that ran."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path.absolute())]
    message, line = str(error), lines[-1] if lines else None
    if isinstance(error, SyntaxError) and not lines:  # in the file itself, not in an imported one
        message, line = error.msg, error.lineno
    place = f"{path}:{line}" if line else f"{path}"
    return " ".join(f"{place}: {type(error).__name__}: {message}".split())


def import_code(source: str) -> None:
    """Imports a module, or a .py file, whose code registers backbones, losses or data sets.

    The folder of a file is appended to `sys.path`.

    Raises:
        UserError: the module cannot be found, or raises an error.
    """
    path, name = Path(source), source
    if path.suffix == ".py":
        name = path.stem
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        _make_importable(path)
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise UserError(_located(path, error)) from error
    if path.suffix == ".py" and not path.samefile(module.__file__ or ""):
        raise UserError(
            f"{path}: another module has this name ({module.__file__}); rename the file"
        )


def _make_importable(path: Path) -> None:
    folder = str(path.absolute().parent)
    if folder not in sys.path:
        sys.path.append(folder)


def override(config: Config, name: str, text: str) -> None:
    """Sets one setting from the text of a command line.

    Raises:
        UserError: there is no such setting.
        ArgumentError: the text cannot be converted to the setting's type.
    """
    known = {item.name: item for item in settings(config)}
    if name not in known:
        raise UserError(
            f"there is no setting config.{name}{suggestion(name, list(known), 'config.')}"
        )
    assign(config, name, parse(known[name], text))


def from_dict(values: Mapping[str, Any]) -> Config:
    """Returns the config from the JSON values that this or an earlier version has stored.

    The losses need not be registered: only training uses them.

    Raises:
        UserError: this version does not have one of the settings.
        ArgumentError: a value cannot be used.
    """
    config = Config()
    known = {item.name: item for item in settings(config)}
    for section, inner in values.items():
        for name, value in inner.items() if isinstance(inner, Mapping) else [(None, inner)]:
            dotted = section if name is None else f"{section}.{name}"
            dotted = RENAMED.get(dotted, dotted)
            if dotted in known:
                assign(config, dotted, _stored(known[dotted], value))
            elif dotted not in REMOVED or value != REMOVED[dotted]:
                raise UserError(
                    f"config.{dotted} (={value}) is not a setting of this version of fcn_jax"
                )
    check_ranges(config, may_be_unregistered="loss.names")
    return config


def _stored(item: Setting, value: Any) -> Any:
    """Converts a stored value to the setting's type.

    JSON stores tuples as lists. Earlier versions stored None as 0, "" or (0, 0), tuples as "a,b".
    """
    if isinstance(value, list):
        value = tuple(value)
    if item.is_optional and (not value or value == (0, 0)):
        return None
    return parse(item, value) if isinstance(value, str) and not item.is_text else value
