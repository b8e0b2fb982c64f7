"""What learnt single digits reads strings, and its map holds the scores of single windows."""

import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from examples import digits


@pytest.fixture(scope="module")
def trained() -> digits.DigitClassifier:
    images, labels = digits.draw_windows(200, np.random.default_rng(0))
    return digits.train(images, labels, steps=160, seed=0)


def test_a_few_steps_teach_single_digits(trained):
    images, labels = digits.draw_windows(40, np.random.default_rng(1))
    predicted = np.asarray(digits.classify(trained, jnp.asarray(images))).argmax(-1)
    is_digit = labels != digits.NO_DIGIT
    assert is_digit.mean() == 0.5
    assert (predicted == labels)[is_digit].mean() > 0.6  # chance is below 0.1
    assert (predicted == labels)[~is_digit].mean() > 0.8


def test_on_one_window_the_map_is_the_classifiers_score(trained):
    images, _ = digits.draw_windows(1, np.random.default_rng(2))
    scores = digits.score(digits.fully_convolutional(trained), jnp.asarray(images))
    assert scores.shape == (len(images), 1, 1, digits.NUM_CLASSES)
    expected = digits.classify(trained, jnp.asarray(images))
    np.testing.assert_allclose(scores[:, 0, 0], expected, rtol=1e-4, atol=1e-4)


def test_on_a_string_every_column_is_the_score_of_its_window(trained):
    net = digits.fully_convolutional(trained)
    image = digits.draw_string(np.random.default_rng(3)).image
    lefts = range(0, image.shape[1] - digits.WINDOW_PX + 1, net.grid.stride)
    windows = np.stack([image[:, left : left + digits.WINDOW_PX] for left in lefts])
    scores = digits.score(net, jnp.asarray(image)[None])
    assert scores.shape == (1, 1, len(lefts), digits.NUM_CLASSES)
    expected = digits.classify(trained, jnp.asarray(windows))
    np.testing.assert_allclose(scores[0, 0], expected, rtol=1e-4, atol=1e-4)


class Scripted:
    """Scores that a test gives, in place of a network's."""

    def __init__(self, columns: list[int]):
        self.scores = np.zeros((1, 1, len(columns), digits.NUM_CLASSES), np.float32)
        for column, label in enumerate(columns):
            self.scores[0, 0, column, label] = 5 + 0.1 * column
        self.grid = digits.LeNet(rngs=nnx.Rngs(0)).grids[4]


def test_neighbouring_columns_are_one_digit_and_a_gap_parts_equal_ones(monkeypatch):
    none = digits.NO_DIGIT
    scripted = Scripted([none, 7, 7, none, none, 7, none, none, 3, 3, 3, none])
    monkeypatch.setattr(digits, "score", lambda net, image: net.scores)
    string = digits.DrawnString(np.zeros((32, 76, 1), np.uint8), np.zeros(3), "773")
    reading = digits.read(scripted, string)  # type: ignore[arg-type]
    assert reading.text == "773"
    np.testing.assert_array_equal(reading.peaks, [2, 5, 10])


def test_a_digit_is_right_only_where_it_is():
    probabilities = np.eye(digits.NUM_CLASSES)[[10, 4, 10, 9]]
    reading = digits.Reading(probabilities, 15.5 + 4.0 * np.arange(4), np.array([1, 3]))
    string = digits.DrawnString(np.zeros((32, 44, 1), np.uint8), np.array([19.0, 50.0]), "49")
    assert reading.text == "49"
    assert digits.digits_right(string, reading) == [True, False]


def test_strings_are_drawn_as_they_say():
    rng = np.random.default_rng(4)
    for _ in range(30):
        string = digits.draw_string(rng)
        width = string.image.shape[1]
        assert string.image.shape == (32, width, 1)
        assert width % digits.WINDOW_PX == 0
        assert 5 <= len(string.text) == len(string.centres_px) <= 8
        assert np.diff(string.centres_px).min() >= digits.NEAREST_PX
        # A window can be centred on each digit, to within the 3 pixels that it is trained for.
        assert string.centres_px.min() >= 12.5
        assert string.centres_px.max() <= width - 13.5


def test_the_command_says_how_well_it_reads_and_draws_it(tmp_path):
    command = [sys.executable, "-m", "examples.digits", f"--workdir={tmp_path / 'run'}"]
    result = subprocess.run(
        [*command, "--steps=2", "--strings=5"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"new windows: \d+\.\d% right", result.stdout)
    assert "100 strings in fonts never seen" in result.stdout
    with Image.open(tmp_path / "run" / "digits.png") as picture:
        assert picture.width == 880
