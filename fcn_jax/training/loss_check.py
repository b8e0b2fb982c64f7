"""Checks that a loss keeps the contract of `losses`, on a few pixels before training begins.

A loss that breaks it may still train: sums that leave a value for each pixel, for example, are
added over blocks of rows into a wrong loss.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.training.losses import Loss, PixelLoss, RankedLoss, takes_class_weights

ARRANGEMENTS = ((1, 2, 3), (2, 3), (2, 1, 3, 2))
"""Leading axes of logits: a batch of images, rows of a block, and a block by phases of a stride."""

TOLERANCE = 1e-3
"""Largest difference between sums, as a share of the largest sum: rounding."""


def check_loss(make: Callable[..., Loss], *, num_classes: int = 4, **options: Any) -> None:
    """Checks a loss on a few pixels, without and with class weights.

        check_loss(SquaredError)

    - its sums are arrays whose shapes do not depend on the number or arrangement of the pixels;
    - the sums of two sets of pixels add up to those of their union;
    - pixels with label 255 contribute nothing;
    - `value` returns a scalar, and `per_pixel` of a `PixelLoss` one number for each pixel.

    Args:
        make: the class of the loss, or a function that returns one.
        num_classes: the number of classes k.
        options: keyword arguments of the constructor.

    Raises:
        ValueError: names the loss and what is wrong with it.
    """
    if not takes_class_weights(make):
        name = getattr(make, "__name__", str(make))
        raise ValueError(f"{name} must take the keyword argument class_weights=None")
    for class_weights in (None, jnp.linspace(0.5, 2.0, num_classes)):
        problem = find_problem(make(class_weights=class_weights, **options), num_classes)
        if problem:
            raise ValueError(problem)


def find_problem(loss: Loss, num_classes: int) -> str | None:
    """Returns what is wrong with a loss, as a sentence that names it; None if it can be used."""
    name = type(loss).__name__
    if not isinstance(loss, Loss):
        return f"{name} is not a subclass of fcn_jax.losses.Loss"
    for base, methods in (
        (PixelLoss, ("per_pixel",)),
        (RankedLoss, ("pixel_values", "value")),
        (Loss, ("sums", "value")),
    ):
        for method in methods:
            if isinstance(loss, base) and getattr(type(loss), method) is getattr(base, method):
                return f"{name} must have a method `{method}`"
    if isinstance(loss, RankedLoss):
        found = _ranked_problem(loss, num_classes)
    else:
        found = _shape_problem(loss, num_classes) or _sum_problem(loss, num_classes)
    return found and f"{name}.{found}"


def _shape_problem(loss: Loss, num_classes: int) -> str | None:
    expected = None
    for pixels in ARRANGEMENTS:
        logits = jax.ShapeDtypeStruct((*pixels, num_classes), jnp.float32)
        label = jax.ShapeDtypeStruct(pixels, jnp.int32)
        given = f"for logits of shape {logits.shape}"
        try:
            if isinstance(loss, PixelLoss):
                losses = jax.eval_shape(loss.per_pixel, logits, label)
                if getattr(losses, "shape", None) != pixels:
                    return (
                        f"per_pixel returns {_shapes(losses)} {given}: it must return the shape "
                        f"of the target, {pixels}"
                    )
            sums = jax.eval_shape(loss.sums, logits, label)
        except Exception as error:
            if expected is None:
                raise  # a mistake that the traceback shows
            return f"sums fails {given} (their leading axes are pixels in any arrangement): {error}"
        shapes = _shapes(sums)
        if expected is not None and shapes != expected:
            return (
                f"sums returns {shapes} {given}, but {expected} for those of shape "
                f"{(*ARRANGEMENTS[0], num_classes)}: sum over every pixel"
            )
        expected = shapes
        if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(sums)):
            dtypes = ", ".join(str(leaf.dtype) for leaf in jax.tree.leaves(sums))
            return f"sums returns {dtypes}: its arrays must be float32"
    value = jax.eval_shape(loss.value, sums)
    if getattr(value, "shape", None) != ():
        return f"value returns {_shapes(value)}: it must return a scalar, of shape ()"
    return None


def _ranked_problem(loss: RankedLoss, num_classes: int) -> str | None:
    random = np.random.default_rng(0)
    logits = random.standard_normal((2, 2, 3, num_classes)).astype(np.float32)
    label = np.arange(12, dtype=np.int32).reshape(2, 2, 3) % num_classes
    label[0, 0, 0] = IGNORE_INDEX
    other_logits = logits.copy()
    other_logits[0, 0, 0] += 1
    values = jax.eval_shape(loss.pixel_values, logits, label)
    if getattr(values, "shape", ())[:-1] != label.shape or values.ndim != 4:
        return (
            f"pixel_values returns {_shapes(values)} for logits of shape {logits.shape}: it must "
            f"return the shape of the label, {label.shape}, and one more axis"
        )
    with jax.ensure_compile_time_eval():
        run = jax.jit(loss, compiler_options={"xla_backend_optimization_level": 0})
        value, other = run(logits, label), run(other_logits, label)
    if value.shape != ():
        return f"value returns {_shapes(value)}: it must return a scalar, of shape ()"
    if not np.isfinite(value):
        return "value is not finite for logits about 1"
    if not _equal(value, other):
        return f"value counts pixels with label {IGNORE_INDEX}, which must contribute nothing"
    return None


def _shapes(values: Any) -> str:
    """Formats the shapes of a tree of arrays, and the tree if it is more than one array."""
    shapes = jax.tree.map(lambda leaf: leaf.shape, values)
    return f"shape {shapes}" if hasattr(values, "shape") else f"shapes {shapes}"


def _sum_problem(loss: Loss, num_classes: int) -> str | None:
    logits = np.random.default_rng(0).standard_normal((6, num_classes)).astype(np.float32)
    label = np.arange(6, dtype=np.int32) % num_classes
    label[5] = IGNORE_INDEX

    other_logits = logits.copy()
    other_logits[5] += 1

    def run(logits: jax.Array, label: jax.Array) -> tuple[Any, Any]:
        sums = loss.sums(logits, label)
        weights = (sums[1], loss.weight_sum(label)) if isinstance(loss, PixelLoss) else (0, 0)
        return sums, weights

    with jax.ensure_compile_time_eval():
        run = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})
        whole, (weight, known_weight) = run(logits[None], label[None])
        other, _ = run(other_logits[None], label[None])
        first, second, ignored = (
            run(logits[None, part], part_label[None])[0]
            for part, part_label in (
                (slice(3), label[:3]),
                (slice(3, 6), label[3:]),
                (slice(3), np.full_like(label[:3], IGNORE_INDEX)),
            )
        )
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(whole)):
        return "sums returns values that are not finite for logits about 1"
    if not _equal(ignored, jax.tree.map(np.zeros_like, ignored)) or not _equal(whole, other):
        return f"sums counts pixels with label {IGNORE_INDEX}, which must contribute nothing"
    if not _equal(whole, jax.tree.map(np.add, first, second)):
        return "sums of two sets of pixels must add up to the sums of their union, and do not"
    if not _equal(weight, known_weight):
        return "sums must return the sum of losses and `weight_sum(label)`"
    return None


def _equal(a: Any, b: Any) -> bool:
    return all(
        np.allclose(x, y, rtol=0, atol=TOLERANCE * max(np.abs(y).max(), 1e-3))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
