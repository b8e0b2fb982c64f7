"""The weights of borders between objects, against distances by hand and by brute force."""

import numpy as np
import pytest
from scipy import ndimage

from fcn_jax.data.borders import LEVELS, WithBorders, border_map


def level(sum_of_distances: float, sigma_px: float) -> float:
    return LEVELS * np.exp(-(sum_of_distances**2) / (2 * sigma_px**2))


def test_a_gap_of_three_pixels() -> None:
    label = np.zeros((5, 12), np.uint8)  # 0 is the border
    label[:, :4] = 1
    label[:, 7:] = 2
    found = border_map(label, 0, sigma_px=5)
    # At every pixel of the gap the distances to both objects add up to 4.
    assert (found[:, 4:7] == round(level(4, 5))).all()
    assert not found[:, :4].any()
    assert not found[:, 7:].any()


def test_the_border_of_a_single_object_and_far_gaps_have_no_weight() -> None:
    label = np.zeros((9, 60), np.uint8)
    label[4, 2:5] = 1
    assert not border_map(label, 0, sigma_px=3).any()
    label[4, 55:58] = 1
    assert not border_map(label, 0, sigma_px=3).any()


@pytest.mark.parametrize("sigma_px", [1.5, 4.0])
def test_any_objects(sigma_px: float) -> None:
    random = np.random.default_rng(0)
    label = (ndimage.gaussian_filter(random.normal(size=(60, 50)), 2) > -0.1).astype(np.uint8)
    label[random.random(label.shape) < 0.01] = 255
    objects, count = ndimage.label((label != 1) & (label != 255))
    assert count > 5
    place = np.stack(np.mgrid[: label.shape[0], : label.shape[1]], axis=-1)
    distances = np.stack(
        [
            np.linalg.norm(place[:, :, None] - np.argwhere(objects == number), axis=-1).min(-1)
            for number in range(1, count + 1)
        ]
    )
    nearest, second, *_ = np.sort(distances, axis=0)
    expected = np.where(label == 1, level(nearest + second, sigma_px), 0)
    found = border_map(label, 1, sigma_px)
    np.testing.assert_allclose(found, expected, atol=0.51)
    assert found.max() > 100 or sigma_px < 2


def test_records_carry_the_map_behind_their_label_maps() -> None:
    label = np.zeros((6, 7), np.uint8)
    label[:, :2], label[:, 4:] = 1, 1
    image = np.zeros((6, 7, 3), np.uint8)
    maps = np.stack([label, 1 - label], axis=-1)
    records = WithBorders(
        [{"image": image, "label": label}, {"image": image, "label": maps}], 0, 2.0
    )
    assert len(records) == 2
    expected = border_map(label, 0, 2.0)
    for index, before in enumerate((label[..., None], maps)):
        found = records[index]["label"]
        np.testing.assert_array_equal(found, np.concatenate([before, expected[..., None]], -1))
        assert found.dtype == np.uint8
