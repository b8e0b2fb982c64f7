"""Reads strings of digits with a network that was trained on single digits (Matan et al. 1991).

    python -m examples.digits [--workdir=runs/digits]

LeNet is trained to classify the centre of a window of 32×32 pixels: one of ten digits, or none.
`models/convolutionalize.py` then converts it into a fully convolutional network with the same
weights, which scores every window of a wide image in one pass. The peaks of this map of scores
spell the string. `digit_strings.py` draws all images, in the fonts that Pillow and matplotlib
contain. DIR/digits.png shows some strings with their maps.
"""

from absl import flags

from fcn_jax.terminal import cli

if __name__ == "__main__":  # before the imports that take seconds: --help and wrong flags are fast
    flags.DEFINE_string("workdir", "runs/digits", "folder to write to")
    flags.DEFINE_integer("steps", 1500, "training steps", lower_bound=1)
    flags.DEFINE_integer("strings", 2500, "strings drawn for training", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "seed of drawing and training", lower_bound=0)
    cli.begin()

from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy.ndimage import maximum_filter1d

from examples.digit_strings import (
    FONTS,
    NO_DIGIT,
    NUM_CLASSES,
    UNSEEN_FONTS,
    DrawnString,
    draw_string,
    draw_windows,
)
from fcn_jax.errors import UserError
from fcn_jax.models.backbones.lenet import LeNet
from fcn_jax.models.convolutionalize import Classifier, FullyConnected, convolutionalize
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.terminal.progress import format_duration, progress_bar, say


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"{' '.join(arguments)!r} is not a flag (see --help)")
    options = flags.FLAGS
    rng = np.random.default_rng(options.seed)
    workdir = Path(options.workdir)
    workdir.mkdir(parents=True, exist_ok=True)

    with progress_bar("drawing", options.strings, unit="strings") as bar:
        images, labels = draw_windows(options.strings, rng, after_each=bar.advance)
    started = perf_counter()
    classifier = train(images, labels, steps=options.steps, seed=options.seed)
    say(f"trained for {format_duration(perf_counter() - started)}")
    images, labels = draw_windows(200, rng)
    correct = np.asarray(classify(classifier, jnp.asarray(images))).argmax(-1) == labels
    say(f"{len(labels)} new windows: {correct.mean():.1%} correct")

    network = fully_convolutional(classifier)
    rows: list[tuple[DrawnString, Reading]] = []
    for fonts, about in ((FONTS, "the same fonts"), (UNSEEN_FONTS, "other fonts")):
        strings = [draw_string(rng, fonts) for _ in range(100)]
        pairs = [(string, read(network, string)) for string in strings]
        digits = [correct for pair in pairs for correct in correct_digits(*pair)]
        whole = sum(reading.text == string.text for string, reading in pairs)
        say(f"100 strings in {about}: {np.mean(digits):.1%} of digits, {whole} strings correct")
        rows += pairs
    wrong = [row for row in rows[3:] if row[0].text != row[1].text]
    draw_sheet(rows[:3] + wrong[:1], workdir / "digits.png")
    say(f"see {workdir / 'digits.png'}")


# The classifier, and the same weights as a fully convolutional network


