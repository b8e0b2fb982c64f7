"""Convolution of arrays (b, *n, c), with faster forms of a few operations.

On a CPU, depthwise convolutions and those of volumes are computed as sums, because XLA's own were
slow, and on a GPU the kernels' gradients of dilated ones without dilation. Everything else is XLA's
convolution.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fcn_jax.models.row_blocks import join_phases, split_phases
from fcn_jax.parallel.target import target_platform

MAX_TAPS = 27
"""Maximum taps of a kernel that is taken apart on a CPU: 5×5, or 3×3×3.

Depthwise, the gradient of 49 taps took 6.4 s to compile, and XLA's 0.8 s, although that ran 1.4
times as long (4 images of 40×40, 96 features).
"""


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The settings of a convolution.

    Attributes:
        stride: the same on all axes.
        pads: zeros (before, after) on each axis.
        dilation: positions from one tap of the kernel to the next.
        groups: number of groups of channels that are convolved separately.
    """

    stride: int
    pads: tuple[tuple[int, int], ...]
    dilation: int = 1
    groups: int = 1


def convolve(values: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Convolves channels-last arrays, without bias.

    Args:
        values: (b, *n, in).
        kernel: (*k, in / groups, out), in the dtype of `values`.
        geometry: stride, padding, dilation and groups.

    Returns:
        (b, *m, out), in the dtype of `values`.
    """
    few_taps = math.prod(kernel.shape[:-2]) <= MAX_TAPS
    if few_taps and kernel.shape[-2:] == (1, geometry.groups) and geometry.groups > 1:
        # Depthwise. On a CPU, a training step of MobileNetV3 took 2.6 s with XLA's convolution and
        # 0.2 s with this sum, with the same result.
        return lax.platform_dependent(
            values,
            kernel,
            cpu=partial(_sum_over_taps, geometry=geometry),
            default=partial(_convolve, geometry=geometry),
        )
    dense = geometry.groups == geometry.dilation == 1
    if kernel.ndim == 5 and few_taps and dense and target_platform() == "cpu":
        return _convolve_slices(values, kernel, geometry)
    in_phases = geometry.dilation > 1 and geometry.stride == geometry.groups == 1
    if in_phases and target_platform() == "gpu" and _pads_divide(geometry):
        # XLA takes the gradient of a dilated kernel for a convolution with a window as large as the
        # image. That took 2.38 ms on an H100 for 16 images of 60×60, 512 features and 3×3 taps in
        # bfloat16, 5 times as long as without dilation.
        return _dilated(values, kernel, geometry)
    return _convolve(values, kernel, geometry)


# Without `jax.checkpoint`, the reshaped values would be stored for the backward pass as well.
@partial(jax.checkpoint, prevent_cse=False)
def matmul(values: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies (…, in) by a kernel (in, out); on a CPU the kernel's gradient is faster.

    The gradient is a product of two tall matrices, (places, in) and (places, out). With the
    narrower one on the left XLA's product is about 4 times as fast as with the wider one, for 16 to
    64 columns against 128 to 512.
    """
    # With more than two axes XLA takes up to 2.9 times as long for the gradient of the kernel.
    rows = values.reshape(-1, values.shape[-1])
    if target_platform() != "cpu" or kernel.shape[0] <= kernel.shape[1]:
        product = jnp.dot(rows, kernel)
    else:
        # Without the barrier, XLA would turn the gradient's product around again.
        transposed = lax.optimization_barrier(kernel.T)
        product = lax.dot_general(rows, transposed, (((1,), (1,)), ((), ())))
    return product.reshape(*values.shape[:-1], kernel.shape[-1])


def _pads_divide(geometry: Geometry) -> bool:
    return not any(pad % geometry.dilation for pads in geometry.pads for pad in pads)


@jax.custom_jvp
def add_bias(values: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds a bias, float32 (c,), to (…, c), in the dtype of `values`; its gradient is float32."""
    return values + bias.astype(values.dtype)


@add_bias.defjvp
def _add_bias_jvp(primals, tangents):
    of_values, of_bias = tangents
    # The gradient is the sum of what is broadcast here. In bfloat16 a sum of ones stops at 256.
    wide = jnp.broadcast_to(of_bias, of_values.shape).astype(of_values.dtype)
    return add_bias(*primals), of_values + wide


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _dilated(values: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return _convolve(values, kernel, geometry)


@_dilated.defjvp
def _dilated_jvp(geometry, primals, tangents):
    values, kernel = primals
    of_values, of_kernel = tangents
    tangent = _convolve(of_values, kernel, geometry) + _in_phases(values, of_kernel, geometry)
    return _convolve(values, kernel, geometry), tangent


def _in_phases(values: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Computes a convolution of stride 1 and dilation d as one without dilation.

    It convolves the d^n images that consist of every d-th position on each axis. The padding must
    be divisible by d.
    """
    batch, *size, in_features = values.shape
    rank, dilation = len(size), geometry.dilation
    before, after = range(1, 1 + rank), range(1 + rank, 1 + 2 * rank)
    pads = [(0, -n % dilation) for n in size]
    values = jnp.pad(values, [(0, 0), *pads, (0, 0)])
    phases = jax.vmap(partial(split_phases, stride=dilation, ndim=rank))(values)
    counts = phases.shape[1 : 1 + rank]
    images = jnp.moveaxis(phases, after, before).reshape(-1, *counts, in_features)
    pads = [(first // dilation, last // dilation) for first, last in geometry.pads]
    result = _convolve(images, kernel, dataclasses.replace(geometry, pads=tuple(pads), dilation=1))
    result = result.reshape(batch, *[dilation] * rank, *result.shape[1:])
    result = jax.vmap(partial(join_phases, ndim=rank))(jnp.moveaxis(result, before, after))
    window = [
        slice(n + sum(pad) - dilation * (k - 1))
        for n, pad, k in zip(size, geometry.pads, kernel.shape, strict=False)
    ]
    return result[(slice(None), *window)]


def _convolve(values: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    rank = kernel.ndim - 2
    spatial = "DHW"[-rank:]
    return lax.conv_general_dilated(
        values,
        kernel,
        window_strides=[geometry.stride] * rank,
        padding=geometry.pads,
        rhs_dilation=[geometry.dilation] * rank,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=geometry.groups,
    )


def _convolve_slices(values: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Convolves volumes (b, d, h, w, in) slice by slice, and adds up shifted slices.

    Every slice is convolved by the taps of all depths at once, as further output features. On a
    CPU, XLA's convolution of two axes was 3 to 5 times as fast as that of three, for 3×3×3 kernels
    and 16 to 32 features. With a stride this computes slices that are not used; all the same the
    gradient of a small 3-D FCN took 0.04 s, and 0.30 s with XLA's strided convolutions.
    """
    depth_taps, *_, in_features, features = kernel.shape
    batch, depth = values.shape[:2]
    slices = values.reshape(batch * depth, *values.shape[2:])
    flat = jnp.moveaxis(kernel, 0, -2).reshape(*kernel.shape[1:3], in_features, -1)
    in_plane = dataclasses.replace(geometry, pads=geometry.pads[1:])
    by_tap = _convolve(slices, flat, in_plane)
    by_tap = by_tap.reshape(batch, depth, *by_tap.shape[1:3], depth_taps, features)
    padded = jnp.pad(by_tap, [(0, 0), geometry.pads[0], *[(0, 0)] * 4])
    stop = padded.shape[1] - depth_taps + 1
    shifted = [
        padded[:, tap : tap + stop : geometry.stride, :, :, tap] for tap in range(depth_taps)
    ]
    return sum(shifted[1:], shifted[0])


def _sum_over_taps(values: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Computes a depthwise convolution with a kernel (*size, 1, c)."""
    stride, dilation = geometry.stride, geometry.dilation
    size = kernel.shape[:-2]
    padded = jnp.pad(values.astype(jnp.float32), [(0, 0), *geometry.pads, (0, 0)])
    # From a tap's input at the first output position to its input after the last one.
    spans = [
        (n - dilation * (k - 1) - 1) // stride * stride + 1
        for n, k in zip(padded.shape[1:-1], size, strict=True)
    ]
    total = jnp.zeros((), jnp.float32)
    for tap in np.ndindex(*size):
        starts = [dilation * position for position in tap]
        stops = [start + span for start, span in zip(starts, spans, strict=True)]
        first, last = (0, *starts, 0), (padded.shape[0], *stops, padded.shape[-1])
        inputs = lax.slice(padded, first, last, (1, *[stride] * len(size), 1))
        total = total + inputs * kernel[tap][0].astype(jnp.float32)
    return total.astype(values.dtype)
