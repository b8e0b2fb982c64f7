"""The page in a real browser."""

import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from fcn_jax.inference.trained import load_run
from tests.serve.images import drawn, encoded, write_untrained
from tests.serve.process import running_server

pytestmark = pytest.mark.slow

pytest.importorskip("starlette", reason="Starlette is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("there is no Chromium (apt-get install chromium)", allow_module_level=True)


@pytest.fixture(scope="module")
def address(model_file):
    with running_server(f"--workdir={model_file}", "--sides_px=128,256", "--max_mb=1") as server:
        yield f"http://127.0.0.1:{server.port}/"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """A page that has loaded; no test may leave an error in its console."""
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.goto(address)
    yield page
    page.close()
    # Chromium writes a line for every answer of 4xx.
    assert [line for line in problems if "server responded with a status of 4" not in line] == []


def send(page, data: bytes, name: str = "photo.png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": data})


def send_good(page, image: np.ndarray) -> None:
    send(page, encoded(image))
    page.wait_for_selector("#view:not([hidden])")
    page.wait_for_selector("#busy", state="hidden")


def pixels(page) -> np.ndarray:
    """Returns the pixels of the canvas after the next frame."""
    values = page.evaluate(
        """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
            const view = document.getElementById("view");
            const image = view.getContext("2d").getImageData(0, 0, view.width, view.height);
            done([view.height, view.width, Array.from(image.data)]);
        })))"""
    )
    height, width, data = values
    return np.array(data, np.uint8).reshape(height, width, 4)[..., :3]


def slide(page, selector: str, value: int) -> None:
    page.locator(selector).fill(str(value))


def test_an_image_is_shown_with_its_prediction(page, model_file):
    image = drawn(120, 100)
    predictor = load_run(model_file)
    label = predictor(image)
    send_good(page, image)
    slide(page, "#opacity", 0)
    assert np.abs(pixels(page).astype(int) - image).mean() < 8  # as JPEG
    slide(page, "#opacity", 100)
    assert page.locator("#opacity-value").inner_text() == "100 %"
    coloured = pixels(page)
    # Without the overlay the crosshair and the picture remain.
    page.uncheck("#show-classes")
    plain = pixels(page)
    counts = np.bincount(label.ravel(), minlength=len(predictor.class_names))
    names = page.locator("#legend .name").all_inner_texts()
    assert names == [predictor.class_names[index] for index in np.argsort(-counts) if counts[index]]
    assert len(names) > 2
    assert (coloured != plain).any()
    # Every class off is as no overlay.
    page.check("#show-classes")
    page.click("#none")
    np.testing.assert_array_equal(pixels(page), plain)
    page.click("#all")
    np.testing.assert_array_equal(pixels(page), coloured)
    # The first class alone off.
    page.locator("#legend input").first.uncheck()
    changed = (pixels(page) != coloured).any(-1)
    top = int(np.argmax(counts))
    assert not changed[label != top].any()
    assert changed.any() == (predictor.class_names[top] != "background")


def test_the_pointer_and_the_keyboard_read_classes(page, model_file):
    image = drawn(120, 100)
    predictor = load_run(model_file)
    probabilities = predictor.probabilities(image)
    send_good(page, image)
    box = page.locator("#view").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 30.5 / 120, box["y"] + box["height"] * 40.5 / 100)

    def check(x: int, y: int) -> None:
        read = page.locator("#readout")
        assert f"x {x}, y {y};" in read.inner_text()
        best = int(probabilities[y, x].argmax())
        assert read.locator(".name").first.inner_text() == predictor.class_names[best]
        shown = float(re.match(r"[\d.]+", read.locator(".number").first.inner_text())[0])
        assert shown == pytest.approx(100 * probabilities[y, x, best], abs=0.3)

    check(30, 40)
    page.focus("#view")
    page.keyboard.press("ArrowRight")
    check(31, 40)
    page.keyboard.press("Shift+ArrowDown")
    check(31, 50)
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("ArrowUp")
    check(21, 49)


