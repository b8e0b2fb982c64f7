"""Calibration: whether a class that is predicted with 80 % is right in 80 % of its pixels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.models.confidence import UNIT, unpacked

BINS = 15
"""Number of bins of equal width (Guo et al. 2017, section 5)."""

DIGIT_BITS = 7
"""Confidences are summed in digits of this many bits on a device: int32 then holds the sums of the
digits of 2²⁴ pixels of an image."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Counts of pixels by the confidence of their prediction.

    Attributes:
        counts: int64 (15, 3), for each bin the pixels, the correct ones, and the sum of their
            confidences in units of 1/`UNIT`. A bin holds its upper border, not its lower one, as in
            the code of Guo et al.
        temperature: by which the logits were divided.
    """

    counts: np.ndarray
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.counts.shape != (BINS, 3) or self.counts.dtype != np.int64:
            raise ValueError(
                f"`counts` ({self.counts.dtype}, shape {self.counts.shape}) must be int64 "
                f"({BINS}, 3)"
            )

    @property
    def accuracies(self) -> np.ndarray:
        """The share of correct pixels in each bin, float64 (15,); nan in empty ones."""
        return self._mean(self.counts[:, 1])

    @property
    def confidences(self) -> np.ndarray:
        """The mean confidence in each bin, float64 (15,); nan in empty ones."""
        return self._mean(self.counts[:, 2] / UNIT)

    @property
    def error(self) -> float:
        """The expected calibration error (Guo et al. 2017, equation 3), in 0…1; nan of no pixels.

        It is Σ_b n_b/n · |accuracy_b − confidence_b|, over the bins b.
        """
        pixels = self.counts[:, 0].sum()
        if not pixels:
            return float("nan")
        return float(np.abs(self.counts[:, 1] - self.counts[:, 2] / UNIT).sum() / pixels)

    def _mean(self, sums: np.ndarray) -> np.ndarray:
        pixels = self.counts[:, 0]
        return np.divide(sums, pixels, out=np.full(BINS, np.nan), where=pixels > 0)

    def __add__(self, other: "Calibration") -> "Calibration":
        """Returns the counts of both; the temperatures must be equal."""
        return Calibration(self.counts + other.counts, self.temperature)

    def __str__(self) -> str:
        tempered = "" if self.temperature == 1 else f", temperature {self.temperature:g}"
        error = "–" if np.isnan(self.error) else f"{100 * self.error:.2f} %"
        return f"expected calibration error {error} ({BINS} bins{tempered})"

    def to_json(self) -> dict[str, Any]:
        return {
            "ece": None if np.isnan(self.error) else self.error,
            "bins": BINS,
            "temperature": self.temperature,
            "pixels": self.counts[:, 0].tolist(),
            "accuracy": [None if np.isnan(x) else x for x in self.accuracies.tolist()],
            "confidence": [None if np.isnan(x) else x for x in self.confidences.tolist()],
        }


def bins_of(units: Any) -> Any:
    """Returns the bin, in 0…14, of confidences in units of 1/`UNIT`; NumPy's arrays or JAX's."""
    return ((units * BINS + UNIT - 1) // UNIT - 1).clip(0, BINS - 1)


def digit_counts(label: jax.Array, packed: jax.Array, num_classes: int) -> jax.Array:
    """Counts the pixels of each image of a batch on a device.

    Args:
        label: uint8 (b, …). `IGNORE_INDEX` and other values that are no class are left out.
        packed: see `packed_confidence`, same shape.
        num_classes: k.

    Returns:
        int32 (b, 15, 5): pixels, correct ones, and three digits of the sum of the confidences, the
        highest first; see `from_digits`.
    """
    label = label.reshape(len(label), -1).astype(jnp.int32)
    classes, units = unpacked(packed.reshape(label.shape))
    bins = jnp.where(label < num_classes, bins_of(units), BINS)
    mask = 2**DIGIT_BITS - 1
    digits = (units >> 2 * DIGIT_BITS, (units >> DIGIT_BITS) & mask, units & mask)
    values = jnp.stack([jnp.ones_like(units), classes == label, *digits], axis=-1)

    def count(bins: jax.Array, values: jax.Array) -> jax.Array:
        zeros = jnp.zeros((BINS + 1, values.shape[-1]), jnp.int32)
        return zeros.at[bins].add(values, mode="promise_in_bounds")

    return jax.vmap(count)(bins, values)[:, :BINS]


def from_digits(counts: np.ndarray) -> np.ndarray:
    """Adds up the images of `digit_counts`: int32 (b, 15, 5) to int64 (15, 3)."""
    pixels, correct, *digits = np.moveaxis(counts.astype(np.int64).sum(axis=0), -1, 0)
    sums = np.zeros_like(pixels)
    for digit in digits:
        sums = (sums << DIGIT_BITS) + digit
    return np.stack([pixels, correct, sums], axis=-1)


def count_calibration(label: np.ndarray, packed: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts the pixels of one image on the host: (…) and (…) to int64 (15, 3)."""
    counted = label < num_classes
    classes, units = unpacked(packed[counted].astype(np.int64))
    bins = bins_of(units)
    columns = (np.ones_like(units), classes == label[counted], units)
    # Sums in float64 are exact up to 2⁵³, which is 2³² pixels.
    sums = [np.bincount(bins, weights=column, minlength=BINS) for column in columns]
    return np.stack(sums, axis=-1).astype(np.int64)
