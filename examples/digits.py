"""Reads strings of digits with a net that learnt single ones (Matan et al. 1991).

    python -m examples.digits [--workdir=runs/digits]

LeNet learns what lies in the middle of a window of 32×32 pixels: one of ten digits, or none. Then
net surgery (`models/convolutionalize.py`) makes a fully convolutional net of it, which scores every
window of a wide image in one pass: a map of scores along the image, whose peaks spell the string.
All images are drawn here, in the fonts that come with Pillow and matplotlib. DIR/digits.png shows
some of them, with their maps.
"""

from absl import flags

from fcn_jax.terminal import cli

if __name__ == "__main__":  # --help and mistakes in flags do not wait for what is imported below
    flags.DEFINE_string("workdir", "runs/digits", "folder to write to")
    flags.DEFINE_integer("steps", 1500, "steps of training", lower_bound=1)
    flags.DEFINE_integer("strings", 2500, "drawn strings to train on", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of the drawing and of the training", lower_bound=0)
    cli.begin()

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter, maximum_filter1d

from fcn_jax.errors import UserError
from fcn_jax.models.backbones.lenet import LeNet
from fcn_jax.models.convolutionalize import Classifier, FullyConnected, convolutionalize
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.terminal.progress import format_duration, progress_bar, say

WINDOW_PX = 32
NO_DIGIT = 10
NUM_CLASSES = 11
MAX_DIGITS = 8
NEAREST_PX = 13  # between the centres of neighbours: three columns of the map
OVERSAMPLING = 2  # digits are drawn this much larger and shrunk, for smooth edges
FONTS = (
    "",  # Pillow's own; the others are matplotlib's
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic")),
)
UNSEEN_FONTS = ("STIXGeneral", "STIXGeneralBol", "cmr10", "cmss10")  # never trained on


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    if arguments:
        raise UserError(f"{' '.join(arguments)!r} is no flag (see --help)")
    rng = np.random.default_rng(options.seed)
    workdir = Path(options.workdir)
    workdir.mkdir(parents=True, exist_ok=True)

    with progress_bar("drawing", options.strings, unit="strings") as bar:
        images, labels = draw_windows(options.strings, rng, after_each=bar.advance)
    started = perf_counter()
    classifier = train(images, labels, steps=options.steps, seed=options.seed)
    say(f"trained for {format_duration(perf_counter() - started)}")
    images, labels = draw_windows(200, rng)
    right = np.asarray(classify(classifier, jnp.asarray(images))).argmax(-1) == labels
    say(f"{len(labels)} new windows: {right.mean():.1%} right")

    net = fully_convolutional(classifier)
    rows: list[tuple[DrawnString, Reading]] = []
    for fonts, about in ((FONTS, "the same fonts"), (UNSEEN_FONTS, "fonts never seen")):
        strings = [draw_string(rng, fonts) for _ in range(100)]
        readings = [read(net, string) for string in strings]
        digits = [r for pair in zip(strings, readings, strict=True) for r in digits_right(*pair)]
        whole = sum(map(is_right, strings, readings))
        say(f"100 strings in {about}: {np.mean(digits):.1%} of digits right, {whole} whole strings")
        rows += list(zip(strings, readings, strict=True))
    # The first ones, whatever became of them, and the first that went wrong beside them.
    wrong = [row for row in rows[3:] if not is_right(*row)]
    draw_sheet(rows[:3] + wrong[:1], workdir / "digits.png")
    say(f"see {workdir / 'digits.png'}")


# The classifier, and the same weights as a fully convolutional network


class DigitClassifier(nnx.Module):
    """LeNet with its fully connected layers: windows in, eleven scores out."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.backbone = LeNet(rngs=rngs)
        self.fc1 = nnx.Linear(16 * 5 * 5, 120, rngs=rngs)
        self.fc2 = nnx.Linear(120, 84, rngs=rngs)
        self.fc3 = nnx.Linear(84, NUM_CLASSES, rngs=rngs)

    def __call__(self, window: jax.Array) -> jax.Array:
        """Bytes (b, 32, 32, 1) to scores (b, 11)."""
        features = self.backbone(FeatureMap(self.backbone.preprocessing(window)))[4].values
        x = features.transpose(0, 3, 1, 2).reshape(len(window), -1)  # flat, channels first
        return self.fc3(jax.nn.relu(self.fc2(jax.nn.relu(self.fc1(x)))))


classify = nnx.jit(DigitClassifier.__call__)
score = nnx.jit(Classifier.__call__)


def fully_convolutional(classifier: DigitClassifier) -> Classifier:
    """No weight changes: fc1 becomes a 5×5 kernel, fc2 and fc3 1×1 kernels."""

    def layer(linear: Any, window: int = 1) -> FullyConnected:
        return FullyConnected(np.asarray(linear.kernel).T, np.asarray(linear.bias), window)

    fc1, fc2, fc3 = layer(classifier.fc1, window=5), layer(classifier.fc2), layer(classifier.fc3)
    return convolutionalize(classifier.backbone, [fc1, jax.nn.relu, fc2, jax.nn.relu, fc3])


def train(
    images: np.ndarray, labels: np.ndarray, *, steps: int, seed: int, batch_size: int = 64
) -> DigitClassifier:
    """images: uint8 (n, 32, 32, 1). labels: int (n,)."""
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


@dataclasses.dataclass(frozen=True)
class Reading:
    """probabilities: (columns, 11). centres_px: of the columns. peaks: those that are digits."""

    probabilities: np.ndarray
    centres_px: np.ndarray
    peaks: np.ndarray

    @property
    def digits(self) -> np.ndarray:
        return self.probabilities[self.peaks, :NO_DIGIT].argmax(-1)

    @property
    def text(self) -> str:
        return "".join(map(str, self.digits))


def read(net: Classifier, string: "DrawnString") -> Reading:
    """Scores all windows at once; a digit stands where its evidence is the best around."""
    scores = np.asarray(score(net, jnp.asarray(string.image)[None]))[0, 0]
    evidence = np.logaddexp.reduce(scores[:, :NO_DIGIT], axis=-1) - scores[:, NO_DIGIT]
    peaks = np.flatnonzero((evidence > 0) & (evidence == maximum_filter1d(evidence, 5)))
    probabilities = np.asarray(jax.nn.softmax(scores, axis=-1))
    return Reading(probabilities, net.grid.stride * np.arange(len(scores)) + net.grid.offset, peaks)


def is_right(string: "DrawnString", reading: Reading) -> bool:
    return reading.text == string.text


def digits_right(string: "DrawnString", reading: Reading) -> list[bool]:
    """Of each digit, whether it was read within 6 pixels of where it is."""
    places = reading.centres_px[reading.peaks]
    return [
        any(reading.digits[np.abs(places - centre) < 6] == int(digit))
        for digit, centre in zip(string.text, string.centres_px, strict=True)
    ]


# Drawing


@dataclasses.dataclass(frozen=True)
class DrawnString:
    """image: uint8 (32, w, 1). centres_px: of the digits of `text`."""

    image: np.ndarray
    centres_px: np.ndarray
    text: str


def draw_windows(
    strings: int, rng: np.random.Generator, after_each: Callable[[], None] = lambda: None
) -> tuple[np.ndarray, np.ndarray]:
    """Windows cut from strings, so that neighbours intrude: for each digit one near its middle, and
    one that is centred between digits or beyond them.

    Returns uint8 (n, 32, 32, 1) and int32 (n,).
    """
    images, labels = [], []
    for _ in range(strings):
        string = draw_string(rng)
        lefts = np.arange(string.image.shape[1] - WINDOW_PX + 1)
        distances = np.abs(lefts[:, None] + (WINDOW_PX - 1) / 2 - string.centres_px)
        for index, digit in enumerate(string.text):
            near = rng.choice(lefts[distances[:, index] <= 3])
            between = rng.choice(lefts[distances.min(1) >= 5.5])  # those in doubt are left out
            for left, label in ((near, int(digit)), (between, NO_DIGIT)):
                images.append(string.image[:, left : left + WINDOW_PX])
                labels.append(label)
        after_each()
    return np.stack(images), np.array(labels, np.int32)


def draw_string(rng: np.random.Generator, fonts: tuple[str, ...] = FONTS) -> DrawnString:
    """Five to eight digits in one font, loosely or closely set, on noisy paper."""
    text = "".join(map(str, rng.integers(10, size=rng.integers(5, MAX_DIGITS + 1))))
    font = load_font(str(rng.choice(fonts)), OVERSAMPLING * int(rng.integers(21, 30)))
    stroke_px = int(rng.integers(0, 3))
    widest_gap_px = rng.integers(3, 14)
    ink = np.zeros((WINDOW_PX, MAX_DIGITS * 2 * WINDOW_PX), np.float32)
    centres: list[float] = []
    left = int(rng.integers(13, 20))  # so that a window can be centred on the first digit
    for digit in text:
        glyph = draw_glyph(digit, font, stroke_px, rng)
        height, width = glyph.shape
        half = (width - 1) / 2
        if centres:
            left += int(rng.integers(0, widest_gap_px))
            left = max(left, math.ceil(centres[-1] + NEAREST_PX - half))
        top = int(np.clip((WINDOW_PX - height) // 2 + rng.integers(-2, 3), 0, WINDOW_PX - height))
        part = ink[top : top + height, left : left + width]
        np.maximum(part, glyph, out=part)
        centres.append(left + half)
        left += width
    # To a multiple of the window: for few widths there are few compilations.
    ink = ink[:, : -(-(left + 13) // WINDOW_PX) * WINDOW_PX]
    ink = gaussian_filter(ink, rng.uniform(0, 0.8))
    paper = rng.uniform(0, 255) + rng.uniform(-30, 30) * np.linspace(-1, 1, ink.shape[1])
    contrast = rng.uniform(80, 200) * (1 if paper.mean() < 128 else -1)
    noise = rng.uniform(0, 16) * rng.standard_normal(ink.shape)
    image = np.clip(paper + contrast * ink + noise, 0, 255).astype(np.uint8)
    return DrawnString(image[..., None], np.array(centres), text)


def draw_glyph(
    digit: str, font: ImageFont.FreeTypeFont, stroke_px: int, rng: np.random.Generator
) -> np.ndarray:
    """One digit, turned and slanted, in its tight box: float32 (h, w), 1 where there is ink."""
    side = 40 * OVERSAMPLING
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).text(
        (side / 2, side / 2), digit, 255, font, anchor="mm", stroke_width=stroke_px
    )
    slant = rng.uniform(-0.2, 0.2)
    canvas = canvas.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR).transform(
        canvas.size,
        Image.Transform.AFFINE,
        (1, slant, -slant * side / 2, 0, 1, 0),
        Image.Resampling.BILINEAR,
    )
    small = np.asarray(canvas.crop(canvas.getbbox()).reduce(OVERSAMPLING), np.float32) / 255
    return small[:WINDOW_PX]


@functools.cache
def load_font(name: str, size_px: int) -> Any:
    import matplotlib

    if not name:
        return ImageFont.load_default(size_px)
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / f"{name}.ttf", size_px)


def draw_sheet(rows: list[tuple[DrawnString, Reading]], path: Path) -> None:
    """Each string, and below it the probability of each class for the window centred there."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.15 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 * len(rows), 1, height_ratios=[1, 1.2] * len(rows))
    widest = max(string.image.shape[1] for string, _ in rows)
    for (string, reading), above, below in zip(rows, panels[::2], panels[1::2], strict=True):
        verdict = "right" if is_right(string, reading) else f"wrong: it says {string.text}"
        above.set_title(f"read {reading.text}: {verdict}", fontsize=10, loc="left")
        above.imshow(string.image[..., 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        centres = reading.centres_px
        edges = np.append(centres, 2 * centres[-1] - centres[-2]) - (centres[1] - centres[0]) / 2
        below.pcolormesh(
            edges, np.arange(NUM_CLASSES + 1) - 0.5, reading.probabilities.T, cmap="Blues", vmax=1
        )
        for place, digit in zip(centres[reading.peaks], reading.digits, strict=True):
            below.text(place, digit, digit, color="w", ha="center", va="center", fontsize=8)
            above.axvline(place, 0, 0.06, color="tab:orange", lw=2)
        below.set_yticks(range(NUM_CLASSES), [*map(str, range(10)), "none"], fontsize=6)
        below.set_ylim(NUM_CLASSES - 0.5, -0.5)
        above.set_yticks([])
        for axes in (above, below):
            axes.set(xlim=(-0.5, widest - 0.5), xticks=[], aspect="auto")
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    cli.run(main)
