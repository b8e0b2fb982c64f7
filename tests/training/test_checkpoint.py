"""Checkpoints: readers change nothing on disk, and "best" is the highest mIoU."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.errors import UserError
from fcn_jax.inference.trained import load_run, load_weights
from fcn_jax.training import checkpoint
from fcn_jax.training.checkpoint import CheckpointReader, CheckpointWriter
from fcn_jax.training.train_step import TrainState


def state_at(step: int) -> TrainState:
    params = {"layer": {"kernel": jnp.full((2, 3), float(step))}}
    return TrainState(jnp.int32(step), params, {}, (jnp.arange(3.0) + step,))


def save(folder: Path, scores: dict[int, float | None], keep: int = 5) -> CheckpointReader:
    with CheckpointWriter(folder, keep) as writer:
        for step, mean_iou in scores.items():
            writer.save(state_at(step), mean_iou)
    return CheckpointReader(folder)


def listing(folder: Path) -> dict[str, int]:
    """The time of the last change of each file and folder."""
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize(
    "use",
    [load_run, load_weights, lambda run: load_run(run, "best")],
    ids=["load_run", "init", "best"],
)
def test_readers_leave_the_save_in_flight_of_a_training_run(
    use: Callable[[Path], object], trained_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    in_flight = run / "checkpoints/9.orbax-checkpoint-tmp/model"
    in_flight.mkdir(parents=True)
    (in_flight / "part").write_text("half of it")
    before = listing(run)
    use(run)
    assert listing(run) == before


def test_the_training_process_deletes_what_an_interrupted_save_left(tmp_path: Path) -> None:
    save(tmp_path, {1: None})
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    save(tmp_path, {3: None})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


def test_a_reader_creates_no_folder(tmp_path: Path) -> None:
    reader = CheckpointReader(tmp_path / "none")
    assert (reader.steps, reader.latest, reader.best) == ([], None, None)
    with pytest.raises(UserError, match="holds no checkpoint"):
        reader.restore(state_at(0))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_holds_the_state_bit_for_bit(tmp_path: Path) -> None:
    reader = save(tmp_path, {3: 0.5, 7: None})
    restored = reader.restore(state_at(0))
    jax.tree.map(np.testing.assert_array_equal, restored, state_at(7))
    params, batch_stats = reader.restore_model((state_at(0).params, {}), 3)
    jax.tree.map(np.testing.assert_array_equal, params, state_at(3).params)
    assert batch_stats == {}


def test_a_miou_of_zero_is_a_score(tmp_path: Path) -> None:
    assert save(tmp_path / "a", {1: 0.0, 2: None}).best == 1
    assert save(tmp_path / "b", {1: 0.5, 2: 0.0, 3: None}).best == 1
    assert save(tmp_path / "c", {1: None, 2: float("nan")}).best is None
    assert save(tmp_path / "d", {1: 0.5, 2: 0.5}).best == 2


def test_the_newest_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    scores = {1: 0.1, 2: 0.9, 3: 0.3, 4: None, 5: 0.2, 6: 0.4}
    assert save(tmp_path, scores, keep=2).steps == [2, 5, 6]


def test_scores_under_the_metrics_former_name_count(tmp_path: Path) -> None:
    """Runs of earlier versions: their best is found, and kept when they are resumed."""
    save(tmp_path, {1: 0.1, 2: 0.9, 3: 0.3})
    for step in (1, 2, 3):
        path = tmp_path / f"{step}/metrics/metrics"
        path.write_text(json.dumps({"mean_iu": json.loads(path.read_text())["mean_iou"]}))
    assert CheckpointReader(tmp_path).best == 2
    reader = save(tmp_path, {4: 0.8, 5: None}, keep=1)
    assert (reader.steps, reader.best) == ([2, 5], 2)
    reader = save(tmp_path, {6: 0.95, 7: None}, keep=1)
    assert (reader.steps, reader.best) == ([6, 7], 6)


def test_another_network_is_refused_by_the_names_that_differ(tmp_path: Path) -> None:
    reader = save(tmp_path, {1: None})
    target = {"layer": {"kernel": jnp.zeros((2, 4)), "bias": jnp.zeros(4)}}
    with pytest.raises(
        UserError,
        match=r"does not hold this network: params/layer/bias is missing there and \(4,\) here; "
        r"params/layer/kernel is \(2, 3\) there and \(2, 4\) here",
    ):
        reader.restore_model((target, {}), 1)


def test_a_checkpoint_that_is_deleted_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = save(tmp_path, {1: None, 2: None})

    def deleted(path: Path, _: object) -> None:
        shutil.rmtree(path)
        raise FileNotFoundError(path)

    monkeypatch.setattr(checkpoint.ocp, "load_checkpointables", deleted)
    with pytest.raises(UserError, match=r"/2 was deleted while it was read, .* same command again"):
        reader.restore(state_at(0))
