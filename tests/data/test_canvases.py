"""Canvas sizes for images of many sizes: each image fits on its canvas, with little padding."""

from itertools import combinations

import numpy as np
import pytest

from fcn_jax.data.canvases import Bucket, choose_canvases, empty_share, fill_buckets, one_canvas

VOC_LIKE = np.array([[375, 500]] * 10 + [[500, 375]] * 4 + [[333, 500]] * 3 + [[500, 500]])


def test_two_orientations_get_a_canvas_each_and_the_odd_one_its_own():
    buckets = fill_buckets(VOC_LIKE, max_canvases=3)
    assert buckets == [
        Bucket((384, 512), (*range(10), 14, 15, 16)),
        Bucket((512, 384), (10, 11, 12, 13)),
        Bucket((512, 512), (17,)),
    ]
    # Worked out by hand: 10·375·500 + 4·500·375 + 3·333·500 + 500² of 17·384·512 + 512² pixels.
    assert empty_share(VOC_LIKE, buckets) == pytest.approx(1 - 3374500 / 3604480)


def test_a_canvas_that_saves_little_is_not_added():
    sizes = np.array([[320, 320]] * 99 + [[320, 288]])
    assert choose_canvases(sizes, max_canvases=4) == [(320, 320)]


def test_one_canvas_holds_all():
    assert choose_canvases(VOC_LIKE, max_canvases=1) == [(512, 512)]
    assert choose_canvases(np.array([[1, 1]]), max_canvases=3) == [(32, 32)]
    assert choose_canvases(np.array([[1, 7]]), max_canvases=3, multiple=1) == [(1, 7)]


def test_labels_of_another_size_get_a_canvas_of_their_own():
    sizes = np.array([[60, 60]] * 2 + [[60, 130]])
    labels = np.array([[10, 40], [33, 20], [7, 7]])
    first, second = fill_buckets(sizes, max_canvases=2, label_sizes=labels)
    assert (first.canvas_px, first.label_canvas_px) == ((64, 64), (64, 64))
    assert (second.canvas_px, second.label_canvas_px) == ((64, 160), (32, 32))


def test_the_canvas_for_all_is_rounded_up_to_a_multiple():
    sizes = np.array([[64, 50], [33, 65]])
    assert one_canvas(sizes) == (64, 96)
    assert one_canvas(sizes, multiple=1) == (64, 65)


def test_every_image_is_on_one_canvas_that_holds_it():
    sizes = np.random.default_rng(0).integers(1, 2000, (500, 2))
    for most in (1, 2, 5, 9):
        buckets = fill_buckets(sizes, max_canvases=most, batch_size=8)
        assert 1 <= len(buckets) <= most
        assert sorted(i for bucket in buckets for i in bucket.images) == list(range(500))
        for bucket in buckets:
            assert (sizes[list(bucket.images)] <= bucket.canvas_px).all()


def test_more_canvases_waste_less_and_nearly_the_least():
    """The result is compared with the best of all choices, found by trying each."""
    sizes = np.random.default_rng(1).integers(1, 9, (40, 2)) * 32
    sides = [sorted(set(sizes[:, axis])) for axis in (0, 1)]
    area = {}
    for most in (1, 2, 3):
        buckets = fill_buckets(sizes, max_canvases=most)
        area[most] = sum(bucket.area_px * len(bucket.images) for bucket in buckets)
    every = np.array([(height, width) for height in sides[0] for width in sides[1]])
    holds = np.all(sizes[:, None] <= every, axis=-1)
    cost = np.where(holds, every.prod(axis=1), 10**9)
    for most in (1, 2, 3):
        best = min(
            cost[:, list(some)].min(axis=1).sum() for some in combinations(range(len(every)), most)
        )
        assert best <= area[most] <= 1.1 * best
    assert area[3] < area[2] < area[1]


def test_incomplete_batches_move_to_a_larger_canvas_with_room():
    sizes = np.array([[64, 64]] * 5 + [[96, 96]] * 3)
    alone = fill_buckets(sizes, max_canvases=2)
    assert [bucket.images for bucket in alone] == [(0, 1, 2, 3, 4), (5, 6, 7)]
    # The fifth small image would need a batch of four; the batch of the large ones has room for it.
    together = fill_buckets(sizes, max_canvases=2, batch_size=4)
    assert [bucket.images for bucket in together] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    # Beside four large ones there is no room: one more would be a whole batch of large canvases.
    sizes = np.array([[64, 64]] * 5 + [[96, 96]] * 4)
    assert [len(b.images) for b in fill_buckets(sizes, max_canvases=2, batch_size=4)] == [5, 4]


def test_thousands_of_sizes_are_grouped():
    sizes = np.random.default_rng(2).integers(1, 20000, (5000, 2))
    buckets = fill_buckets(sizes, max_canvases=4)
    assert len(buckets) == 4
    assert empty_share(sizes, buckets) < empty_share(sizes, fill_buckets(sizes, max_canvases=1))
