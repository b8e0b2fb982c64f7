"""Feeds: which one is chosen and why, and that all give the same batches."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.config import default_config
from fcn_jax.errors import UserError
from fcn_jax.models.build import init_model
from fcn_jax.models.pure_model import PureModel
from fcn_jax.parallel import hosts
from fcn_jax.train import train
from fcn_jax.training import feed
from fcn_jax.training.feed import Resident, Streamed, open_feed, step_chunks
from fcn_jax.training.train_step import TrainState
from tests.own_folder import small_config, write_split_folder

SIDE = 100
CANVAS_BYTES = 128 * 128 * (3 + 1) + 2 * 4


class Blank:
    """Images of zeros; the one of number `damaged` cannot be read."""

    def __init__(self, count: int, damaged: int = -1):
        self.count, self.damaged = count, damaged

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == self.damaged:
            raise UserError(f"{index}.jpg: the image is damaged")
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        return {"image": image, "label": image[..., 0], "name": str(index)}


def opened(
    records: Blank, cache: str = "auto", steps: int = 50, steps_per_call: int = 1, **data: Any
) -> feed.Feed:
    config = default_config()
    config.train.steps_per_dispatch = steps_per_call
    config.data.cache = cache
    for name, value in data.items():
        setattr(config.data, name, value)

    def count(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        return TrainState(state.step + 1, {}, {}, {}), {"images": batch["size"].shape[0]}

    return open_feed(count, records, np.full((len(records), 2), SIDE), config, range(steps))


def test_auto_keeps_what_takes_a_quarter_of_the_free_memory(monkeypatch, capsys):
    monkeypatch.setattr(feed, "free_bytes", lambda: 4 * 10 * CANVAS_BYTES)
    kept = opened(Blank(10))
    assert isinstance(kept, Resident)
    assert "10 images are kept in device memory, 1 MB" in capsys.readouterr().out
    streamed = opened(Blank(11))
    assert isinstance(streamed, Streamed)
    assert (
        "11 images are streamed: they would take 1 MB, more than a quarter of the 3 MB free"
    ) in capsys.readouterr().out
    streamed.close()


def test_device_and_none_are_obeyed(monkeypatch, capsys):
    monkeypatch.setattr(feed, "free_bytes", lambda: 11 * CANVAS_BYTES)
    assert isinstance(opened(Blank(11), "device"), Resident)
    streamed = opened(Blank(1), "none")
    assert isinstance(streamed, Streamed)
    assert "1 images are streamed: data.cache=none asks for it" in capsys.readouterr().out
    streamed.close()
    with pytest.raises(UserError, match=r"data.cache \(=device\) cannot .* 1 MB, and 1 MB are"):
        opened(Blank(12), "device")


def test_parts_of_larger_images_are_streamed(capsys):
    streamed = opened(Blank(2), canvas_px=(128, 64))
    assert isinstance(streamed, Streamed)
    assert "some are larger than data.canvas_px, of which another part" in capsys.readouterr().out
    streamed.close()
    with pytest.raises(UserError, match="cannot keep 2 images in device memory: some are larger"):
        opened(Blank(2), "device", canvas_px=(128, 64))


@pytest.mark.parametrize("times", [1, 2])
def test_killed_workers_are_started_again_with_the_same_batches(times, capsys):
    opened_at: list[range] = []

    def batches_of(steps: range) -> Any:
        opened_at.append(steps)
        for step in steps:
            if step == 2 and len(opened_at) <= times:  # as Grain does
                raise RuntimeError("Worker process was terminated unexpectedly with exit code -9.")
            yield {"size": np.full((jax.device_count(), 2), step)}

    def add_up(state: Any, batch: Any) -> tuple[Any, Any]:
        return state + batch["size"].sum() // 2, {}

    streamed = Streamed(add_up, batches_of, range(5))
    state = jnp.zeros((), jnp.int32)
    if times == 2:
        state, _ = streamed(state, 1)
        with pytest.raises(UserError, match=r"workers end again and again \(Worker process was"):
            streamed(state, 1)
        return
    for _ in range(5):
        state, _ = streamed(state, 1)
    assert state == (0 + 1 + 2 + 3 + 4)
    assert opened_at == [range(5), range(2, 5)]
    assert "started again (Worker process was terminated unexpectedly" in capsys.readouterr().out


def test_a_few_steps_do_not_wait_for_the_whole_set(capsys):
    opened(Blank(17), steps=2).close()
    assert "17 images are streamed: training draws no more than 16" in capsys.readouterr().out
    assert isinstance(opened(Blank(16), steps=2), Resident)


def why(cache: str, needed: int = 100, drawn: int = 8, side: int = SIDE) -> str:
    return feed.reason_to_stream(cache, np.full((8, 2), side), (128, 128), needed, drawn)


def test_the_reason_to_stream(monkeypatch):
    monkeypatch.setattr(feed, "free_bytes", lambda: 400)
    assert [why(cache, 100) for cache in ("auto", "device")] == ["", ""]
    quarter = "they would take 0 MB, more than a quarter of the 0 MB free"
    assert [why(cache, 101) for cache in ("auto", "device")] == [quarter, ""]
    assert [why(cache, 400) for cache in ("auto", "device")] == [quarter, ""]
    assert why("device", 401) == "they take 0 MB, and 0 MB are free"
    few = "training draws no more than 7 of them"
    assert [why(cache, drawn=7) for cache in ("auto", "device")] == [few, ""]
    assert why("auto", side=128) == ""
    for cache in ("auto", "device"):
        assert "another part is drawn" in why(cache, side=129)
    assert why("none") == "data.cache=none asks for it"
    monkeypatch.setattr(feed, "free_bytes", lambda: None)
    unknown = "the device does not report its memory"
    assert [why(cache) for cache in ("auto", "device")] == [unknown, ""]
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    monkeypatch.setattr(feed, "free_bytes", lambda: 2 * 10**9)
    assert why("device", 3 * 10**9) == (
        "they take 3.0 GB on each of 4 devices, and 2.0 GB are free"
    )


def test_all_hosts_stream_if_one_of_them_must(monkeypatch, capsys):
    monkeypatch.setattr(hosts, "gather", lambda reason: [reason, "the device is small"])
    opened(Blank(16)).close()
    assert "16 images are streamed: the device is small" in capsys.readouterr().out


def test_steps_in_one_call_are_not_left_out_silently(capsys):
    streamed = opened(Blank(2), "none", steps_per_call=5)
    streamed.close()
    assert streamed.steps_per_call == 1
    assert "train.steps_per_dispatch (=5) applies to images in device memory" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(("cache", "workers"), [("device", 0), ("none", 0), ("none", 1)])
def test_a_damaged_record_is_reported_alike(cache, workers):
    def take_three_steps() -> None:
        held = opened(Blank(11, damaged=7), cache, workers=workers)
        state = TrainState(jax.numpy.int32(0), {}, {}, {})
        for _ in range(3):
            state, _ = held(state, 1)

    with pytest.raises(UserError) as raised:
        take_three_steps()
    assert str(raised.value) == "7.jpg: the image is damaged"


def test_no_chunk_passes_a_step_with_something_due():
    assert [list(steps) for steps in step_chunks(2, 13, 3, (5, 8))] == [
        [3, 4, 5],
        [6, 7, 8],
        [9],
        [10],
        [11, 12, 13],
    ]
    assert [len(steps) for steps in step_chunks(0, 4, 1, (2,))] == [1] * 4
    assert list(step_chunks(4, 4, 1, (2,))) == []


def test_a_streamed_step_is_compiled_once_and_takes_nothing_but_its_batch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    held = opened(Blank(3), "none")
    state = TrainState(jax.numpy.int32(0), {}, {}, {})
    compilations = []
    with jax.log_compiles():
        for _ in range(3):
            caplog.clear()
            # Explicit copies are allowed: `device_put` of the batch and of the first state.
            with jax.transfer_guard("disallow"):
                given, (state, _) = state, held(state, 1)
            compilations.append(caplog.text.count("Finished XLA compilation"))
    assert given.step.is_deleted()
    assert compilations[0] > 0
    assert compilations[1:] == [0, 0]
    held.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fed")
    write_split_folder(path / "data")
    return path


def logged(folder: Path, name: str, **settings: Any) -> list[dict[str, Any]]:
    """The lines of the log of a run of seven steps."""
    config = small_config(folder)
    config.train.steps = 7
    for setting, value in settings.items():
        section, entry = setting.split("__")
        setattr(getattr(config, section), entry, value)
    train(config, folder / name)
    lines = (folder / name / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_logs_each_step_however_it_is_fed(folder, monkeypatch, capsys):
    """Streamed; and out of memory, twice three steps in one call and the seventh on its own."""
    traced = []

    def make_step(*_: Any) -> Any:
        def step(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
            traced.append(1)
            state = dataclasses.replace(state, step=state.step + 1)
            return state, {"loss": state.step / 2, "pixels": batch["image"].astype(float).sum()}

        return step

    monkeypatch.setattr("fcn_jax.train.make_train_step", make_step)
    runs = {
        "streamed": logged(folder, "streamed", data__cache="none"),
        "thrice": logged(folder, "thrice", train__steps_per_dispatch=3),
    }
    told = capsys.readouterr().out
    assert "leave train.steps_per_dispatch at 1" in told
    assert "is more than" not in told
    assert len(traced) == 3  # once to stream, in the loop, and for the single step
    pixels = []
    for lines in runs.values():
        of_training = [line for line in lines if line["kind"] == "train"]
        assert [(line["step"], line["loss"]) for line in of_training] == [
            (step, step / 2) for step in range(1, 8)
        ]
        assert [line["step"] for line in lines if line["kind"] == "eval"] == [3, 6, 7]
        pixels.append([line["pixels"] for line in of_training])
    assert pixels[0] == pixels[1]
    assert len(set(pixels[0])) > 1


def test_more_steps_per_call_than_between_evaluations_are_reported(folder, monkeypatch, capsys):
    monkeypatch.setattr("fcn_jax.train.make_train_step", counting_step)
    logged(folder, "four", train__steps_per_dispatch=4)
    assert (
        "train.steps_per_dispatch (=4) is more than the 3 steps between evaluations or "
        "checkpoints: each step is a call of its own"
    ) in capsys.readouterr().out


def test_the_initial_weights_are_freed_before_training(folder, monkeypatch):
    leaves: list[jax.Array] = []

    def remembered(*arguments: Any, **settings: Any) -> Any:
        model = init_model(*arguments, **settings)
        leaves.extend(jax.tree.leaves(PureModel(model).variables))
        return model

    def open_watched(*arguments: Any) -> feed.Feed:
        assert leaves
        assert all(leaf.is_deleted() for leaf in leaves)
        return open_feed(*arguments)

    monkeypatch.setattr("fcn_jax.train.make_train_step", counting_step)
    monkeypatch.setattr("fcn_jax.train.init_model", remembered)
    monkeypatch.setattr("fcn_jax.train.open_feed", open_watched)
    logged(folder, "deleted")


def counting_step(*_: Any) -> Any:
    def step(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        state = dataclasses.replace(state, step=state.step + 1)
        return state, {"loss": state.step / 2}

    return step
