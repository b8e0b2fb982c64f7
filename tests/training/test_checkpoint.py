"""Checkpoints: readers change nothing on disk, damage is noticed, "best" is the highest mIoU."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.errors import ArgumentError, UserError
from fcn_jax.inference.trained import load_run, load_weights
from fcn_jax.training import checkpoint
from fcn_jax.training.checkpoint import CheckpointReader, CheckpointWriter, DamagedError
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
        (tmp_path / f"{step}/checksums.json").unlink()
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


def truncate(step: Path) -> None:
    path = largest_file(step / "optimizer")
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_bit(step: Path) -> None:
    path = largest_file(step / "model")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def largest_file(folder: Path) -> Path:
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )


def empty(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


DAMAGE = {
    "truncated": truncate,
    "bit": flip_a_bit,
    "part": lambda step: shutil.rmtree(step / "model/ocdbt.process_0"),
    "model": lambda step: shutil.rmtree(step / "model"),
    "empty": empty,
    "manifest": lambda step: (step / "model/manifest.ocdbt").write_bytes(b"abc"),
    "metadata": lambda step: (step / "_CHECKPOINT_METADATA").write_bytes(b""),
    "metrics": lambda step: (step / "metrics/metrics").write_bytes(b""),
    "no metrics": lambda step: (step / "metrics/metrics").unlink(),
    "checksums": lambda step: (step / "checksums.json").write_bytes(b"{}"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_training_continues_from_the_newest_good_checkpoint(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, {1: 0.1, 2: None, 3: 0.4})
    DAMAGE[kind](tmp_path / "3")
    damaged = {path.relative_to(tmp_path / "3") for path in (tmp_path / "3").rglob("*")}
    with CheckpointWriter(tmp_path, keep=2) as writer:
        assert (writer.steps, writer.best) == ([1, 2], 1)
        restored = writer.restore(state_at(0))
        jax.tree.map(np.testing.assert_array_equal, restored, state_at(2))
        said = capsys.readouterr().out
        assert f"{tmp_path}/3" in said
        assert f"checkpoint 3 is now {tmp_path}/3.damaged\n" in said
        assert "training continues from step 2: steps 3 to 3 are lost\n" in said
        writer.save(state_at(3), 0.4)
    assert CheckpointReader(tmp_path).steps == [2, 3]
    # The remains of the damaged checkpoint are kept, because they may still be useful.
    aside = tmp_path / "3.damaged"
    assert {path.relative_to(aside) for path in aside.rglob("*")} == damaged
    with CheckpointWriter(tmp_path) as writer:
        assert writer.latest == 3
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["truncated", "bit", "part", "model", "empty", "manifest"])
def test_a_reader_refuses_a_damaged_checkpoint_and_loads_the_others(
    kind: str, tmp_path: Path
) -> None:
    reader = save(tmp_path, {1: 0.1, 2: 0.3})
    DAMAGE[kind](tmp_path / "2")
    before = listing(tmp_path)
    with pytest.raises(DamagedError, match=rf"{tmp_path}/2.* (is damaged|is missing|be read) ?"):
        reader.restore(state_at(0))
    params, _ = reader.restore_model((state_at(0).params, {}), 1)
    jax.tree.map(np.testing.assert_array_equal, params, state_at(1).params)
    assert listing(tmp_path) == before


def test_one_flipped_bit_in_any_file_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged optimizer does not keep the model from being used."""
    monkeypatch.setattr(checkpoint, "DELETION_SECONDS", 0.0)
    reader = save(tmp_path, {1: 0.5})
    for path in sorted(path for path in (tmp_path / "1").rglob("*") if path.is_file()):
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            flipped = bytearray(content)
            flipped[place] ^= 1 << (place % 8)
            path.write_bytes(flipped)
            with pytest.raises(DamagedError):
                reader.best if "metrics" in path.parts else reader.restore(state_at(0))
            if "optimizer" in path.parts:
                reader.restore_model((state_at(0).params, {}), 1)
        path.write_bytes(content)
    assert reader.best == 1
    reader.restore(state_at(0))


def test_a_checkpoint_without_checksums_is_loaded_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Earlier versions saved no checksums."""
    reader = save(tmp_path, {1: 0.5})
    (tmp_path / "1/checksums.json").unlink()
    reader.restore(state_at(0))
    note = f"note: {tmp_path}/1 has no checksums, so it is not verified\n"
    assert capsys.readouterr().out == note
    with CheckpointWriter(tmp_path) as writer:
        writer.restore(state_at(0))
    assert capsys.readouterr().out == note


def test_without_a_good_checkpoint_nothing_is_trained_or_renamed(tmp_path: Path) -> None:
    save(tmp_path, {1: 0.5, 2: 0.6})
    for step in (1, 2):
        flip_a_bit(tmp_path / str(step))
    before = listing(tmp_path)
    with pytest.raises(UserError, match=r"/2/model/.* is damaged .* no other checkpoint can"):
        CheckpointWriter(tmp_path)
    assert listing(tmp_path) == before


def test_a_run_is_loaded_from_another_checkpoint_than_the_damaged_one(
    trained_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    flip_a_bit(run / "checkpoints/6")
    with pytest.raises(
        ArgumentError,
        match=r"checkpoint \(=latest\) cannot be loaded: .*/6/model/.* is damaged .*; choose "
        r"another of the run's checkpoints 3, 6",
    ):
        load_run(run)
    empty(run / "checkpoints/6")
    (run / "checkpoints/6/metrics").mkdir()
    (run / "checkpoints/6/metrics/metrics").write_text("")
    assert load_run(run, "3").step == 3
    with pytest.raises(ArgumentError, match=r"\(=best\) .*/6/metrics/metrics is damaged"):
        load_run(run, "best")


def test_a_save_that_was_killed_before_its_checksums_is_whole(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint.checksums, "write_checksums", lambda folder: None)
    reader = save(tmp_path, {1: 0.5})
    jax.tree.map(np.testing.assert_array_equal, reader.restore(state_at(0)), state_at(1))


def test_checksums_that_cannot_be_written_end_the_training_in_one_line(
    tmp_path: Path, monkeypatch
) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.checksums, "write_checksums", full)
    with pytest.raises(UserError, match=r"could not save a checkpoint .*No space left on device"):
        save(tmp_path, {1: 0.5})


def test_a_score_is_added_to_a_checkpoint_that_was_saved_without_one(tmp_path: Path) -> None:
    save(tmp_path / "once", {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.6}, keep=1)
    again = tmp_path / "again"
    save(again, {1: 0.5, 2: None}, keep=1)
    with CheckpointWriter(again, keep=1) as writer:
        writer.add_score(2, float("nan"))  # as when it is saved, no score
        assert writer.best == 1
        writer.add_score(2, 0.9)
        writer.add_score(2, 0.1)  # it has one
        assert writer.best == 2
        writer.save(state_at(3), 0.7)
        writer.save(state_at(4), 0.6)
    assert CheckpointReader(again).steps == CheckpointReader(tmp_path / "once").steps == [2, 4]
    score = "2/metrics/metrics"
    assert (again / score).read_bytes() == (tmp_path / "once" / score).read_bytes()
    with CheckpointWriter(again) as writer:
        assert (writer.latest, writer.best) == (4, 2)
    flip_a_bit(again / "4")
    with CheckpointWriter(again) as writer:
        assert writer.latest == 2
