"""Shows where in a photo an ImageNet classifier sees its classes.

    python -m fcn_jax.heatmap --weights=FILE --output=heat.png [--top=3 | --class=281,285] PHOTO

FILE holds a classifier with its last layer: torchvision's squeezenet1_1, resnet18 to resnet152,
googlenet, mobilenet_v3_large, alexnet, vgg16 or vgg16_bn, or timm's efficientnet_lite0 (.pth,
.safetensors), the same SqueezeNet with Caffe's names (.npz), or VGG_ILSVRC_16_layers or
bvlc_reference_caffenet (.caffemodel).

The classifier is made fully convolutional (`models/convolutionalize.py`) and scores every window
of the photo. What is written is the photo, and beside it for each class, the likeliest or those
given, the softmax of the scores over the photo. With --names=FILE, of one name a line, they have
names: of ImageNet's 1000 classes, from class 0 on.

The heat is as coarse as the classifier's window, 224 pixels or so. Where the classifier takes an
average (all but AlexNet and VGG16), --window=5 makes that narrower, and the heat sharper and less
sure.
"""

from absl import flags

from fcn_jax.terminal import cli

if __name__ == "__main__":  # --help and mistakes in flags do not wait for what is imported below
    flags.DEFINE_string("weights", None, "file of a classifier's weights")
    flags.DEFINE_string("output", None, "picture to write")
    flags.DEFINE_list("class", [], "indices of classes, such as 281,285, instead of the likeliest")
    flags.DEFINE_integer("top", 3, "how many of the likeliest classes", lower_bound=1)
    flags.DEFINE_string("names", None, "file of the classes' names, one a line")
    flags.DEFINE_integer("window", None, "side of the average, in positions", lower_bound=1)
    cli.begin()

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax.config import ModelConfig
from fcn_jax.data.images import read_bytes, read_image
from fcn_jax.errors import UserError
from fcn_jax.models.backbones.contract import Backbone
from fcn_jax.models.build import abstract_model
from fcn_jax.models.convolutionalize import (
    Average,
    Classifier,
    ClassifierLayer,
    FullyConnected,
    convolutionalize,
)
from fcn_jax.models.geometry import Grid
from fcn_jax.models.pure_model import Network
from fcn_jax.pretrained import Weights, read, zeros
from fcn_jax.pretrained.tables import classifiers
from fcn_jax.terminal.atomic_files import write_whole
from fcn_jax.terminal.progress import say


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    if not options.weights or not options.output or len(arguments) != 1:
        raise UserError("--weights=FILE, --output=PICTURE and one PHOTO are needed (see --help)")
    photo = read_image(arguments[0])
    classifier = load_classifier(options.weights, options.window)
    names = read_names(options.names, classifier.num_classes) if options.names else None
    given = parse_classes(options["class"].value or [], classifier.num_classes)
    heat, grid = heat_map(classifier, photo)
    # By the mean: what fills a photo counts for more than what one window takes for something.
    mean = heat.mean((0, 1))
    classes = given or [int(index) for index in mean.argsort()[::-1][: options.top]]
    maps = {}
    for index in classes:
        title = f"{index} {names[index]}" if names else f"class {index}"
        maps[title] = upsample(heat[..., index], grid, photo.shape[:2])
        say(f"{title}: {mean[index]:.3f} on average, {maps[title].max():.3f} at most")
    draw(photo, maps, Path(options.output))


def heat_map(classifier: Classifier, photo: np.ndarray) -> tuple[np.ndarray, Grid]:
    """The softmax of the scores of every window: float32 (h', w', k), and where the windows lie.

    photo: uint8 (h, w, 3). Windows are centred on the whole of it: around it lies the mean colour,
    which is zero to the network.
    """
    margin = int(np.ceil(classifier.grid.offset))
    height, width, channels = photo.shape
    canvas = np.empty((height + 2 * margin, width + 2 * margin, channels), np.float32)
    canvas[:] = classifier.backbone.preprocessing.input_mean
    canvas[margin : margin + height, margin : margin + width] = photo
    heat = _probabilities(classifier, jnp.asarray(canvas)[None])[0]
    grid = replace(classifier.grid, offset=classifier.grid.offset - margin)
    return np.asarray(heat), grid


@nnx.jit
def _probabilities(classifier: Classifier, image: jax.Array) -> jax.Array:
    return jax.nn.softmax(classifier(image), axis=-1)


