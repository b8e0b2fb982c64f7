"""Checkpoints on disk: the one module that speaks to Orbax.

A step's checkpoint holds the model (parameters and batch statistics) and the optimizer's state.
With the step's number, from which the batches follow (`data/order.py`), a resumed run continues bit
for bit. It is written beside its final name and renamed when whole: an interrupted save leaves the
one before.
"""

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
except ImportError:  # Up to 0.12 it is found under `experimental`.
    from orbax.checkpoint.experimental import v1 as ocp

METRIC = "mean_iou"

SAVE_ERRORS = (OSError, ValueError, RuntimeError)
"""What a failed save raises, there or at the next call: TensorStore tells of a full disk so."""


class Checkpoints:
    """The checkpoints of one run: the newest few, and the best by mIoU.

    Raises UserError where the folder cannot be written.
    """

    def __init__(self, directory: Path, keep: int = 1):
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[METRIC],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self._directory = directory
        try:
            self._checkpointer = ocp.training.Checkpointer(
                directory.absolute(),
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
                cleanup_tmp_directories=True,
            )
        except OSError as error:
            raise UserError(f"cannot keep checkpoints in {directory}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._checkpointer.close()
        except SAVE_ERRORS as error:
            if kind is None:  # else a save that failed has been told of, or worse happened
                raise self._failed(error) from error

    @property
    def steps(self) -> list[int]:
        """The steps that checkpoints are kept of, from the oldest."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    @property
    def latest(self) -> int | None:
        """The newest checkpoint's step."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    @property
    def best(self) -> int | None:
        """The step with the highest mIoU; None where none was scored."""
        scored = [c for c in self._checkpointer.checkpoints if (c.metrics or {}).get(METRIC)]
        return max(scored, key=lambda c: c.metrics[METRIC]).step if scored else None

    def save(self, state: TrainState, mean_iou: float | None) -> None:
        """Starts to save; the state may be donated at once. Waits for the save before it."""
        step = int(state.step)
        # A copy: on a CPU the saving thread would read the very memory that the next step reuses.
        state = _copied(state)
        try:
            self._checkpointer.save_checkpointables_async(
                step,
                {"model": _model(state), "optimizer": state.opt_state},
                force=True,
                metrics=None if mean_iou is None else {METRIC: mean_iou},
            )
        except SAVE_ERRORS as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Returns when everything is on disk."""
        try:
            self._checkpointer.wait()
        except SAVE_ERRORS as error:
            raise self._failed(error) from error

    def restore(self, like: TrainState) -> TrainState:
        """The newest checkpoint's state, with the structure of `like`: arrays, or their shapes."""
        step = self.latest
        assert step is not None
        loaded = self._load(step, {"model": _model(like), "optimizer": like.opt_state})
        return TrainState(
            jax.device_put(np.int32(step)),  # without a program to convert it
            loaded["model"]["params"],
            loaded["model"]["batch_stats"],
            loaded["optimizer"],
        )

    def restore_model(self, like: tuple[Any, Any], step: int) -> tuple[Any, Any]:
        """(params, batch_stats) of a step, with the structure of `like`: arrays, or shapes."""
        params, batch_stats = like
        model = self._load(step, {"model": {"params": params, "batch_stats": batch_stats}})["model"]
        return model["params"], model["batch_stats"]

    def _load(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        held = self._checkpointer.checkpointables_metadata(step).metadata["model"]
        wanted, found = _shapes(like["model"]), _shapes(held)
        differences = [
            f"{name} is {found.get(name, 'missing')} there and {wanted.get(name, 'missing')} here"
            for name in sorted(wanted.keys() | found.keys())
            if wanted.get(name) != found.get(name)
        ]
        if differences:
            raise UserError(
                f"{self._directory / str(step)} does not hold this network: "
                f"{'; '.join(differences)}"
            )
        here = SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
        return self._checkpointer.load_checkpointables(step, shapes)

    def _failed(self, error: Exception) -> UserError:
        reason = str(error).splitlines()[0]
        full = "No space left on device"
        return UserError(
            f"could not save a checkpoint in {self._directory} "
            f"({full if full in reason else reason}): the earlier ones are untouched; make room "
            "and start the same command again"
        )


@jax.jit
def _copied(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def _model(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}
