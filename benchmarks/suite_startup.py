"""Suite `startup`: how long a person waits before training begins.

Programs are started and timed: the imports, `--help`, and training with the default config until
its first step is in the log. The training is started three times with a home folder of its own:
with an empty compilation cache, again as a new run, and to resume that run. The drawn images are
prepared before.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.measuring import Case, Contender, Contenders, NotMeasuredError
from benchmarks.settings import Settings
from fcn_jax.config import DataConfig
from fcn_jax.data.datasets import open_dataset
from fcn_jax.data.prepared import prepared_dir

MAX_REPEATS = 5
MAX_START_S = 600
POLL_EVERY_S = 0.01
TRAIN = (sys.executable, "-m", "fcn_jax.train")
STARTS = {"first start": "first", "second start": "second", "resumed": "second"}
"""The run's folder by contender: every start leaves behind what the next one needs."""


def cases(settings: Settings) -> Iterator[Case]:
    """Yields the imports, `--help`, and training by duration and by compilations."""
    timed = partial(Case, warm_up_calls=1, max_repeats=MAX_REPEATS)
    packages = ["fcn_jax", "jax", *(["torch"] if settings.peer else [])]
    yield timed("import", lambda: {name: _program("-c", f"import {name}") for name in packages})
    help_of_train = {"fcn_jax": _program("-m", "fcn_jax.train", "--help")}
    yield timed("python -m fcn_jax.train --help", lambda: help_of_train)
    number = partial(Case, timed=False, warm_up_calls=0)
    title = "training, from its start to its first step"
    yield number(title, partial(_starts, Trainings.seconds), max_repeats=MAX_REPEATS)
    title = "training, compiled until its first step"
    yield number(title, partial(_starts, Trainings.compilations), unit="programs", max_repeats=1)


def _program(*arguments: str) -> Contender:
    command = [sys.executable, *arguments]
    return Contender(lambda: subprocess.run(command, check=True, capture_output=True), peer=True)


def _starts(measure: "Callable[[Trainings, str], float]") -> Contenders:
    open_dataset(DataConfig(name="shapes"))  # prepares them, if need be, before any start is timed
    trainings = Trainings()
    close = trainings.folder.cleanup
    return {name: Contender(partial(measure, trainings, name), close=close) for name in STARTS}


class Trainings:
    """Trainings with a home folder of their own, a new one for each first start."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="fcn_jax_startup_")
        self.home = Path()

    def compilations(self, start: str) -> int:
        """Returns how many programs a start compiles, because its cache does not hold them."""

        def compiled() -> int:
            return sum(1 for _ in (self.home / ".cache/fcn_jax/compiled").rglob("*-cache"))

        before = 0 if start == "first start" else compiled()
        self.seconds(start)
        return compiled() - before

    def seconds(self, start: str) -> float:
        """Returns the seconds from the start of the program to the log line of its first step."""
        if start == "first start":
            self.home = Path(tempfile.mkdtemp(dir=self.folder.name))
        workdir = self.home / STARTS[start]
        log, errors = workdir / "log.jsonl", self.home / "errors"
        steps_before = _logged_steps(log)
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        started = time.perf_counter()
        with errors.open("w") as stderr:
            training = subprocess.Popen(
                [*TRAIN, f"--workdir={workdir}", *flags_of_training()],
                env=environment | {"HOME": str(self.home)},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        try:
            while _logged_steps(log) <= steps_before:
                if training.poll() is not None:
                    last = (errors.read_text().strip().splitlines() or [""])[-1]
                    raise NotMeasuredError(f"training ended with {training.returncode}: {last}")
                if time.perf_counter() - started > MAX_START_S:
                    raise NotMeasuredError(f"no step within {MAX_START_S} s")
                time.sleep(POLL_EVERY_S)
            return time.perf_counter() - started
        finally:
            # Training saves a checkpoint when it is terminated; the next start resumes from it.
            with contextlib.suppress(ProcessLookupError):
                training.send_signal(signal.SIGTERM)
            training.wait()


def flags_of_training() -> list[str]:
    """Returns the settings of a run that logs every step and does not end by itself."""
    return [
        f"--config.data.prepared_dir={prepared_dir(DataConfig())}",
        "--config.train.steps=100000",
        "--config.train.log_every_steps=1",
    ]


def _logged_steps(log: Path) -> int:
    return log.read_text().count('"kind": "train"') if log.exists() else 0