class DigitClassifier(nnx.Module):
    """LeNet with its fully connected layers."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.backbone = LeNet(rngs=rngs)
        self.fc1 = nnx.Linear(16 * 5 * 5, 120, rngs=rngs)
        self.fc2 = nnx.Linear(120, 84, rngs=rngs)
        self.fc3 = nnx.Linear(84, NUM_CLASSES, rngs=rngs)

    def __call__(self, window: jax.Array) -> jax.Array:
        """Scores windows: uint8 (b, 32, 32, 1) to float32 (b, 11)."""
        features = self.backbone(FeatureMap(self.backbone.preprocessing(window)))[4].values
        x = features.transpose(0, 3, 1, 2).reshape(len(window), -1)  # flattened channels first
        return self.fc3(jax.nn.relu(self.fc2(jax.nn.relu(self.fc1(x)))))


classify = nnx.jit(DigitClassifier.__call__)
score = nnx.jit(Classifier.__call__)


def fully_convolutional(classifier: DigitClassifier) -> Classifier:
    """Turns fc1 into a convolution with a 5×5 kernel, fc2 and fc3 into 1×1 convolutions."""

    def layer(linear: Any, window: int = 1) -> FullyConnected:
        return FullyConnected(np.asarray(linear.kernel).T, np.asarray(linear.bias), window)

    fc1, fc2, fc3 = layer(classifier.fc1, window=5), layer(classifier.fc2), layer(classifier.fc3)
    return convolutionalize(classifier.backbone, [fc1, jax.nn.relu, fc2, jax.nn.relu, fc3])


def train(
    images: np.ndarray, labels: np.ndarray, *, steps: int, seed: int, batch_size: int = 64
) -> DigitClassifier:
    """Trains a classifier on windows, uint8 (n, 32, 32, 1), with labels, int (n,)."""
    split: Any = nnx.split(DigitClassifier(rngs=nnx.Rngs(seed)))
    graph, params = split
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, steps))

    def loss(params, window, label):
        scores = nnx.merge(graph, params)(window)
        return optax.softmax_cross_entropy_with_integer_labels(scores, label).mean()

    @jax.jit
    def step(params, opt_state, window, label):
        value, gradients = jax.value_and_grad(loss)(params, window, label)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    opt_state = optimizer.init(params)
    rng = np.random.default_rng(seed)
    with progress_bar("training", steps, unit="steps") as bar:
        for _ in range(steps):
            batch = rng.integers(len(images), size=batch_size)
            params, opt_state, value = step(params, opt_state, images[batch], labels[batch])
            bar.advance(loss=float(value))
    return nnx.merge(graph, params)


# Reading a string


class Reading(NamedTuple):
    """The digits that were read, their centres, and the map of class probabilities, (columns, 11),
    with the centre of each column's window."""

    text: str
    centres_px: np.ndarray
    probabilities: np.ndarray
    columns_px: np.ndarray


def read(network: Classifier, string: DrawnString) -> Reading:
    """Scores all windows at once. A digit is where its evidence is the highest of five columns."""
    scores = np.asarray(score(network, jnp.asarray(string.image)[None]))[0, 0]
    columns_px = network.grid.stride * np.arange(len(scores)) + network.grid.offset
    evidence = np.logaddexp.reduce(scores[:, :NO_DIGIT], axis=-1) - scores[:, NO_DIGIT]
    peaks = np.flatnonzero((evidence > 0) & (evidence == maximum_filter1d(evidence, 5)))
    text = "".join(map(str, scores[peaks, :NO_DIGIT].argmax(-1)))
    return Reading(text, columns_px[peaks], np.asarray(jax.nn.softmax(scores)), columns_px)


def correct_digits(string: DrawnString, reading: Reading) -> list[bool]:
    """Returns for each digit whether it was read within 6 pixels of its centre."""
    return [
        any(
            digit == read_digit and abs(read_px - centre_px) < 6
            for read_digit, read_px in zip(reading.text, reading.centres_px, strict=True)
        )
        for digit, centre_px in zip(string.text, string.centres_px, strict=True)
    ]


def draw_sheet(rows: list[tuple[DrawnString, Reading]], path: Path) -> None:
    """Draws each string, and below it the class probabilities of the window centred there."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.15 * len(rows)), layout="constrained")
    panels = figure.subplots(2 * len(rows), 1, height_ratios=[1, 1.2] * len(rows))
    max_width = max(string.image.shape[1] for string, _ in rows)
    for (string, reading), above, below in zip(rows, panels[::2], panels[1::2], strict=True):
        verdict = "correct" if reading.text == string.text else f"wrong: it is {string.text}"
        above.set_title(f"read {reading.text}: {verdict}", fontsize=10, loc="left")
        above.imshow(string.image[..., 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        above.set_yticks([])
        columns = reading.columns_px
        below.pcolormesh(columns, range(NUM_CLASSES), reading.probabilities.T, cmap="Blues", vmax=1)
        for centre, digit in zip(reading.centres_px, reading.text, strict=True):
            below.text(centre, int(digit), digit, color="w", ha="center", va="center", fontsize=8)
            above.axvline(centre, 0, 0.06, color="tab:orange", lw=2)
        below.set_yticks(range(NUM_CLASSES), [*map(str, range(10)), "none"], fontsize=6)
        below.invert_yaxis()
        for axes in (above, below):
            axes.set(xlim=(-0.5, max_width - 0.5), xticks=[], aspect="auto")
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    cli.run(main)
