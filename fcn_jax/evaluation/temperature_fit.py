"""Fits the temperature of a network's probabilities on a split, in one pass over the images.

The temperature minimises the mean negative log-likelihood of the labels, NLL (Guo et al. 2017,
section 4.2). With the inverse temperature β = 1/T and logits z,

    NLL(β) = Σ_pixels ln Σ_c exp(β z_c) − β z_label

is convex in β, and its first two derivatives are Σ E[z] − z_label and Σ Var[z] under softmax(β z).
All three are summed at 13 values of β between 1/8 and 8, and the zero of the first derivative is
interpolated between the two that enclose it. Only these sums are kept, whatever the number of
pixels.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fcn_jax.config import EvalConfig
from fcn_jax.data.canvases import fill_buckets
from fcn_jax.data.datasets import Dataset
from fcn_jax.data.labels import IGNORE_INDEX, by_map
from fcn_jax.data.pipeline import evaluation_batches
from fcn_jax.data.volumes import VolumeDataset
from fcn_jax.errors import ArgumentError
from fcn_jax.evaluation.scorers import batch_size
from fcn_jax.inference.volumes import VolumePredictor
from fcn_jax.models.pure_model import PureModel
from fcn_jax.parallel import data_parallel
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.terminal.progress import progress_bar

INVERSES = 2.0 ** np.arange(-3, 3.25, 0.5)
"""Values of β, the inverse temperature, at which the sums are taken."""

MIN_PROBABILITY = 1e-30
"""Of volumes, whose probabilities are averages over tiles and can be rounded to 0."""


class Fit(NamedTuple):
    """A fitted temperature, and the mean NLL of a pixel in nats without and with it."""

    temperature: float
    nll_before: float
    nll_after: float


def fit_temperature(
    network: PureModel, variables: Any, dataset: Dataset, split: str, settings: EvalConfig
) -> dict[str, Fit]:
    """Fits the temperature of each label map; every host returns the same.

    Args:
        network: the network.
        variables: its (params, batch_stats).
        dataset: its classes are those of the network.
        split: name of the split.
        settings: batch size, and the maximum number of canvases.

    Raises:
        ArgumentError: the split has no labelled pixel.
    """
    records = dataset.split(split)
    if not len(records):
        raise ArgumentError("split", split, f"of {dataset.name} has no images")
    sums = {name: np.zeros((len(INVERSES), 4)) for name in network.label_maps}
    parts: Iterator[Mapping[str, Any]]
    if isinstance(dataset, VolumeDataset):
        parts = _sums_of_volumes(network, variables, dataset, records)
    else:
        sizes = dataset.statistics(split).sizes
        parts = _sums_of_images(network, variables, records, sizes, settings)
    with progress_bar(f"fitting the temperature on {split}", len(records)) as bar:
        for part in parts:
            for name, of_map in part.items():
                sums[name] += np.asarray(of_map, np.float64)
            bar.advance(min(batch_size(settings, len(records)), len(records) - bar.completed))
    if not all(of_map[0, 3] for of_map in sums.values()):
        raise ArgumentError("split", split, f"of {dataset.name} has no labelled pixel")
    return {name: fit(of_map) for name, of_map in sums.items()}


def fit(sums: np.ndarray) -> Fit:
    """Finds the temperature from the sums at `INVERSES`.

    Args:
        sums: float64 (13, 4), see `sums_of`.

    Returns:
        The temperature, rounded to four digits. It is 1/8 or 8 if the NLL still falls there.
    """
    nll, slope, curvature, pixels = sums.T
    if slope[0] >= 0:
        inverse, after = INVERSES[0], nll[0]
    elif slope[-1] <= 0:
        inverse, after = INVERSES[-1], nll[-1]
    else:
        below = int(np.flatnonzero(slope < 0)[-1])
        pair = slice(below, below + 2)
        # In ln β both functions are smoother: d/d ln β is β d/dβ.
        place, slopes = np.log(INVERSES[pair]), curvature[pair] * INVERSES[pair]
        low, high = place
        for _ in range(60):
            middle = (low + high) / 2
            is_low = _cubic(middle, place, slope[pair], slopes) < 0
            low, high = (middle, high) if is_low else (low, middle)
        inverse = np.exp(low)
        after = _cubic(low, place, nll[pair], slope[pair] * INVERSES[pair])
    before = nll[np.flatnonzero(INVERSES == 1)[0]]
    return Fit(float(f"{1 / inverse:.4g}"), float(before / pixels[0]), float(after / pixels[0]))


def sums_of(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Sums NLL, its first two derivatives by β and the number of labelled pixels.

    Args:
        logits: float (…, k).
        label: uint8 (…). `IGNORE_INDEX` and other values that are no class are left out.

    Returns:
        float32 (13, 4), at each of `INVERSES`.
    """
    num_classes = logits.shape[-1]
    valid = label < num_classes
    below = logits - jnp.max(logits, axis=-1, keepdims=True)
    of_label = jnp.take_along_axis(below, jnp.where(valid, label, 0)[..., None], axis=-1)[..., 0]

    def at(inverse: jax.Array) -> jax.Array:
        powers = jnp.exp(inverse * below)
        total = powers.sum(axis=-1)
        mean = (powers * below).sum(axis=-1) / total
        square = (powers * below**2).sum(axis=-1) / total
        terms = jnp.log(total) - inverse * of_label, mean - of_label, square - mean**2
        sums = [jnp.sum(jnp.where(valid, term, 0)) for term in terms]
        return jnp.stack([*sums, valid.sum().astype(jnp.float32)])

    return lax.map(at, jnp.asarray(INVERSES, jnp.float32))


