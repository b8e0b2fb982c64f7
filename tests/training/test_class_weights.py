"""Class weights against hand-worked numbers."""

import numpy as np
import pytest

from fcn_jax.errors import ArgumentError
from fcn_jax.training.class_weights import (
    class_weights,
    enet_weights,
    median_frequency_weights,
)


def test_enet_weights() -> None:
    """1 / ln(1.02 + p) of p = 0.98, 0.02 and 0."""
    weights = enet_weights(np.array([98, 2, 0]))
    np.testing.assert_allclose(weights, [1 / np.log(2), 1 / np.log(1.04), 1 / np.log(1.02)])


def test_median_frequency_weights() -> None:
    """f = 80/100, 20/50, 9/10: the median is 0.8. A class without pixels gets 1."""
    weights = median_frequency_weights(np.array([80, 20, 9, 0]), np.array([100, 50, 10, 0]))
    np.testing.assert_allclose(weights, [1, 2, 8 / 9, 1])


COUNTS = np.array([98, 2] + 253 * [0] + [900])  # of which the last are ignored


def test_the_weights_of_each_setting() -> None:
    assert class_weights(None, {"": 2}, {"": COUNTS}) == {}
    (numbers,) = class_weights((1, 0.5), {"": 2}, {"": COUNTS}).values()
    assert numbers.tolist() == [1, 0.5]
    balanced = class_weights("balanced", {"a": 2, "b": 3}, {"a": COUNTS, "b": COUNTS[::-1]})
    np.testing.assert_allclose(balanced["a"], enet_weights(COUNTS[:2]), rtol=1e-6)
    np.testing.assert_allclose(balanced["b"], enet_weights(COUNTS[::-1][:3]), rtol=1e-6)


@pytest.mark.parametrize("setting", [(1.0,), (1.0, 2.0, 3.0), (0.0, 0.0)])
def test_numbers_that_do_not_fit_the_classes(setting: tuple[float, ...]) -> None:
    """The check of the config refuses weights that are not finite or negative."""
    with pytest.raises(ArgumentError, match=r"\) must be balanced, or 2 numbers, one for each"):
        class_weights(setting, {"": 2}, {"": COUNTS})
    with pytest.raises(ArgumentError, match=r"with several label maps \(a, b\)"):
        class_weights(setting, {"a": 2, "b": 2}, {"a": COUNTS, "b": COUNTS})
