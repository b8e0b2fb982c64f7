"""Converts weights made elsewhere into a file of ours, checked against the network they are for.

    python -m fcn_jax.pretrained WEIGHTS --output=FILE.safetensors

Reads PyTorch's .pth (torchvision's classifiers and FCNs, torchfcn, timm), Caffe's .caffemodel (the
FCN authors' networks, VGG16, CaffeNet), .npz and .safetensors with the source's names; needs
neither PyTorch nor Caffe, and runs no code that a file may hold. Writes beside FILE a FILE.json:
source, preprocessing, classes. Training starts from it,

    python -m fcn_jax.train --config=... --config.init=FILE.safetensors

and where it is a whole segmentation network it labels images as it is:

    python -m fcn_jax.predict --workdir=FILE.safetensors --output=OUT PATH...
"""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from flax import nnx

from fcn_jax import cli
from fcn_jax.config import Config, from_dict
from fcn_jax.errors import UserError
from fcn_jax.models.build import build
from fcn_jax.pretrained import Weights, flat, read, saved, zeros
from fcn_jax.progress import say
from fcn_jax.step import Network


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    if len(arguments) != 1 or not options.output:
        raise UserError("one file of weights and --output=FILE.safetensors are needed (see --help)")
    output = Path(options.output)
    if output.suffix != ".safetensors":
        raise UserError(f"--output={output} must end in .safetensors")
    scales = tuple(float(scale) for scale in options.score_scales)
    about, tensors = convert(read(arguments[0]), scales)
    saved.save(output, tensors, about)
    count = sum(tensor.size for tensor in tensors.values())
    say(
        f"{output}: {about.source}, {count / 1e6:.2f} M numbers, for "
        f"config.model.backbone={about.backbone} on {about.preprocessing} pixels"
    )
    if about.classes:
        say(f"label images: python -m fcn_jax.predict --workdir={output} --output=OUT PATH...")
    else:
        say(f"train from it: --config.model.backbone={about.backbone} --config.init={output}")


def convert(
    weights: Weights, score_scales: tuple[float, ...] = ()
) -> tuple[saved.About, dict[str, np.ndarray]]:
    """Weights under our names, each with the shape that its network has for it.

    Args:
        weights: of any source.
        score_scales: of a network whose file does not tell them: torchfcn's FCN-8s at once.

    Returns:
        What is known of them, and float32 arrays by our name: of a whole network all of it, of a
        classifier the features.

    Raises:
        UserError: they do not fit the network that they are named for.
    """
    about = weights.about
    heads = {name: tensor for name, tensor in weights.tensors.items() if _scores(name)}
    if heads:
        num_classes = next(tensor.shape[-1] for tensor in heads.values())
        about = _with_classes(about, num_classes)
    else:
        num_classes = 1
    if score_scales:
        model = {**about.config["model"], "score_scales": score_scales}
        about = dataclasses.replace(about, config={**about.config, "model": model})
    tensors = flat(weights.apply(empty_variables(from_dict(about.config), num_classes))[0])
    taken = {name: np.asarray(tensors[name]) for name in tensors if name in weights.tensors}
    return about, taken


def empty_variables(
    config: Config, num_classes: int | Mapping[str, int], channels: int = 3
) -> tuple[Any, Any]:
    """(params, batch_stats) of a network, all zero: nothing is drawn."""
    model = nnx.eval_shape(
        lambda: build(config.model, num_classes, channels=channels, rngs=nnx.Rngs(0))
    )
    return zeros(Network(model))


def _scores(name: str) -> bool:
    return name.startswith("head") and name.endswith("/bias") and "/bn/" not in name


def _with_classes(about: saved.About, num_classes: int) -> saved.About:
    names = about.classes.get("", ())
    if len(names) != num_classes:
        names = tuple(f"class {index}" for index in range(num_classes))
    return dataclasses.replace(about, classes={"": names})


if __name__ == "__main__":
    flags.DEFINE_string("output", None, "file to write, .safetensors")
    flags.DEFINE_list(
        "score_scales", [], "of torchfcn's FCN8sAtOnce, which its file does not tell: 1,0.01,0.0001"
    )
    cli.run(main, sys.modules[__name__])
