"""Suite: transposed convolution of 21 classes to about 320×480, forward and with its gradients."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from benchmarks.cost import Cost, flops
from benchmarks.measuring import Case, Contender
from benchmarks.settings import Settings, on_gpu
from benchmarks.workloads import NUM_CLASSES
from fcn_jax.models.upsampling import bilinear_kernel, bilinear_upsample, conv_transpose

if TYPE_CHECKING:
    from benchmarks.torch_peer import Peer

BATCH_SIZE = 2
CALLS_ON_A_GPU = 20
"""Back to back, of which the last is waited for: one alone takes less than its dispatch."""


def cases(settings: Settings) -> Iterator[Case]:
    output = (32, 64) if settings.small else (320, 480)
    for dtype in ("float32", "bfloat16") if settings.gpu_cases else ("float32",):
        for stride in (2, 8) if settings.small else (2, 8, 16, 32):
            for backward in (False, True):
                yield Case(
                    f"stride {stride}{' + gradients' if backward else ''} {dtype}",
                    lambda s=stride, b=backward, d=dtype: contenders(  # type: ignore[misc]
                        s, output, b, d, settings.peer
                    ),
                )


def contenders(
    stride: int, output_size: tuple[int, int], backward: bool, dtype: str, peer: "Peer | None"
) -> dict[str, Contender]:
    """Kernel 2·stride, padding stride/2; gradients of the input and of kernels that learn."""
    random = np.random.default_rng(0)
    calls = CALLS_ON_A_GPU if on_gpu() else 1
    size = [n // stride for n in output_size]
    values = random.standard_normal((BATCH_SIZE, *size, NUM_CLASSES)).astype(np.float32)
    cotangent = random.standard_normal((BATCH_SIZE, *output_size, NUM_CLASSES)).astype(np.float32)
    kernel = bilinear_kernel(2 * stride, NUM_CLASSES)
    geometry: dict[str, Any] = {
        "stride": stride,
        "crop": stride // 2,
        "output_size": tuple(output_size),
    }
    flax_layer = nnx.eval_shape(
        lambda: nnx.ConvTranspose(
            NUM_CLASSES,
            NUM_CLASSES,
            kernel.shape[:2],
            strides=stride,
            use_bias=False,
            dtype=jnp.dtype(dtype),
            rngs=nnx.Rngs(0),
        )
    )
    graph, _ = nnx.split(flax_layer)

    def learned(x: jax.Array, k: jax.Array) -> jax.Array:
        return conv_transpose(x, k, **geometry)

    def fixed(x: jax.Array) -> jax.Array:
        return bilinear_upsample(x, 2 * stride, **geometry)

    def with_flax(x: jax.Array, k: jax.Array) -> jax.Array:
        return nnx.merge(graph, nnx.State({"kernel": nnx.Param(k)}))(x)

    def with_lax(x: jax.Array, k: jax.Array) -> jax.Array:
        return lax.conv_transpose(x, k, (stride, stride), "SAME")

    def contender(function: Callable[..., jax.Array], *arguments: np.ndarray) -> Contender:
        def forward(*inputs: jax.Array) -> Any:
            return function(*inputs)

        def forward_and_backward(*inputs: jax.Array) -> Any:
            result, pull_back = jax.vjp(function, *inputs[:-1])
            return result, pull_back(inputs[-1])

        arrays = (*arguments, cotangent) if backward else arguments
        inputs = tuple(jnp.asarray(array, dtype) for array in arrays)
        run = jax.jit(forward_and_backward if backward else forward)

        def call() -> Any:
            for _ in range(calls):
                result = run(*inputs)
            return jax.block_until_ready(result)

        return Contender(
            call,
            iterations=calls,
            cost=lambda: Cost(flops(run.lower(*inputs), jax.make_jaxpr(run)(*inputs)), dtype),
        )

    made = {
        "fcn_jax learned": contender(learned, values, kernel),
        "fcn_jax fixed": contender(fixed, values),
        "flax nnx.ConvTranspose": contender(with_flax, values, kernel),
        "lax.conv_transpose": contender(with_lax, values, kernel),
    }
    if peer is not None:
        made |= peer.upsampling(values, kernel, cotangent, stride, backward, dtype, calls)
    return made
