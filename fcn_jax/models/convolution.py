"""Convolution of arrays (b, *n, c), with faster forms of two operations on a CPU.

On a CPU, the gradient of a kernel and depthwise convolutions are computed as products and sums,
because XLA's own were slow. Everything else is XLA's convolution.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from fcn_jax.parallel.target import target_platform

MAX_TAPS = 27
"""Maximum taps of a kernel that is computed tap by tap on a CPU: 5×5, or 3×3×3.

For 7×7 kernels XLA's gradient was twice as fast. Depthwise, the gradient of 49 taps took 6.4 s to
compile, and XLA's 0.8 s, although that ran 1.4 times as long (4 images of 40×40, 96 features).
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
    if few_taps and geometry.groups == 1 and target_platform() == "cpu":
        if kernel.ndim == 5 and kernel.shape[0] > 1 and geometry.stride == geometry.dilation == 1:
            return _convolve_slices(values, kernel, geometry)
        return _convolve_on_cpu(values, kernel, geometry)
    return _convolve(values, kernel, geometry)


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
    and 16 to 32 features.
    """
    depth_taps, *_, in_features, features = kernel.shape
    batch, depth = values.shape[:2]
    slices = values.reshape(batch * depth, *values.shape[2:])
    flat = jnp.moveaxis(kernel, 0, -2).reshape(*kernel.shape[1:3], in_features, -1)
    in_plane = dataclasses.replace(geometry, pads=geometry.pads[1:])
    by_tap = _convolve_on_cpu(slices, flat, in_plane)
    by_tap = by_tap.reshape(batch, depth, *by_tap.shape[1:3], depth_taps, features)
    padded = jnp.pad(by_tap, [(0, 0), geometry.pads[0], *[(0, 0)] * 4])
    places = padded.shape[1] - depth_taps + 1
    shifted = [padded[:, tap : tap + places, :, :, tap] for tap in range(depth_taps)]
    return sum(shifted[1:], shifted[0])


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _convolve_on_cpu(values: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return _convolve(values, kernel, geometry)


@partial(_convolve_on_cpu.defjvp, symbolic_zeros=True)
def _convolve_on_cpu_jvp(geometry, primals, tangents):
    values, kernel = primals
    values_tangent, kernel_tangent = tangents
    result = _convolve_on_cpu(values, kernel, geometry)
    parts = []
    if not isinstance(values_tangent, SymbolicZero):  # the pixels of the first layer are constants
        parts.append(_convolve(values_tangent, kernel, geometry))
    if not isinstance(kernel_tangent, SymbolicZero):
        parts.append(_convolve_by_taps(values, kernel_tangent, result.shape[1:-1], geometry))
    return result, sum(parts[1:], parts[0])


# The backward pass recomputes the intermediate arrays from `values` instead of storing them.
@partial(jax.checkpoint, prevent_cse=False, static_argnums=(2, 3))
def _convolve_by_taps(
    values: jax.Array, kernel: jax.Array, places: tuple[int, ...], geometry: Geometry
) -> jax.Array:
    """Convolves by a float32 product (places, in) · (in, out) for each tap and image.

    JAX transposes it, in the backward pass, to the gradient of the kernel: products (in, places) ·
    (places, out). On a CPU, for eight 3×3 layers of SqueezeNet and VGG16, these are 0.7 to 2.6
    times as fast as XLA's convolution with the cotangent as a kernel; the median is 1.4.
    """
    size = kernel.shape[:-2]
    count = math.prod(size)

    @partial(jax.checkpoint, prevent_cse=False)
    def one_image(filters: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs = _inputs_of_taps(values.astype(jnp.float32)[None], size, places, geometry)
        products = [
            jnp.dot(x.reshape(-1, x.shape[-1]), tap[0])
            for (_, x), tap in zip(inputs, lax.split(filters, [1] * count), strict=True)
        ]
        result = sum(products[1:], products[0]).reshape(*places, -1)
        return filters, result.astype(values.dtype)

    filters = kernel.astype(jnp.float32).reshape(count, *kernel.shape[-2:])
    padded = jnp.pad(values, [(0, 0), *geometry.pads, (0, 0)])
    # The scan is reversed, so that its transpose adds up the images in their order.
    _, result = lax.scan(one_image, filters, padded, reverse=True)
    return result


def _sum_over_taps(values: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Computes a depthwise convolution with a kernel (*size, 1, c)."""
    size = kernel.shape[:-2]
    padded = jnp.pad(values.astype(jnp.float32), [(0, 0), *geometry.pads, (0, 0)])
    reach = [geometry.dilation * (k - 1) for k in size]
    places = [
        (n - r - 1) // geometry.stride + 1 for n, r in zip(padded.shape[1:-1], reach, strict=True)
    ]
    total = jnp.zeros((), jnp.float32)
    for tap, x in _inputs_of_taps(padded, size, places, geometry):
        total = total + x * kernel[tap][0].astype(jnp.float32)
    return total.astype(values.dtype)


def _inputs_of_taps(
    padded: jax.Array,
    size: tuple[int, ...],
    places: Sequence[int],
    geometry: Geometry,
) -> Iterator[tuple[tuple[int, ...], jax.Array]]:
    """Yields each tap of a kernel, and its inputs at all output positions: (b, *places, c)."""
    for tap in np.ndindex(*size):
        starts = [geometry.dilation * position for position in tap]
        stops = [
            start + (count - 1) * geometry.stride + 1
            for start, count in zip(starts, places, strict=True)
        ]
        first, last = (0, *starts, 0), (padded.shape[0], *stops, padded.shape[-1])
        yield tap, lax.slice(padded, first, last, (1, *[geometry.stride] * len(size), 1))
