import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.evaluation.boundary import boundary_counts, boundary_distance_px


def zone_by_erosion(mask: np.ndarray, void: np.ndarray, distance_px: int) -> np.ndarray:
    """The valid pixels that `distance_px` erosions remove from the mask."""
    eroded = binary_erosion(mask | void, np.ones((3, 3)), iterations=distance_px, border_value=0)
    return mask & ~void & ~eroded


def by_erosion(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    void = label == IGNORE_INDEX
    distance_px = max(1, round(0.02 * np.sqrt(label.shape[0] ** 2 + label.shape[1] ** 2)))
    counts = []
    for index in range(num_classes):
        truth = zone_by_erosion(label == index, void, distance_px)
        guess = zone_by_erosion(prediction == index, void, distance_px)
        counts.append([(truth & guess).sum(), (truth | guess).sum()])
    return np.array(counts).T


def draw_blocks(
    random: np.random.Generator, height: int, width: int, values: list[int]
) -> np.ndarray:
    side = max(1, min(40, height // 4, width // 4))
    blocks = random.choice(values, (-(-height // side), -(-width // side)))
    return np.kron(blocks, np.ones((side, side)))[:height, :width].astype(np.uint8)


def test_seven_by_seven_by_hand():
    # d = max(1, round(0.02 · 9.9)) = 1. The truth is a 5×5 square of class 1 inside class 0; the
    # prediction is the same square, one column to the right, where it touches the image's border.
    label = np.zeros((7, 7), np.uint8)
    label[1:6, 1:6] = 1
    prediction = np.roll(label, 1, axis=1)
    intersection, union = boundary_counts(label, prediction, 2)
    # Class 1: the ring of each square, 16 pixels. They share rows 1 and 5 in columns 2…5, 8 pixels;
    # in rows 2…4 the truth has columns 1 and 5, the prediction 2 and 6: none in common.
    assert (intersection[1], union[1]) == (8, 16 + 16 - 8)
    # Class 0: in the truth all 24 pixels are at the border. In the prediction rows 0 and 6 and
    # column 0 are, and column 1 is next to the square: 24 too. They share rows 0, 6 and column 0.
    assert (intersection[0], union[0]) == (7 + 7 + 5, 24 + 24 - 19)


def test_inner_pixels_are_left_out():
    # The zone of a correct prediction with a single class is a frame of d pixels.
    label = np.full((100, 200), 3, np.uint8)
    distance_px = boundary_distance_px(100, 200)
    assert distance_px == 4  # 0.02 · 223.6
    frame = 100 * 200 - (100 - 8) * (200 - 8)
    assert boundary_counts(label, label, 4).tolist() == [[0, 0, 0, frame], [0, 0, 0, frame]]


@pytest.mark.parametrize(
    ("height", "width", "distance_px"),
    [(1, 1, 1), (50, 50, 1), (375, 500, 12), (333, 500, 12), (500, 500, 14), (1024, 2048, 46)],
)
def test_distance_is_two_percent_of_the_diagonal(height, width, distance_px):
    assert boundary_distance_px(height, width) == distance_px


@pytest.mark.parametrize("size", [(375, 500), (120, 301), (5, 400), (25, 24), (3, 3), (1, 1)])
@pytest.mark.parametrize("void", [False, True])
def test_agrees_with_repeated_erosion_of_each_class(size, void):
    random = np.random.default_rng(sum(size))
    pixels = 0
    for _ in range(3):
        label = draw_blocks(random, *size, [0, 0, 1, 2, 5] + 2 * void * [IGNORE_INDEX])
        prediction = np.roll(label, random.integers(-9, 9, 2), (0, 1))
        holes = draw_blocks(random, *size, [0, 0, 1, 2, 4])
        prediction = np.where((prediction == IGNORE_INDEX) | (holes == 4), holes, prediction)
        expected = by_erosion(label, prediction, 6)
        np.testing.assert_array_equal(boundary_counts(label, prediction, 6), expected)
        pixels += expected[1].sum()
    assert pixels > 0


def test_agrees_with_the_authors_code_without_void():
    # The authors pad by one pixel of zeros, erode d times with OpenCV and remove the padding.
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    random = np.random.default_rng(2)
    label = draw_blocks(random, 281, 500, [0, 1, 2])
    prediction = np.roll(label, 5, axis=1)

    def zone(mask: np.ndarray) -> np.ndarray:
        mask = mask.astype(np.uint8)
        padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=11)
        return (mask - eroded[1:-1, 1:-1]).astype(bool)

    counts = boundary_counts(label, prediction, 3)
    for index in range(3):
        truth, guess = zone(label == index), zone(prediction == index)
        assert counts[:, index].tolist() == [(truth & guess).sum(), (truth | guess).sum()]


def with_voc_band(label: np.ndarray) -> np.ndarray:
    """Makes pixels void that have a pixel of another class at most two pixels away."""
    banded = label.copy()
    for index in range(3):
        mask = label == index
        banded[mask & ~binary_erosion(mask, np.ones((5, 5)), border_value=1)] = IGNORE_INDEX
    return banded


def test_predictions_at_void_pixels_change_nothing():
    random = np.random.default_rng(3)
    label = with_voc_band(draw_blocks(random, 200, 230, [0, 1, 2]))
    prediction = draw_blocks(random, 200, 230, [0, 1, 2])
    noise = random.integers(0, 3, label.shape).astype(np.uint8)
    elsewhere = np.where(label == IGNORE_INDEX, noise, prediction)
    np.testing.assert_array_equal(
        boundary_counts(label, prediction, 3), boundary_counts(label, elsewhere, 3)
    )


def test_a_prediction_that_is_correct_at_all_valid_pixels_is_perfect():
    whole = draw_blocks(np.random.default_rng(4), 200, 230, [0, 1, 2])
    intersection, union = boundary_counts(with_voc_band(whole), whole, 3)
    np.testing.assert_array_equal(intersection, union)
    assert (union > 0).all()


def test_a_missed_object_gets_no_contour_from_the_void_around_it():
    label = np.zeros((200, 200), np.uint8)  # d = 6
    label[80:120, 80:120] = 1
    label = with_voc_band(label)
    intersection, union = boundary_counts(label, np.zeros_like(label), 2)
    frame = 200**2 - 188**2
    # The 6 pixels around the object are 2 void pixels and 4 of background.
    assert label[80 + 2, 80 + 2] == 1
    ring = (40 - 4 + 2 * 6) ** 2 - (40 + 4) ** 2
    assert (intersection[0], union[0]) == (frame, frame + ring)
    assert intersection[1] == 0


def test_labels_from_k_on_are_void():
    label = draw_blocks(np.random.default_rng(5), 90, 90, [0, 1, 7, IGNORE_INDEX])
    prediction = np.roll(label, 4) % 2
    same = np.where(label == 7, IGNORE_INDEX, label)
    np.testing.assert_array_equal(
        boundary_counts(label, prediction, 2), boundary_counts(same, prediction, 2)
    )
    all_outside = boundary_counts(np.zeros_like(label), np.full_like(label, 200), 2)
    assert all_outside.sum() == 0


def test_255_classes_fit():
    label = np.full((60, 60), 254, np.uint8)
    label[:30] = 0
    # d = 2: the frame of each half, and the two rows on each side of the middle.
    zone = 30 * 60 - 26 * 56
    counts = boundary_counts(label, label, 255)
    assert counts[:, [0, 254]].tolist() == [[zone, zone], [zone, zone]]
    assert counts.sum() == 4 * zone


def test_refuses_other_arrays():
    label = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"`prediction`.*shape \(4, 5\)"):
        boundary_counts(label, np.zeros((4, 5), np.uint8), 2)
    with pytest.raises(ValueError, match="int32"):
        boundary_counts(label, label.astype(np.int32), 2)
    with pytest.raises(ValueError, match="=256"):
        boundary_counts(label, label, 256)
