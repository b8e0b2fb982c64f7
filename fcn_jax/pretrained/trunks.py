"""Late fusion's two trunks, each initialized as if it were alone.

Their score layers lie side by side in one kernel (`models/backbones/fusion.py`).
"""

from collections.abc import Mapping, Sequence

import numpy as np

TRUNKS = ("colour", "other")


def is_late(ours: Mapping[str, np.ndarray]) -> bool:
    return any(name.startswith(f"backbone/{TRUNKS[0]}/") for name in ours)


def split(ours: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """What each trunk would hold alone, under the names that it would have."""
    parts = []
    for index, trunk in enumerate(TRUNKS):
        prefix = f"backbone/{trunk}/"
        part = {}
        for name, value in ours.items():
            if name.startswith(prefix):
                part["backbone/" + name.removeprefix(prefix)] = value
            elif _sees_both(name):
                part[name] = np.split(value, len(TRUNKS), axis=-2)[index]
            elif not name.startswith("backbone/"):
                part[name] = value
        parts.append(part)
    return parts


def join(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The inverse: kernels that see both trunks side by side, the mean of what they share."""
    joined = {}
    for trunk, part in zip(TRUNKS, parts, strict=True):
        for name, value in part.items():
            if name.startswith("backbone/"):
                joined[f"backbone/{trunk}/" + name.removeprefix("backbone/")] = value
    for name in parts[0].keys() & parts[1].keys():
        if _sees_both(name):
            joined[name] = np.concatenate([part[name] for part in parts], axis=-2)
        elif not name.startswith("backbone/"):
            joined[name] = np.mean([part[name] for part in parts], axis=0)
    return joined


def _sees_both(name: str) -> bool:
    """Whether a kernel's input is the features of both trunks: of 1×1 score layers."""
    parts = name.split("/")
    return len(parts) == 3 and parts[1].startswith("score") and parts[2] == "kernel"