def _sums_of_images(
    network: PureModel, variables: Any, records: Any, sizes: np.ndarray, settings: EvalConfig
) -> Iterator[Mapping[str, Any]]:
    """Yields the sums over each batch of all hosts, by label map."""

    def add_up(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        sums = sums_of(logits, label)
        return sums[0, 0], sums

    def step(_: Any, batch: Any, variables: Any) -> Any:
        logits, _ = network.logits_in_blocks(variables, batch["image"], valid=batch["size"])
        labels = by_map(batch["label"], network.label_maps)
        sums = {
            name: blocks.total(add_up, blocks.layout.to_blocks(labels[name], IGNORE_INDEX))[1]
            for name, blocks in logits.items()
        }
        return lax.psum(sums, DATA_AXIS)

    count = batch_size(settings, len(records))
    buckets = fill_buckets(sizes, max_canvases=settings.canvases, batch_size=count)
    compiled = data_parallel.parallelize(step, donate_state=False)
    variables = data_parallel.replicate(variables)
    batches = evaluation_batches(records, buckets, batch_size=count // jax.process_count())
    pending = None
    with contextlib.closing(batches):
        for batch in batches:
            sums = compiled((), batch.canvases, variables)
            if pending is not None:  # fetched while the devices compute the next batch
                yield pending
            pending = sums
    if pending is not None:
        yield pending


def _sums_of_volumes(
    network: PureModel, variables: Any, dataset: VolumeDataset, records: Any
) -> Iterator[Mapping[str, Any]]:
    """Yields the sums over each volume at the spacing of the plan."""
    predictor = VolumePredictor(network, dataset.plan.patch)

    @jax.jit
    def add_up(probabilities: jax.Array, label: jax.Array) -> jax.Array:
        return sums_of(jnp.log(jnp.maximum(probabilities, MIN_PROBABILITY)), label)

    for index in range(len(records)):
        record = records[index]
        total = np.zeros((len(INVERSES), 4))
        for start, (block,) in predictor.probability_blocks([variables], record["image"]):
            label = record["label"][start : start + len(block)]
            total += np.asarray(add_up(block, label), np.float64)
        yield {"": total}


def _cubic(place: float, places: np.ndarray, values: np.ndarray, slopes: np.ndarray) -> float:
    """Interpolates by the cubic with these values and slopes at two places (Hermite)."""
    width = places[1] - places[0]
    t = (place - places[0]) / width
    return float(
        (2 * t**3 - 3 * t**2 + 1) * values[0]
        + (t**3 - 2 * t**2 + t) * width * slopes[0]
        + (3 * t**2 - 2 * t**3) * values[1]
        + (t**3 - t**2) * width * slopes[1]
    )
