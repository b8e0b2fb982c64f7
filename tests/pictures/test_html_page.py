"""HTML pages in one file."""

import base64
import io
import math
import re

import numpy as np
from PIL import Image

from fcn_jax.pictures import curves, html_page
from fcn_jax.pictures.html_page import Cell

NASTY = '</title><script>alert("x")</script>\u202e\n&'


def test_names_of_strangers_are_escaped_everywhere():
    image = np.zeros((4, 4, 3), np.uint8)
    page = html_page.page_html(
        NASTY,
        [
            html_page.section_html(NASTY, html_page.paragraph_html(NASTY)),
            html_page.numbers_html([(NASTY, NASTY)]),
            html_page.list_html([NASTY]),
            html_page.code_html(NASTY),
            html_page.table_html([NASTY], [[Cell(NASTY)]]),
            html_page.figure_html(html_page.photo_html(image, NASTY), NASTY),
            html_page.slider_html(image, image, NASTY),
        ],
    )
    assert page.count("<script>") == page.count("</script>") == page.count("</title>") == 1
    assert "alert(&quot;" in page
    assert "\u202e" not in page


def test_cells_are_sorted_by_their_values_and_nan_has_none():
    cells = [Cell("9.5", 9.5), Cell("10.5", 10.5), Cell("–", math.nan), Cell("boat")]
    table = html_page.table_html(["x"], [[cell] for cell in cells])
    assert re.findall(r"<td(.*?)>", table) == [
        ' data-value="9.5"',
        ' data-value="10.5"',
        "",
        ' data-value="boat"',
    ]


def test_pictures_are_inside_and_drawings_are_exact():
    drawn = np.random.default_rng(0).choice([0, 90, 200], (20, 30, 3)).astype(np.uint8)
    tag = html_page.drawing_html(drawn, "a map")
    data = base64.b64decode(re.search(r"base64,([^\"]+)", tag)[1])
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "PNG"
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), drawn)


def test_curves_mark_the_best_step():
    loss = curves.Curve("loss", [1, 2, 3], [2.0, None, 0.5])
    iou = curves.Curve("mIoU", [2, 3], [0.25, 0.75])
    svg = curves.curves_svg([loss], [iou], best_step=3)
    assert svg.startswith("<svg")
    assert "best: step 3" in svg
    assert "best" not in curves.curves_svg([loss], [], best_step=None)
    assert svg == curves.curves_svg([loss], [iou], best_step=3)
