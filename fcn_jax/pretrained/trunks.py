"""The two trunks of late fusion, each initialised like a network with one trunk.

The score layers of the two trunks share one kernel (`models/backbones/late_fusion.py`).
"""

from collections.abc import Mapping, Sequence

import numpy as np

TRUNKS = ("colour", "other")


def is_late(ours: Mapping[str, np.ndarray]) -> bool:
    return any(name.startswith(f"backbone/{TRUNKS[0]}/") for name in ours)


def split(ours: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Returns the tensors of each trunk, named as in a network with that trunk alone."""
    parts = []
    for index, trunk in enumerate(TRUNKS):
        prefix = f"backbone/{trunk}/"
        part = {}
        for name, value in ours.items():
            if name.startswith(prefix):
                part["backbone/" + name.removeprefix(prefix)] = value
            elif _reads_both_trunks(name):
                part[name] = np.split(value, len(TRUNKS), axis=-2)[index]
            elif not name.startswith("backbone/"):
                part[name] = value
        parts.append(part)
    return parts


def join(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Inverts `split`: concatenates score kernels, and averages the layers that trunks share."""
    joined = {}
    for trunk, part in zip(TRUNKS, parts, strict=True):
        for name, value in part.items():
            if name.startswith("backbone/"):
                joined[f"backbone/{trunk}/" + name.removeprefix("backbone/")] = value
    for name in parts[0].keys() & parts[1].keys():
        if _reads_both_trunks(name):
            joined[name] = np.concatenate([part[name] for part in parts], axis=-2)
        elif not name.startswith("backbone/"):
            joined[name] = np.mean([part[name] for part in parts], axis=0)
    return joined


def _reads_both_trunks(name: str) -> bool:
    """Returns whether the tensor is the kernel of a 1×1 score layer."""
    parts = name.split("/")
    return len(parts) == 3 and parts[1].startswith("score") and parts[2] == "kernel"
