"""Batches of canvases: every image once an epoch, starting at any step."""

import dataclasses
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from fcn_jax.data.canvases import Bucket
from fcn_jax.data.pipeline import evaluation_batches, training_batches


@dataclasses.dataclass
class Numbered:
    """Images of different sizes, filled with their index. Can be pickled."""

    count: int
    side: int = 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        height, width = (self.side,) * 2 if self.side else (3 + index, 5)
        label = np.full((height, width), index, np.uint8)
        return {"image": np.stack([label] * 3, -1), "label": label, "name": str(index)}


def batches(records, batch_size=2, workers=0, canvas_px=(12, 8), steps=range(100)):
    return training_batches(
        records,
        canvas_px=canvas_px,
        batch_size=batch_size,
        seed=3,
        workers=workers,
        steps=steps,
    )


def numbers(batch):
    return batch["label"][:, 0, 0].tolist()


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_every_image_comes_once_an_epoch_in_ever_new_order(batch_size):
    reader = batches(Numbered(6), batch_size)
    parts = range(6 // batch_size)
    epochs = [[n for _ in parts for n in numbers(next(reader))] for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(6))] * 3
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]


def test_an_image_lies_at_the_top_left_with_void_around_it():
    batch = next(batches(Numbered(6)))
    for image, label, (height, width), number in zip(
        batch["image"], batch["label"], batch["size"], numbers(batch), strict=True
    ):
        assert (height, width) == (3 + number, 5)
        assert (label[:height, :width] == number).all()
        assert (image[:height, :width] == number).all()
        outside = label.copy()
        outside[:height, :width] = 255
        assert (outside == 255).all()


def test_a_window_of_a_larger_image_fills_the_canvas():
    batch = next(batches(Numbered(6, side=40)))
    assert batch["label"].shape == (2, 12, 8)
    assert (batch["label"] < 6).all()
    assert batch["size"].tolist() == [[12, 8]] * 2


@dataclasses.dataclass
class WithDepthAndParts(Numbered):
    """`Numbered` with a fourth channel of 100 and a second label map of 200."""

    def __getitem__(self, index):
        record = super().__getitem__(index)
        image = np.pad(record["image"], [(0, 0), (0, 0), (0, 1)], constant_values=100)
        label = np.stack([record["label"], np.full_like(record["label"], 200)], -1)
        return {**record, "image": image, "label": label}


@pytest.mark.parametrize("side", [0, 40])
def test_extra_channels_and_label_maps_are_on_the_canvas(side):
    plain = next(batches(Numbered(6, side)))
    batch = next(batches(WithDepthAndParts(6, side)))
    np.testing.assert_array_equal(batch["image"][..., :3], plain["image"])
    np.testing.assert_array_equal(batch["label"][..., 0], plain["label"])
    inside = plain["label"] != 255
    np.testing.assert_array_equal(batch["image"][..., 3], np.where(inside, 100, 0))
    np.testing.assert_array_equal(batch["label"][..., 1], np.where(inside, 200, 255))


def test_the_last_scored_batch_is_filled_with_void_in_every_map():
    records = WithDepthAndParts(3)
    *_, last = evaluation_batches(records, [Bucket((8, 8), (0, 1, 2))], batch_size=2)
    assert last.images == (2,)
    assert list(last.records) == [2]
    assert last.canvases["image"].shape == (2, 8, 8, 4)
    assert (last.canvases["label"][1] == 255).all()
    assert (last.canvases["label"][0, :5, :5] == [2, 200]).all()


def test_hosts_share_every_batch_and_agree_on_its_images(monkeypatch):
    records = Numbered(7)
    buckets = [Bucket((12, 8), (0, 2, 4, 6, 1)), Bucket((16, 8), (3, 5))]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    by_host = []
    for host in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        by_host.append(list(evaluation_batches(records, buckets, batch_size=2)))
    assert [batch.images for batch in by_host[0]] == [(0, 2, 4, 6), (1,), (3, 5)]
    assert [batch.images for batch in by_host[1]] == [batch.images for batch in by_host[0]]
    assert [list(batch.records) for batch in by_host[0]] == [[0, 2], [1], [3, 5]]
    assert [list(batch.records) for batch in by_host[1]] == [[4, 6], [], []]
    for first, second in zip(*by_host, strict=True):
        labels = np.concatenate([first.canvases["label"], second.canvases["label"]])
        for place, index in enumerate(first.images):
            height, width = records[index]["label"].shape
            np.testing.assert_array_equal(labels[place, :height, :width], records[index]["label"])
        assert (labels[len(first.images) :] == 255).all()


KILLED = """
import os, signal
import numpy as np
from fcn_jax.data.pipeline import training_batches
record = {"image": np.zeros((8, 8, 3), np.uint8), "label": np.zeros((8, 8), np.uint8)}
options = dict(canvas_px=(8, 8), batch_size=2, seed=0, workers=1, steps=range(10**6))
batches = training_batches([record] * 4, **options)
next(batches)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_workers_of_a_killed_process_end():
    """They hold its output open, which is read to its end."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED], capture_output=True, timeout=60, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr


@pytest.mark.parametrize(("workers", "side"), [(0, 40), (1, 40)])
def test_an_iterator_begins_at_any_step(workers, side):
    """Threads and processes give the batches, windows included, of an iterator from step 0."""
    expected = list(batches(Numbered(6, side), steps=range(7)))
    assert len(expected) == 7
    reader = batches(Numbered(6, side), workers=workers, steps=range(4, 7))
    for batch, wanted in zip(reader, expected[4:], strict=True):
        assert batch.keys() == wanted.keys()
        for name, values in batch.items():
            np.testing.assert_array_equal(values, wanted[name])
    reader.close()


def test_no_steps_take_no_batches():
    assert list(batches(Numbered(6), steps=range(5, 5))) == []


def test_hosts_share_a_training_batch(monkeypatch):
    whole = list(batches(Numbered(7), batch_size=4, steps=range(3)))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for host in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        own = list(batches(Numbered(7), batch_size=4, steps=range(3)))
        assert [numbers(batch) for batch in own] == [
            numbers(batch)[2 * host : 2 * host + 2] for batch in whole
        ]


def test_every_image_is_scored_once_and_the_last_batch_is_filled_with_void():
    class Records:
        def __len__(self):
            return 5

        def __getitem__(self, index):
            side = 4 + index
            label = np.full((side, 3), index, np.uint8)
            return {"image": np.zeros((side, 3, 3), np.uint8), "label": label, "name": str(index)}

    buckets = [Bucket((6, 3), (0, 2)), Bucket((8, 4), (1, 3, 4))]
    batches = list(evaluation_batches(Records(), buckets, batch_size=2))
    assert [batch.images for batch in batches] == [(0, 2), (1, 3), (4,)]
    assert [[r["name"] for r in batch.records.values()] for batch in batches] == [
        ["0", "2"],
        ["1", "3"],
        ["4"],
    ]
    assert [b.canvases["label"].shape for b in batches] == [(2, 6, 3), (2, 8, 4), (2, 8, 4)]
    last = batches[-1].canvases
    assert last["size"].tolist() == [[8, 3], [8, 4]]
    assert (last["label"][0, :, :3] == 4).all()
    assert (last["label"][0, :, 3] == 255).all()
    assert (last["label"][1] == 255).all()
