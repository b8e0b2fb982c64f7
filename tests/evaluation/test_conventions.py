"""Each convention against its source: sizes, pixels, void, and the means of the scores."""

import math
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from fcn_jax.evaluation import metrics
from fcn_jax.evaluation.confusion import count_confusion
from fcn_jax.evaluation.conventions import (
    CITYSCAPES,
    D2L,
    MMSEG,
    NATIVE,
    NNUNET,
    PAPER,
    TORCHVISION,
    ULTRALYTICS,
    EvaluationSplit,
)
from fcn_jax.evaluation.image_counts import ImageCounts

CLASSES = 5


@pytest.fixture
def record() -> dict:
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC))
    label = np.repeat(
        np.repeat(random.integers(0, CLASSES, (15, 20), dtype=np.uint8), 25, 0), 25, 1
    )
    label[100:105] = 255
    return {"image": image, "label": label, "name": "drawn"}


@pytest.fixture
def predictions() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Truth and prediction of three images. Class 3 is only predicted, class 4 is in neither."""
    random = np.random.default_rng(1)
    truth = [random.integers(0, 3, (40, 50 + 10 * i)) for i in range(3)]
    guess = [
        np.where(random.random(t.shape) < 0.7, t, random.integers(0, 4, t.shape)) for t in truth
    ]
    for label in truth:
        label[:3] = 255
    return truth, guess


def confusion(truth: list[np.ndarray], guess: list[np.ndarray]) -> np.ndarray:
    total = np.zeros((CLASSES, CLASSES), np.int64)
    for label, prediction in zip(truth, guess, strict=True):
        counts = count_confusion(label, prediction, CLASSES)
        total += counts
    return total


def test_native_and_paper_do_not_change_a_record(record):
    for convention in (NATIVE, PAPER):
        assert convention.prepare(record, 3) is record
        assert convention.image_size((375, 500)) == (375, 500)
        assert convention.includes((1, 1))


def test_sizes_by_hand():
    assert TORCHVISION.image_size((375, 500)) == (520, 693)  # 693.33, rounded down
    assert TORCHVISION.image_size((500, 333)) == (780, 520)  # 780.78
    assert MMSEG.image_size((375, 500)) == (512, 683)  # 682.67, rounded to the nearest
    assert MMSEG.image_size((100, 1000)) == (205, 2048)  # limited by the longer side
    assert MMSEG.image_size((4000, 3000)) == (683, 512)
    assert not D2L.includes((319, 480))
    assert not D2L.includes((480, 320))
    assert D2L.includes((320, 480))


def test_torchvision_resizes_as_torchvision_does(record, torchvision: ModuleType):
    functional = torchvision.transforms.functional
    nearest = torchvision.transforms.InterpolationMode.NEAREST
    ours = TORCHVISION.prepare(record, 0)
    theirs = functional.resize(Image.fromarray(record["image"]), [520], antialias=True)
    np.testing.assert_array_equal(ours["image"], np.asarray(theirs))
    mask = functional.resize(Image.fromarray(record["label"]), [520], interpolation=nearest)
    np.testing.assert_array_equal(ours["label"], np.asarray(mask))


@pytest.mark.parametrize("size", [(375, 500), (1100, 900)])
def test_mmseg_resizes_as_opencv_does(record, size):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    image = np.asarray(Image.fromarray(record["image"]).resize(size[::-1]))
    label = np.zeros(size, np.uint8)
    ours = MMSEG.prepare({"image": image, "label": label}, 0)
    height, width = MMSEG.image_size(size)
    theirs = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    assert ours["image"].shape == theirs.shape
    assert np.abs(ours["image"].astype(int) - theirs.astype(int)).max() <= 1
    assert ours["label"] is label


def test_d2l_cuts_a_window_and_counts_void_as_background(record):
    one = D2L.prepare(record, 0)
    assert one["image"].shape == (320, 480, 3)
    assert (one["label"] < CLASSES).all()
    # The window is the same for image and label, and the same in a second call.
    again = D2L.prepare(record, 0)
    np.testing.assert_array_equal(one["image"], again["image"])
    void_as_background = np.where(record["label"] == 255, 0, record["label"])
    places = [
        (top, left)
        for top in range(375 - 320 + 1)
        for left in range(500 - 480 + 1)
        if np.array_equal(one["image"], record["image"][top : top + 320, left : left + 480])
    ]
    (top, left), *others = places
    assert not others
    np.testing.assert_array_equal(
        one["label"], void_as_background[top : top + 320, left : left + 480]
    )
    assert any(
        not np.array_equal(one["image"], D2L.prepare(record, index)["image"]) for index in (1, 2)
    )


def test_a_split_contains_the_images_that_its_convention_includes(record):
    small = {**record, "image": record["image"][:100], "label": record["label"][:100]}
    records = [small, record, small, record]
    sizes = np.array([r["label"].shape for r in records])
    included = EvaluationSplit(records, sizes, D2L)
    assert len(included) == 2
    assert included.sizes.tolist() == included.label_sizes.tolist() == [[320, 480]] * 2
    np.testing.assert_array_equal(included[1]["image"], D2L.prepare(record, 3)["image"])
    resized = EvaluationSplit(records, sizes, MMSEG)
    assert resized.sizes.tolist() == [[410, 2048], [512, 683]] * 2
    assert resized.label_sizes.tolist() == sizes.tolist()
    for place in range(4):
        assert resized[place]["image"].shape[:2] == tuple(resized.sizes[place])
        assert resized[place]["label"].shape == tuple(resized.label_sizes[place])
    assert len(EvaluationSplit([small], sizes[:1], D2L)) == 0


def test_several_label_maps_and_channels_are_resized_alike(record):
    both = {
        "image": np.concatenate([record["image"], record["image"][..., :1]], axis=-1),
        "label": np.stack([record["label"], 4 - record["label"]], axis=-1),
    }
    alone, ours = TORCHVISION.prepare(record, 0), TORCHVISION.prepare(both, 0)
    np.testing.assert_array_equal(ours["image"][..., :3], alone["image"])
    np.testing.assert_array_equal(ours["image"][..., 3], alone["image"][..., 0])
    np.testing.assert_array_equal(ours["label"][..., 0], alone["label"])
    np.testing.assert_array_equal(ours["label"][..., 1], 4 - alone["label"])


def test_the_papers_scores_are_those_of_its_code(predictions, torchfcn: ModuleType):
    """torchfcn scores by the same formulas as the authors' `score.py`."""
    utils = pytest.importorskip("torchfcn.utils", reason="torchfcn is not installed")
    truth, guess = predictions
    with np.errstate(invalid="ignore"):
        expected = utils.label_accuracy_score(truth, guess, CLASSES)
    ours = metrics.scores(confusion(truth, guess), PAPER.mean_over)
    np.testing.assert_allclose(
        (ours.pixel_accuracy, ours.mean_accuracy, ours.mean_iou, ours.frequency_weighted_iou),
        expected,
        rtol=1e-12,
    )
    # A class that is absent and predicted lowers the mean; the native convention leaves it out.
    assert ours.mean_iou < metrics.scores(confusion(truth, guess), NATIVE.mean_over).mean_iou


