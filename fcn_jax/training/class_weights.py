"""Weights of classes against their imbalance, from the pixels that each has."""

import numpy as np


def enet_weights(counts: np.ndarray) -> np.ndarray:
    """1 / ln(1.02 + p) of a class with share p of the pixels: float64 (k,), from 1.4 to 50.

    Paszke et al. 2016 (ENet), section 5.2. A class without pixels gets the largest.

    Args:
      counts: pixels of each class, (k,); void left out.
    """
    return 1 / np.log(1.02 + counts / max(counts.sum(), 1))


def median_frequency_weights(counts: np.ndarray, pixels_where_present: np.ndarray) -> np.ndarray:
    """median(f) / f: float64 (k,); f is a class's share of the pixels of the images that have it.

    Eigen & Fergus 2015; Badrinarayanan et al. 2017 (SegNet). The median is over the classes that
    have pixels; one without gets 1, which changes nothing.

    Args:
      counts: pixels of each class, (k,).
      pixels_where_present: pixels, void left out, of all images in which the class occurs, (k,).
    """
    present = counts > 0
    frequency = counts[present] / pixels_where_present[present]
    weights = np.ones(len(counts))
    weights[present] = np.median(frequency) / frequency
    return weights
