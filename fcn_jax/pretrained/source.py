"""What a table of names is made of: how each tensor of a source is turned into one of ours.

Ours are the paths of parameters and batch statistics joined by '/', such as
`backbone/conv1/kernel`. A table says for each of them their name and the layout that turns it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

KernelLayout = Callable[[np.ndarray], np.ndarray]
Table = dict[str, tuple[str, KernelLayout]]


def as_it_is(tensor: np.ndarray) -> np.ndarray:
    return tensor


def from_oihw(tensor: np.ndarray) -> np.ndarray:
    """A convolution's (out, in, h, w) to (h, w, in, out)."""
    return tensor.transpose(2, 3, 1, 0)


def to_oihw(kernel: np.ndarray) -> np.ndarray:
    """The inverse of `from_oihw`."""
    return kernel.transpose(3, 2, 0, 1)


def from_iohw(tensor: np.ndarray) -> np.ndarray:
    """A transposed convolution's (in, out, h, w) to (h, w, in, out)."""
    return tensor.transpose(2, 3, 0, 1)


def from_fully_connected(height: int, width: int) -> KernelLayout:
    """(out, in·h·w), or (out, in, h, w) already, to a kernel (h, w, in, out): the same numbers."""

    def reshape(tensor: np.ndarray) -> np.ndarray:
        return from_oihw(tensor.reshape(tensor.shape[0], -1, height, width))

    return reshape


@dataclass(frozen=True)
class WeightSource:
    """A published set of weights.

    title: for people. backbone: the `config.model.backbone` that it fits. preprocessing: what it
    was trained on, a choice of `config.model.preprocessing`.
    has, lacks: names that tell it from the other sources.
    table: our name → (their name, layout). Every tensor of the backbone must be there; of heads,
    those that the network has as well.
    left_out: beginnings and endings of their names that a segmentation network has no place for.
    absent: our layers that the source does not have and that keep their initial values.
    model: of a whole segmentation network, the settings of `config.model` that make it.
    classes: the names of what it predicts, by label map ('': the only one).
    caveat: what its file does not tell, for those who use it.
    """

    title: str
    backbone: str
    preprocessing: str
    has: tuple[str, ...]
    table: Table
    lacks: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    model: Mapping[str, Any] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    caveat: str = ""

    def recognizes(self, names: Mapping[str, object]) -> bool:
        return all(name in names for name in self.has) and not any(
            name in names for name in self.lacks
        )


def kernels_and_biases(
    layers: Mapping[str, str],
    kernel_end: str = ".weight",
    bias_end: str = ".bias",
    layout: KernelLayout = from_oihw,
) -> Table:
    """The entries of convolutions with biases; layers: our path → theirs."""
    table: Table = {}
    for ours, theirs in layers.items():
        table[f"{ours}/kernel"] = (theirs + kernel_end, layout)
        table[f"{ours}/bias"] = (theirs + bias_end, as_it_is)
    return table


def kernels(layers: Mapping[str, str]) -> Table:
    """The entries of PyTorch's convolutions without biases; layers: our path → theirs."""
    return {f"{ours}/kernel": (f"{theirs}.weight", from_oihw) for ours, theirs in layers.items()}


def batch_norms(layers: Mapping[str, str]) -> Table:
    """The entries of PyTorch's batch normalisations; layers: our path → theirs."""
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return {
        f"{ours}/{a}": (f"{theirs}.{b}", as_it_is)
        for ours, theirs in layers.items()
        for a, b in names.items()
    }
