"""Contact sheets: each picture of an entry, and texts in place of missing ones."""

import weakref

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from fcn_jax.data.palettes import voc_palette
from fcn_jax.pictures import layout
from fcn_jax.pictures.colours import INK, PLACEHOLDER_COLOUR
from fcn_jax.pictures.contact_sheet import DETAIL, THUMBNAIL_PX, Entry, draw
from fcn_jax.pictures.legend import Legend, legend_entries

NAMES = ("background", "plane", "bicycle")
WIDTH = 3 * THUMBNAIL_PX + 40


def colours(page) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in np.unique(np.asarray(page).reshape(-1, 3), axis=0).tolist()}


def test_nothing_to_draw():
    assert draw([]) is None


def test_one_entry_is_held_in_memory_at_a_time():
    alive: list[weakref.ref] = []
    max_alive = 0

    def entries():
        nonlocal max_alive
        for index in range(6):
            image = np.zeros((30, 40, 3), np.uint8)
            alive.append(weakref.ref(image))
            max_alive = max(max_alive, sum(ref() is not None for ref in alive))
            yield Entry(str(index), image, np.zeros((30, 40), np.uint8), NAMES, is_faulty=False)

    draw(entries())
    assert max_alive == 2  # the previous one, until it is replaced


def test_void_is_grey_in_the_mask_and_hatched_in_the_picture_and_the_legend():
    image = np.full((2001, 1777, 3), 100, np.uint8)  # more than twice the detail that is drawn
    mask = np.full((2001, 1777), 1, np.uint8)
    mask[1000:] = 255
    page = np.asarray(draw([Entry("a", image, mask, NAMES, is_faulty=False)]))
    height = round(2001 * THUMBNAIL_PX / 1777)
    pictures = page[10 : 10 + height]
    left, middle, right = (pictures[:, x : x + THUMBNAIL_PX] for x in (10, 240, 470))
    assert (left == 100).all()
    assert (middle[:120] == (128, 0, 0)).all()
    assert (middle[-120:] == 158).all()
    stripes = right[-120:].astype(int)
    assert (stripes == stripes[..., :1]).all()
    # 35 % of the picture's 100 and 65 % of two greys, 205 and 95.
    assert (np.abs(stripes.mean() - (0.35 * 100 + 0.65 * 150)) < 2).all()
    expected = Legend(
        legend_entries(np.array([1, 255]), NAMES, voc_palette()), layout.FONT_PX
    ).draw(WIDTH)
    np.testing.assert_array_equal(page[-expected.height :, :WIDTH], expected)
    assert {(128, 0, 0), (205, 205, 205), (95, 95, 95)} <= colours(expected)


def test_a_thin_line_of_a_large_mask_is_seen():
    """A line of 3 of 1760 pixels is a third of a pixel wide when it is drawn."""
    mask = np.zeros((880, 8 * THUMBNAIL_PX), np.uint8)
    mask[:, 801:804] = 2
    image = np.zeros((*mask.shape, 3), np.uint8)
    page = np.asarray(draw([Entry("a", image, mask, NAMES, is_faulty=False)]))
    assert DETAIL == 4
    for left in (240, 470):  # in the mask and over the image
        assert page[60, left + 100].tolist()[1] > 30
        assert (page[60, left + 105 : left + 200] == 0).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a\nb", r"a\nb"), ("a\udcff", r"a\udcff"), ("a\x1b[2J", r"a\x1b[2J")],
)
def test_unprintable_characters_in_names_are_replaced(name, expected):
    def page(text: str) -> np.ndarray:
        mask = np.ones((20, 40), np.uint8)
        return np.asarray(draw([Entry(text, np.zeros((20, 40, 3), np.uint8), mask, ("", text))]))

    np.testing.assert_array_equal(page(name), page(expected))


def boxes(entry: Entry) -> list[np.ndarray]:
    """Cuts out the three pictures of an entry whose image is twice as wide as high, or missing."""
    page = np.asarray(draw([entry]))
    return [page[10:120, left : left + THUMBNAIL_PX] for left in (10, 240, 470)]


def text_box(text: str) -> np.ndarray:
    """The text in the middle of a grey box."""
    box = Image.new("RGB", (THUMBNAIL_PX, THUMBNAIL_PX // 2), PLACEHOLDER_COLOUR)
    middle = THUMBNAIL_PX // 2, THUMBNAIL_PX // 4
    font = ImageFont.load_default(layout.FONT_PX)
    ImageDraw.Draw(box).text(middle, text, INK, font, anchor="mm")
    return np.asarray(box)


@pytest.mark.parametrize(
    ("image", "mask", "texts"),
    [
        (np.full((20, 40, 3), 77, np.uint8), "missing", [None, "missing", "no mask"]),
        ("cannot be read", np.ones((20, 40), np.uint8), ["cannot be read", None, "no image"]),
        ("cannot be read", "cannot be read", ["cannot be read", "cannot be read", "no mask"]),
        (
            np.zeros((20, 40, 3), np.uint8),
            np.ones((10, 20), np.uint8),
            [None, None, "of different sizes"],
        ),
        (
            np.zeros((20, 40, 3), np.uint8),
            np.full((20, 40, 3), (0, 0, 9), np.uint8),
            [None, None, "mask in colour"],
        ),
        (
            np.zeros((20, 40, 3), np.uint8),
            np.full((20, 40, 3), 9, np.uint8),
            [None, None, "no classes in the mask"],
        ),
    ],
)
def test_texts_replace_missing_pictures(image, mask, texts):
    drawn = boxes(Entry("a", image, mask, NAMES, is_faulty=True))
    for box, text in zip(drawn, texts, strict=True):
        if text is None:
            assert len(np.unique(box.reshape(-1, 3), axis=0)) == 1
        else:
            np.testing.assert_array_equal(box, text_box(text))
