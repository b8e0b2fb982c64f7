"""The largest batch from two others."""

import pytest

from fcn_jax.training.ahead_of_time import largest_batch


@pytest.mark.parametrize(("images", "other"), [(1, 4), (2, 7), (20, 21), (40, 20)])
def test_a_line_through_two_batches_reaches_the_limit(images: int, other: int) -> None:
    def memory(count: int) -> int:
        return 100 + 18 * count

    found = largest_batch(memory, images, memory(images), 1000)
    assert found == (50, 18, other)


def test_a_batch_that_fits_is_not_declared_too_large() -> None:
    assert largest_batch(lambda count: 10, 3, 10, 1000) == (150, 0, 150)
    assert largest_batch(lambda count: 990, 1, 985, 1000) == (4, 5, 2)
