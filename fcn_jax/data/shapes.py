"""A small VOC-like data set of drawn images: something to train on without a download.

Five kinds of objects are drawn on striped, checked and cloudy grounds, some over others, with 255
on their borders as in VOC. A kind has a typical colour and texture, but only its outline identifies
it. The drawing is fixed by `SEED`, so the data set is the same everywhere.
"""

import functools
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fcn_jax.config import DataConfig
from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.data.raw import RawDataset, Sample, SourceFile
from fcn_jax.errors import UserError

CLASSES = ("background", "disc", "square", "triangle", "ring", "star")
SEED = 2015
SPLIT_SIZES = {"train": 400, "val": 100}
SIDES_PX = (96, 160)
MAX_OBJECTS = 4
TYPICAL_SHARE = 0.9  # share of objects in their kind's texture, and of objects in its colour
OVERSAMPLING = 2  # objects are drawn this much larger and shrunk, for smooth edges


def raw_dataset(data: DataConfig) -> RawDataset:
    """Lists the images to draw.

    Raises:
      UserError: a root is given; the person wants another data set than the default.
    """
    if data.root:
        raise UserError(
            f"config.data.root (={data.root}) is of no use to shapes, which are drawn: "
            "--config.data.name=folder or voc?"
        )
    samples = (
        Sample(
            split,
            image=SourceFile(name, lambda path: _drawn(path.name)[0]),
            mask=SourceFile(name, lambda path: _drawn(path.name)[1]),
        )
        for split, size in SPLIT_SIZES.items()
        for name in (Path(f"{split}_{index:03}") for index in range(size))
    )
    return RawDataset(CLASSES, samples, files=())


@functools.lru_cache(maxsize=32)  # the image and the mask of a few names, for some threads
def _drawn(name: str) -> tuple[np.ndarray, np.ndarray]:
    return draw(name)


def draw(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Draws the image of a name: image uint8 (h, w, 3) and label uint8 (h, w)."""
    rng = np.random.default_rng([SEED, *name.encode()])
    height, width = (int(side) for side in rng.integers(*SIDES_PX, size=2, endpoint=True))
    ground_hue = rng.random()
    ground = _from_hsv(ground_hue, rng.uniform(0.15, 0.4), rng.uniform(0.6, 0.9))
    image = _texture(rng, int(rng.integers(5)), height, width, ground)
    label = np.zeros((height, width), np.uint8)
    for _ in range(MAX_OBJECTS):
        index = int(rng.integers(1, len(CLASSES)))
        coverage = _silhouette(rng, CLASSES[index], height, width)
        if _hides_another(coverage, label):
            continue
        texture = index - 1 if rng.random() < TYPICAL_SHARE else int(rng.integers(5))
        surface = _texture(rng, texture, height, width, _object_colour(rng, index, ground_hue))
        shadow = _shifted(coverage, 3).filter(ImageFilter.GaussianBlur(3))
        image = image * (1 - 0.35 * _fraction(shadow)[..., None])
        opacity = _fraction(coverage)[..., None]
        image = image * (1 - opacity) + surface * opacity
        # A box blur of 3 px turns the edge into a ramp; its middle 70 % are some 2 px wide.
        edge = _fraction(coverage.filter(ImageFilter.BoxBlur(1)))
        label[edge >= 0.15] = IGNORE_INDEX
        label[edge >= 0.85] = index
    image = image + 3 * rng.standard_normal(image.shape, np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), label


def _hides_another(coverage: Image.Image, label: np.ndarray) -> bool:
    """Returns whether an object would cover more than a tenth of the others."""
    drawn = label != 0
    return bool((drawn & (_fraction(coverage) > 0)).sum() > 0.1 * drawn.sum())


def _object_colour(rng: np.random.Generator, index: int, ground_hue: float) -> np.ndarray:
    """A saturated colour, (3,): often the typical one, and never of the ground's hue."""
    typical = index / (len(CLASSES) - 1) + rng.uniform(-0.08, 0.08)
    from_ground = (typical - ground_hue) % 1
    if rng.random() > TYPICAL_SHARE or min(from_ground, 1 - from_ground) < 0.15:
        from_ground = rng.uniform(0.15, 0.85)
    hue = ground_hue + from_ground
    return _from_hsv(hue, rng.uniform(0.5, 0.85), rng.uniform(0.6, 0.95))


def _from_hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB in 0…255, (3,)."""
    distance = np.abs((hue + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3)
    rgb = 255 * value * (1 - saturation * (1 - np.clip(distance - 1, 0, 1)))
    return rgb.astype(np.float32)


def _texture(
    rng: np.random.Generator, kind: int, height: int, width: int, colour: np.ndarray
) -> np.ndarray:
    """A striped, checked, dotted, cloudy or shaded surface: float (h, w, 3) in 0…255."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    pace = 2 * np.pi / rng.uniform(7, 16)
    match kind:
        case 0:
            wave = np.sin(pace * along)
        case 1:
            wave = np.sign(np.sin(pace * along) * np.sin(pace * across)) * 0.7
        case 2:
            wave = np.where(np.cos(pace * along) + np.cos(pace * across) > 1, 1.0, -0.4)
        case 3:
            coarse = rng.normal(size=(height // 16 + 2, width // 16 + 2)).astype(np.float32)
            cloud = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            wave = np.clip(np.asarray(cloud), -1.5, 1.5)
        case _:
            wave = 2 * (along - along.min()) / np.ptp(along) - 1
    contrast = rng.uniform(0.08, 0.2)
    return colour * (1 + contrast * wave.astype(np.float32)[..., None])


def _silhouette(rng: np.random.Generator, kind: str, height: int, width: int) -> Image.Image:
    """The coverage of an object of random position, size and rotation: grey image of 0…255."""
    radius = rng.uniform(0.2, 0.32) * min(height, width)
    center = rng.uniform(0.2, 0.8, size=2) * (width, height) * OVERSAMPLING
    radius *= OVERSAMPLING
    turn = rng.uniform(0, 2 * np.pi)
    canvas = Image.new("L", (width * OVERSAMPLING, height * OVERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    match kind:
        case "disc":
            pen.ellipse(_box(center, radius), fill=255)
        case "ring":
            pen.ellipse(_box(center, radius * 1.1), fill=255)
            pen.ellipse(_box(center, radius * rng.uniform(0.5, 0.6)), fill=0)
        case "square":
            pen.polygon(_corners(center, [radius * 1.15] * 4, turn), fill=255)
        case "triangle":
            pen.polygon(_corners(center, [radius * 1.25] * 3, turn), fill=255)
        case "star":
            pen.polygon(_corners(center, [radius * 1.3, radius * 0.55] * 5, turn), fill=255)
    return canvas.resize((width, height), Image.Resampling.BOX)


def _box(center: np.ndarray, radius: float) -> list[float]:
    return [*(center - radius), *(center + radius)]


def _corners(center: np.ndarray, radii: list[float], turn: float) -> list[tuple[float, float]]:
    angles = turn + 2 * np.pi * np.arange(len(radii)) / len(radii)
    points = center + np.array(radii)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return [(float(x), float(y)) for x, y in points]


def _shifted(image: Image.Image, distance_px: int) -> Image.Image:
    moved = Image.new("L", image.size)
    moved.paste(image, (distance_px, distance_px))
    return moved


def _fraction(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float32) / 255
