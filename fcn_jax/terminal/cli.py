"""The common part of the commands: parsing of flags and settings, `--help`, one-line errors."""

import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags

from fcn_jax import config as config_lib
from fcn_jax.config import Config, default_config
from fcn_jax.errors import ArgumentError, UserError, format_value, suggestion
from fcn_jax.registry import IMPORT_FIRST
from fcn_jax.terminal import signals
from fcn_jax.terminal.allocator import keep_freed_memory
from fcn_jax.terminal.compilation_cache import use_compilation_cache
from fcn_jax.terminal.output import print_error, protect_streams

HELP_FLAGS = ("--help", "-h", "-help", "--helpfull")


def begin(*, with_config: bool = False) -> None:
    """Parses the flags of the running command, or prints its `--help`.

    A command calls this at the top of its module, before the imports that take seconds, and `run`
    at the end. `--help` prints the module's docstring and flags. Positional arguments stay in
    `sys.argv`. Ctrl-C during the imports that follow exits with status 130.

    Args:
        with_config: adds the flag `--config` for a config file, and one flag for every setting;
            `flags.FLAGS.config` then holds the checked `Config`.

    Raises:
        SystemExit: status 0 after --help, 2 for a mistake in the flags, 1 for a setting that cannot
            be used.
    """
    protect_streams()
    signal.signal(signal.SIGINT, lambda number, _: os._exit(128 + number))
    arguments = with_underscores(sys.argv[1:])
    options = [argument for argument in arguments if argument not in HELP_FLAGS]
    program = f"python -m {_module_name()}"
    flags.DEFINE_multi_string("import", [], "")
    # Set here, because absl adds a second line to the help of a flag that may be repeated.
    flags.FLAGS[
        "import"
    ].help = "modules or .py files that register your own code: a,b,…, or the flag repeatedly"
    try:
        given = _define_config(options) if with_config else []
        rest = flags.FLAGS([sys.argv[0], *options])[1:]
        for sources in flags.FLAGS["import"].value or ():
            for source in filter(None, map(str.strip, sources.split(","))):
                config_lib.import_code(source)
        if with_config:
            config = flags.FLAGS.config or default_config()
            for name, text in given:
                config_lib.override(config, name, text)
            flags.FLAGS["config"].value = config
        if options != arguments:
            print(_help(program))
            sys.exit(0)
    except (flags.Error, UserError) as error:
        print_error(f"{_command()}: {_message(error)} (see {program} --help)")
        sys.exit(2)
    try:
        if with_config:
            config.check()
    except UserError as error:
        print_error(f"{_command()}: {_message(error)}")
        sys.exit(1)
    sys.argv[1:] = rest
    keep_freed_memory()
    # Commands draw to files. A notebook hands its own backend on, which may not be installed here.
    os.environ["MPLBACKEND"] = "agg"
    try:
        use_compilation_cache()
    except UserError as error:
        print_error(f"{_command()}: {error}")


def run(main: Callable[[list[str]], None]) -> None:
    """Runs `main` on the positional arguments that `begin` left in `sys.argv`.

    The exit status is 0; 1 after a UserError or an OSError; 130, 143 or 129 after Ctrl-C, SIGTERM
    or SIGHUP.
    """
    silence_libraries()
    try:
        with signals.interruptions():
            main(sys.argv[1:])
    except UserError as error:
        print_error(error_line(error))
        sys.exit(1)
    except OSError as error:  # usually a full disk
        print_error(error_line(error))
        os._exit(1)  # skips exit handlers, which would fail for the same reason
    except (AssertionError, RuntimeError):
        if not (problem := _problem_of_devices()):
            raise
        print_error(f"{_command()}: {problem}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def silence_libraries() -> None:
    """Turns off what libraries print about things that the commands report themselves."""
    from absl import logging

    # Orbax logs every file that it writes. Its errors are raised, so that no log is needed.
    logging.set_verbosity(logging.FATAL)
    # Pillow warns from half the size on at which it refuses an image.
    warnings.filterwarnings("ignore", "Image size .* exceeds limit of")

    def print_dropped(dropped: Any) -> None:
        # If a part of a save fails, Orbax closes its event loop while TensorStore still writes
        # the other parts. TensorStore then cannot report that these are done.
        is_of_a_save = dropped.object is None and str(dropped.exc_value) == "Event loop is closed"
        if not is_of_a_save:
            hook_before(dropped)

    hook_before, sys.unraisablehook = sys.unraisablehook, print_dropped


def error_line(error: UserError | OSError) -> str:
    """Returns the line that the running command prints of an error that ends it."""
    if isinstance(error, UserError):
        return f"{_command()}: {_message(error)}"
    return (
        f"{_command()}: {error}; the saved files are kept; correct the problem and run the same "
        "command again"
    )


def _problem_of_devices() -> str:
    """Returns why JAX has no devices, in a line; empty if it has some."""
    import jax

    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), "") or "there are none of this platform"
        platforms = os.environ.get("JAX_PLATFORMS", "")
        return (
            f"JAX finds no devices with JAX_PLATFORMS={platforms} ({reason}): set it to cpu, or "
            "unset it for the best devices that there are"
        )
    return ""


