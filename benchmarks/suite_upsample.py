"""Suite `upsample`: transposed convolutions to about 320×480, and their gradients.

Of the scores of 21 classes, with kernels of twice the stride; and of the features of a U-Net, with
kernels as large as the stride of 2.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from benchmarks.cost import program_cost
from benchmarks.measuring import Case, Contender, Contenders
from benchmarks.settings import Settings, on_gpu
from benchmarks.workloads import NUM_CLASSES
from fcn_jax.models.upsampling import (
    bilinear_kernel,
    bilinear_upsample,
    block_upsample,
    conv_transpose,
)

BATCH_SIZE = 2
UNET_FEATURES = (128, 64)
"""Features before and after the last up-convolution of the U-Net of Ronneberger et al. 2015."""

CALLS_ON_GPU = 20
"""Calls in a row, of which the last is waited for: a single one is shorter than its dispatch."""


def cases(settings: Settings) -> Iterator[Case]:
    """Yields a case for each dtype and stride, forward only and with gradients."""
    output_size = (32, 64) if settings.small else (320, 480)
    for dtype in ("float32", "bfloat16") if settings.gpu_cases else ("float32",):
        for stride in (2, 8) if settings.small else (2, 4, 8, 16, 32):
            for backward in (False, True):
                yield Case(
                    f"stride {stride}{' + gradients' if backward else ''} {dtype}",
                    partial(contenders, stride, output_size, backward, dtype, settings.peer),
                )
        for backward in (False, True):
            yield Case(
                f"U-Net{' + gradients' if backward else ''} {dtype}",
                partial(unet_contenders, output_size, backward, dtype, settings.peer),
            )


def contenders(
    stride: int, output_size: tuple[int, int], backward: bool, dtype: str, peer: Any = None
) -> Contenders:
    """Kernels of twice the stride; gradients of the input and of kernels that are learned."""
    random = np.random.default_rng(0)
    input_size = [side // stride for side in output_size]
    values, cotangent = (
        random.standard_normal((BATCH_SIZE, *size, NUM_CLASSES)).astype(np.float32)
        for size in (input_size, output_size)
    )
    kernel = bilinear_kernel(2 * stride, NUM_CLASSES)
    geometry: Any = {"stride": stride, "crop": stride // 2, "output_size": output_size}

    def with_flax(x: jax.Array, k: jax.Array) -> jax.Array:
        def layer() -> nnx.ConvTranspose:
            return nnx.ConvTranspose(
                NUM_CLASSES,
                NUM_CLASSES,
                k.shape[:2],
                strides=stride,
                use_bias=False,
                dtype=jnp.dtype(dtype),
                rngs=nnx.Rngs(0),
            )

        graph, _ = nnx.split(nnx.eval_shape(layer))
        return nnx.merge(graph, nnx.State({"kernel": nnx.Param(k)}))(x)

    make = partial(contender, cotangent=cotangent, backward=backward, dtype=dtype)
    fixed = partial(bilinear_upsample, filter_size=2 * stride, **geometry)
    with_lax = partial(lax.conv_transpose, strides=(stride, stride), padding="SAME")
    peers: Contenders = {}
    if peer:
        peers = peer.upsampling(
            values, kernel, cotangent, stride, stride // 2, backward, dtype, _calls()
        )
    return {
        "fcn_jax learned": make(partial(conv_transpose, **geometry), values, kernel),
        "fcn_jax fixed": make(fixed, values),
        "flax nnx.ConvTranspose": make(with_flax, values, kernel),
        "lax.conv_transpose": make(with_lax, values, kernel),
        **peers,
    }


def unet_contenders(
    output_size: tuple[int, int], backward: bool, dtype: str, peer: Any = None
) -> Contenders:
    """Kernels of 2×2 and a stride of 2; gradients of the input and of the kernel."""
    random = np.random.default_rng(0)
    features, out_features = UNET_FEATURES
    values, cotangent, kernel = (
        random.standard_normal(shape).astype(np.float32)
        for shape in (
            (BATCH_SIZE, *(side // 2 for side in output_size), features),
            (BATCH_SIZE, *output_size, out_features),
            (2, 2, features, out_features),
        )
    )
    make = partial(contender, cotangent=cotangent, backward=backward, dtype=dtype)
    in_phases = partial(conv_transpose, stride=2, crop=0, output_size=output_size)
    with_lax = partial(lax.conv_transpose, strides=(2, 2), padding="VALID")
    peers: Contenders = {}
    if peer:
        peers = peer.upsampling(values, kernel, cotangent, 2, 0, backward, dtype, _calls())
    return {
        "fcn_jax blocks": make(block_upsample, values, kernel),
        "fcn_jax in phases": make(in_phases, values, kernel),
        "lax.conv_transpose": make(with_lax, values, kernel),
        **peers,
    }


def _calls() -> int:
    return CALLS_ON_GPU if on_gpu() else 1


def contender(
    function: Callable[..., jax.Array],
    *arguments: np.ndarray,
    cotangent: np.ndarray,
    backward: bool,
    dtype: str,
) -> Contender:
    """A function of the arguments, with or without its gradient in all of them."""
    calls = _calls()

    def with_gradients(*inputs: jax.Array) -> Any:
        result, pull_back = jax.vjp(function, *inputs[:-1])
        return result, pull_back(inputs[-1])

    arrays = (*arguments, cotangent) if backward else arguments
    inputs = tuple(jnp.asarray(array, dtype) for array in arrays)
    run = jax.jit(with_gradients if backward else function)

    def call() -> Any:
        for _ in range(calls):
            result = run(*inputs)
        return jax.block_until_ready(result)

    return Contender(
        call,
        iterations=calls,
        cost=lambda: program_cost(run.lower(*inputs), jax.make_jaxpr(run)(*inputs)),
        dtype=dtype,
    )
