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

from absl import flags

from fcn_jax.terminal import cli

if __name__ == "__main__":  # --help and mistakes in flags do not wait for what is imported below
    flags.DEFINE_string("output", None, "file to write, .safetensors")
    flags.DEFINE_list(
        "score_scales", [], "of torchfcn's FCN8sAtOnce, which its file does not tell: 1,0.01,0.0001"
    )
    cli.begin()

from pathlib import Path

from fcn_jax.errors import UserError
from fcn_jax.pretrained import read, saved
from fcn_jax.pretrained.convert import convert
from fcn_jax.terminal.progress import say


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    if len(arguments) != 1 or not options.output:
        raise UserError("one file of weights and --output=FILE.safetensors are needed (see --help)")
    output = Path(options.output)
    if output.suffix != ".safetensors":
        raise UserError(f"--output={output} must end in .safetensors")
    try:
        scales = tuple(float(scale) for scale in options.score_scales)
    except ValueError:
        raise UserError(
            f"--score_scales={','.join(options.score_scales)} must be numbers"
        ) from None
    weights = read(arguments[0])
    about, tensors = convert(weights, scales)
    saved.save(output, tensors, about)
    count = sum(tensor.size for tensor in tensors.values())
    say(
        f"{output}: {about.source}, {count / 1e6:.2f} M numbers, for "
        f"config.model.backbone={about.backbone} on {about.preprocessing} pixels"
    )
    if weights.caveat and not scales:
        say(f"note: {weights.caveat}")
    if about.classes:
        say(f"label images: python -m fcn_jax.predict --workdir={output} --output=OUT PATH...")
    else:
        say(f"train from it: --config.model.backbone={about.backbone} --config.init={output}")


if __name__ == "__main__":
    cli.run(main)
