"""The plan of a set of volumes: what all of them are resampled and normalised to.

A fingerprint of the set (spacings, sizes, intensities) becomes a plan by the rules of nnU-Net
(Isensee et al. 2021, supplementary note 2). It is a JSON file that a person can read and change:
copy it, edit it, and give it as `data.plan`.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from fcn_jax.data.nifti import Header
from fcn_jax.errors import UserError, printable
from fcn_jax.terminal.atomic_files import write_text

Normalisation = Literal["zscore", "ct"]
"""zscore: each volume to mean 0 and standard deviation 1. ct: all volumes are clipped and scaled by
the statistics of the foreground of the training volumes, because Hounsfield units are absolute."""

MAX_PATCH_VOXELS = {"cpu": 40 * 56 * 40, "gpu": 128**3}
"""Voxels of a patch. On a CPU a patch of 40 × 56 × 40 takes about half a second a step."""

ANISOTROPY = 3
"""Ratio of spacings, and of sizes, above which the thickest axis keeps more of its resolution."""

CT_PERCENTILES = (0.5, 99.5)

MIN_COARSEST = 5
"""Positions that the coarsest features keep on their shortest axis."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """See the module.

    Attributes:
        spacing_mm: size of a voxel on each axis, after resampling.
        orientation: of all volumes; see `nifti.Header`.
        normalisation: see `Normalisation`.
        intensities: for "ct": for each channel the lower and upper clipping value, mean, and
            standard deviation.
        patch: size of a training patch, and of the tiles of prediction, in voxels.
        batch_size, levels: a batch and a number of U-Net's levels that suit the patch: suggestions,
            which the config decides (train.batch_size, model.features).
        channels: channels of a volume.
        class_names: the names of the classes, background first.
    """

    spacing_mm: tuple[float, ...]
    orientation: str
    normalisation: Normalisation
    intensities: tuple[tuple[float, ...], ...]
    patch: tuple[int, ...]
    batch_size: int
    levels: int
    channels: int
    class_names: tuple[str, ...]

    def to_json(self) -> str:
        """Returns the text of the file."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def save(self, path: Path) -> None:
        """Writes the file.

        Raises:
            UserError: it cannot be written.
        """
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Reads the file.

        Raises:
            UserError: the file is missing, is no JSON, or has a value that cannot be used.
        """
        name = printable(str(path))
        try:
            return _checked(json.loads(path.read_text()))
        except OSError as error:
            raise UserError(f"{name}: cannot be read ({error.strerror})") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{name}: is no plan of volumes ({printable(str(error))}); remove it to have it "
                "made again"
            ) from error

    def normalise(self, volume: np.ndarray) -> np.ndarray:
        """Normalises a volume, float32 (x, y, z, c)."""
        if self.normalisation == "zscore":
            mean = volume.mean(axis=(0, 1, 2), dtype=np.float64)
            # The deviations are summed slab by slab, because a float64 copy may be gigabytes.
            squares = sum(((slab - mean) ** 2).sum(axis=(0, 1)) for slab in volume)
            std = np.sqrt(squares / volume[..., 0].size)
        else:
            low, high, mean, std = np.array(self.intensities, np.float64).T
            volume = np.clip(volume, low.astype(np.float32), high.astype(np.float32))
        # A volume of a single value becomes 0.
        normalised = volume - mean.astype(np.float32)
        normalised /= np.maximum(std, 1e-8).astype(np.float32)
        return normalised

    def resampled_shape(self, shape: Sequence[int], spacing_mm: Sequence[float]) -> tuple[int, ...]:
        """Returns the size that a grid has at the plan's spacing."""
        pairs = zip(shape, spacing_mm, self.spacing_mm, strict=True)
        return tuple(max(1, round(n * old / new)) for n, old, new in pairs)


def make_plan(
    headers: Sequence[Header],
    intensities: np.ndarray,
    *,
    normalisation: Normalisation,
    class_names: Sequence[str],
    platform: str,
) -> Plan:
    """Makes a plan from the fingerprint of a set.

    Args:
        headers: grids of the volumes, all of one orientation.
        intensities: float (n, c), a sample of the intensities of the foreground of all volumes.
        normalisation: see `Normalisation`.
        class_names: names of the classes.
        platform: "cpu", or any other for an accelerator.
    """
    spacings = np.array([header.spacing_mm for header in headers])
    shapes = np.array([header.shape for header in headers], np.float64)
    spacing, shape = np.median(spacings, axis=0), np.median(shapes, axis=0)
    thick = int(spacing.argmax())
    others = [axis for axis in range(3) if axis != thick]
    if spacing[thick] > ANISOTROPY * min(spacing[others]) and shape[thick] * ANISOTROPY < min(
        shape[others]
    ):
        spacing[thick] = max(np.percentile(spacings[:, thick], 10), max(spacing[others]))
    resampled = np.median(shapes * spacings / spacing, axis=0)
    most = MAX_PATCH_VOXELS.get(platform, MAX_PATCH_VOXELS["gpu"])
    # In proportion to the volumes, and no larger than they are.
    factor = min(1.0, (most / resampled.prod()) ** (1 / 3))
    patch = [int(max(8, -(-side * factor // 8) * 8)) for side in resampled]
    low, high = np.percentile(intensities, CT_PERCENTILES, axis=0)
    statistics = np.stack([low, high, intensities.mean(axis=0), intensities.std(axis=0)], axis=-1)
    levels = 2
    while levels < 6 and min(patch) / 2**levels >= MIN_COARSEST:
        levels += 1
    return Plan(
        spacing_mm=tuple(np.round(spacing, 6).tolist()),
        orientation=headers[0].orientation,
        normalisation=normalisation,
        intensities=tuple(map(tuple, statistics.tolist())) if normalisation == "ct" else (),
        patch=tuple(patch),
        batch_size=2,
        levels=levels,
        channels=intensities.shape[1],
        class_names=tuple(class_names),
    )


def _checked(values: dict[str, Any]) -> Plan:
    """Raises ValueError, TypeError or KeyError for values that cannot be used."""
    known = {entry.name for entry in dataclasses.fields(Plan)}
    if set(values) != known:
        wrong = sorted(set(values) ^ known)
        raise ValueError(f"keys that are missing or unknown: {', '.join(map(str, wrong))}")
    plan = Plan(
        spacing_mm=tuple(map(float, values["spacing_mm"])),
        orientation=str(values["orientation"]),
        normalisation=values["normalisation"],
        intensities=tuple(tuple(map(float, row)) for row in values["intensities"]),
        patch=tuple(map(int, values["patch"])),
        batch_size=int(values["batch_size"]),
        levels=int(values["levels"]),
        channels=int(values["channels"]),
        class_names=tuple(map(str, values["class_names"])),
    )
    if len(plan.spacing_mm) != 3 or not all(0 < side < 1000 for side in plan.spacing_mm):
        raise ValueError("spacing_mm must be three numbers above 0 and below 1000")
    if len(plan.patch) != 3 or not all(1 <= side <= 1024 for side in plan.patch):
        raise ValueError("patch must be three whole numbers in 1…1024")
    if plan.normalisation not in get_args(Normalisation):
        raise ValueError("normalisation must be zscore or ct")
    if plan.channels < 1 or not 2 <= len(plan.class_names) <= 255:
        raise ValueError("channels must be at least 1, class_names 2 to 255 names")
    if plan.normalisation == "ct" and [len(row) for row in plan.intensities] != [4] * plan.channels:
        raise ValueError("intensities must be four numbers for each channel")
    return plan
