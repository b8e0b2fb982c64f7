"""Estimates of memory, worked out by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from fcn_jax.parallel.memory_estimate import estimated_bytes

IMAGE = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
KERNEL = jax.ShapeDtypeStruct((3, 3, 3, 4), jnp.float32)
IMAGE_BYTES, KERNEL_BYTES, FEATURES_BYTES = 4 * 8 * 8 * 3, 4 * 3 * 3 * 3 * 4, 4 * 8 * 8 * 4


def convolved(image: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_a_convolution_takes_its_image_its_kernel_and_its_result():
    expected = IMAGE_BYTES + KERNEL_BYTES + FEATURES_BYTES
    assert estimated_bytes(convolved, IMAGE, KERNEL) == expected
    assert estimated_bytes(jax.jit(convolved), IMAGE, KERNEL) == expected


def test_what_is_fused_takes_nothing():
    def function(image: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(convolved(image, kernel)) + 1)

    assert estimated_bytes(function, IMAGE, KERNEL) == IMAGE_BYTES + KERNEL_BYTES + FEATURES_BYTES


def test_features_live_from_their_convolution_to_their_last_use():
    square = jax.ShapeDtypeStruct((3, 3, 4, 4), jnp.float32)

    def chain(image: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
        values = convolved(image, first)
        for _ in range(5):
            values = convolved(values, second)
        return values

    given = IMAGE_BYTES + KERNEL_BYTES + 4 * 3 * 3 * 4 * 4
    assert estimated_bytes(chain, IMAGE, KERNEL, square) == given + 2 * FEATURES_BYTES

    def remembered(*arguments: jax.Array) -> jax.Array:
        return jax.grad(lambda *a: jnp.sum(chain(*a) ** 2), 2)(*arguments)

    # The backward pass needs the five inputs of the second kernel's convolutions.
    assert estimated_bytes(remembered, IMAGE, KERNEL, square) >= given + 6 * FEATURES_BYTES


def test_a_loop_takes_the_memory_of_one_turn():
    def loop(image: jax.Array, kernel: jax.Array) -> jax.Array:
        def turn(total: jax.Array, _: None) -> tuple[jax.Array, None]:
            return total + jnp.sum(convolved(image, kernel)), None

        return lax.scan(turn, jnp.zeros(()), length=1000)[0]

    needed = estimated_bytes(loop, IMAGE, KERNEL)
    once = IMAGE_BYTES + KERNEL_BYTES + FEATURES_BYTES
    assert once <= needed <= 2 * once + 100


@pytest.mark.parametrize("count", [1, 4])
def test_a_device_counts_its_own_part_of_a_sum(count):
    def step(image: jax.Array) -> jax.Array:
        return lax.psum(jnp.sum(image), "data") / lax.axis_size("data")

    assert estimated_bytes(step, IMAGE, axis=("data", count)) == IMAGE_BYTES
