"""Confusion matrices: which pixels are counted, by the histogram and by products."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.evaluation import confusion
from fcn_jax.evaluation.confusion import (
    PIXELS_PER_PRODUCT,
    class_counts,
    confusion_matrices,
    count_by_histogram,
    count_by_products,
    count_confusion,
)


@pytest.fixture(params=["on this device", "by products"])
def count(request, monkeypatch) -> Callable[..., np.ndarray]:
    """`confusion_matrices` on this device and as on accelerators, summed over the batch."""
    matrices = confusion_matrices
    if request.param == "by products":
        monkeypatch.setattr(confusion, "count_by_histogram", count_by_products)
        matrices = confusion_matrices.__wrapped__  # the compiled function contains the histogram

    def count(label, prediction, num_classes):
        counts = matrices(jnp.asarray(label), jnp.asarray(prediction), num_classes)
        assert counts.dtype == jnp.int32
        return np.asarray(counts.sum(axis=0))

    return count


def test_true_classes_are_in_rows(count):
    label = np.array([[0, 0, 1, 2]])
    prediction = np.array([[0, 2, 1, 1]])
    assert count(label, prediction, 3).tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize("outside", [255, -1, 3])
def test_labels_outside_the_classes_are_left_out(count, outside):
    label = np.array([[0, outside], [outside, 2]])
    counts = count(label, np.array([[0, 1], [2, 2]]), 3)
    assert counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_the_ignore_index_is_void_among_more_than_255_classes(count):
    counts = count(np.array([[255, 256]]), np.array([[255, 256]]), 300)
    assert counts.sum() == 1
    assert counts[256, 256] == 1


def test_a_prediction_outside_the_classes_is_not_counted_as_another_class(count):
    counts = count(np.array([[0, 0, 1]]), np.array([[3, -1, 1]]), 3)
    assert counts.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("shape", [(1, 1200), (40, 30), (2, 90, 100), (2, 3, 20, 10)])
def test_agrees_with_numpy_image_by_image(count, shape, dtype):
    rng = np.random.default_rng(0)
    label = rng.choice([0, 1, 2, 3, 20, 255], shape).astype(dtype)
    prediction = rng.integers(0, 21, shape).astype(dtype)
    expected = np.zeros((len(label), 21, 21), np.int64)
    for cells, truth, guess in zip(expected, label, prediction, strict=True):
        np.add.at(cells, (truth[truth != 255], guess[truth != 255]), 1)
    np.testing.assert_array_equal(confusion_matrices(label, prediction, 21), expected)
    np.testing.assert_array_equal(count(label, prediction, 21), expected.sum(axis=0))


@pytest.mark.parametrize("count_by", [count_by_histogram, count_by_products])
def test_counts_beyond_the_integers_of_float32_are_exact(count_by):
    pixels = 2**24 + 1  # float32 rounds this to 2**24
    classes = jnp.zeros((1, pixels), jnp.int32)
    assert jax.jit(count_by, static_argnums=2)(classes, classes, 2)[0, 0, 0] == pixels


@pytest.mark.parametrize(
    "pixels", [PIXELS_PER_PRODUCT - 1, PIXELS_PER_PRODUCT, PIXELS_PER_PRODUCT + 1]
)
def test_products_do_not_count_the_padding_of_the_last_one(pixels):
    classes = jnp.zeros((2, pixels), jnp.int32)
    assert count_by_products(classes, classes, 1).tolist() == [[[pixels]]] * 2


def test_batch_split_over_devices_is_counted_as_whole():
    devices = np.array(jax.devices())
    mesh = jax.sharding.Mesh(devices, ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    rng = np.random.default_rng(1)
    label, prediction = rng.integers(0, 4, (2, 2 * len(devices), 9, 7))
    counts = confusion_matrices(
        jax.device_put(label, sharding), jax.device_put(prediction, sharding), 4
    )
    np.testing.assert_array_equal(counts, confusion_matrices(label, prediction, 4))


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        confusion_matrices(np.zeros((2, 3), int), np.zeros((3, 2), int), 2)


def test_the_host_counts_as_the_device_does():
    random = np.random.default_rng(5)
    label = random.integers(0, 5, (7, 9), dtype=np.uint8)
    label[label == 4] = 255
    prediction = random.integers(0, 4, (7, 9), dtype=np.uint8)
    counts = count_confusion(label, prediction, 4)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, confusion_matrices(label[None], prediction[None], 4)[0])


def test_class_counts_by_hand():
    matrices = np.array([[[6, 2, 0], [4, 4, 4], [0, 0, 0]], [[1, 0, 0], [0, 0, 0], [0, 5, 0]]])
    for array in (matrices, jnp.asarray(matrices)):
        hits, truth, predicted = class_counts(array)
        assert hits.tolist() == [[6, 4, 0], [1, 0, 0]]
        assert truth.tolist() == [[8, 12, 0], [1, 0, 5]]
        assert predicted.tolist() == [[10, 6, 4], [1, 5, 0]]
