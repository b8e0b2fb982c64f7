import numpy as np
import pytest

from fcn_jax.errors import UserError
from fcn_jax.evaluation.image_counts import ImageCounts
from fcn_jax.evaluation.metrics import scores

CONFUSIONS = np.array([[[6, 2], [1, 3]], [[0, 0], [4, 4]], [[0, 0], [0, 0]]], np.int32)
NAMES = ["2007_000033", "mine/ö 1", "void"]


def test_counts_by_hand():
    counts = ImageCounts.of(NAMES, CONFUSIONS)
    assert counts.names == tuple(NAMES)
    assert counts.hits.tolist() == [[6, 3], [0, 4], [0, 0]]
    assert counts.truth.tolist() == [[8, 4], [0, 8], [0, 0]]
    assert counts.predicted.tolist() == [[7, 5], [4, 4], [0, 0]]


def test_total_is_the_score_of_the_summed_confusion():
    total = ImageCounts.of(NAMES, CONFUSIONS).total
    np.testing.assert_equal(vars(total), vars(scores(CONFUSIONS.sum(axis=0))))


def test_mean_iou_of_an_image_is_over_the_classes_in_its_truth():
    # First image: 6 / 9 and 3 / 6. The second contains only the second class: 4 of 8 pixels.
    expected = [(6 / 9 + 3 / 6) / 2, 4 / 8, np.nan]
    np.testing.assert_allclose(ImageCounts.of(NAMES, CONFUSIONS).mean_iou_by_image, expected)


def test_saved_and_loaded_are_the_same(tmp_path):
    counts = ImageCounts.of(NAMES, CONFUSIONS.astype(np.int64) * 2**40)
    path = tmp_path / "evaluation" / "val_images.npz"
    counts.save(path)
    loaded = ImageCounts.load(path)
    np.testing.assert_equal(vars(loaded), vars(counts))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_counts_of_no_images_can_be_saved(tmp_path):
    counts = ImageCounts.of([], np.zeros((0, 2, 2), np.int64))
    counts.save(tmp_path / "a.npz")
    assert ImageCounts.load(tmp_path / "a.npz").names == ()


def test_refuses_counts_of_other_shapes_and_types():
    with pytest.raises(ValueError, match=r"`hits`.*2 names"):
        ImageCounts.of(NAMES[:2], CONFUSIONS)
    ones = np.ones((1, 2), np.int64)
    with pytest.raises(ValueError, match=r"`predicted`.*\(1, 3\)"):
        ImageCounts(("a",), ones, ones, np.ones((1, 3), np.int64))
    with pytest.raises(ValueError, match=r"`truth` .float64"):
        ImageCounts(("a",), ones, ones.astype(float), ones)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-40])


def overwrite_bytes(path):
    data = bytearray(path.read_bytes())
    data[60:75] = bytes(15)
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def write_one_array(path):
    with path.open("wb") as file:
        np.save(file, np.arange(3))


def write_other_arrays(path):
    np.savez(path, names=np.array(["a"]))


def write_wrong_counts(path):
    np.savez(path, names=np.array(["a"]), **dict.fromkeys(("hits", "truth", "predicted"), 3))


def write_objects(path):
    np.savez(path, names=np.array([{}], dtype=object))


def make_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        overwrite_bytes,
        empty,
        write_one_array,
        write_other_arrays,
        write_wrong_counts,
        write_objects,
        make_folder,
    ],
)
def test_a_damaged_file_is_reported_in_one_line(tmp_path, damage):
    path = tmp_path / "val_images.npz"
    ImageCounts.of(NAMES, CONFUSIONS).save(path)
    damage(path)
    with pytest.raises(UserError, match=r"val_images.npz cannot be read.*evaluate again") as error:
        ImageCounts.load(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_that_cannot_be_made_are_reported(tmp_path):
    with pytest.raises(UserError, match=r"there is no .*a.npz"):
        ImageCounts.load(tmp_path / "a.npz")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*a.npz"):
        ImageCounts.of(NAMES, CONFUSIONS).save(tmp_path / "file" / "a.npz")
