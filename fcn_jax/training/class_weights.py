"""Class weights against class imbalance, from the number of pixels of each class."""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.errors import ArgumentError


def class_weights(
    setting: Literal["balanced"] | tuple[float, ...] | None,
    num_classes: Mapping[str, int],
    label_counts: Mapping[str, np.ndarray],
) -> dict[str, jax.Array]:
    """Returns the weights that the setting `loss.class_weights` asks for.

    Args:
        setting: "balanced" for `enet_weights`; one number for each class; None for no weights.
        num_classes: k by label map.
        label_counts: training pixels of each class by label map, at least (k,).

    Returns:
        float32 (k,) by label map; an empty dictionary without weights.

    Raises:
        ArgumentError: other numbers than one for each class, or numbers with several label maps.
    """
    if setting is None:
        return {}
    if setting == "balanced":
        return {
            name: jnp.asarray(enet_weights(label_counts[name][:count]), jnp.float32)
            for name, count in num_classes.items()
        }
    if len(num_classes) > 1:
        raise ArgumentError(
            "loss.class_weights",
            setting,
            f"must be balanced or None with several label maps ({', '.join(num_classes)})",
        )
    ((name, count),) = num_classes.items()
    if len(setting) != count or not any(setting):
        raise ArgumentError(
            "loss.class_weights",
            setting,
            f"must be balanced, or {count} numbers, one for each class and not all 0",
        )
    return {name: jnp.asarray(setting, jnp.float32)}


def enet_weights(counts: np.ndarray) -> np.ndarray:
    """Returns ENet's class weights, 1 / ln(1.02 + p) for a class with share p of the pixels.

    Paszke et al. 2016 (ENet), section 5.2. They are between 1.4 and 50; a class without pixels gets
    the largest.

    Args:
        counts: valid pixels of each class, int (k,).

    Returns:
        float64 (k,).
    """
    return 1 / np.log(1.02 + counts / max(counts.sum(), 1))


def median_frequency_weights(counts: np.ndarray, pixels_where_present: np.ndarray) -> np.ndarray:
    """Returns median-frequency class weights, median(f) / f.

    The frequency f of a class is its share of the pixels of the images in which it occurs (Eigen &
    Fergus 2015; Badrinarayanan et al. 2017, SegNet). The median is over the classes that have
    pixels; a class without pixels gets the weight 1, which no pixel uses.

    Args:
        counts: valid pixels of each class, int (k,).
        pixels_where_present: valid pixels of all images in which the class occurs, int (k,).

    Returns:
        float64 (k,).
    """
    present = counts > 0
    frequency = counts[present] / pixels_where_present[present]
    weights = np.ones(len(counts))
    weights[present] = np.median(frequency) / frequency
    return weights