def test_the_entropy_is_a_layer_of_its_own(page):
    send_good(page, drawn(60, 60))
    before = pixels(page)
    assert page.locator("#scale").is_hidden()
    page.check("#show-entropy")
    assert page.locator("#scale").is_visible()
    assert (pixels(page) != before).any()
    slide(page, "#entropy-opacity", 0)
    np.testing.assert_array_equal(pixels(page), before)


def test_the_label_map_is_downloaded(page, model_file):
    image = drawn(120, 100)
    send_good(page, image)
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "photo_label.png"
    with Image.open(download.value.path()) as label:
        assert label.mode == "P"
        np.testing.assert_array_equal(np.asarray(label), load_run(model_file)(image))


def test_a_broken_file_is_said_and_the_image_before_stays(page):
    send_good(page, drawn(60, 60))
    before = pixels(page)
    send(page, encoded(drawn(60, 60))[:200])
    page.wait_for_selector("#error:not([hidden])")
    assert "damaged" in page.locator("#error").inner_text()
    assert page.locator("#busy").is_hidden()
    np.testing.assert_array_equal(pixels(page), before)
    send(page, bytes(1_100_000))
    page.locator("#error", has_text="1.0 MB").wait_for()
    send_good(page, drawn(60, 60))
    assert page.locator("#error").is_hidden()


def test_a_large_tiff_that_browsers_cannot_read_is_shrunk_and_shown(page):
    file = io.BytesIO()
    Image.fromarray(drawn(400, 200)).save(file, "TIFF", compression="tiff_lzw")
    send(page, file.getvalue(), "scan.tif")
    page.wait_for_selector("#view:not([hidden])")
    assert "400 × 200, shrunk to 256 × 128" in page.locator("#status").inner_text()
    assert pixels(page).shape == (128, 256, 3)


def test_an_image_is_pasted(page):
    page.evaluate(
        """async (bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "pasted.png"));
            document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: transfer}));
        }""",
        list(encoded(drawn(60, 50))),
    )
    page.wait_for_selector("#view:not([hidden])")
    assert pixels(page).shape == (50, 60, 3)


def test_the_page_says_that_the_server_computes(page):
    page.route("**/v1/segment*", lambda route: None)  # an answer that never comes
    send(page, encoded(drawn(60, 50)))
    page.wait_for_selector("#busy:not([hidden])")
    assert "Computing" in page.locator("#busy").inner_text()
    assert page.get_attribute("#stage", "aria-busy") == "true"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_needs_no_sideways_scrolling(browser, address, scheme):
    page = browser.new_page(viewport={"width": 320, "height": 640}, color_scheme=scheme)
    page.goto(address)
    send_good(page, drawn(120, 100))
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")
    page.close()


def test_the_other_tab_shows_every_layer(page):
    page.click("#tab-inside")
    assert "Choose an image" in page.locator("#inside-status").inner_text()
    page.click("#tab-prediction")
    send_good(page, drawn(120, 100))
    page.focus("#tab-prediction")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#pictures figure", timeout=60_000)
    titles = page.locator("#pictures b").all_inner_texts()
    assert titles[:3] == ["Filters of the first layer", "What each skip adds", "Receptive field"]
    assert any("relu" in title for title in titles)
    assert page.evaluate("[...document.querySelectorAll('#pictures img')].every(x => x.width)")
    assert page.locator("#prediction").is_hidden()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_untrained(folder / "runs/digits/lenet.safetensors")
    with running_server("--demo=digits", folder=folder) as server:
        yield f"http://127.0.0.1:{server.port}/"


def test_lenet_follows_what_is_drawn(browser, demo):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(demo)
    page.wait_for_selector(".score")
    page.locator("#layers figure").nth(7).wait_for()

    def scores() -> list[str]:
        page.wait_for_timeout(300)
        return page.locator(".score .number").all_inner_texts()

    assert len(scores()) == 11
    page.click("[data-clear=pad]")
    empty = scores()
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 180, box["y"] + 200, steps=8)
    page.mouse.up()
    assert scores() != empty
    page.click("[data-example=strip]")
    page.locator("#layers figcaption", has_text="156 × 28").first.wait_for()
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert not problems
    page.close()
