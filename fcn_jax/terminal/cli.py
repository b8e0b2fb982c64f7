"""What the commands share: reading `--config`, `--help`, and mistakes told in one line."""

import difflib
import hashlib
import os
import platform
import re
import runpy
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from fcn_jax import config as config_lib
from fcn_jax.errors import ArgumentError, UserError
from fcn_jax.terminal import signals


def begin(*, with_config: bool = False) -> None:
    """Reads the flags of the command, tells of mistakes in them, and prints its `--help`.

    It is called at the top of a command's module, before what takes seconds to be imported, and
    `run` at its end. The module's docstring and flags make up `--help`. What are no flags is left
    in `sys.argv`. Ctrl-C during the imports to come ends with status 130.

    with_config: adds the flag `--config`, a file with `get_config()`, or else the embedded
    default, and one flag for every setting.

    Raises:
        SystemExit: status 0 after --help, 2 for a mistake in the flags, 1 for a setting that
            cannot be.
    """
    signal.signal(signal.SIGINT, lambda number, _: os._exit(128 + number))
    sys.argv[1:] = with_underscores(sys.argv[1:])  # in place: ml_collections reads it as well
    program = f"python -m {_module_name()}"
    asks_help = {"--help", "-h", "-help", "--helpfull"} & set(sys.argv[1:])
    try:
        if with_config:
            _check_setting_names(sys.argv[1:])
            _define_config()
        if asks_help:
            print(_help(program))
            sys.exit(0)
        arguments = flags.FLAGS(sys.argv)[1:]
        config = flags.FLAGS.config if with_config else None
        if config is not None:
            _ = config.data  # a file that cannot be loaded is told of here
    except (flags.Error, UserError, KeyError, ValueError, OSError) as error:
        print(f"{_command()}: {_one_line(error)} (see {program} --help)", file=sys.stderr)
        sys.exit(2)
    try:
        if config is not None:
            config.check()
    except UserError as error:
        print(f"{_command()}: {_message(error)}", file=sys.stderr)
        sys.exit(1)
    sys.argv[1:] = arguments
    _keep_compilations()


def run(main: Callable[[list[str]], None]) -> None:
    """Runs `main` on the arguments that `begin` has left, and exits.

    Status 0; 1 for a UserError or a failing disk, 130 after Ctrl-C, 143 after SIGTERM.
    """
    from absl import logging

    # Orbax tells of every file that it writes; what fails is raised as well.
    logging.set_verbosity(logging.FATAL)
    try:
        with signals.interruptions():
            main(sys.argv[1:])
    except UserError as error:
        print(f"{_command()}: {_message(error)}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # a full disk above all
        print(
            f"{_command()}: {error}; what was saved stays; mend this and start the same command "
            "again",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # past the exit handlers, which would fail in the same way and say so at length
    except KeyboardInterrupt:
        sys.exit(130)


def _message(error: UserError) -> str:
    """Returns the error's line, with an argument named as the setting or flag that sets it."""
    if not isinstance(error, ArgumentError):
        return str(error)
    name = error.argument
    if name in {known for known, _, _ in config_lib.settings(config_lib.Config())}:
        name = f"config.{name}"
    elif name in flags.FLAGS:
        name = f"--{name}"
    return f"{name} (={error.value}) {error.problem}"


def _module_name() -> str:
    """Of the command that is running, such as fcn_jax.train."""
    specification = sys.modules["__main__"].__spec__
    assert specification is not None, "a command is started by python -m"
    return specification.name.removesuffix(".__main__")


def _command() -> str:
    return _module_name().rpartition(".")[2]


def with_underscores(arguments: Sequence[str]) -> list[str]:
    """The arguments with hyphens in the names of flags turned to underscores.

    Only in names that are then known, and in those of settings: values, arguments like `--a-b.jpg`
    and whatever follows `--` stay as they are, and so does a misspelt flag, to be told of.
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


def _define_config() -> None:
    from ml_collections import config_flags

    path = _config_path()
    if path and not Path(path).is_file():
        raise UserError(f"--config: there is no file {path}")
    if path or "--config" in sys.argv:
        config_flags.DEFINE_config_file("config", help_string="file with get_config()")
    else:
        config_flags.DEFINE_config_dataclass("config", config_lib.default_config())


def config_name() -> str:
    """The name of the config file, without its ending; 'shapes' for the embedded default."""
    from ml_collections import config_flags

    path = config_flags.get_config_filename(flags.FLAGS["config"])
    return Path(path).stem if isinstance(path, str) else "shapes"


def _config_path() -> str:
    """What --config=FILE gives on the command line."""
    given = (argument.lstrip("-") for argument in sys.argv[1:] if argument.startswith("-"))
    return next((text.partition("=")[2] for text in given if text.startswith("config=")), "")


def _keep_compilations() -> None:
    """Compiled programs are kept for later starts; $JAX_COMPILATION_CACHE_DIR says where.

    All of them, also those that JAX thinks too small: there are many, and a second start shall
    compile nothing. JAX reads the environment when it is imported. It sets no limit: the folder, by
    default ~/.cache/fcn_jax/compiled, may be deleted at any time, or be held to so many bytes by
    $JAX_COMPILATION_CACHE_MAX_SIZE, for which JAX needs the package filelock.
    """
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    # On a disk that has filled up, for each of them.
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache")
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = Path.home() / ".cache" / "fcn_jax" / "compiled" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        print(
            f"{_command()}: compiled programs cannot be kept in {folder} ({error.strerror}), so "
            "every start compiles anew; $JAX_COMPILATION_CACHE_DIR may name another folder",
            file=sys.stderr,
        )
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)


def _processor() -> str:
    """Tells processors apart that share a home: what XLA compiles for one can crash another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        features = platform.processor()
    digest = hashlib.sha256(features.encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


def _check_setting_names(arguments: Sequence[str]) -> None:
    known = [name for name, _, _ in config_lib.settings(config_lib.Config())]
    for argument in arguments:
        if not argument.startswith("--config."):
            continue
        name = argument.removeprefix("--config.").partition("=")[0]
        if name in known or f"{name.removeprefix('no')}" in known:
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        last = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]]
        hint = f"; did you mean --config.{(last or near)[0]}?" if last or near else ""
        raise UserError(f"there is no setting --config.{name}{hint}")


def _one_line(error: BaseException) -> str:
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(message).split())


def _help(program: str) -> str:
    lines = [(sys.modules["__main__"].__doc__ or program).strip(), "", "Flags:"]
    own = flags.FLAGS.flags_by_module_dict().get(sys.argv[0], [])
    for flag in own:
        if flag.name != "config":
            default = "" if flag.default in (None, "", []) else f" (default: {flag.default})"
            lines.append(f"  --{flag.name}: {flag.help}{default}")
    if "config" in flags.FLAGS:
        lines.append("  --config: file whose get_config() returns the settings of the run")
        path = _config_path()
        values = f"their values in {path}" if path else "their defaults"
        lines += ["", f"Settings, each changed by --config.NAME=VALUE, with {values}:"]
        get_config = runpy.run_path(path)["get_config"] if path else config_lib.default_config
        config = get_config()
        for name, value, metadata in config_lib.settings(config):
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            choices = metadata.get("choices")
            help_line = metadata["help"] + (f": {', '.join(map(str, choices))}" if choices else "")
            lines.append(f"  {name + '=' + shown:<36} {help_line}")
    return "\n".join(lines)