def make_callable(module: str, function: Callable[..., Any]) -> None:
    """Lets a module be called like its function of the same name, as in `fcn_jax.train(…)`.

    Importing the module sets that attribute of the package to the module, not to the function.
    """

    class CallableModule(ModuleType):
        __call__ = staticmethod(function)

    sys.modules[module].__class__ = CallableModule


def _message(error: Exception) -> str:
    """Returns the error message, with settings and flags in place of the API's terms."""
    if isinstance(error, flags.UnrecognizedFlagError):  # absl may suggest all flags of a prefix
        near = suggestion(error.flagname, list(flags.FLAGS), "--")
        return f"there is no flag --{error.flagname}{near}"
    return _with_flag(error).replace(IMPORT_FIRST, "give its module by --import=FILE")


def _with_flag(error: Exception) -> str:
    """Returns the error message, with the argument's name replaced by its setting or flag."""
    if not isinstance(error, ArgumentError):
        return str(error)
    name, settings = error.argument, [one.name for one in config_lib.settings(Config())]
    if name in settings:
        name = f"config.{name}"
    elif name in flags.FLAGS:
        name = f"--{name}"
    return f"{name} (={format_value(error.value)}) {error.problem}"


def _module_name() -> str:
    """Returns the module of the running command, such as fcn_jax.train."""
    specification = sys.modules["__main__"].__spec__
    assert specification is not None, "a command is started by python -m"
    return specification.name.removesuffix(".__main__")


def _command() -> str:
    return _module_name().rpartition(".")[2]


def with_underscores(arguments: Sequence[str]) -> list[str]:
    """Replaces hyphens by underscores in the names of settings and known flags.

    Values, file names such as `--a-b.jpg`, unknown flags and everything after `--` stay unchanged.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [_with_underscores(argument) for argument in arguments[:end]] + list(arguments[end:])


def _with_underscores(argument: str) -> str:
    flag = re.match("--?([a-z][^=]*)", argument)
    if not flag:
        return argument
    name = flag[1].replace("-", "_")
    if name.startswith("config.") or {name, name.removeprefix("no")} & set(flags.FLAGS):
        return argument[: flag.start(1)] + name + argument[flag.end() :]
    return argument


class _ConfigFile(flags.ArgumentParser):
    """Loads the file that `--config` names."""

    path: Path | None = None

    def parse(self, argument: str) -> Config:
        self.path = Path(argument)
        return config_lib.load(self.path)


class _SettingText(flags.ArgumentParser):
    """Appends (NAME, TEXT) of each `--config.NAME=TEXT` to a list, in command-line order."""

    def __init__(self, name: str, given: list[tuple[str, str]]):
        self._name = name
        self._given = given

    def parse(self, argument: str) -> str:
        self._given.append((self._name, argument))
        return argument


def _define_config(options: Sequence[str]) -> list[tuple[str, str]]:
    """Defines `--config` and a flag for every setting.

    Returns the list of (name, text) that parsing the flags will fill. Raises UserError with a
    suggestion for a setting that does not exist.
    """
    given: list[tuple[str, str]] = []
    flags.DEFINE(_ConfigFile(), "config", None, "file whose get_config() returns the settings")
    for setting in config_lib.settings(Config()):
        flag = flags.Flag(
            _SettingText(setting.name, given),
            serializer=None,
            name=f"config.{setting.name}",
            default=None,
            help_string=setting.rules["help"],
            boolean=setting.kind is bool,
        )
        flags.DEFINE_flag(flag)
    for option in options:
        name = option.partition("=")[0].removeprefix("--")
        if option.startswith("--config.") and name not in flags.FLAGS:
            known = [name for name in flags.FLAGS if name.startswith("config.")]
            raise UserError(f"there is no setting --{name}{suggestion(name, known, '--')}")
    return given


def config_name() -> str:
    """Returns the stem of the config file's name, or "shapes" if there is no config file."""
    path = _config_path()
    return path.stem if path else "shapes"


def _config_path() -> Path | None:
    parser: Any = flags.FLAGS["config"].parser
    return parser.path


def _help(program: str) -> str:
    lines = [(sys.modules["__main__"].__doc__ or program).strip(), "", "Flags:"]
    own = flags.FLAGS.flags_by_module_dict().get(sys.argv[0], [])
    for flag in [*own, flags.FLAGS["import"]]:
        if flag.name != "config":
            default = "" if flag.default in (None, "", []) else f" (default: {flag.default})"
            lines.append(f"  --{flag.name}: {flag.help}{default}")
    if "config" in flags.FLAGS:
        lines.append("  --config: file whose get_config() returns the settings of the run")
        path = _config_path()
        values = f"values from {path}" if path else "defaults"
        lines += ["", f"Settings (change with --config.NAME=VALUE), with {values}:"]
        for setting in config_lib.settings(flags.FLAGS.config):
            name = f"{setting.name}={format_value(setting.value)}"
            lines.append(f"  {name:<36} {setting.help}")
    return "\n".join(lines)
