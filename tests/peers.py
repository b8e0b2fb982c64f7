"""Images, weights and checks for the comparisons with other projects' networks.

Each peer runs images of several sizes one by one; ours runs them together, on one canvas.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from flax import nnx

from fcn_jax import pretrained
from fcn_jax.models.backbones.preprocess import Preprocessing
from fcn_jax.models.build import QUICKLY_COMPILED
from fcn_jax.models.fcn import FCN
from fcn_jax.models.pure_model import PureModel

FC_FEATURES = 16
"""Width of fc6 and fc7 of VGG16 and AlexNet in the comparisons."""


def pictures(sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Returns images of smooth colours with noise: uint8 (h, w, 3)."""
    random = np.random.default_rng(0)
    images = []
    for height, width in sizes:
        coarse = random.uniform(0, 255, (height // 16 + 2, width // 16 + 2, 3))
        smooth = coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
        noise = random.normal(0, 20, smooth.shape)
        images.append(np.clip(smooth + noise, 0, 255).astype(np.uint8))
    return images


def canvases(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns canvases of noise with the images at the top left, and the sizes of the images."""
    sizes = np.asarray([image.shape[:2] for image in images], np.int32)
    canvas = np.random.default_rng(1).integers(
        0, 256, (len(images), *(sizes.max(0) + 3), 3), dtype=np.uint8
    )
    for place, image in zip(canvas, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return canvas, sizes


def randomised_peer(torch: ModuleType, network: Any) -> Any:
    """Draws every number of a peer at random, also those that start at zero or bilinear.

    Normalisations get the statistics of a batch. With other statistics the features grow from layer
    to layer, until MobileNet in float32 differs from itself in float64 by a hundredth.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.ndim >= 2:
                fan_in = tensor[0].numel()
                tensor.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            elif tensor.ndim == 1 and name.endswith("weight"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.ndim == 1:
                tensor.normal_(0, 0.1, generator=generator)
        norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        if norms:
            usual = norms[0].momentum
            for norm in norms:
                norm.momentum = 1.0
            network.train()(torch.randn(4, 3, 96, 96, generator=generator))
            for norm in norms:
                norm.momentum = usual
    return network.eval()


def to_torch(torch: ModuleType, image: np.ndarray, preprocessing: Preprocessing) -> Any:
    """Normalises an image for the peer, with its own formula: float32 (1, 3, h, w)."""
    pixels = image.astype(np.float64)
    if preprocessing.bgr:
        pixels = pixels[..., ::-1]
    pixels = (pixels - preprocessing.mean) / preprocessing.std
    return torch.tensor(pixels.transpose(2, 0, 1)[None].copy(), dtype=torch.float32)


def initialized(make: Callable[[], FCN], file: Path) -> tuple[PureModel, Any]:
    """Returns a network and the variables in a file, without drawing initial values."""
    network = PureModel(nnx.eval_shape(make))
    variables, report = pretrained.read(file).apply(pretrained.zeros(network))
    assert "unchanged" not in report
    return network, variables


def check_segmentation(
    title: str,
    make: Callable[[], FCN],
    file: Path,
    peer: Callable[[np.ndarray], np.ndarray],
    sizes: Sequence[tuple[int, int]],
) -> None:
    """Checks that logits agree within 1e-4 of their range, and classes on 99.99 % of the pixels.

    Args:
        title: name for the printed line.
        make: builds our network.
        file: the weights.
        peer: an image, uint8 (h, w, 3), to logits (h, w, k).
        sizes: heights and widths of the images.
    """
    network, variables = initialized(make, file)
    images = pictures(sizes)
    canvas, valid = canvases(images)
    run = jax.jit(
        lambda variables, image, valid: network(variables, image, valid=valid)[0]["logits"],
        compiler_options=QUICKLY_COMPILED,
    )
    logits = run(variables, canvas, valid)
    same = pixels = 0
    largest = 0.0
    for index, image in enumerate(images):
        expected = peer(image)
        ours = np.asarray(logits[index, : image.shape[0], : image.shape[1]])
        assert expected.shape == ours.shape
        largest = max(largest, np.abs(ours - expected).max() / np.ptp(expected))
        same += (ours.argmax(-1) == expected.argmax(-1)).sum()
        pixels += ours[..., 0].size
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables[0]))
    print(
        f"\n{title}: {parameters:,} parameters, {largest:.1e} of the range, {same}/{pixels} alike"
    )
    assert largest < 1e-4
    assert same >= 0.9999 * pixels
