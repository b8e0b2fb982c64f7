"""The order of training images: each once an epoch, equal on host and device."""

from collections import Counter

import jax
import numpy as np
import pytest

from fcn_jax.data.order import PERIOD, image_at, images_at

on_device = jax.jit(images_at, static_argnames=("count", "seed"))


def by_device(places: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    return np.asarray(on_device(places.astype(np.uint32), count=count, seed=seed))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 17, 437, 10_582])
def test_an_epoch_holds_every_image_once(count):
    epochs = by_device(np.arange(3 * count), count).reshape(3, count)
    np.testing.assert_array_equal(np.sort(epochs), [np.arange(count)] * 3)
    if count > 7:
        assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize(("count", "seed"), [(5, 0), (16, 2**32 - 1), (437, -3), (2**31 - 1, 1)])
def test_the_host_finds_what_the_device_finds(count, seed):
    places = np.r_[:50, 990:1050, PERIOD - 50 : PERIOD]
    on_host = [image_at(int(place), count=count, seed=seed) for place in places]
    np.testing.assert_array_equal(by_device(places, count, seed), on_host)
    assert image_at(PERIOD, count=count, seed=seed) == on_host[0]


def test_every_order_is_as_likely_as_any_other():
    epochs = 6000
    orders = Counter(map(tuple, by_device(np.arange(4 * epochs), 4).reshape(epochs, 4).tolist()))
    assert len(orders) == 24
    # The sum of squares over what is expected has mean 23 and deviation √46 for fair draws.
    expected = epochs / 24
    surplus = sum((times - expected) ** 2 / expected for times in orders.values())
    assert surplus < 23 + 4 * 46**0.5


def test_the_image_is_independent_of_position_epoch_and_seed():
    count, epochs = 101, 500
    orders = by_device(np.arange(count * epochs), count).reshape(epochs, count).astype(int)
    other = by_device(np.arange(count * epochs), count, seed=1).reshape(epochs, count).astype(int)
    steps = {
        "from place to place": np.diff(orders, axis=1),
        "from epoch to epoch": np.diff(orders, axis=0),
        "from seed to seed": orders - other,
    }
    for name, step in steps.items():
        times = np.bincount((step % count).ravel(), minlength=count)
        possible = times[1:] if name == "from place to place" else times
        expected = possible.sum() / len(possible)
        surplus = ((possible - expected) ** 2 / expected).sum()
        assert surplus < len(possible) + 5 * (2 * len(possible)) ** 0.5, name