def upsample(values: np.ndarray, grid: Grid, size: Sequence[int]) -> np.ndarray:
    """Bilinear interpolation of (h', w') between the centres of its windows, to (h, w) pixels."""
    from scipy.ndimage import map_coordinates

    places = [(np.arange(pixels) - grid.offset) / grid.stride for pixels in size]
    return map_coordinates(values, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest")


def draw(photo: np.ndarray, maps: dict[str, np.ndarray], path: Path) -> None:
    """Writes the photo and, beside it, each map (h, w) over it, under its title.

    Raises:
        UserError: the file cannot be written, or has the ending of no kind of picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = photo.shape[:2]
    panel_inches = 3.4
    figure = Figure(
        figsize=(panel_inches * (len(maps) + 1.25), panel_inches * height / width + 0.45),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(maps) + 1)
    for axes in panels:
        axes.set_axis_off()
    panels[0].imshow(photo)
    panels[0].set_title("photo")
    # In grey, so that all colour is heat.
    grey = photo.mean(-1)
    # Less than a tenth does not look hot, even where nothing is hotter.
    hottest = max(0.1, *(heat.max() for heat in maps.values()))
    for axes, (title, heat) in zip(panels[1:], maps.items(), strict=True):
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
        opacity = 0.35 + 0.4 * heat / hottest
        shown = axes.imshow(heat, cmap="inferno", vmin=0, vmax=hottest, alpha=opacity)
        axes.set_title(title)
    bar = figure.colorbar(shown, ax=panels, shrink=0.8, pad=0.01)
    bar.set_label("probability")
    kind = path.suffix[1:] or "png"
    try:
        write_whole(path, lambda part: figure.savefig(part, dpi=150, format=kind))
    except ValueError as error:
        raise UserError(f"cannot write {path} ({error})") from error


def load_classifier(path: str, window: int | None = None) -> Classifier:
    """The fully convolutional form of the classifier in a file.

    window: side of the average, in positions; None: the classifier's own.

    Raises:
        UserError: no such file, or none with the last layer of a known classifier; a window for one
            that averages nothing.
    """
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder, not a file with the weights of a classifier")
    weights = read(path)
    ending = classifiers.find(weights.about.backbone, weights.left_out.keys())
    if ending is None:
        raise UserError(
            f"{path} holds {weights.about.source}, without the last layer of a classifier (which "
            "conversion leaves out: give the file as it was published)"
        )
    if window and not any(isinstance(step, Average) for step in ending.steps):
        raise UserError(
            f"--window (={window}) goes with classifiers that average; {weights.about.source} has "
            "fully connected layers, whose window is given"
        )
    steps: list[ClassifierLayer] = []
    for step in ending.steps:
        if isinstance(step, tuple):
            weight, bias = (weights.left_out[name] for name in step)
            steps.append(FullyConnected(weight, bias))
        elif isinstance(step, Average):
            steps.append(Average(window or step.window))
        else:
            steps.append(step)
    return convolutionalize(_filled_backbone(weights), steps)


def _filled_backbone(weights: Weights) -> Backbone:
    about = weights.about
    as_trained = ModelConfig(
        backbone=about.backbone, preprocessing=about.preprocessing, padding="original"
    )
    # As shapes alone: only the backbone of this network is kept, and all of it is replaced.
    network = Network(abstract_model(as_trained, 1))
    variables, _ = weights.apply(zeros(network))
    return network.model(variables).backbone


def read_names(path: str, num_classes: int) -> list[str]:
    """The names of the classes, from a file with one a line.

    Raises:
        UserError: no such file, or one with another number of lines.
    """
    names = read_bytes(path).decode("utf-8", "replace").rstrip().splitlines()
    if len(names) != num_classes:
        raise UserError(f"{path}: {len(names)} lines; the classifier has {num_classes} classes")
    return names


def parse_classes(words: Sequence[str], num_classes: int) -> list[int]:
    """Indices of classes.

    Raises:
        UserError: a word that is none.
    """
    for word in words:
        if not word.isdecimal() or int(word) >= num_classes:
            raise UserError(f"--class: {word!r} is not a class of 0 to {num_classes - 1}")
    return [int(word) for word in words]


if __name__ == "__main__":
    cli.run(main)
