"""Suite `upsample`: transposed convolution of 21 classes to about 320×480, and its gradients."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from benchmarks.cost import flops
from benchmarks.measuring import Case, Contender, Contenders
from benchmarks.settings import Settings, on_gpu
from benchmarks.workloads import NUM_CLASSES
from fcn_jax.models.upsampling import bilinear_kernel, bilinear_upsample, conv_transpose

BATCH_SIZE = 2
CALLS_ON_GPU = 20
"""Calls in a row, of which the last is waited for: a single one is shorter than its dispatch."""


def cases(settings: Settings) -> Iterator[Case]:
    """Yields a case for each dtype and stride, forward only and with gradients."""
    output_size = (32, 64) if settings.small else (320, 480)
    for dtype in ("float32", "bfloat16") if settings.gpu_cases else ("float32",):
        for stride in (2, 8) if settings.small else (2, 8, 16, 32):
            for backward in (False, True):
                yield Case(
                    f"stride {stride}{' + gradients' if backward else ''} {dtype}",
                    partial(contenders, stride, output_size, backward, dtype, settings.peer),
                )


def contenders(
    stride: int, output_size: tuple[int, int], backward: bool, dtype: str, peer: Any = None
) -> Contenders:
    """Kernels of twice the stride; gradients of the input and of kernels that are learned."""
    random = np.random.default_rng(0)
    calls = CALLS_ON_GPU if on_gpu() else 1
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

    def contender(function: Callable[..., jax.Array], *arguments: np.ndarray) -> Contender:
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
            flops=lambda: flops(run.lower(*inputs), jax.make_jaxpr(run)(*inputs)),
            dtype=dtype,
        )

    fixed = partial(bilinear_upsample, filter_size=2 * stride, **geometry)
    with_lax = partial(lax.conv_transpose, strides=(stride, stride), padding="SAME")
    peers = (
        peer.upsampling(values, kernel, cotangent, stride, backward, dtype, calls) if peer else {}
    )
    return {
        "fcn_jax learned": contender(partial(conv_transpose, **geometry), values, kernel),
        "fcn_jax fixed": contender(fixed, values),
        "flax nnx.ConvTranspose": contender(with_flax, values, kernel),
        "lax.conv_transpose": contender(with_lax, values, kernel),
        **peers,
    }
