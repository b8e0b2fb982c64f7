"""Converts weights of another project to a model file of fcn_jax.

    python -m fcn_jax.pretrained WEIGHTS --output=FILE.safetensors

Reads PyTorch's .pth (torchvision's classifiers and FCNs, torchfcn, timm), Caffe's .caffemodel (the
FCN authors' networks, VGG16, CaffeNet), and .npz and .safetensors with the source's names. Needs
neither PyTorch nor Caffe, and executes no code in a file. Checks the weights against the network
that they fit, and writes FILE.safetensors and FILE.json, a description: source, preprocessing,
classes. Training starts from it,

    python -m fcn_jax.train --config=... --config.init=FILE.safetensors

and a whole segmentation network predicts label maps without training:

    python -m fcn_jax.predict --workdir=FILE.safetensors --output=OUT PATH...
"""

from absl import flags

from fcn_jax.terminal import cli

if __name__ == "__main__":  # --help and mistakes in flags do not wait for what is imported below
    flags.DEFINE_string("output", None, "file to write, .safetensors")
    flags.DEFINE_list(
        "score_scales",
        [],
        "factors of the scored features, for torchfcn's FCN8sAtOnce, whose file does not contain "
        "them: 1,0.01,0.0001",
    )
    cli.begin()

from pathlib import Path

from fcn_jax.errors import UserError
from fcn_jax.pretrained import model_file, read
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
    provenance, tensors = convert(weights, scales)
    model_file.save(output, tensors, provenance)
    count = sum(tensor.size for tensor in tensors.values())
    backbone = provenance.backbone
    say(
        f"{output}: {provenance.source}, {count / 1e6:.2f} M numbers, for "
        f"config.model.backbone={backbone} with {provenance.preprocessing} preprocessing"
    )
    if weights.caveat and not scales:
        say(f"note: {weights.caveat}")
    if provenance.label_maps:
        say(f"label images: python -m fcn_jax.predict --workdir={output} --output=OUT PATH...")
    else:
        say(f"train from it: --config.model.backbone={backbone} --config.init={output}")


if __name__ == "__main__":
    cli.run(main)
