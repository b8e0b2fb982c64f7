"""Shows where in a photo an ImageNet classifier finds its classes.

    python -m fcn_jax.heatmap --weights=FILE --output=heat.png [--top=3 | --class=281,285] PHOTO

FILE holds a classifier with its last layer: torchvision's squeezenet1_1, resnet18 to resnet152,
googlenet, mobilenet_v3_large, alexnet, vgg16 or vgg16_bn, or timm's efficientnet_lite0 (.pth,
.safetensors), the same SqueezeNet with Caffe's names (.npz), or VGG_ILSVRC_16_layers or
bvlc_reference_caffenet (.caffemodel).

The classifier is made fully convolutional (`models/convolutionalize.py`) and scores every window
of the photo. The output is the photo, followed by one panel for each class (the most probable ones,
or those of --class): the softmax of the scores over the photo. --names=FILE gives the names of the
classes, one per line, from class 0 on.

The heat is as coarse as the classifier's window, about 224 pixels. If the classifier takes an
average (all but AlexNet and VGG16), --window=5 makes the window smaller, and the heat sharper and
less certain.
"""

from absl import flags

from fcn_jax.terminal import cli

if __name__ == "__main__":  # --help and mistakes in flags do not wait for the imports below
    flags.DEFINE_string("weights", None, "file of a classifier's weights")
    flags.DEFINE_string("output", None, "picture to write")
    flags.DEFINE_list("class", [], "classes to show by index, such as 281,285, instead of --top")
    flags.DEFINE_integer("top", 3, "number of the most probable classes to show", lower_bound=1)
    flags.DEFINE_string("names", None, "file of the classes' names, one per line")
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
from fcn_jax.errors import ArgumentError, UserError
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
from fcn_jax.models.pure_model import PureModel
from fcn_jax.parallel.memory import free_bytes
from fcn_jax.parallel.memory_estimate import estimated_bytes
from fcn_jax.pretrained import Weights, read, zeros
from fcn_jax.pretrained.tables import classifiers
from fcn_jax.terminal.atomic_files import write_whole
from fcn_jax.terminal.progress import say

MAX_PANELS = 20
"""Limit for one picture: each class has a panel."""

PANEL_INCHES = 3.4
MAX_PANEL_RATIO = 4
"""Limit of a panel's height by its width; a longer photo is drawn smaller."""


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    if not options.weights or not options.output or len(arguments) != 1:
        raise UserError("--weights=FILE, --output=PICTURE and one PHOTO are needed (see --help)")
    output = Path(options.output)
    for file in filter(None, (arguments[0], options.weights, options.names)):
        if output.exists() and Path(file).exists() and output.samefile(file):
            raise UserError(f"--output={output} is the file {file} itself: give another")
    panels = "class" if options["class"].value else "top"
    count = len(options["class"].value or ()) or options.top
    if count > MAX_PANELS:
        raise ArgumentError(panels, count, f"must be at most {MAX_PANELS}: each class is a panel")
    photo = read_image(arguments[0])
    classifier = load_classifier(options.weights, options.window)
    names = read_names(options.names, classifier.num_classes) if options.names else None
    given = parse_classes(options["class"].value or [], classifier.num_classes)
    check_memory(classifier, photo.shape, arguments[0])
    heat, grid = heat_map(classifier, photo)
    # Ranked by the mean: a class that fills the photo is more important than one strong window.
    mean = heat.mean((0, 1))
    classes = given or [int(index) for index in mean.argsort()[::-1][: options.top]]
    maps = {}
    for index in classes:
        title = f"{index} {names[index]}" if names else f"class {index}"
        maps[title] = upsample(heat[..., index], grid, photo.shape[:2])
        say(f"{title}: {mean[index]:.3f} on average, {maps[title].max():.3f} at most")
    draw(photo, maps, output)


def heat_map(classifier: Classifier, photo: np.ndarray) -> tuple[np.ndarray, Grid]:
    """Scores every window of a photo.

    The windows are centred on all parts of the photo. Around it is the mean colour, which is zero
    after preprocessing.

    Args:
        classifier: a fully convolutional classifier.
        photo: uint8 (h, w, 3), RGB.

    Returns:
        The softmax of the scores, float32 (h', w', k), and the positions of the windows.
    """
    margin = int(np.ceil(classifier.grid.offset))
    height, width, _ = photo.shape
    canvas = np.empty(_canvas_shape(classifier, photo.shape), np.float32)
    canvas[:] = classifier.backbone.preprocessing.input_mean
    canvas[margin : margin + height, margin : margin + width] = photo
    heat = _probabilities(classifier, jnp.asarray(canvas)[None])[0]
    grid = replace(classifier.grid, offset=classifier.grid.offset - margin)
    return np.asarray(heat), grid


def _canvas_shape(classifier: Classifier, shape: Sequence[int]) -> tuple[int, int, int]:
    margin = int(np.ceil(classifier.grid.offset))
    return shape[0] + 2 * margin, shape[1] + 2 * margin, shape[2]


