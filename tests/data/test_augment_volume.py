"""Random patches of volumes: geometry on made-up volumes whose voxels tell where they came from."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.config import VolumesConfig
from fcn_jax.data.augment_volume import _at_low_resolution, augment_volume

SIZE = (7, 9, 8)
CANVAS = (8, 10, 8)


def volume() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A canvas whose image is 100·x + 10·y + z, and whose label is x + y + z."""
    x, y, z = np.meshgrid(*map(np.arange, CANVAS), indexing="ij")
    image = (100 * x + 10 * y + z).astype(np.float32)[..., None]
    label = (x + y + z).astype(np.uint8)
    outside = (x >= SIZE[0]) | (y >= SIZE[1]) | (z >= SIZE[2])
    return image, np.where(outside, 255, label).astype(np.uint8), np.array(SIZE, np.int32)


@functools.cache
def compiled(config_values: tuple) -> Any:
    config = VolumesConfig(**dict(config_values))
    return jax.jit(lambda key, *canvas: augment_volume(key, *canvas, config=config))


def drawn(seed: int = 0, **changes: Any) -> tuple[np.ndarray, np.ndarray]:
    settings = {"patch": (5, 5, 5), "foreground_share": 0.0} | changes
    patch = compiled(tuple(settings.items()))(jax.random.key(seed), *map(jnp.asarray, volume()))
    return np.asarray(patch.image)[..., 0], np.asarray(patch.label)


def test_a_patch_without_changes_is_a_window_of_the_volume_to_a_part_of_a_voxel():
    image, label = drawn()
    assert image.shape == label.shape == (5, 5, 5)
    steps = [np.diff(image, axis=axis) for axis in range(3)]
    for step, expected in zip(steps, (100, 10, 1), strict=True):
        np.testing.assert_allclose(step, expected, rtol=1e-4)
    assert (label != 255).all()
    sums = np.add.outer(np.add.outer(np.arange(5), np.arange(5)), np.arange(5))
    np.testing.assert_array_equal(label - label[0, 0, 0], sums)


def test_a_patch_larger_than_the_volume_holds_all_of_it_and_ignores_the_rest():
    image, label = drawn(patch=(12, 12, 12))
    assert (label != 255).sum() == np.prod(SIZE)
    assert (image[label == 255] == 0).all()


def test_flips_reverse_the_axes_that_are_given_and_no_others():
    signs = set()
    for seed in range(24):
        image, _ = drawn(seed, flip_axes=(0, 2))
        signs.add(tuple(int(np.sign(np.diff(image, axis=axis).mean())) for axis in range(3)))
    assert signs == {(1, 1, 1), (-1, 1, 1), (1, 1, -1), (-1, 1, -1)}


def test_scale_magnifies():
    image, _ = drawn(scale=(2.0, 2.0))
    np.testing.assert_allclose(np.diff(image, axis=0)[1:-1, 2, 2], 50, rtol=1e-3)


def test_rotations_keep_distances():
    image, _ = drawn(3, patch=(3, 3, 3), rotate_degrees=30.0)
    x = np.stack([np.diff(image, axis=axis).mean() for axis in range(3)])
    # The gradient (100, 10, 1) is turned, so its length stays.
    np.testing.assert_allclose(np.linalg.norm(x), np.linalg.norm([100, 10, 1]), rtol=1e-3)
    assert abs(x[0] - 100) > 1


def test_foreground_is_in_the_middle_of_a_patch_that_must_hold_some():
    image, label, size = volume()
    label[:] = np.where(label == 255, 255, 0)
    label[3, 4, 3] = 1
    config = VolumesConfig(patch=(3, 3, 3), foreground_share=1.0)
    draw = jax.jit(
        lambda key: augment_volume(key, *map(jnp.asarray, (image, label, size)), config=config)
    )
    for seed in range(3):
        patch = draw(jax.random.key(seed))
        assert patch.label[1, 1, 1] == 1
        np.testing.assert_allclose(patch.image[1, 1, 1, 0], 343, rtol=1e-5)


def test_changes_of_intensities_leave_the_label_and_the_order_of_axes_alone():
    image, label = drawn()
    changed, same = drawn(brightness=0.5, contrast=0.5)
    np.testing.assert_array_equal(label, same)
    # Both are linear, and so is what they make of the voxels.
    slope, offset = np.polyfit(image.reshape(-1), changed.reshape(-1), 1)
    np.testing.assert_allclose(changed, slope * image + offset, rtol=1e-3)
    assert abs(slope - 1) > 0.01
    noisy, _ = drawn(noise=1.0)
    deviation = (noisy - image).std()
    assert 0 < deviation < 1.2


def test_gamma_keeps_the_range_and_the_order_of_intensities():
    image, _ = drawn()
    changed, _ = drawn(gamma=0.5)
    np.testing.assert_allclose(
        [changed.min(), changed.max()], [image.min(), image.max()], rtol=1e-4
    )
    assert (np.argsort(changed, axis=None) == np.argsort(image, axis=None)).all()


def test_half_the_resolution_keeps_every_other_voxel_and_interpolates():
    ramp = jnp.arange(8.0)[:, None, None, None] * jnp.ones((1, 4, 4, 1))
    lowered = np.asarray(_at_low_resolution(ramp, jnp.asarray(0.5)))
    # The voxels 0, 2, 4, 6 stand at 0.5, 2.5, 4.5, 6.5.
    np.testing.assert_allclose(lowered[:, 1, 2, 0], [0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6])
    np.testing.assert_allclose(_at_low_resolution(ramp, jnp.asarray(1.0)), ramp)


def test_about_a_quarter_of_the_patches_lose_resolution_and_no_label_changes():
    lowered = 0
    for seed in range(32):
        image, label = drawn(seed)
        other, same_label = drawn(seed, low_resolution=0.5)
        np.testing.assert_array_equal(label, same_label)
        lowered += not np.array_equal(image, other)
    assert 3 <= lowered <= 13
