"""Where training's images come from: what is chosen, what is said of it, and that it changes
nothing."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from fcn_jax import feed
from fcn_jax.config import Config, default_config
from fcn_jax.errors import UserError
from fcn_jax.feed import Resident, Streamed, open_feed, stretches
from fcn_jax.predict import load_run
from fcn_jax.step import TrainState
from fcn_jax.train import train
from tests.own_folder import small_config, write_folder

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


def opened(records: Blank, cache: str = "auto", **data: Any) -> feed.Feed:
    config = default_config()
    config.data.cache = cache
    for name, value in data.items():
        setattr(config.data, name, value)

    def count(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        return TrainState(state.step + 1, {}, {}, {}), {"images": batch["size"].shape[0]}

    return open_feed(count, records, np.full((len(records), 2), SIDE), config, range(50))


def test_auto_keeps_what_takes_a_quarter_of_the_free_memory(monkeypatch, capsys):
    monkeypatch.setattr(feed, "_free_bytes", lambda: 4 * 10 * CANVAS_BYTES)
    kept = opened(Blank(10))
    assert isinstance(kept, Resident)
    assert "10 images lie on the device, 1 MB" in capsys.readouterr().out
    streamed = opened(Blank(11))
    assert isinstance(streamed, Streamed)
    assert (
        "11 images are streamed: they would take 1 MB, and may take a quarter of 3 MB that are free"
    ) in capsys.readouterr().out
    streamed.close()


def test_device_and_none_are_obeyed(monkeypatch, capsys):
    monkeypatch.setattr(feed, "_free_bytes", lambda: 11 * CANVAS_BYTES)
    assert isinstance(opened(Blank(11), "device"), Resident)
    streamed = opened(Blank(1), "none")
    assert isinstance(streamed, Streamed)
    assert "1 images are streamed, as config.data.cache=none asks" in capsys.readouterr().out
    streamed.close()
    with pytest.raises(UserError, match=r"config.data.cache=device cannot .* 1 MB, where 1 MB are"):
        opened(Blank(12), "device")


def test_parts_of_larger_images_are_streamed(capsys):
    streamed = opened(Blank(2), canvas_px=(128, 64))
    assert isinstance(streamed, Streamed)
    assert "of those larger than config.data.canvas_px another part" in capsys.readouterr().out
    streamed.close()
    with pytest.raises(UserError, match="cannot keep 2 images on the device: of those larger"):
        opened(Blank(2), "device", canvas_px=(128, 64))


def test_several_hosts_stream(monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert not feed._fits("auto", np.full((3, 2), SIDE), (128, 128), 1)
    assert "3 images are streamed: several hosts train together" in capsys.readouterr().out


def test_the_memory_of_this_machine_is_found():
    free = feed._free_bytes()
    assert free is not None
    assert 1e8 < free < 1e14


@pytest.mark.parametrize(("cache", "workers"), [("device", 0), ("none", 0), ("none", 1)])
def test_a_damaged_record_is_told_of_alike(cache, workers):
    def take_three_steps() -> None:
        held = opened(Blank(11, damaged=7), cache, workers=workers)
        state = TrainState(jax.numpy.int32(0), {}, {}, {})
        for _ in range(3):
            state, _ = held(state, 1)

    with pytest.raises(UserError) as raised:
        take_three_steps()
    assert str(raised.value) == "7.jpg: the image is damaged"


def test_no_stretch_passes_what_is_due():
    assert [list(steps) for steps in stretches(2, 13, 3, (5, 8))] == [
        [3, 4, 5],
        [6, 7, 8],
        [9],
        [10],
        [11, 12, 13],
    ]
    assert [len(steps) for steps in stretches(0, 4, 1, (2,))] == [1] * 4
    assert list(stretches(4, 4, 1, (2,))) == []


def test_a_streamed_step_is_compiled_once_and_takes_nothing_but_its_batch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    held = opened(Blank(3), "none")
    state = TrainState(jax.numpy.int32(0), {}, {}, {})
    compilations = []
    with jax.log_compiles():
        for _ in range(3):
            caplog.clear()
            # What is copied is copied by name: `device_put` of the batch and of the first state.
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
    write_folder(path / "data", [f"train_{n:03}" for n in range(7)])
    (path / "data/train.txt").write_text("".join(f"train_{n:03}\n" for n in range(5)))
    (path / "data/val.txt").write_text("train_005\ntrain_006\n")
    return path


def trained(folder: Path, name: str, *, cache: str, at_once: int = 1) -> tuple[Any, list[Any]]:
    """The variables that a run ends with, and the lines of its log."""
    config: Config = small_config(folder)
    config.data.cache = cache
    config.train.steps = 7
    config.train.steps_per_dispatch = at_once
    train(config, folder / name)
    lines = (folder / name / "log.jsonl").read_text().splitlines()
    numbers = [json.loads(line) for line in lines]
    for line in numbers:
        line.pop("images_per_second", None)
    return load_run(folder / name).variables, numbers


def test_a_run_ends_in_the_same_bits_however_it_is_fed(folder):
    kept, kept_lines = trained(folder, "kept", cache="device")
    streamed, streamed_lines = trained(folder, "streamed", cache="none")
    jax.tree.map(np.testing.assert_array_equal, streamed, kept)
    assert streamed_lines == kept_lines
    assert [line["step"] for line in kept_lines if line["kind"] == "train"] == list(range(1, 8))


def test_each_of_several_steps_at_once_is_logged(folder):
    """Two calls of three steps, and the seventh on its own."""
    _, expected = trained(folder, "singly", cache="device")
    _, lines = trained(folder, "thrice", cache="device", at_once=3)
    assert [(line["kind"], line["step"]) for line in lines] == [
        (line["kind"], line["step"]) for line in expected
    ]
    for line, wanted in zip(lines[:3], expected[:3], strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=1e-3)
