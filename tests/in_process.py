"""Runs a command of the package inside the test's own process, which saves its start-up."""

import contextlib
import io
import os
import runpy
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

from absl import flags


def run_command(module: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs `python -m fcn_jax.MODULE ARGUMENTS`, and returns its status and what it printed.

    Unlike in a process of its own, modules are imported already, and JAX is configured as in the
    tests.
    """
    known = set(flags.FLAGS)
    argv, interrupt = sys.argv, signal.getsignal(signal.SIGINT)
    sys.argv = ["-m", *map(str, arguments)]
    stdout, stderr = io.StringIO(), io.StringIO()
    status: object = 0
    try:
        with (
            mock.patch.dict(os.environ),  # which some commands change
            mock.patch.object(sys, "unraisablehook", sys.unraisablehook),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
        ):
            # The module may be imported already, of which runpy warns.
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
            runpy.run_module(f"fcn_jax.{module}", run_name="__main__", alter_sys=True)
    except SystemExit as exit:
        status = exit.code or 0
    finally:
        sys.argv = argv
        signal.signal(signal.SIGINT, interrupt)
        for name in filter(_is_of_a_command, set(flags.FLAGS) - known):
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
    assert isinstance(status, int)
    command = ["python", "-m", f"fcn_jax.{module}", *map(str, arguments)]
    return subprocess.CompletedProcess(command, status, stdout.getvalue(), stderr.getvalue())


def _is_of_a_command(flag: str) -> bool:
    """Returns whether a command defined it; libraries define theirs once, when imported."""
    module = flags.FLAGS.find_module_defining_flag(flag)
    return module not in sys.modules or module.startswith("fcn_jax.")
