"""Augmentation: every crop is a scaled, mirrored window of the canvas."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.config import AugmentConfig
from fcn_jax.data.augment import Crop, augment

CANVAS = (24, 30)
SIZE = (20, 25)
FILL = (10.0, 20.0, 30.0)
DRAWS = 200
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles faster


def canvas() -> tuple[np.ndarray, np.ndarray]:
    """Returns an image whose red is the row, green the column and blue the label, and its label."""
    rows, columns = np.mgrid[: CANVAS[0], : CANVAS[1]]
    label = (3 * rows + 5 * columns) % 7
    image = np.stack([rows, columns, label], axis=-1).astype(np.uint8)
    outside = (rows >= SIZE[0]) | (columns >= SIZE[1])
    image[outside] = 200
    return image, np.where(outside, 255, label).astype(np.uint8)


def crops(config: AugmentConfig, draws: int = DRAWS, seed: int = 0) -> Crop:
    """Draws crops of one canvas, (draws, …), as NumPy arrays."""
    image, label = canvas()
    cut = jit(jax.vmap(partial(augment, config=config, fill=FILL), (0, None, None, None)))
    keys = jax.random.split(jax.random.key(seed), draws)
    return jax.tree.map(np.asarray, cut(keys, image, label, jnp.asarray(SIZE, jnp.int32)))


def test_unscaled_crops_are_windows_of_the_image() -> None:
    image, label = canvas()
    made = crops(AugmentConfig(crop_px=(8, 9), scale=(1.0, 1.0), flip=False))
    assert made.image.shape == (DRAWS, 8, 9, 3)
    assert made.valid is None
    tops, lefts = made.image[:, 0, 0, 0].astype(int), made.image[:, 0, 0, 1].astype(int)
    for pixels, classes, top, left in zip(made.image, made.label, tops, lefts, strict=True):
        window = (slice(top, top + 8), slice(left, left + 9))
        assert np.array_equal(pixels, image[window])
        assert np.array_equal(classes, label[window])
    # Every start, both ends among them: 13 rows and 17 columns to start from.
    assert set(tops) == set(range(SIZE[0] - 8 + 1))
    assert set(lefts) == set(range(SIZE[1] - 9 + 1))


def test_half_of_the_crops_are_mirrored() -> None:
    image, label = canvas()
    made = crops(AugmentConfig(crop_px=(8, 9), scale=(1.0, 1.0), flip=True))
    mirrored = made.image[:, 0, 0, 1] > made.image[:, 0, -1, 1]
    assert abs(mirrored.mean() - 0.5) < 0.14  # 4 deviations of 200 draws
    first = int(np.argmax(mirrored))
    top, left = int(made.image[first, 0, 0, 0]), int(made.image[first, 0, -1, 1])
    window = (slice(top, top + 8), slice(left, left + 9))
    assert np.array_equal(made.image[first], image[window][:, ::-1])
    assert np.array_equal(made.label[first], label[window][:, ::-1])


@pytest.mark.parametrize("scale", [(0.5, 0.8), (1.2, 2.0)])
def test_labels_stay_whole_and_move_with_the_pixels(scale: tuple[float, float]) -> None:
    made = crops(AugmentConfig(crop_px=(16, 16), scale=scale, flip=True))
    assert set(np.unique(made.label)) <= {*range(7), 255}
    inside = made.label != 255
    # Red and green interpolate to the place between pixels, of which the label is the nearest's.
    rows, columns = made.image[..., 0], made.image[..., 1]
    halfway = (np.abs(rows % 1 - 0.5) < 1e-3) | (np.abs(columns % 1 - 0.5) < 1e-3)
    expected = (3 * np.rint(rows) + 5 * np.rint(columns)) % 7
    compared = inside & ~halfway
    assert compared.mean() > 0.3
    assert np.array_equal(made.label[compared], expected[compared])
    # Canvas pixels outside the image never appear in a crop.
    assert rows[inside].max() <= SIZE[0] - 1
    assert columns[inside].max() <= SIZE[1] - 1


def test_a_scaled_image_is_interpolated_between_pixel_centres() -> None:
    # Twice as large: position p shows (p + ½)/2 − ½ of the original, held at the borders.
    made = crops(AugmentConfig(crop_px=(40, 50), scale=(2.0, 2.0), flip=False), draws=1)
    rows = np.clip((np.arange(40) + 0.5) / 2 - 0.5, 0, 19)
    columns = np.clip((np.arange(50) + 0.5) / 2 - 0.5, 0, 24)
    np.testing.assert_allclose(made.image[0, :, 0, 0], rows, atol=1e-5)
    np.testing.assert_allclose(made.image[0, 0, :, 1], columns, atol=1e-5)


def test_outside_a_small_image_is_fill_and_void() -> None:
    made = crops(AugmentConfig(crop_px=(28, 32), scale=(1.0, 1.0), flip=False))
    outside = made.label == 255
    assert (outside.sum(axis=(1, 2)) == 28 * 32 - 20 * 25).all()  # the whole image is inside
    assert (made.image[outside] == FILL).all()
    rows = np.argmax(~outside.all(axis=2), axis=1)
    columns = np.argmax(~outside.all(axis=1), axis=1)
    assert set(rows) == set(range(9))
    assert set(columns) == set(range(8))


def test_every_scale_is_drawn() -> None:
    # A column of 20 pixels takes 20·scale rows of a crop that holds all of it.
    made = crops(AugmentConfig(crop_px=(40, 50), scale=(0.5, 2.0), flip=False))
    rows = (made.label != 255).any(axis=2).sum(axis=1)
    assert rows.min() in (10, 11)
    assert rows.max() in (39, 40)
    assert abs(rows.mean() - 25) < 4 * 30 / np.sqrt(12 * DRAWS)


def test_whole_images_stay_where_they_are_or_are_mirrored() -> None:
    image, label = canvas()
    made = crops(AugmentConfig(crop_px=None, scale=(1.0, 1.0), flip=True), draws=20)
    assert made.valid is not None
    assert (made.valid == SIZE).all()
    expected = image.astype(np.float32)
    expected[SIZE[0] :] = FILL
    expected[:, SIZE[1] :] = FILL
    mirror = np.r_[np.arange(SIZE[1])[::-1], SIZE[1] : CANVAS[1]]
    seen = set()
    for pixels, classes in zip(made.image, made.label, strict=True):
        flipped = bool(pixels[0, 0, 1])
        seen.add(flipped)
        columns = mirror if flipped else slice(None)
        assert np.array_equal(pixels, expected[:, columns])
        assert np.array_equal(classes, label[:, columns])
    assert seen == {False, True}


def test_colour_changes_by_known_factors() -> None:
    # On a grey image, contrast and saturation change nothing: brightness alone remains.
    grey = np.full((*CANVAS, 3), 100, np.uint8)
    label = np.zeros(CANVAS, np.uint8)
    config = AugmentConfig(
        crop_px=(8, 8), scale=(1.0, 1.0), brightness=0.5, contrast=0.5, saturation=0.5
    )
    cut = jit(jax.vmap(partial(augment, config=config, fill=FILL), (0, None, None, None)))
    keys = jax.random.split(jax.random.key(0), DRAWS)
    made = np.asarray(cut(keys, grey, label, jnp.asarray(SIZE, jnp.int32)).image)
    np.testing.assert_allclose(made.max(axis=(1, 2, 3)), made.min(axis=(1, 2, 3)), atol=1e-3)
    assert 50 <= made.min() < 55
    assert 145 < made.max() <= 150
    # Away from grey, bytes stay bytes.
    wild = crops(
        AugmentConfig(crop_px=(8, 8), brightness=0.9, contrast=0.9, saturation=0.9), draws=50
    )
    assert wild.image.min() >= 0
    assert wild.image.max() <= 255


def test_a_key_fixes_a_crop() -> None:
    config = AugmentConfig(crop_px=(8, 9), brightness=0.2)
    first, again, other = crops(config, 10), crops(config, 10), crops(config, 10, seed=1)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.label, again.label)
    assert not np.array_equal(first.image, other.image)


def test_channels_and_label_maps_go_with_the_image_and_keep_their_values() -> None:
    image, label = map(jnp.asarray, canvas())
    depth, parts = 255 - image[..., :1], jnp.where(label == 255, 255, 6 - label)
    changes = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5}
    config = AugmentConfig(crop_px=(28, 20), scale=(0.5, 2.0))
    coloured = AugmentConfig(crop_px=(28, 20), scale=(0.5, 2.0), **changes)
    size = jnp.asarray(SIZE, jnp.int32)

    @jit
    def all_together(key: jax.Array) -> tuple[Crop, Crop, Crop]:
        joined = jnp.concatenate([image, depth], axis=-1), jnp.stack([label, parts], axis=-1)
        return (
            augment(key, *joined, size, config=coloured, fill=(*FILL, 40.0)),
            augment(key, image, label, size, config=coloured, fill=FILL),
            augment(key, depth, parts, size, config=config, fill=(40.0,)),
        )

    for seed in range(10):
        joined, of_image, of_depth = all_together(jax.random.key(seed))
        assert joined.image.shape == (28, 20, 4)
        np.testing.assert_allclose(joined.image[..., :3], of_image.image, atol=1e-3)
        np.testing.assert_allclose(joined.image[..., 3:], of_depth.image, atol=1e-3)
        np.testing.assert_array_equal(joined.label[..., 0], of_image.label)
        np.testing.assert_array_equal(joined.label[..., 1], of_depth.label)


def test_a_grey_image_changes_in_brightness() -> None:
    grey = np.full((*CANVAS, 1), 100, np.uint8)
    config = AugmentConfig(crop_px=(8, 8), scale=(1.0, 1.0), brightness=0.5, saturation=0.5)
    cut = jit(partial(augment, config=config, fill=(9.0,)))
    label = jnp.zeros(CANVAS, jnp.uint8)
    made = cut(jax.random.key(0), grey, label, jnp.asarray(SIZE, jnp.int32))
    assert made.image.shape == (8, 8, 1)
    assert np.ptp(made.image) < 1e-3
    assert abs(made.image[0, 0, 0] - 100) > 1


def test_turned_crops_are_windows_turned_by_each_multiple_of_90_degrees() -> None:
    image, label = canvas()
    made = crops(AugmentConfig(crop_px=(8, 8), scale=(1.0, 1.0), flip=False, rotate=True))
    seen = set()
    for pixels, classes in zip(made.image, made.label, strict=True):
        top, left = int(pixels[..., 0].min()), int(pixels[..., 1].min())
        window = (slice(top, top + 8), slice(left, left + 8))
        turns = [n for n in range(4) if np.array_equal(pixels, np.rot90(image[window], n))]
        assert len(turns) == 1
        assert np.array_equal(classes, np.rot90(label[window], turns[0]))
        seen.add(turns[0])
    assert seen == {0, 1, 2, 3}


def test_a_deformation_moves_the_image_and_its_label_alike() -> None:
    _, label = canvas()
    config = AugmentConfig(crop_px=(16, 16), scale=(1.0, 1.0), flip=False, elastic_px=2.0)
    made = crops(config)
    inside = made.label != 255
    assert 0.6 < inside.mean() < 1
    # Red is the row and green the column that a pixel shows, which are linear in its place.
    row, column = made.image[..., 0], made.image[..., 1]
    nearest = label[np.floor(row + 0.5).astype(int), np.floor(column + 0.5).astype(int)]
    assert np.array_equal(made.label[inside], nearest[inside])
    assert np.allclose(made.image[~inside], FILL)
    # Displacements at the corners are the grid's own: normal with the given deviation, next to a
    # window whose place is drawn; so differences between corners have twice its variance.
    height = (row[:, -1] - row[:, 0] - 15)[inside[:, -1] & inside[:, 0]]
    assert 2.0 < height.std() < 3.5  # √2 · 2 = 2.8, less where the border has cut it off
    # Smooth: from one pixel to the next the shift changes by little.
    steps = np.diff(row, axis=1)[inside[:, 1:] & inside[:, :-1]]
    assert np.abs(steps - 1).max() < 3
    assert abs(steps.mean() - 1) < 0.1


def test_no_deformation_is_the_crop_itself() -> None:
    plain = crops(AugmentConfig(crop_px=(12, 9), scale=(0.7, 1.4)), draws=20)
    nearly = crops(AugmentConfig(crop_px=(12, 9), scale=(0.7, 1.4), elastic_px=1e-6), draws=20)
    assert np.allclose(plain.image, nearly.image, atol=1e-2)
    assert (plain.label == nearly.label).mean() > 0.95  # halfway between pixels, either is nearest
