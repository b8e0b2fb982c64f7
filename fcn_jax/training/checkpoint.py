"""Checkpoints of a run: the one module that imports Orbax.

A checkpoint holds the model (parameters and batch statistics) and the state of the optimizer. The
batches follow from the step's number (`data/order.py`), so a resumed run continues bit for bit.
Orbax writes each checkpoint to a temporary folder and renames it when it is complete: an
interrupted save leaves the earlier ones as they were. Then the checksums of its files are added
(`checksums.py`), which are compared before the checkpoint is loaded.
"""

import concurrent.futures
import json
import logging
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from fcn_jax.errors import UserError, format_value
from fcn_jax.parallel import agreement, hosts
from fcn_jax.parallel.data_parallel import replicated_sharding
from fcn_jax.terminal.atomic_files import write_text
from fcn_jax.terminal.progress import say
from fcn_jax.training import checksums
from fcn_jax.training.train_step import TrainState

try:
    from orbax.checkpoint import v1 as ocp
except ImportError:  # Up to version 0.12 the API is in `experimental`.
    from orbax.checkpoint.experimental import v1 as ocp

SAVE_ERRORS = (OSError, ValueError, RuntimeError)
"""Exceptions of a failed save, raised by it or by the next call: TensorStore has no narrower one
for a full disk."""


POLL_SECONDS = 0.2
"""Interval at which a process that waits for a save of several hosts looks for a failure."""

DELETION_SECONDS = 0.2
"""Time that the training process may take to delete a checkpoint that a reader opens."""


class DamagedError(UserError):
    """A checkpoint of which a file is missing, or not as it was saved."""