def test_torchvisions_scores_are_those_of_its_formulas(predictions, torch: ModuleType):
    truth, guess = predictions
    matrix = torch.zeros((CLASSES, CLASSES), dtype=torch.int64)
    for label, prediction in zip(truth, guess, strict=True):
        a, b = torch.from_numpy(label).flatten(), torch.from_numpy(prediction).flatten()
        counted = a < CLASSES
        cells = CLASSES * a[counted] + b[counted]
        matrix += torch.bincount(cells, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    right = matrix.diag().double()
    iou = right / (matrix.sum(1) + matrix.sum(0) - matrix.diag())
    ours = metrics.scores(confusion(truth, guess), TORCHVISION.mean_over)
    assert ours.pixel_accuracy == pytest.approx((right.sum() / matrix.sum()).item(), rel=1e-12)
    # Class 4 is in neither: its IoU is 0/0, and torchvision's mean over all classes is nan.
    assert math.isnan(iou.mean().item())
    assert math.isnan(ours.mean_iou)
    four = metrics.scores(confusion(truth, guess)[:4, :4], TORCHVISION.mean_over)
    assert four.mean_iou == pytest.approx(iou[:4].mean().item(), rel=1e-12)


def test_mmsegs_scores_are_those_of_its_formulas(predictions, torch: ModuleType):
    truth, guess = predictions
    areas = {name: torch.zeros(CLASSES, dtype=torch.float64) for name in ("both", "guess", "truth")}
    for label, prediction in zip(truth, guess, strict=True):
        a, b = torch.from_numpy(label), torch.from_numpy(prediction)
        a, b = a[a != 255], b[a != 255]
        for name, values in (("both", b[a == b]), ("guess", b), ("truth", a)):
            areas[name] += torch.histc(values.float(), bins=CLASSES, min=0, max=CLASSES - 1)
    union = areas["guess"] + areas["truth"] - areas["both"]
    ours = metrics.scores(confusion(truth, guess), MMSEG.mean_over)
    expected = (
        areas["both"].sum() / areas["truth"].sum(),
        np.nanmean((areas["both"] / areas["truth"]).numpy()),
        np.nanmean((areas["both"] / union).numpy()),
    )
    np.testing.assert_allclose(
        (ours.pixel_accuracy, ours.mean_accuracy, ours.mean_iou), expected, rtol=1e-12
    )


def test_cityscapes_scores_are_those_of_its_script(predictions):
    """With its `getIouScoreForLabel` and `getScoreAverage` on a matrix with an ignored label.

    The labels of its matrix are ours, and one that is not evaluated: our 255.
    """
    truth, guess = predictions
    matrix = np.zeros((CLASSES + 1, CLASSES + 1), np.int64)
    for label, prediction in zip(truth, guess, strict=True):
        np.add.at(matrix, (np.where(label == 255, CLASSES, label), prediction), 1)
    evaluated = range(CLASSES)
    iou = {}
    for label in evaluated:
        right = matrix[label, label]
        missed = matrix[label].sum() - right
        wrong = matrix[[other for other in evaluated if other != label], label].sum()
        found = right + missed + wrong
        iou[label] = right / found if found else math.nan
    valid = [value for value in iou.values() if not math.isnan(value)]
    ours = metrics.scores(confusion(truth, guess), CITYSCAPES.mean_over)
    np.testing.assert_allclose(ours.per_class_iou, list(iou.values()), rtol=1e-12)
    assert ours.mean_iou == pytest.approx(sum(valid) / len(valid), rel=1e-12)


def test_ultralytics_scores_are_those_of_its_formulas(predictions, torch: ModuleType):
    """Those of `SemanticMetrics.process`: here, class 4 is in neither truth nor prediction."""
    truth, guess = predictions
    matrix = torch.zeros(CLASSES, CLASSES, dtype=torch.float64)
    for label, prediction in zip(truth, guess, strict=True):
        a, b = torch.from_numpy(label).flatten(), torch.from_numpy(prediction).flatten()
        cells = CLASSES * a[a != 255] + b[a != 255]
        matrix += torch.bincount(cells, minlength=CLASSES**2).view_as(matrix)
    both = torch.diagonal(matrix)
    union = matrix.sum(1) + matrix.sum(0) - both
    iou = torch.where(union > 0, both / union, torch.zeros_like(both))
    ours = metrics.scores(confusion(truth, guess), ULTRALYTICS.mean_over)
    np.testing.assert_allclose(ours.per_class_iou, iou.numpy(), rtol=1e-12)
    assert ours.per_class_iou[4] == 0
    assert ours.mean_iou == pytest.approx(iou.mean().item(), rel=1e-12)
    assert ours.pixel_accuracy == pytest.approx((both.sum() / matrix.sum()).item(), rel=1e-12)


def test_nnunets_scores_are_those_of_its_formulas(predictions):
    """Those of `compute_metrics` and `compute_metrics_on_folder`, with an ignore label.

    Class 2 is missing in the first image, class 3 in the truth of all.
    """
    truth, guess = (list(map(np.copy, labels)) for labels in predictions)
    truth[0][truth[0] == 2], guess[0][guess[0] == 2] = 1, 0
    cases = []
    for label, prediction in zip(truth, guess, strict=True):
        counted, scores = label != 255, {}
        for c in range(1, 4):
            reference, predicted = (label == c) & counted, (prediction == c) & counted
            right = (reference & predicted).sum()
            wrong, missed = (predicted & ~reference).sum(), (reference & ~predicted).sum()
            found = right + wrong + missed
            dice = 2 * right / (2 * right + wrong + missed) if found else math.nan
            scores[c] = dice, right / found if found else math.nan
        cases.append(scores)
    assert math.isnan(cases[0][2][0])
    means = {c: np.nanmean([case[c] for case in cases], axis=0) for c in range(1, 4)}
    matrices = np.stack([confusion([a], [b])[:4, :4] for a, b in zip(truth, guess, strict=True)])
    counts = ImageCounts.of(("a", "b", "c"), matrices)
    ours = metrics.case_scores(counts.hits, counts.truth, counts.predicted)
    assert NNUNET.mean_over == "cases"
    dice, iou = np.array(list(means.values())).T
    np.testing.assert_allclose(ours.per_class_dice[1:], dice, rtol=1e-12)
    np.testing.assert_allclose(ours.per_class_iou[1:], iou, rtol=1e-12)
    assert ours.mean_dice == pytest.approx(np.mean(dice), rel=1e-12)
    assert ours.mean_iou == pytest.approx(np.mean(iou), rel=1e-12)
    # Its mean over the classes is nan if one of them is in no image.
    with_absent = np.pad(matrices, ((0, 0), (0, 1), (0, 1)))
    counts = ImageCounts.of(("a", "b", "c"), with_absent)
    assert math.isnan(metrics.case_scores(counts.hits, counts.truth, counts.predicted).mean_dice)
