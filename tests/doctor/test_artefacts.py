"""Detection of interpolation and JPEG in label maps drawn by hand and resized by Pillow."""

import io

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data import shapes
from fcn_jax.doctor.artefacts import Artefact, find_artefact

DRAWN = [shapes.draw(f"train_{index:03}")[1] for index in range(20)]
SCALES = (0.5, 0.8, 1.3, 2, 4)


def stripes(height: int, width_of_one: int) -> np.ndarray:
    """Draws stripes of 0, 1 and 3 from left to right; without 1, a row crosses one contour."""
    label = np.zeros((height, 40), np.uint8)
    label[:, 20:] = 1
    label[:, 20 + width_of_one :] = 3
    return label


def scaled(label: np.ndarray, scale: float, method: Image.Resampling) -> np.ndarray:
    height, width = (round(side * scale) for side in label.shape)
    return np.asarray(Image.fromarray(label).resize((width, height), method))


def test_thin_lines_of_a_value_in_between():
    assert find_artefact(stripes(15, 3)) == Artefact("mask_interpolated", (1,))
    assert find_artefact(stripes(15, 3).T) == Artefact("mask_interpolated", (1,))
    assert find_artefact(stripes(15, 4)) is None  # too wide
    assert find_artefact(stripes(14, 3)) is None  # too few


def test_few_thin_lines_among_many_contours_are_drawn():
    """150 rows cross a contour, and 3 columns at the end of the thin line: 12 % are 18.36."""
    for ramps, is_found in ((18, False), (19, True)):
        label = np.concatenate([stripes(ramps, 3), stripes(150 - ramps, 0)])
        assert (find_artefact(label) is not None) == is_found


def test_thin_line_inside_one_class_is_no_ramp():
    label = stripes(40, 3)
    label[label == 3] = 0  # 0, 1, 0: a pole
    label[:5, :5] = 7
    assert find_artefact(label) is None


def test_scattered_single_pixels():
    label = stripes(40, 0)
    label[2:-2:4, 10] = (
        2  # 9 of them; the stripes' contour is crossed 40 times, each pixel's 4 times
    )
    assert find_artefact(label) is None
    label[4:-2:4, 10] = 2  # 18 of them
    artefact = find_artefact(label)
    assert artefact is not None
    assert artefact.kind == "mask_was_jpeg"


@pytest.mark.parametrize("scale", SCALES)
def test_nearest_neighbours_leave_no_artefact(scale):
    for label in DRAWN:
        assert find_artefact(scaled(label, scale, Image.Resampling.NEAREST)) is None


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_interpolation_is_detected(scale, method):
    for label in DRAWN:
        artefact = find_artefact(scaled(label, scale, method))
        assert artefact is not None
        # Halving with a cubic filter can look like JPEG.
        assert artefact.kind == "mask_interpolated" or (scale == 0.5 and method.name == "BICUBIC")


@pytest.mark.parametrize("quality", [50, 75, 95, 100])
def test_jpeg_is_detected(quality):
    for label in DRAWN:
        file = io.BytesIO()
        Image.fromarray(label).save(file, "JPEG", quality=quality)
        artefact = find_artefact(np.asarray(Image.open(file)))
        assert artefact is not None
        assert artefact.kind == "mask_was_jpeg"


def test_maps_without_intermediate_values():
    assert find_artefact(np.zeros((2, 2), np.uint8)) is None
    assert find_artefact(np.zeros((50, 50), np.uint8)) is None
    assert find_artefact(np.indices((50, 50)).sum(axis=0).astype(np.uint8) % 2 * 9) is None
