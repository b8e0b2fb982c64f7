"""Suite `volumes`: convolutions and transposed convolutions of three axes, and their gradients.

3×3×3 convolutions of the first two levels of a U-Net on patches of 40×56×40; the upsampling between
them by kernels of 2 and 4; and scores of 3 classes by kernels of 8 and stride 4, as in FCN-8s.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax

from benchmarks.measuring import Case, Contenders
from benchmarks.settings import Settings
from benchmarks.suite_upsample import contender
from fcn_jax.models.convolution import Geometry, convolve
from fcn_jax.models.upsampling import block_upsample, conv_transpose

BATCH_SIZE = 2
PATCH = (40, 56, 40)
CONVOLUTIONS = ((16, 16, 1), (32, 16, 1), (32, 32, 2))
"""Features before and after, and the stride of the level."""

UPSAMPLINGS = ((2, 2, 0, 32, 16), (4, 2, 1, 32, 16), (8, 4, 2, 3, 3))
"""Kernel, stride, crop, and features before and after."""

AXES = ("NDHWC", "DHWIO", "NDHWC")


def cases(settings: Settings) -> Iterator[Case]:
    """Yields a case for each layer, forward only and with gradients."""
    patch = (8, 8, 8) if settings.small else PATCH
    for backward in (False, True):
        gradients = " + gradients" if backward else ""
        for before, after, stride in CONVOLUTIONS:
            size = tuple(side // stride for side in patch)
            name = f"3×3×3, {before} to {after}, {'×'.join(map(str, size))}{gradients}"
            yield Case(name, partial(convolutions, before, after, size, backward, settings.peer))
        for kernel, stride, crop, before, after in UPSAMPLINGS:
            name = f"transposed {kernel}/{stride}, {before} to {after}{gradients}"
            layer = (kernel, stride, crop, before, after)
            yield Case(name, partial(upsamplings, *layer, patch, backward, settings.peer))


def convolutions(
    before: int, after: int, size: tuple[int, ...], backward: bool, peer: Any = None
) -> Contenders:
    """3×3×3 convolutions with zeros beyond the border."""
    values, cotangent, kernel = _arrays(
        (BATCH_SIZE, *size, before), (BATCH_SIZE, *size, after), (3, 3, 3, before, after)
    )
    make = partial(contender, cotangent=cotangent, backward=backward, dtype="float32")
    ours = partial(convolve, geometry=Geometry(1, ((1, 1),) * 3))

    def with_lax(x: jax.Array, k: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, k, (1, 1, 1), "SAME", dimension_numbers=AXES)

    return {
        "fcn_jax": make(ours, values, kernel),
        "lax.conv": make(with_lax, values, kernel),
        **(peer.convolution(values, kernel, cotangent, backward) if peer else {}),
    }


def upsamplings(
    size: int,
    stride: int,
    crop: int,
    before: int,
    after: int,
    patch: tuple[int, ...],
    backward: bool,
    peer: Any = None,
) -> Contenders:
    """Transposed convolutions to the size of the patch."""
    coarse = tuple(side // stride for side in patch)
    values, cotangent, kernel = _arrays(
        (BATCH_SIZE, *coarse, before), (BATCH_SIZE, *patch, after), (*[size] * 3, before, after)
    )
    make = partial(contender, cotangent=cotangent, backward=backward, dtype="float32")
    ours: Callable[..., jax.Array] = partial(
        conv_transpose, stride=stride, crop=crop, output_size=patch
    )
    if size == stride:
        ours = block_upsample
    with_lax = partial(
        lax.conv_transpose, strides=(stride,) * 3, padding="SAME", dimension_numbers=AXES
    )
    peers: Contenders = {}
    if peer:
        peers = peer.upsampling(values, kernel, cotangent, stride, crop, backward, "float32", 1)
    return {
        "fcn_jax": make(ours, values, kernel),
        # Its gradients would take minutes.
        **({} if backward else {"lax.conv_transpose": make(with_lax, values, kernel)}),
        **peers,
    }


def _arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]
