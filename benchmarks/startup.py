"""Suite: how long a person waits before anything happens.

Each is a program that is started: the import, `--help`, and training with the embedded default up
to the line that its first step writes to the log: with a home of its own, in which nothing is
compiled; again, for a new run; and that run resumed. The drawn images are prepared before.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.measuring import Case, Contender, NotMeasuredError
from benchmarks.settings import Settings
from fcn_jax.config import DataConfig
from fcn_jax.data.datasets import open_dataset
from fcn_jax.data.prepared import prepared_dir

MAX_REPEATS = 5
LONGEST_START_S = 600
LOOK_EVERY_S = 0.01


def cases(settings: Settings) -> Iterator[Case]:
    yield Case("import", lambda: imports(settings), warm_up_calls=1, most_repeats=MAX_REPEATS)
    yield Case(
        "python -m fcn_jax.train --help",
        lambda: {"fcn_jax": Contender(lambda: run("-m", "fcn_jax.train", "--help"))},
        warm_up_calls=1,
        most_repeats=MAX_REPEATS,
    )
    yield Case(
        "training, from its start to its first step",
        lambda: starts(lambda trainings, start: start(trainings)),
        timed=False,
        warm_up_calls=0,
        most_repeats=MAX_REPEATS,
    )
    yield Case(
        "training, compiled by its first step",
        lambda: starts(Trainings.compilations),
        unit="programs",
        timed=False,
        warm_up_calls=0,
        most_repeats=1,
    )


def imports(settings: Settings) -> dict[str, Contender]:
    packages = ["fcn_jax", "jax", *(["torch"] if settings.peer else [])]
    return {
        package: Contender(
            lambda package=package: run("-c", f"import {package}"),  # type: ignore[misc]
            peer=package == "torch",
        )
        for package in packages
    }


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


Start = Callable[["Trainings"], float]


def starts(number: Callable[["Trainings", Start], float]) -> dict[str, Contender]:
    """number: of a way to start."""
    open_dataset(DataConfig(name="shapes"))  # prepared, if need be, before any is timed
    trainings = Trainings()
    ways: dict[str, Start] = {
        "first start": Trainings.first,
        "second start": Trainings.second,
        "resumed": Trainings.resumed,
    }
    return {
        name: Contender(
            lambda start=start: number(trainings, start),  # type: ignore[misc]
            close=trainings.close,
        )
        for name, start in ways.items()
    }


class Trainings:
    """Runs in a home of their own; each way to start makes what the next one needs.

    Each gives the seconds from the start of the program to the line of its first step.
    """

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="fcn_jax_startup_")
        self.count = 0

    def close(self) -> None:
        self.folder.cleanup()

    @property
    def home(self) -> Path:
        return Path(self.folder.name) / f"home{self.count}"

    @property
    def events(self) -> Path:
        return self.home / "events"

    def first(self) -> float:
        self.count += 1
        self.home.mkdir()
        return self.seconds_to_first_step(self.home / "first")

    def second(self) -> float:
        return self.seconds_to_first_step(self.home / "second")

    def resumed(self) -> float:
        return self.seconds_to_first_step(self.home / "second")

    def compilations(self, start: Start) -> int:
        """Programs that a start compiles, and does not find in its cache."""
        start(self)
        events = self.events.read_text().split()
        return events.count("requests") - events.count("hits")

    def seconds_to_first_step(self, workdir: Path) -> float:
        log = workdir / "log.jsonl"
        before = _steps(log)
        self.events.write_text("")
        errors = self.home / "errors"
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        started = time.perf_counter()
        with errors.open("w") as stderr:
            training = subprocess.Popen(
                [
                    *(sys.executable, "-m", "benchmarks.watched_train", str(self.events)),
                    f"--workdir={workdir}",
                    f"--config.data.prepared_dir={prepared_dir(DataConfig())}",
                    "--config.train.steps=100000",
                    "--config.train.log_every_steps=1",
                ],
                env=environment | {"HOME": str(self.home)},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        try:
            while _steps(log) <= before:
                if training.poll() is not None:
                    last = (errors.read_text().strip().splitlines() or [""])[-1]
                    raise NotMeasuredError(f"training ended with {training.returncode}: {last}")
                if time.perf_counter() - started > LONGEST_START_S:
                    raise NotMeasuredError(f"no step within {LONGEST_START_S} s")
                time.sleep(LOOK_EVERY_S)
            return time.perf_counter() - started
        finally:
            # It saves a checkpoint, for the resumption.
            with contextlib.suppress(ProcessLookupError):
                training.send_signal(signal.SIGTERM)
            training.wait()


def _steps(log: Path) -> int:
    """Steps in the log."""
    try:
        return log.read_text().count('"kind": "train"')
    except FileNotFoundError:
        return 0
