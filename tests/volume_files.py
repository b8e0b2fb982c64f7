"""Small sets of volumes for tests: bright boxes on a grey ground, as NIfTI files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

SHAPE = (12, 14, 10)


def drawn(seed: int, shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Draws a volume, float32, and its label map, uint8: a box of class 1 around one of class 2."""
    random = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    start = random.integers(1, 4, 3)
    outer = tuple(slice(first, first + 6) for first in start)
    inner = tuple(slice(first + 1, first + 5) for first in start)
    label[outer] = 1
    label[inner] = 2
    image = 100 + 50 * label + 5 * random.standard_normal(shape)
    return image.astype(np.float32), label


def save(
    path: Path, values: np.ndarray, spacing: tuple[float, ...] = (1, 1, 1), axes: str = "RAS"
) -> Path:
    """Writes a NIfTI file; `axes` is RAS or LPS."""
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
    signs = (1, 1, 1) if axes == "RAS" else (-1, -1, 1)
    affine = np.diag([*np.multiply(signs, spacing), 1.0])
    affine[:3, 3] = 10, 20, 30
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def write_set(root: Path, count: int = 4, **options: Any) -> Path:
    """Writes images/ and labels/ with volumes case_0, case_1, …"""
    for number in range(count):
        image, label = drawn(number)
        save(root / "images" / f"case_{number}.nii.gz", image, **options)
        save(root / "labels" / f"case_{number}.nii.gz", label, **options)
    return root
