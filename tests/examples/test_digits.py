"""The network reads strings, and its map equals the classifier's scores of single windows."""

import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from examples import digit_strings, digits


@pytest.fixture(scope="module")
def trained() -> digits.DigitClassifier:
    images, labels = digit_strings.draw_windows(200, np.random.default_rng(0))
    return digits.train(images, labels, steps=160, seed=0)


def test_the_classifier_learns_single_digits_in_a_few_steps(trained):
    images, labels = digit_strings.draw_windows(40, np.random.default_rng(1))
    predicted = np.asarray(digits.classify(trained, jnp.asarray(images))).argmax(-1)
    is_digit = labels != digit_strings.NO_DIGIT
    assert is_digit.mean() == 0.5
    assert (predicted == labels)[is_digit].mean() > 0.6  # chance is below 0.1
    assert (predicted == labels)[~is_digit].mean() > 0.8


def test_map_of_one_window_is_the_classifiers_score(trained):
    images, _ = digit_strings.draw_windows(1, np.random.default_rng(2))
    scores = digits.score(digits.fully_convolutional(trained), jnp.asarray(images))
    assert scores.shape == (len(images), 1, 1, digit_strings.NUM_CLASSES)
    expected = digits.classify(trained, jnp.asarray(images))
    np.testing.assert_allclose(scores[:, 0, 0], expected, rtol=1e-4, atol=1e-4)


def test_each_column_of_a_strings_map_is_the_score_of_its_window(trained):
    net = digits.fully_convolutional(trained)
    image = digit_strings.draw_string(np.random.default_rng(3)).image
    lefts = range(0, image.shape[1] - digit_strings.WINDOW_PX + 1, net.grid.stride)
    windows = np.stack([image[:, left : left + digit_strings.WINDOW_PX] for left in lefts])
    scores = digits.score(net, jnp.asarray(image)[None])
    assert scores.shape == (1, 1, len(lefts), digit_strings.NUM_CLASSES)
    expected = digits.classify(trained, jnp.asarray(windows))
    np.testing.assert_allclose(scores[0, 0], expected, rtol=1e-4, atol=1e-4)


class Scripted:
    """A network that returns given scores."""

    def __init__(self, columns: list[int]):
        self.scores = np.zeros((1, 1, len(columns), digit_strings.NUM_CLASSES), np.float32)
        for column, label in enumerate(columns):
            self.scores[0, 0, column, label] = 5 + 0.1 * column
        self.grid = digits.LeNet(rngs=nnx.Rngs(0)).grids[4]


def test_neighbouring_columns_are_one_digit_and_a_gap_separates_equal_ones(monkeypatch):
    none = digit_strings.NO_DIGIT
    scripted = Scripted([none, 7, 7, none, none, 7, none, none, 3, 3, 3, none])
    monkeypatch.setattr(digits, "score", lambda net, image: net.scores)
    string = digit_strings.DrawnString(np.zeros((32, 76, 1), np.uint8), "773", np.zeros(3))
    reading = digits.read(scripted, string)  # type: ignore[arg-type]
    assert reading.text == "773"
    np.testing.assert_array_equal(reading.centres_px, reading.columns_px[[2, 5, 10]])


def test_a_digit_is_correct_only_at_its_centre():
    columns_px = 15.5 + 4.0 * np.arange(4)
    reading = digits.Reading("49", columns_px[[1, 3]], np.zeros((4, 11)), columns_px)
    image = np.zeros((32, 44, 1), np.uint8)
    string = digit_strings.DrawnString(image, "49", np.array([19.0, 50.0]))
    assert digits.correct_digits(string, reading) == [True, False]


def test_drawn_strings():
    rng = np.random.default_rng(4)
    for _ in range(30):
        string = digit_strings.draw_string(rng)
        width = string.image.shape[1]
        assert string.image.shape == (32, width, 1)
        assert width % digit_strings.WINDOW_PX == 0
        assert 5 <= len(string.text) == len(string.centres_px) <= 8
        assert np.diff(string.centres_px).min() >= digit_strings.MIN_DISTANCE_PX
        # A window can be centred on each digit within 3 pixels, as in training.
        assert string.centres_px.min() >= 12.5
        assert string.centres_px.max() <= width - 13.5


def test_command(tmp_path):
    command = [sys.executable, "-m", "examples.digits", f"--workdir={tmp_path / 'run'}"]
    result = subprocess.run(
        [*command, "--steps=2", "--strings=5"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"new windows: \d+\.\d% correct", result.stdout)
    assert "100 strings in other fonts" in result.stdout
    with Image.open(tmp_path / "run" / "digits.png") as picture:
        assert picture.width == 880
