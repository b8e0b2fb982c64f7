"""Counting how often each true class was predicted as each class: a confusion matrix.

`confusion_matrices` counts each image of a batch on the device, and `WideCount` adds the counts of
batches up there, so that little has to come to the host: of all images one matrix, of each image
what `class_counts` keeps of its own.
"""

import dataclasses
from functools import partial
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fcn_jax.data.labels import IGNORE_INDEX

Array = TypeVar("Array", bound=Any)

PIXELS_A_PRODUCT = 4096
"""Summed at once by `counted_by_products`; float32 would hold whole numbers up to 2²⁴."""


@partial(jax.jit, static_argnames="num_classes")
def confusion_matrices(label: jax.Array, prediction: jax.Array, num_classes: int) -> jax.Array:
    """Count, for each image, how often each true class was predicted as each class.

    By a histogram on a CPU. Elsewhere by products, since all threads of a histogram would add to
    the same few cells, and wait for each other; which of the two is faster there is not measured.

    Args:
      label: true classes, any integer type, (b, ...). `IGNORE_INDEX` and every other value outside
        0..k−1 (padding) is left out.
      prediction: predicted classes, any integer type, same shape. A value outside 0..k−1, which no
        argmax over k scores yields, is left out too.
      num_classes: k; static under `jax.jit`.

    Returns:
      int32 (b, k, k): rows are true classes, columns predicted ones. Exact up to 2³¹ − 1 pixels an
      image.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> confusion_matrices(jnp.array([[0, 1, 1, 255]]), jnp.array([[0, 0, 1, 1]]), 2).tolist()
      [[[1, 0], [1, 1]]]
    """
    if label.shape != prediction.shape:
        raise ValueError(
            f"`label` (shape {label.shape}) and `prediction` (shape {prediction.shape}) must have "
            "the same shape"
        )
    images = (label.shape[0], -1)
    truth = label.astype(jnp.int32).reshape(images)
    guess = prediction.astype(jnp.int32).reshape(images)
    counted = (
        (truth != IGNORE_INDEX)
        & ((truth >= 0) & (truth < num_classes))
        & ((guess >= 0) & (guess < num_classes))
    )
    return lax.platform_dependent(
        jnp.where(counted, truth, num_classes),
        jnp.where(counted, guess, 0),
        cpu=partial(counted_by_histogram, num_classes=num_classes),
        default=partial(counted_by_products, num_classes=num_classes),
    )


def counted_by_histogram(truth: jax.Array, guess: jax.Array, num_classes: int) -> jax.Array:
    """The pairs of classes of each image, int32 (b, n), counted: int32 (b, k, k).

    truth: 0..k, of which k is left out. guess: 0..k−1.

    An image of 500×375 with 21 classes took a CPU core 0.4 ms so, and 4 ms by products.
    """

    def histogram(cell: jax.Array) -> jax.Array:
        counts = jnp.zeros((num_classes + 1) * num_classes, jnp.int32)
        return counts.at[cell].add(1, mode="promise_in_bounds")

    counts = jax.vmap(histogram)(truth * num_classes + guess)
    return counts.reshape(-1, num_classes + 1, num_classes)[:, :num_classes]


def counted_by_products(truth: jax.Array, guess: jax.Array, num_classes: int) -> jax.Array:
    """The same as products of one-hot rows: classes × pixels with pixels × classes.

    Of zeros and ones in bfloat16, added up in float32 over `PIXELS_A_PRODUCT` pixels, they are
    exact. One image goes after the other, since its rows take 4·k bytes a pixel.
    """
    beyond = ((0, 0), (0, -truth.shape[1] % PIXELS_A_PRODUCT))
    truth = jnp.pad(truth, beyond, constant_values=num_classes)  # no row's class: all zeros
    guess = jnp.pad(guess, beyond)

    def of_image(classes: tuple[jax.Array, jax.Array]) -> jax.Array:
        rows = [
            jax.nn.one_hot(each.reshape(-1, PIXELS_A_PRODUCT), num_classes, dtype=jnp.bfloat16)
            for each in classes
        ]
        products = jnp.einsum("npi,npj->nij", *rows, preferred_element_type=jnp.float32)
        return products.astype(jnp.int32).sum(axis=0)

    return lax.map(of_image, (truth, guess))


def count_confusion(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """`confusion_matrices` of one image, uint8 (h, w), on the host: int64 (k, k)."""
    counted = (label < num_classes) & (prediction < num_classes)
    cells = label[counted].astype(np.int64) * num_classes + prediction[counted]
    counts = np.bincount(cells, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def class_counts(confusions: Array) -> tuple[Array, Array, Array]:
    """What scores need of matrices (b, k, k), NumPy's or JAX's: hits, truth, predicted, (b, k).

    The pixels of a class that were found, those that are of it, and those predicted as it.
    """
    hits = confusions.diagonal(axis1=1, axis2=2)
    return hits, confusions.sum(axis=2), confusions.sum(axis=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WideCount:
    """Sums beyond 2³¹ on a device, which counts with 32 bits: high · 2³² + low, both uint32.

    2³¹ pixels are 8 200 images of 512×512: fewer than there are in large data sets.
    """

    low: Any
    high: Any

    @classmethod
    def zeros(cls, *shape: int) -> Self:
        return cls(np.zeros(shape, np.uint32), np.zeros(shape, np.uint32))

    def plus(self, counts: jax.Array) -> Self:
        """counts: int32 of the same shape, none below 0."""
        low = self.low + counts.astype(jnp.uint32)  # modulo 2³²
        carry = (low < self.low).astype(jnp.uint32)
        return dataclasses.replace(self, low=low, high=self.high + carry)

    def total(self) -> np.ndarray:
        """int64, on the host."""
        low, high = (np.asarray(word).astype(np.int64) for word in (self.low, self.high))
        return (high << 32) + low
