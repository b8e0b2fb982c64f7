"""Compares bilinear and Xavier initialisation of the transposed convolution.

    python -m examples.upsampling_start [--workdir=runs/upsampling]

An exercise of Dive into Deep Learning (Zhang et al., section "Fully Convolutional Networks"). First
an image is upsampled by a transposed convolution with each initialisation: bilinear weights
interpolate, random ones do not. Then an FCN-32s in miniature, whose scores are upsampled 8 times at
once, is trained on drawn shapes from both, with the same other weights and the same images.
DIR/upsampling.png shows the pictures and the loss curves.
"""

from absl import flags

from fcn_jax.terminal import cli

if __name__ == "__main__":  # before the imports that take seconds: --help and wrong flags are fast
    flags.DEFINE_string("workdir", "runs/upsampling", "folder to write to")
    flags.DEFINE_integer("steps", 150, "training steps of each network", lower_bound=1)
    cli.begin()

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fcn_jax.config import Config
from fcn_jax.data import shapes
from fcn_jax.errors import UserError
from fcn_jax.models.build import init_model
from fcn_jax.models.fcn import FCN
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.upsampling import ConvTranspose
from fcn_jax.terminal.progress import progress_bar, say

SIDE_PX = 128
BATCH_SIZE = 4
FACTOR = 4


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"{' '.join(arguments)!r} is not a flag (see --help)")
    options = flags.FLAGS
    workdir = Path(options.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    image, _ = shapes.draw("val_003")
    small = image[::FACTOR, ::FACTOR].astype(np.float32) / 255
    pictures = {"input, a quarter of the side": small}
    losses = {}
    for name in ("bilinear", "Xavier"):
        pictures[f"upsampled, {name}"] = upsample(small, xavier=name == "Xavier")
        losses[name] = train(options.steps, xavier=name == "Xavier", name=name)
        say(f"{name}: loss {np.mean(losses[name][-20:]):.3f} over the last 20 steps")
    draw(pictures, losses, workdir / "upsampling.png")
    say(f"see {workdir / 'upsampling.png'}")


def xavier_kernel(kernel: Any, seed: int = 0) -> jax.Array:
    """Draws weights of a kernel's shape by Glorot & Bengio (2010), as d2l does."""
    return nnx.initializers.xavier_uniform()(jax.random.key(seed), kernel.shape, jnp.float32)


def upsample(image: np.ndarray, *, xavier: bool) -> np.ndarray:
    """Enlarges an image, float32 (h, w, 3), by a transposed convolution as it starts."""
    layer = ConvTranspose(3, 2 * FACTOR, stride=FACTOR, crop=FACTOR // 2)
    if xavier:
        layer.kernel[...] = xavier_kernel(layer.kernel[...])
    height, width, _ = image.shape
    like = FeatureMap(jnp.zeros((1, FACTOR * height, FACTOR * width, 3)))
    return np.asarray(layer(FeatureMap(jnp.asarray(image)[None]), like=like).values[0])


def train(steps: int, *, xavier: bool, name: str) -> list[float]:
    """Trains FCN-32s in miniature on drawn shapes, and returns the loss of each step."""
    config = Config()
    config.model.skips = 0
    config.model.upsampling = "learned"
    model = init_model(config.model, len(shapes.CLASSES), seed=0)
    network_parts: Any = model
    layer = getattr(network_parts.head, f"upsample{model.stages[0]}")
    if xavier:
        layer.kernel[...] = xavier_kernel(layer.kernel[...])
    images, labels = batches(steps)
    split: Any = nnx.split(model, nnx.Param, ...)
    graph, params, rest = split
    optimizer = optax.adam(3e-3)

    def loss(params: Any, image: jax.Array, label: jax.Array) -> jax.Array:
        network: FCN = nnx.merge(graph, params, rest)
        logits = network(image)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    @jax.jit
    def step(params: Any, opt_state: Any, image: jax.Array, label: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(params, image, label)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    opt_state = optimizer.init(params)
    values = []
    with progress_bar(name, steps, unit="steps") as bar:
        for image, label in zip(images, labels, strict=True):
            params, opt_state, value = step(params, opt_state, image, label)
            values.append(float(value))
            bar.advance(loss=values[-1])
    return values


def batches(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws the images and labels of all steps, the same for every call."""
    rng = np.random.default_rng(0)
    drawn = [shapes.draw(f"train_{number:03}") for number in range(60)]
    images = np.zeros((steps, BATCH_SIZE, SIDE_PX, SIDE_PX, 3), np.uint8)
    labels = np.zeros((steps, BATCH_SIZE, SIDE_PX, SIDE_PX), np.uint8)
    for index in np.ndindex(steps, BATCH_SIZE):
        image, label = drawn[rng.integers(len(drawn))]
        height, width = (min(SIDE_PX, side) for side in label.shape)
        images[index][:height, :width] = image[:height, :width]
        labels[index][:height, :width] = label[:height, :width] % 255  # void as background
    return images, labels


def draw(pictures: dict[str, np.ndarray], losses: dict[str, list[float]], path: Path) -> None:
    """Draws the pictures above the loss curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    parts: Any = figure.subfigures(2, 1)
    above, below = parts
    for axes, (title, picture) in zip(above.subplots(1, 3), pictures.items(), strict=True):
        axes.imshow(picture.clip(0, 1), interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    axes = below.subplots()
    for name, values in losses.items():
        smooth = np.convolve(values, np.full(10, 0.1), "valid") if len(values) > 10 else values
        axes.plot(smooth, label=name)
    axes.set(xlabel="step", ylabel="loss, mean of 10 steps")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    cli.run(main)