def check_memory(classifier: Classifier, shape: Sequence[int], name: str) -> None:
    """Checks that the heat map of a photo fits in memory, before anything is computed.

    Args:
        classifier: as in `heat_map`.
        shape: shape of the photo, (h, w, 3).
        name: name of the photo, for the message.

    Raises:
        UserError: it does not.
    """
    canvas = jax.ShapeDtypeStruct((1, *_canvas_shape(classifier, shape)), jnp.float32)
    needed, free = estimated_bytes(classifier, canvas), free_bytes()
    if free is not None and needed > free:
        raise UserError(
            f"{name}: the heat map of {shape[1]} × {shape[0]} pixels needs about "
            f"{needed / 1e9:.0f} GB with windows of {2 * classifier.grid.offset:.0f} pixels around "
            f"each of its positions, and {free / 1e9:.0f} GB are free: give a smaller photo or "
            "--window"
        )


@nnx.jit
def _probabilities(classifier: Classifier, image: jax.Array) -> jax.Array:
    return jax.nn.softmax(classifier(image), axis=-1)


def upsample(values: np.ndarray, grid: Grid, size: Sequence[int]) -> np.ndarray:
    """Interpolates (h', w') linearly between the centres of the windows, to (h, w) pixels."""
    from scipy.ndimage import map_coordinates

    positions = [(np.arange(pixels) - grid.offset) / grid.stride for pixels in size]
    return map_coordinates(values, np.meshgrid(*positions, indexing="ij"), order=1, mode="nearest")


def draw(photo: np.ndarray, maps: dict[str, np.ndarray], path: Path) -> None:
    """Writes a picture of the photo and of each map over it.

    Args:
        photo: uint8 (h, w, 3), RGB.
        maps: probabilities (h, w) by title.
        path: the picture to write.

    Raises:
        UserError: the file cannot be written, or its ending is no picture format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = photo.shape[:2]
    ratio = min(height / width, MAX_PANEL_RATIO)
    figure = Figure(
        figsize=(PANEL_INCHES * (len(maps) + 1.25), PANEL_INCHES * ratio + 0.45),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(maps) + 1)
    for axes in panels:
        axes.set_axis_off()
    panels[0].imshow(photo)
    panels[0].set_title("photo")
    # The photo is grey, so that all colour is heat.
    grey = photo.mean(-1)
    # A probability below 0.1 does not look hot, even if it is the highest.
    hottest = max(0.1, *(heat.max() for heat in maps.values()))
    for axes, (title, heat) in zip(panels[1:], maps.items(), strict=True):
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
        opacity = 0.35 + 0.4 * heat / hottest
        shown = axes.imshow(heat, cmap="inferno", vmin=0, vmax=hottest, alpha=opacity)
        axes.set_title(title, parse_math=False)
    bar = figure.colorbar(shown, ax=panels, shrink=0.8, pad=0.01)
    bar.set_label("probability")
    kind = path.suffix[1:] or "png"
    try:
        write_whole(path, lambda part: figure.savefig(part, dpi=150, format=kind))
    except ValueError as error:
        raise UserError(f"cannot write {path} ({error})") from error


def load_classifier(path: str, window: int | None = None) -> Classifier:
    """Loads a classifier and makes it fully convolutional.

    Args:
        path: a weight file.
        window: side of the average in positions; None for the classifier's own.

    Raises:
        UserError: there is no such file, or it lacks the last layer of a known classifier.
        ArgumentError: a window for a classifier without an average.
    """
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder, not a file with the weights of a classifier")
    weights = read(path)
    source = weights.provenance.source
    ending = classifiers.find(weights.provenance.backbone, weights.extra_tensors.keys())
    if ending is None:
        raise UserError(
            f"{path} holds {source}, without the last layer of a classifier (converted files lack "
            "it: give the file as it was published)"
        )
    if window and not any(isinstance(step, Average) for step in ending.steps):
        raise ArgumentError(
            "window",
            window,
            f"is for classifiers that take an average; {source} has fully connected layers, which "
            "fix its window",
        )
    steps: list[ClassifierLayer] = []
    for step in ending.steps:
        if isinstance(step, tuple):
            weight, bias = (weights.extra_tensors[name] for name in step)
            steps.append(FullyConnected(weight, bias))
        elif isinstance(step, Average):
            steps.append(Average(window or step.window))
        else:
            steps.append(step)
    return convolutionalize(_filled_backbone(weights), steps)


def _filled_backbone(weights: Weights) -> Backbone:
    provenance = weights.provenance
    config = ModelConfig(
        backbone=provenance.backbone, preprocessing=provenance.preprocessing, padding="original"
    )
    network = PureModel(abstract_model(config, 1))
    variables, _ = weights.apply(zeros(network))
    return network.model(variables).backbone


def read_names(path: str, num_classes: int) -> list[str]:
    """Reads the names of the classes from a file with one name per line.

    Raises:
        UserError: there is no such file, or it has another number of lines.
    """
    names = read_bytes(path).decode("utf-8", "replace").rstrip().splitlines()
    if len(names) != num_classes:
        raise UserError(f"{path}: {len(names)} lines; the classifier has {num_classes} classes")
    return names


def parse_classes(words: Sequence[str], num_classes: int) -> list[int]:
    """Returns the words as indices of classes.

    Raises:
        ArgumentError: a word is not the index of a class.
    """
    for word in words:
        if not word.isdecimal() or int(word) >= num_classes:
            raise ArgumentError("class", word, f"must be in 0…{num_classes - 1}")
    return [int(word) for word in words]


if __name__ == "__main__":
    cli.run(main)
