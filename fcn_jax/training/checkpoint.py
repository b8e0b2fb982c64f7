"""Checkpoints of a run: the one module that imports Orbax.

A checkpoint holds the model (parameters and batch statistics) and the state of the optimizer. The
batches follow from the step's number (`data/order.py`), so a resumed run continues bit for bit.
Orbax writes each checkpoint to a temporary folder and renames it when it is complete: an
interrupted save leaves the earlier ones as they were.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from fcn_jax.errors import UserError
from fcn_jax.training.train_step import TrainState

try:
    from orbax.checkpoint import v1 as ocp
except ImportError:  # Up to version 0.12 the API is in `experimental`.
    from orbax.checkpoint.experimental import v1 as ocp

SAVE_ERRORS = (OSError, ValueError, RuntimeError)
"""Exceptions of a failed save, raised by it or by the next call: TensorStore has no narrower one
for a full disk."""


class CheckpointReader:
    """The complete checkpoints in a folder, read-only.

    It never creates, renames or deletes anything, so it is safe on a run that is being trained.
    """

    def __init__(self, directory: Path):
        self._directory = directory.absolute()

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
        """The step with the highest mIoU, the latest of equal ones; None if none was scored."""
        scored = [
            (mean_iou, step)
            for step in self.steps
            if (mean_iou := self._mean_iou(step)) is not None
        ]
        return max(scored)[1] if scored else None

    def restore(self, target: TrainState) -> TrainState:
        """Loads the newest checkpoint.

        Args:
            target: arrays, or shapes and dtypes, in the structure of the result.

        Raises:
            UserError: there is none, or it holds another network.
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
        return model["params"], model["batch_stats"]

    def _mean_iou(self, step: int) -> float | None:
        try:
            return _score(json.loads((self._directory / f"{step}/metrics/metrics").read_text()))
        except FileNotFoundError:  # not scored, or deleted by the training process just now
            return None

    def _load(self, step: int, target: dict[str, Any]) -> dict[str, Any]:
        path = self._directory / str(step)
        device = SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), target
        )
        try:
            _check_same_network(path, target["model"])
            return ocp.load_checkpointables(path, shapes)
        except (*SAVE_ERRORS, LookupError) as error:
            if path.exists():
                raise
            raise UserError(
                f"{path} was deleted while it was read, by the training of its run: start the "
                "same command again"
            ) from error


class CheckpointWriter(CheckpointReader):
    """The checkpoints of the run that this process trains: keeps the newest ones and the best.

    Deletes what an interrupted save left behind.

    Args:
        directory: created if it does not exist.
        keep: number of newest checkpoints that are kept, besides the best by mIoU.

    Raises:
        UserError: the folder cannot be written to.
    """

    def __init__(self, directory: Path, keep: int = 1):
        super().__init__(directory)
        policies = ocp.training.preservation_policies
        best = policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
        try:
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
        try:
            self._checkpointer.close()
        except SAVE_ERRORS as error:
            if kind is None:  # otherwise the exception under way matters more
                raise self._failed(error) from error

    def save(self, state: TrainState, mean_iou: float | None) -> None:
        """Starts saving a state, which the caller may donate at once.

        Waits for the save before it.

        Args:
            state: the state to save.
            mean_iou: its score, by which the best checkpoint is kept; None if it was not scored.

        Raises:
            UserError: this save or the one before it failed, for example on a full disk.
        """
        step = int(state.step)
        # A copy: on a CPU the saving thread would read the very memory that the next step reuses.
        state = _copy(state)
        scored = mean_iou is not None and math.isfinite(mean_iou)
        try:
            self._checkpointer.save_checkpointables_async(
                step,
                {"model": _model(state), "optimizer": state.opt_state},
                force=True,
                metrics={"mean_iou": mean_iou} if scored else None,
            )
        except SAVE_ERRORS as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Waits until every checkpoint is on disk.

        Raises:
            UserError: the last save failed.
        """
        try:
            self._checkpointer.wait()
        except SAVE_ERRORS as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> UserError:
        reason = str(error).splitlines()[0]
        full = "No space left on device"
        return UserError(
            f"could not save a checkpoint in {self._directory} "
            f"({full if full in reason else reason}): the earlier ones are untouched; make room "
            "and start the same command again"
        )


def _score(metrics: Mapping[str, float]) -> float | None:
    # Runs of earlier versions have the paper's name of the metric.
    return metrics.get("mean_iou", metrics.get("mean_iu"))


def _check_same_network(path: Path, target: Any) -> None:
    saved = _shapes(ocp.checkpointables_metadata(path).metadata["model"])
    expected = _shapes(target)
    differences = [
        f"{name} is {saved.get(name, 'missing')} there and {expected.get(name, 'missing')} here"
        for name in sorted(saved.keys() | expected.keys())
        if saved.get(name) != expected.get(name)
    ]
    if differences:
        raise UserError(f"{path} does not hold this network: {'; '.join(differences)}")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}


@jax.jit
def _copy(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def _model(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}
