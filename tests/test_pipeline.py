"""Batches of canvases: every image once an epoch, and resumed where they stood."""

import dataclasses

import numpy as np
import pytest

from fcn_jax.data.pipeline import training_batches


@dataclasses.dataclass
class Numbered:
    """Images of one colour, their number, and of different sizes. Can be pickled."""

    count: int
    side: int = 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        height, width = (self.side,) * 2 if self.side else (3 + index, 5)
        label = np.full((height, width), index, np.uint8)
        return {"image": np.stack([label] * 3, -1), "label": label, "name": str(index)}


def batches(records, batch_size=2, workers=0, canvas_px=(12, 8)):
    return training_batches(
        records, canvas_px=canvas_px, batch_size=batch_size, seed=3, workers=workers
    )


def numbers(batch):
    return batch["label"][:, 0, 0].tolist()


def test_every_image_comes_once_an_epoch_in_ever_new_order():
    reader = batches(Numbered(6))
    epochs = [[n for _ in range(3) for n in numbers(next(reader))] for _ in range(3)]
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


def test_of_a_larger_image_a_window_fills_the_canvas():
    batch = next(batches(Numbered(6, side=40)))
    assert batch["label"].shape == (2, 12, 8)
    assert (batch["label"] < 6).all()
    assert batch["size"].tolist() == [[12, 8]] * 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_restored_iterator_goes_on_where_it_stood(workers):
    expected = [numbers(batch) for batch, _ in zip(batches(Numbered(6)), range(7), strict=False)]
    reader = batches(Numbered(6), workers=workers)
    begun = [numbers(next(reader)) for _ in range(4)]
    state = reader.get_state()
    again = batches(Numbered(6), workers=workers)
    again.set_state(state)
    assert begun + [numbers(next(again)) for _ in range(3)] == expected
    reader.close()
    again.close()