class CheckpointReader:
    """The complete checkpoints in a folder, read-only.

    It never creates, renames or deletes anything, so it is safe on a run that is being trained.

    Raises:
        UserError: the folder's name is not UTF-8.
    """

    def __init__(self, directory: Path):
        self._directory = directory.absolute()
        try:
            str(self._directory).encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{directory}: checkpoints cannot be in a folder whose name is not UTF-8: rename it"
            ) from error
        self._verified: int | None = None  # the step whose files have been compared already

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in ascending order."""
        folders = self._directory.glob("*/")
        return sorted(int(folder.name) for folder in folders if folder.name.isdigit())

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint; None without one."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """The step with the highest mIoU, the latest of equal ones; None if none was scored.

        Raises:
            DamagedError: the score of a checkpoint cannot be read.
        """
        scored = [
            (mean_iou, step)
            for step in self.steps
            if (mean_iou := self._mean_iou(step)) is not None
        ]
        return max(scored)[1] if scored else None

    def find(self, name: str) -> int | None:
        """The step that "latest", "best" or a number stands for; None if there is none."""
        if name == "latest":
            return self.latest
        if name == "best":
            return self.best
        return {str(step): step for step in self.steps}.get(name)

    def restore(self, target: TrainState) -> TrainState:
        """Loads the newest checkpoint.

        Args:
            target: arrays, or shapes and dtypes, in the structure of the result.

        Raises:
            UserError: there is none, or it holds another network.
            DamagedError: a file of it is damaged.
        """
        step = self.latest
        if step is None:
            raise UserError(f"{self._directory} holds no checkpoint")
        loaded = self._load(step, {"model": _model(target), "optimizer": target.opt_state})
        return TrainState(
            jax.device_put(np.int32(step)),  # unlike jnp.int32(step), compiles nothing
            loaded["model"]["params"],
            loaded["model"]["batch_stats"],
            loaded["optimizer"],
        )

    def restore_model(self, target: tuple[Any, Any], step: int) -> tuple[Any, Any]:
        """Loads (params, batch_stats) of a step, in the structure of `target`; see `restore`."""
        params, batch_stats = target
        model = self._load(step, {"model": {"params": params, "batch_stats": batch_stats}})["model"]
        if hosts.count() > 1:  # a predictor runs on this host's device alone
            model = jax.tree.map(lambda x: x.addressable_data(0), model)
        return model["params"], model["batch_stats"]

    def _mean_iou(self, step: int) -> float | None:
        self._verify(step, {"metrics"})
        path = self._directory / f"{step}/metrics/metrics"
        try:
            score = _score(json.loads(path.read_text()))
            return None if score is None else float(score)
        except FileNotFoundError:  # not scored, or deleted by the training process just now
            return None
        except (ValueError, AttributeError, TypeError) as error:
            raise DamagedError(f"{path} is damaged (it holds no score)") from error

    def _verify(self, step: int, items: set[str]) -> None:
        """Raises DamagedError if a file of these items has changed; passes without checksums."""
        path = self._directory / str(step)
        if step == self._verified or not (path / checksums.FILE).exists():
            return
        if damage := checksums.find_damage(path, items):
            time.sleep(DELETION_SECONDS)
            if path.exists():
                raise DamagedError(damage)

    def _load(self, step: int, target: dict[str, Any]) -> dict[str, Any]:
        path = self._directory / str(step)
        # Orbax reads arrays of several hosts in concert.
        alone = hosts.count() == 1
        sharding = SingleDeviceSharding(jax.devices()[0]) if alone else replicated_sharding()
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), target
        )
        is_verified = (path / checksums.FILE).exists()
        try:
            self._verify(step, set(target))
            _check_same_network(path, target["model"])
            if not is_verified:
                say(f"note: {path} has no checksums, so it is not verified")
            return ocp.load_checkpointables(path, shapes)
        except Exception as error:  # Orbax has no common error for damaged files
            if not path.exists():
                raise UserError(
                    f"{path} was deleted while it was read, by the training of its run: start the "
                    "same command again"
                ) from error
            if is_verified or isinstance(error, UserError):
                raise
            raise DamagedError(
                f"{path} cannot be read ({_first_line(error)}): if it is damaged, move it away"
            ) from error


class CheckpointWriter(CheckpointReader):
    """The checkpoints of the run that this process trains: keeps the newest ones and the best.

    Deletes what an interrupted save left behind. Renames a damaged newest checkpoint, so that
    `latest` and `restore` mean the newest good one.

    Args:
        directory: created if it does not exist.
        keep: number of newest checkpoints that are kept, besides the best by mIoU.

    Raises:
        UserError: the folder cannot be written to.
        DamagedError: every checkpoint is damaged.
    """

    def __init__(self, directory: Path, keep: int = 1):
        super().__init__(directory)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checksums")
        self._saving: concurrent.futures.Future[None] | None = None
        self._failure = _SaveFailure() if hosts.count() > 1 else None
        policies = ocp.training.preservation_policies
        best = policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
        try:
            with hosts.first_process_first():
                self._set_damaged_aside()
            agreement.check_same(
                {"the newest checkpoint": self.latest}, "wait a while and start again"
            )
            self._checkpointer = ocp.training.Checkpointer(
                self._directory,
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
                cleanup_tmp_directories=True,
            )
        except OSError as error:
            raise UserError(f"cannot write checkpoints to {directory}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if hosts.count() > 1 and kind not in (None, hosts.AgreedExit):
            return  # Orbax would wait for the other hosts, which this one is to tell of its error
        try:
            self.wait()
            self._checkpointer.close()
        except (UserError, *SAVE_ERRORS) as error:
            if kind is None:  # otherwise the exception under way matters more
                raise (error if isinstance(error, UserError) else self._failed(error)) from error
        finally:
            self._thread.shutdown()

    def save(self, state: TrainState, mean_iou: float | None) -> None:
        """Starts saving a state, which the caller may donate at once.

        Waits for the save before it.

        Args:
            state: the state to save.
            mean_iou: its score, by which the best checkpoint is kept; None if it was not scored.

        Raises:
            UserError: this save or the one before it failed, for example on a full disk.
        """
        self.wait()
        step = int(state.step)
        # A copy: on a CPU the saving thread would read the very memory that the next step reuses.
        state = _copy(state)
        scored = mean_iou is not None and math.isfinite(mean_iou)
        try:
            response = self._checkpointer.save_checkpointables_async(
                step,
                {"model": _model(state), "optimizer": state.opt_state},
                force=True,
                metrics={"mean_iou": mean_iou} if scored else None,
            )
        except SAVE_ERRORS as error:
            raise self._failed(error) from error
        self._saving = self._thread.submit(self._add_checksums, step, response)

    def add_score(self, step: int, mean_iou: float) -> None:
        """Adds the score of a checkpoint that was saved without one; see `save`."""
        self.wait()
        path = self._directory / str(step)
        with hosts.first_process_first():
            if math.isfinite(mean_iou) and self._mean_iou(step) is None:
                text = json.dumps({"mean_iou": mean_iou})
                write_text(path / "metrics/metrics", text)
                checksums.write_checksums(path)
        self._checkpointer.reload()

    def wait(self) -> None:
        """Waits until every checkpoint is on disk, with its checksums.

        Raises:
            UserError: the last save failed.
        """
        saving, self._saving = self._saving, None
        try:
            while saving is not None and self._failure is not None:
                if self._failure.error is not None:
                    raise self._failed(self._failure.error)
                if concurrent.futures.wait([saving], POLL_SECONDS).done:
                    break
            if saving is not None:
                saving.result()
            self._checkpointer.wait()
            hosts.barrier()  # no host runs ahead of the first one, which writes the checksums
        except SAVE_ERRORS as error:
            raise self._failed(error) from error

    def _add_checksums(self, step: int, response: Any) -> None:
        response.result()
        if hosts.is_first():
            checksums.write_checksums(self._directory / str(step))

    def _set_damaged_aside(self) -> None:
        """Renames damaged checkpoints; of those before the newest good one, it reads the scores."""
        damaged: dict[int, DamagedError] = {}
        good: int | None = None
        for step in reversed(self.steps):
            try:
                self._mean_iou(step)
                if good is None:
                    self._verify(step, {"model", "optimizer"})
                    _read_structure(self._directory / str(step))
                    good = step
            except DamagedError as error:
                damaged[step] = error
        if damaged and good is None:
            raise DamagedError(
                f"{damaged[max(damaged)]}, and no other checkpoint can be loaded: give another "
                "workdir, or delete the checkpoints to train from the start"
            )
        self._verified = good
        for step, damage in damaged.items():
            aside = self._directory / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)  # of the same step, renamed earlier
            (self._directory / str(step)).rename(aside)
            say(f"{damage}: checkpoint {step} is now {aside}")
        if good is not None and max(damaged, default=0) > good:
            lost = f"steps {good + 1} to {max(damaged)} are lost"
            say(f"training continues from step {good}: {lost}")

    def _failed(self, error: Exception) -> UserError:
        reason = str(error).splitlines()[0]
        full = "No space left on device"
        return UserError(
            f"could not save a checkpoint in {self._directory} "
            f"({full if full in reason else reason}): the earlier ones are untouched; make room "
            "and start the same command again"
        )


class _SaveFailure(logging.Handler):
    """Keeps the error with which a save has ended in this process, of several.

    Orbax logs it, and raises it only when the other processes have ended the save too. They wait
    for what this one could not write.

    Attributes:
        error: None without a failure.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.error: Exception | None = None
        log = absl.logging.get_absl_logger()
        if absl.logging.get_verbosity() < absl.logging.ERROR:  # the commands print no errors
            absl.logging.set_verbosity(absl.logging.ERROR)
            log.propagate = False
        log.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if "orbax" in record.pathname and isinstance(error, Exception):
            self.error = error


def _score(metrics: Mapping[str, float]) -> float | None:
    # Runs of earlier versions have the paper's name of the metric.
    return metrics.get("mean_iou", metrics.get("mean_iu"))


def _check_same_network(path: Path, target: Any) -> None:
    saved = _shapes(_read_structure(path)["model"])
    expected = _shapes(target)
    differences = [
        f"{name} is {saved.get(name, 'missing')} there and {expected.get(name, 'missing')} here"
        for name in sorted(saved.keys() | expected.keys())
        if saved.get(name) != expected.get(name)
    ]
    if differences:
        raise UserError(f"{path} does not hold this network: {'; '.join(differences)}")


def _read_structure(path: Path) -> dict[str, Any]:
    """Reads shapes and dtypes of a checkpoint's items; raises DamagedError if there are none."""
    try:
        structure = ocp.checkpointables_metadata(path).metadata
        if not jax.tree.leaves(structure["model"]):
            raise ValueError("no tensors")
        return structure
    except Exception as error:  # as above
        raise DamagedError(f"{path} cannot be read ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {format_value(lines[0])}"


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}


@jax.jit
def _copy(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def _model(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}
