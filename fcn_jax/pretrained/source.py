"""Describes a source of published weights, and builds its table of tensor names.

Our names are the paths of parameters and batch statistics joined by "/", such as
`backbone/conv1/kernel`. A table maps each of our names to the tensor's name in the source and the
function that converts the tensor to our layout.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LayoutChange = Callable[[np.ndarray], np.ndarray]
"""Transposes or reshapes a tensor to our layout."""

Table = dict[str, tuple[str, LayoutChange]]


def unchanged(tensor: np.ndarray) -> np.ndarray:
    return tensor


def from_oihw(tensor: np.ndarray) -> np.ndarray:
    """Changes a convolution's (out, in, h, w) to (h, w, in, out)."""
    return tensor.transpose(2, 3, 1, 0)


def to_oihw(kernel: np.ndarray) -> np.ndarray:
    """Inverts `from_oihw`."""
    return kernel.transpose(3, 2, 0, 1)


def from_iohw(tensor: np.ndarray) -> np.ndarray:
    """Changes a transposed convolution's (in, out, h, w) to (h, w, in, out)."""
    return tensor.transpose(2, 3, 0, 1)


def from_fully_connected(height: int, width: int) -> LayoutChange:
    """Returns a function that changes (out, in·h·w) or (out, in, h, w) to (h, w, in, out)."""

    def reshape(tensor: np.ndarray) -> np.ndarray:
        return from_oihw(tensor.reshape(tensor.shape[0], -1, height, width))

    return reshape


@dataclass(frozen=True)
class WeightSource:
    """A published set of weights.

    Args:
        title: name for messages, such as "VGG16, torchvision".
        backbone: the `config.model.backbone` that it fits.
        preprocessing: the `config.model.preprocessing` that it was trained with.
        has: tensor names that every file of this source contains.
        lacks: tensor names that no file of this source contains, but files of a similar one do.
        table: our name -> (the source's name, layout). A file must contain all of these tensors
            except those of the auxiliary head.
        ignored: prefixes and suffixes of tensor names in the source's files. No segmentation
            network uses these tensors.
        missing_layers: our backbone layers that no file of this source contains. They keep their
            initial values.
        model: for a whole segmentation network, the settings of `config.model` that define it.
        label_maps: for a whole segmentation network, its class names by label map ("" for a single
            one).
        caveat: a warning for users that cannot be checked from the file.
    """

    title: str
    backbone: str
    preprocessing: str
    has: tuple[str, ...]
    table: Table
    lacks: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    missing_layers: tuple[str, ...] = ()
    model: Mapping[str, Any] = field(default_factory=dict)
    label_maps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    caveat: str = ""

    def recognizes(self, names: Mapping[str, object]) -> bool:
        """Returns whether a file with these names comes from this source."""
        return all(name in names for name in self.has) and not any(
            name in names for name in self.lacks
        )

    def ignores(self, name: str) -> bool:
        """Returns whether the source's tensor of this name is not needed."""
        return name.startswith(self.ignored) or name.endswith(self.ignored)


def kernels_and_biases(
    layers: Mapping[str, str],
    kernel_suffix: str = ".weight",
    bias_suffix: str = ".bias",
    layout: LayoutChange = from_oihw,
) -> Table:
    """Returns the entries of convolutions with biases; `layers` maps our path to the source's."""
    table: Table = {}
    for ours, theirs in layers.items():
        table[f"{ours}/kernel"] = (theirs + kernel_suffix, layout)
        table[f"{ours}/bias"] = (theirs + bias_suffix, unchanged)
    return table


def kernels(layers: Mapping[str, str]) -> Table:
    """Returns the entries of convolutions without biases; `layers` maps our path to PyTorch's."""
    return {f"{ours}/kernel": (f"{theirs}.weight", from_oihw) for ours, theirs in layers.items()}


def batch_norms(layers: Mapping[str, str]) -> Table:
    """Returns the entries of batch normalisations; `layers` maps our path to PyTorch's."""
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return {
        f"{ours}/{a}": (f"{theirs}.{b}", unchanged)
        for ours, theirs in layers.items()
        for a, b in names.items()
    }
