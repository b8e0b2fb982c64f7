import math

import numpy as np
import pytest

from fcn_jax.evaluation import bootstrap
from fcn_jax.evaluation.bootstrap import (
    Interval,
    describe,
    intervals,
    intervals_of_difference,
    percentile_interval,
    rare_classes,
    resample,
)
from fcn_jax.evaluation.image_counts import ImageCounts
from fcn_jax.evaluation.metrics import scores


def numbered(confusions: np.ndarray) -> ImageCounts:
    return ImageCounts.of([f"{i}" for i in range(len(confusions))], confusions)


def some_confusions(images: int, k: int, seed: int) -> np.ndarray:
    """Random confusion matrices of images that contain about a third of the classes each."""
    random = np.random.default_rng(seed)
    shown = random.random((images, k, 1)) < 0.3
    return shown * random.integers(0, 90, (images, k, k))


def test_agrees_with_scoring_each_resample_alone():
    confusions = some_confusions(images=4, k=3, seed=0)
    confusions[:2] = 0  # all void
    resampled = resample(numbered(confusions), resamples=50, seed=7)
    drawn = np.random.default_rng(7).integers(4, size=(50, 4))
    one_by_one = [scores(sum(confusions[i] for i in row)) for row in drawn]
    for name in ("mean_iou", "pixel_accuracy", "per_class_iou"):
        expected = np.array([getattr(result, name) for result in one_by_one])
        np.testing.assert_allclose(getattr(resampled, name), expected, rtol=1e-12)
    # A class and a whole resample without valid pixels occur.
    assert np.isnan(resampled.per_class_iou).any()
    assert np.isnan(resampled.mean_iou).any()


def test_chunks_of_resamples_are_the_same_as_all_at_once(monkeypatch):
    counts = numbered(some_confusions(images=9, k=4, seed=1))
    whole = resample(counts, resamples=20)
    monkeypatch.setattr(bootstrap, "_CHUNK_WEIGHTS", 9 * 3)
    np.testing.assert_equal(vars(resample(counts, resamples=20)), vars(whole))
    monkeypatch.setattr(bootstrap, "_CHUNK_WEIGHTS", 1)
    np.testing.assert_equal(vars(resample(counts, resamples=20)), vars(whole))


def test_the_seed_decides_the_draws():
    counts = numbered(some_confusions(images=9, k=4, seed=1))
    again = resample(counts, resamples=20, seed=3)
    np.testing.assert_equal(vars(resample(counts, resamples=20, seed=3)), vars(again))
    assert (resample(counts, resamples=20, seed=4).mean_iou != again.mean_iou).any()


def test_identical_images_have_intervals_of_width_zero():
    counts = numbered(np.tile(np.array([[6, 2], [4, 4]]), (30, 1, 1)))
    result = intervals(counts)
    # The IoUs are 6 / 12 and 4 / 10, as those of a single image.
    assert result.per_class_iou == (Interval(0.5, 0.5), Interval(0.4, 0.4))
    assert result.mean_iou == pytest.approx(Interval(0.45, 0.45), abs=1e-15)
    assert result.pixel_accuracy == Interval(10 / 16, 10 / 16)


def test_two_images_by_hand():
    # A single class: 1 of 2 pixels is correct in the first image, 9 of 10 in the second. A resample
    # contains the first twice (1/4), the second twice (1/4) or both (1/2), with the IoU 1/2, 9/10
    # or 10/12, so the middle 95 % extends from the smallest to the largest.
    counts = numbered(np.array([[[0, 0], [1, 1]], [[0, 0], [1, 9]]]))
    resampled = resample(counts, resamples=4000)
    values, times = np.unique(resampled.per_class_iou[:, 1], return_counts=True)
    np.testing.assert_allclose(values, [1 / 2, 10 / 12, 9 / 10])
    np.testing.assert_allclose(times / 4000, [1 / 4, 1 / 2, 1 / 4], atol=0.03)
    result = intervals(counts)
    assert result.per_class_iou[1] == pytest.approx((1 / 2, 9 / 10))
    assert result.mean_iou == result.per_class_iou[1]
    assert all(math.isnan(bound) for bound in result.per_class_iou[0])


