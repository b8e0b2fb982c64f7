"""Label maps as palette PNGs, overlays and error maps, down to single pixels."""

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.palettes import voc_palette
from fcn_jax.data.voc import VOC_CLASSES
from fcn_jax.errors import UserError
from fcn_jax.pictures.colours import CORRECT_COLOUR, VOID_COLOUR, WRONG_COLOUR
from fcn_jax.pictures.overlays import error_map, overlay, save_label_map
from tests.pictures.scene import draw_scene


def test_label_map_reads_back_as_indices_and_looks_like_the_palette(tmp_path):
    label = np.arange(256, dtype=np.uint8).reshape(8, 32)
    save_label_map(tmp_path / "a.png", label)
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.mode == "P"
        np.testing.assert_array_equal(np.asarray(saved), label)
        np.testing.assert_array_equal(np.asarray(saved.convert("RGB")), voc_palette()[label])


def test_label_map_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    for value in (1, 2):
        save_label_map(tmp_path / "a.png", np.full((2, 2), value, np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with Image.open(tmp_path / "a.png") as saved:
        assert np.asarray(saved).tolist() == [[2, 2], [2, 2]]


def test_failed_write_keeps_the_old_label_map_and_leaves_nothing_else(tmp_path, monkeypatch):
    save_label_map(tmp_path / "a.png", np.ones((2, 2), np.uint8))

    def fail(self, path, **options):
        path.write_bytes(b"half a")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(UserError, match=r"cannot write .*a\.png \(disk full\)"):
        save_label_map(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with Image.open(tmp_path / "a.png") as saved:
        assert np.asarray(saved).tolist() == [[1, 1], [1, 1]]


def test_label_map_must_be_uint8(tmp_path):
    with pytest.raises(ValueError, match=r"int64, shape \(2, 2\)"):
        save_label_map(tmp_path / "a.png", np.zeros((2, 2), np.int64))


@pytest.mark.parametrize("size", [(97, 131), (2000, 1500)])
def test_overlay_changes_classes_and_void_but_not_the_background(size):
    image, label = draw_scene(*size)
    result = overlay(image, label, VOC_CLASSES)
    assert result.dtype == np.uint8
    assert result.shape[0] > size[0]  # the legend
    picture = result[: size[0], : size[1]]
    np.testing.assert_array_equal(picture[label == 0], image[label == 0])
    assert (picture[label == 15] != image[label == 15]).any(axis=-1).mean() > 0.95
    assert (picture[label == 255] != image[label == 255]).any(axis=-1).mean() > 0.95


def test_overlay_mixes_colour_and_picture_by_opacity():
    image = np.full((20, 20, 3), 100, np.uint8)
    label = np.full((20, 20), 1, np.uint8)  # VOC's colour of 1 is (128, 0, 0)
    picture = overlay(image, label, ["background", "aeroplane"], opacity=0.25)[:20, :20]
    assert np.unique(picture.reshape(-1, 3), axis=0).tolist() == [[107, 75, 75]]


def test_overlay_colours_class_0_where_it_is_not_background():
    image = np.full((20, 20, 3), 100, np.uint8)
    label = np.zeros((20, 20), np.uint8)
    assert (overlay(image, label, ["sky"], opacity=0.5)[:20, :20] == 50).all()
    assert (overlay(image, label, ["background"], opacity=0.5)[:20, :20] == 100).all()


def test_overlay_outlines_a_class_on_its_own_side():
    image = np.full((10, 10, 3), 100, np.uint8)
    label = np.zeros((10, 10), np.uint8)
    label[:, 5:] = 1
    picture = overlay(image, label, ["background", "aeroplane"])[:10, :10]
    assert (picture[:, 4] == 100).all()
    assert (picture[:, 5].min(axis=-1) > 150).all()
    assert (picture[:, 6].min(axis=-1) < 100).all()


def test_overlay_legend_has_swatches_of_the_coloured_classes_only():
    image, label = draw_scene(120, 400)
    legend = overlay(image, label, VOC_CLASSES)[120:]
    colours = {tuple(colour) for colour in legend.reshape(-1, 3).tolist()}
    palette = voc_palette()
    assert tuple(palette[15].tolist()) in colours
    assert not any(tuple(palette[absent].tolist()) in colours for absent in (0, 1, 2, 14, 20))


def test_overlay_widens_for_a_legend_wider_than_the_picture():
    image = np.zeros((8, 8, 3), np.uint8)
    result = overlay(image, np.ones((8, 8), np.uint8), ["background", "pottedplant"])
    assert result.shape[1] > 60
    assert (result[:8, 8:] == 255).all()


def test_overlay_refuses_an_image_of_another_size():
    with pytest.raises(ValueError, match=r"\(4, 4, 3\).*\(4, 5, 3\)"):
        overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.uint8), ["background"])


def test_error_map_colours():
    label = np.array([[0, 1, 255]], np.uint8)
    prediction = np.array([[0, 0, 1]], np.uint8)
    expected = [list(CORRECT_COLOUR), list(WRONG_COLOUR), list(VOID_COLOUR)]
    assert error_map(label, prediction)[0].tolist() == expected


def test_error_map_refuses_different_sizes():
    with pytest.raises(ValueError, match="same shape"):
        error_map(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))
