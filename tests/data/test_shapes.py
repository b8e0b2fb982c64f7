"""The data set of drawn shapes."""

import numpy as np

from fcn_jax.data import shapes
from fcn_jax.data.labels import IGNORE_INDEX


def test_a_name_always_gives_the_same_picture():
    image, label = shapes.draw("train_000")
    again, label_again = shapes.draw("train_000")
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(label, label_again)
    other, _ = shapes.draw("val_000")
    assert image.shape != other.shape or (image != other).any()


def test_pictures_hold_all_classes_void_borders_and_sizes():
    pictures = [shapes.draw(f"train_{index:03}") for index in range(40)]
    counts = np.zeros(256, np.int64)
    for image, label in pictures:
        assert image.dtype == label.dtype == np.uint8
        assert image.shape == (*label.shape, 3)
        assert min(label.shape) >= 96
        assert max(label.shape) <= 160
        counts += np.bincount(label.reshape(-1), minlength=256)
    assert set(np.flatnonzero(counts)) == {*range(len(shapes.CLASSES)), IGNORE_INDEX}
    shares = counts / counts.sum()
    assert 0.5 < shares[0] < 0.8
    assert (shares[1:6] > 0.03).all()
    assert len({label.shape for _, label in pictures}) > 30


def test_void_lies_between_an_object_and_the_ground():
    _, label = shapes.draw("train_003")
    left, right = label[:, :-1], label[:, 1:]
    assert not ((left == 0) & (right != 0) & (right != IGNORE_INDEX)).any()


def test_the_border_is_some_two_pixels_wide():
    widths = []
    for index in range(10):
        _, label = shapes.draw(f"train_{index:03}")
        void = label == IGNORE_INDEX
        touching = np.zeros_like(void)
        for axis in (0, 1):
            for step in (-1, 1):
                touching |= np.roll(label, step, axis) == 0
        widths.append(void.sum() / (void & touching).sum())
    assert 1.5 < np.mean(widths) < 3
