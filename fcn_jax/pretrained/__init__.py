"""Weights of other projects and model files of this one.

load            reads a weight file of any known source
weights         weights under our names, and their use as initial values
source          the type of a table of names
tables/         one explicit table of names per source
trunks          weights of one trunk for late fusion's two
weight_files    reads tensors from .npz, .safetensors, .pth and .caffemodel
archives        limits on the sizes in zip archives
torch_file      .pth without PyTorch: the zip and the older container
torch_pickle    .pth without PyTorch: the pickle, of which nothing is executed
caffe_file      .caffemodel without Caffe
convert         weights of another project as a model file of ours
model_file      model.safetensors and model.json, written and read
provenance      what a network was trained with
__main__        python -m fcn_jax.pretrained: the conversion as a command
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcn_jax.pretrained.load import read
    from fcn_jax.pretrained.provenance import Provenance
    from fcn_jax.pretrained.weights import Weights, flatten, zeros

__all__ = ["Provenance", "Weights", "flatten", "read", "zeros"]

_MODULES = {"read": "load", "Provenance": "provenance"}


def __getattr__(name: str) -> Any:
    # Imported on first use: `python -m fcn_jax.pretrained --help` imports this package.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'weights')}"), name)
