"""Shapes in label maps: pixels counted by hand, and what is refused."""

import math

import numpy as np
import pytest

from fcn_jax.data.polygons import (
    Circle,
    draw_shapes,
    polygon,
    read_points,
    rectangle,
    run_lengths,
)


def drawn(*shapes, size=(8, 10)) -> np.ndarray:
    return draw_shapes([(shape, value) for value, shape in enumerate(shapes, start=1)], size)


def test_a_rectangle_of_whole_numbers_has_its_area():
    expected = np.zeros((8, 10))
    expected[3:5, 2:6] = 1
    np.testing.assert_array_equal(drawn(rectangle((2, 3), (6, 5))), expected)
    np.testing.assert_array_equal(drawn(rectangle((6, 5), (2, 3))), expected)


def test_a_pixel_belongs_to_a_rectangle_if_its_centre_does():
    # Centres at 1.5, 2.5, 3.5 are from 1.5 to below 3.6; rows 0.5 and 1.5 are from 0.4 to 1.6.
    assert np.argwhere(drawn(rectangle((1.5, 0.4), (3.6, 1.6)))).tolist() == [
        [0, 1],
        [0, 2],
        [0, 3],
        [1, 1],
        [1, 2],
        [1, 3],
    ]


def test_a_triangle():
    # In row y the centres left of x = 4 − (y + 0.5): 3, 2, 1 and 0 of them.
    label = drawn(polygon([(0, 0), (4, 0), (0, 4)]))
    assert label.sum(axis=1).tolist() == [3, 2, 1, 0, 0, 0, 0, 0]


def test_polygons_that_share_an_edge_neither_overlap_nor_leave_a_gap():
    corners = [(0.3, 0.2), (9.7, 1.1), (9.1, 7.9), (0.6, 6.4)]
    whole = drawn(polygon(corners))
    above, below = (drawn(polygon([corners[i] for i in three])) for three in ((0, 1, 2), (0, 2, 3)))
    assert not (above & below).any()
    np.testing.assert_array_equal(above | below, whole)


def test_a_polygon_that_crosses_itself_is_filled_by_the_even_odd_rule():
    # A path twice around the inner square: it is outside.
    outer_and_inner = [
        (0, 0),
        (6, 0),
        (6, 6),
        (0, 6),
        (0, 0),
        (2, 2),
        (4, 2),
        (4, 4),
        (2, 4),
        (2, 2),
    ]
    label = drawn(polygon(outer_and_inner))
    assert label.sum() == 36 - 4
    assert not label[2:4, 2:4].any()


def test_a_circle():
    # Around (5, 4), with radius 2: rows 2 to 5 have 2, 4, 4 and 2 centres within.
    assert drawn(Circle((5, 4), 2)).sum(axis=1).tolist() == [0, 0, 2, 4, 4, 2, 0, 0]


def test_what_is_outside_of_the_image_is_cut_off():
    assert drawn(rectangle((-5, -5), (2, 1))).sum() == 2
    assert drawn(rectangle((9, 7), (50, 50))).sum() == 1
    assert drawn(rectangle((20, 20), (30, 30))).sum() == 0
    assert drawn(Circle((0, 0), 2)).sum() == 3
    assert drawn(polygon([(-10, -10), (40, -10), (40, 40), (-10, 40)])).sum() == 80


def test_later_shapes_cover_earlier_ones():
    label = drawn(rectangle((0, 0), (4, 4)), rectangle((2, 2), (6, 6)))
    assert np.bincount(label.ravel()).tolist() == [80 - 28, 12, 16]


def test_run_lengths_go_down_the_columns():
    label = drawn(run_lengths([6, 3, 71], [8, 10]))
    assert np.argwhere(label).tolist() == [[0, 1], [6, 0], [7, 0]]


@pytest.mark.parametrize(
    ("text", "counts"),
    [("32[2", (3, 2, 75)), ("1251P2", (1, 2, 5, 3, 69)), ("165Ml1", (1, 6, 5, 3, 65))],
)
def test_compressed_run_lengths(text, counts):
    """Encoded by hand after rleToString in COCO's maskApi.c."""
    assert run_lengths(text, [8, 10]).counts == counts


@pytest.mark.parametrize("size", [(8, 10), (1, 1), (30, 17)])
def test_compressed_run_lengths_of_pycocotools(size):
    mask = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    label = (np.random.default_rng(3).random(size) < 0.4).astype(np.uint8)
    counts = mask.encode(np.asfortranarray(label))["counts"].decode()
    np.testing.assert_array_equal(drawn(run_lengths(counts, list(size)), size=size), label)


@pytest.mark.parametrize(
    ("counts", "size", "message"),
    [
        ([3, 2], [8, 10], "have 5 pixels in all, not 8 × 10"),
        ([-1, 81], [8, 10], "not whole numbers from 0"),
        ([1.5, 78.5], [8, 10], "not whole numbers from 0"),
        (None, [8, 10], "not whole numbers from 0"),
        ("32[", [8, 10], "damaged"),
        ("ooooooooooooooooo", [8, 10], "damaged"),
        ("é", [8, 10], "damaged"),
        ([80], [8], "not \\[height, width\\]"),
        ([10**18], [10**9, 10**9], "not \\[height, width\\]"),
    ],
)
def test_unusable_run_lengths(counts, size, message):
    with pytest.raises(ValueError, match=message):
        run_lengths(counts, size)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([[0, 0], [1, math.nan]], "a coordinate of nan"),
        ([[0, 0], [1, math.inf]], "a coordinate of inf"),
        ([[0, 0], [1, 1e9]], "a coordinate of 1000000000.0, which is not between ±32768"),
        ([[0, 0], [1, 10**4000]], "a coordinate of 1000"),
        ([[0, 0], [1, "2"]], "'2' is not a coordinate"),
        ([[0, 0], [1, True]], "'True' is not a coordinate"),
        ([[0, 0, 0]], "is not a point"),
        ([3], "3 is not a point"),
        (None, "there are no points"),
    ],
)
def test_unusable_points(points, message):
    with pytest.raises(ValueError, match=message):
        read_points(points)


def test_a_polygon_needs_three_points():
    with pytest.raises(ValueError, match="a polygon of 2 points, which has no area"):
        polygon([(0, 0), (1, 1)])
