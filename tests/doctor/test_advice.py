"""Settings suggested for a data set, against numbers worked out by hand."""

import numpy as np
import pytest

from fcn_jax.config import default_config
from fcn_jax.doctor.advice import advise, crop_px
from fcn_jax.doctor.examine import ImageReport, MaskReport
from fcn_jax.doctor.survey import Survey


@pytest.mark.parametrize(
    ("sizes", "crop"),
    [
        ([(375, 500)], (384, 512)),
        ([(375, 500), (120, 130), (111, 112)], (128, 128)),
        ([(1024, 2048)], (512, 512)),
        ([(20, 47)], (32, 32)),
        ([(48, 80)], (64, 96)),  # halves go up
    ],
)
def test_the_crop_is_the_median_image(sizes, crop):
    assert crop_px(np.array(sizes)) == crop


def survey_of(counts: list[list[int]], sizes: list[tuple[int, int]]) -> Survey:
    reports = []
    for index, (pixels, size) in enumerate(zip(counts, sizes, strict=True)):
        mask = MaskReport("mask", {label: n for label, n in enumerate(pixels) if n}, b"")
        reports.append(ImageReport(str(index), "train", size, "RGB", bytes([index]), {"": mask}))
    return Survey({"": ("ground", "thing")}, ("train", "val"), ("train",), reports)


def test_weights_are_suggested_if_classes_are_rare():
    config = default_config()
    config.augment.crop_px = (32, 64)
    survey = survey_of([[1900, 100], [2000, 0]], [(40, 50), (40, 50)])
    balanced, by_frequency, crop = advise(survey, config)
    assert balanced.setting == "--config.loss.class_weights=balanced"
    assert "thing has 2.5 % of the training pixels, ground 98 %" in balanced.reason
    # f is 3900/4000 of ground and 100/2000 of thing, in the one image that has it; median 0.5125.
    assert by_frequency.setting == "--config.loss.class_weights=0.526,10.2"
    assert crop.setting == "--config.augment.crop_px=32,64"
    assert crop.reason.startswith("unchanged")


def test_no_weights_if_classes_are_balanced():
    weights, crop = advise(survey_of([[1200, 800]], [(40, 50)]), default_config())
    assert weights.setting is None
    assert "no class weights are needed" in weights.reason
    assert crop.setting == "--config.augment.crop_px=32,64"


def test_a_canvas_is_suggested_if_one_image_is_huge():
    sizes = [(100, 100)] * 30 + [(1000, 2000)]
    *_, canvas = advise(survey_of([[1, 1]] * 31, sizes), default_config())
    # Rounded up to multiples of 32 these are 128² and 1024 × 2016, which is 126 times larger.
    assert canvas.setting == "--config.data.canvas_px=128,128"
    assert "2016 × 1024, 126.0 times as large" in canvas.reason
