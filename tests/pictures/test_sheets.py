"""Sheets of predictions: their size, and the colours of each row."""

import numpy as np

from fcn_jax.data.voc import VOC_CLASSES
from fcn_jax.pictures.colours import WRONG_COLOUR
from fcn_jax.pictures.sheets import sheet
from tests.pictures.scene import draw_scene


def test_sheet_is_as_wide_for_any_image_and_grows_by_a_row():
    rows = []
    for height, width in ((97, 131), (200, 100), (32, 32)):
        image, label = draw_scene(height, width)
        rows.append((image, label, np.zeros_like(label), f"{height} by {width}"))
    sizes = [sheet(rows[:count], VOC_CLASSES).size for count in (1, 2, 3)]
    assert len({width for width, _ in sizes}) == 1
    assert sizes[0][1] < sizes[1][1] < sizes[2][1]


def test_sheet_shows_the_palettes_colours_of_truth_and_prediction():
    label = np.full((10, 10), 1, np.uint8)
    prediction = np.full((10, 10), 2, np.uint8)
    row = (np.full((10, 10, 3), 77, np.uint8), label, prediction, "a")
    page = np.asarray(sheet([row], VOC_CLASSES))
    middle = page[60]  # a line of pixels through the first row of pictures
    quarters = np.array_split(middle, 4)
    expected = [(77, 77, 77), (128, 0, 0), (0, 128, 0), WRONG_COLOUR]
    for quarter, colour in zip(quarters, expected, strict=True):
        assert tuple(quarter[len(quarter) // 2].tolist()) == colour
