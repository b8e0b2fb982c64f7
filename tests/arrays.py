"""Arrays that tests share: noise, and what goes to PyTorch and comes back."""

from types import ModuleType
from typing import Any

import jax
import numpy as np


def normal(seed: int, *shape: int) -> np.ndarray:
    """float32, of a standard deviation of 1."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def to_torch(torch: ModuleType, values: np.ndarray | jax.Array) -> Any:
    """(b, *spatial, c) to PyTorch's (b, c, *spatial)."""
    return torch.tensor(np.moveaxis(np.asarray(values), -1, 1).copy())


def from_torch(tensor: Any) -> np.ndarray:
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def kernel_to_torch(torch: ModuleType, kernel: np.ndarray | jax.Array) -> Any:
    """A convolution's (*k, in, out) to PyTorch's (out, in, *k)."""
    return torch.tensor(np.moveaxis(np.asarray(kernel), (-1, -2), (0, 1)).copy())