def test_percentiles_by_hand():
    values = np.append(np.arange(201) / 200, math.nan)  # in steps of half a percent
    assert percentile_interval(values) == pytest.approx((0.025, 0.975))


def test_intervals_contain_the_true_scores_as_often_as_their_level():
    random = np.random.default_rng(5)

    def draw(images: int) -> ImageCounts:
        shown = random.random((images, 3)) < [1, 0.5, 0.2]
        truth = shown * random.integers(100, 1000, (images, 3))
        hits = np.rint(truth * random.beta(4, [1, 2, 4], (images, 3))).astype(np.int64)
        # Wrong pixels are predicted as the next class.
        predicted = hits + np.roll(truth - hits, 1, axis=1)
        return ImageCounts(tuple(map(str, range(images))), hits, truth, predicted)

    truth = draw(200_000).total
    held = []
    for _ in range(300):
        result = intervals(draw(100))
        pairs = [
            (result.mean_iou, truth.mean_iou),
            (result.pixel_accuracy, truth.pixel_accuracy),
            (result.per_class_iou[0], truth.per_class_iou[0]),
        ]
        held.append([low <= value <= high for (low, high), value in pairs])
    # ± 0.03 is 2.4 standard errors of a share of 0.95 in 300.
    np.testing.assert_allclose(np.mean(held, axis=0), 0.95, atol=0.03)


def test_differences_are_taken_on_the_same_images():
    # The first network has i + 1 of the 20 pixels of image i correct, the second one more: in every
    # resample pixel accuracy differs by exactly 1 / 20, while that of each network varies widely.
    right = np.arange(1, 11)
    a, b = (numbered(np.array([[[n, 20 - n], [0, 0]] for n in right + more])) for more in (0, 1))
    difference = intervals_of_difference(a, b)
    assert difference.pixel_accuracy == pytest.approx((1 / 20, 1 / 20))
    alone = intervals(a).pixel_accuracy
    assert alone.high - alone.low > 0.1
    assert intervals_of_difference(b, a).mean_iou == pytest.approx((-1 / 20, -1 / 20))


def test_one_image_has_no_interval_and_no_image_is_an_error():
    counts = numbered(np.array([[[3, 1], [0, 4]]]))
    result = intervals(counts)
    bounds = [*result.mean_iou, *result.pixel_accuracy, *np.ravel(result.per_class_iou)]
    assert np.isnan(bounds).all()
    assert len(result.per_class_iou) == 2
    with pytest.raises(ValueError, match="at least one image"):
        intervals(numbered(np.zeros((0, 2, 2), np.int64)))
    with pytest.raises(ValueError, match="same images"):
        intervals_of_difference(counts, numbered(np.ones((2, 2, 2), np.int64)))


def test_a_score_and_its_interval_in_a_line():
    assert describe("mIoU", 0.2190, Interval(0.2013, 0.2341), 445) == (
        "mIoU 21.9 % (95 % interval 20.1 to 23.4 over 445 images)"
    )
    none = Interval(math.nan, math.nan)
    assert describe("mIoU", 0.5, none, 1) == "mIoU 50.0 % (1 image: no interval)"
    assert describe("mIoU", math.nan, none, 3) == "mIoU – (no valid pixel)"


def test_classes_in_few_images_are_named():
    confusions = np.zeros((9, 3, 3), np.int64)
    confusions[:, 0, 0] = 1
    confusions[:4, 1, 2] = 1
    line = rare_classes(numbered(confusions), ["sky", "road", "boat"])
    assert line == "few images show road (4): the interval of mIoU is rough"
    confusions[4, 1, 2] = 1
    assert rare_classes(numbered(confusions), ["sky", "road", "boat"]) is None
    # Such a class is missing from a share of (1 − 4/n)ⁿ, about e⁻⁴, of the resamples.
    many = np.zeros((400, 2, 2), np.int64)
    many[:, 0, 0] = 1
    many[:4, 1, 1] = 1
    missing = np.isnan(resample(numbered(many), resamples=20_000).per_class_iou[:, 1]).mean()
    assert missing == pytest.approx(math.exp(-4), abs=0.004)
