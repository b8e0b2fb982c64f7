"""Upsampling: transposed convolutions that start, or stay, bilinear, and interpolation.

Arrays are channels-last: (b, *spatial, c). Everything computes in the dtype of what it is given.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from fcn_jax.models.feature_map import FeatureMap

EXACT = lax.Precision.HIGHEST
"""Of float32 products, which GPUs and TPUs round otherwise: scores are small, and these cheap."""


def bilinear_filter(size: int) -> np.ndarray:
    """The one-dimensional filter of linear interpolation: float32 (size,).

    weight(i) = 1 − |i − c|/f with f = (size + 1)//2, and the centre c = f − 1 for an odd size,
    f − 0.5 for an even one (Long et al. 2015, section 3.3, and the authors' code).
    """
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    return (1 - np.abs(np.arange(size) - centre) / factor).astype(np.float32)


def bilinear_kernel(size: int, channels: int, ndim: int = 2) -> np.ndarray:
    """A transposed convolution's kernel that interpolates each channel by itself.

    Returns float32 (size, …, size, channels, channels), zero off the channels' diagonal.
    """
    weights = np.ones((1,) * ndim, np.float32)
    for axis in range(ndim):
        shape = [1] * ndim
        shape[axis] = size
        weights = weights * bilinear_filter(size).reshape(shape)
    return weights[..., None, None] * np.eye(channels, dtype=np.float32)


def conv_transpose(
    values: jax.Array,
    kernel: jax.Array,
    *,
    stride: int,
    crop: int,
    output_size: Sequence[int],
) -> jax.Array:
    """Transposed convolution by phases: only products with the small input, no zeros between.

    Every input position scatters a kernel's worth of output:
    out[j] = Σ_i values[i] · kernel[j + crop − stride·i] on each axis. The kernel is therefore
    PyTorch's `ConvTranspose2d` weight moved from (in, out, kh, kw) to (kh, kw, in, out), unflipped,
    and `crop` its `padding`. flax's `ConvTranspose` holds the same kernel flipped in space.

    The outputs whose j + crop leave the same remainder by the stride, a *phase*, see the same few
    taps of the kernel. All phases together are one product of ceil(k/stride)^n shifted copies of
    the input with the kernel, rearranged to (taps·in, phases·out), and a depth-to-space.

    Args:
        values: (b, *n, in).
        kernel: (*k, in, out), any kernel size and stride.
        stride: outputs per input on each axis.
        crop: outputs left out at the start of each axis; where negative, zeros put before it.
        output_size: outputs on each axis; zero where no input reaches.

    Returns:
        (b, *output_size, out), in the dtype of `values`.
    """
    ndim = values.ndim - 2
    in_features, out_features = kernel.shape[-2:]
    taps = [-(-k // stride) for k in kernel.shape[:ndim]]

    first = crop // stride
    counts = [(crop + size - 1) // stride + 1 - first for size in output_size]
    for axis in range(ndim):
        copies = _shifted(values, axis + 1, first, counts[axis], taps[axis])
        values = jnp.concatenate(copies, axis=-1)
    # The channels now run over (tap of the last axis, …, tap of the first axis, in).

    padding = [(0, t * stride - k) for t, k in zip(taps, kernel.shape[:ndim], strict=True)]
    kernel = jnp.pad(kernel, [*padding, (0, 0), (0, 0)]).astype(values.dtype)
    kernel = kernel.reshape(*[n for t in taps for n in (t, stride)], in_features, out_features)
    tap_axes = [2 * axis for axis in reversed(range(ndim))]
    phase_axes = [2 * axis + 1 for axis in range(ndim)]
    kernel = kernel.transpose(*tap_axes, 2 * ndim, *phase_axes, 2 * ndim + 1)
    kernel = kernel.reshape(values.shape[-1], stride**ndim * out_features)

    result = jnp.dot(values, kernel, precision=EXACT)
    result = result.reshape(values.shape[0], *counts, *[stride] * ndim, out_features)
    interleaved = [n for axis in range(ndim) for n in (1 + axis, 1 + ndim + axis)]
    result = result.transpose(0, *interleaved, 2 * ndim + 1)
    result = result.reshape(values.shape[0], *[n * stride for n in counts], out_features)
    start = crop - first * stride
    window = tuple(slice(start, start + size) for size in output_size)
    return result[(slice(None), *window)]


def bilinear_upsample(
    values: jax.Array, filter_size: int, *, stride: int, crop: int, output_size: Sequence[int]
) -> jax.Array:
    """`conv_transpose` with `bilinear_kernel(filter_size, …)`, one axis after the other.

    Same arguments and result, at a cost of two multiplications an axis and output.
    """
    weights = bilinear_filter(filter_size)
    taps = -(-filter_size // stride)
    weights = np.pad(weights, (0, taps * stride - filter_size)).reshape(taps, stride)
    first = crop // stride
    start = crop - first * stride
    # The last axis first: the largest result is then made of whole contiguous rows.
    for axis in reversed(range(1, values.ndim - 1)):
        size = output_size[axis - 1]
        count = (crop + size - 1) // stride + 1 - first
        copies = _shifted(values, axis, first, count, taps)
        if stride <= 8:
            # A sum per phase: as one product, 5 times as slow on a CPU.
            phases = [
                sum(copy * float(weights[tap, phase]) for tap, copy in enumerate(copies))
                for phase in range(stride)
            ]
            values = jnp.stack(phases, axis=axis + 1)
        else:
            # One product for all phases: as so many sums, 8 times as slow on a CPU.
            dims = list(range(values.ndim))
            tap, phase = values.ndim, values.ndim + 1
            values = jnp.einsum(
                jnp.stack(copies),
                [tap, *dims],
                weights.astype(values.dtype),
                [tap, phase],
                [*dims[: axis + 1], phase, *dims[axis + 1 :]],
                precision=EXACT,
            )
        merged = (*values.shape[:axis], count * stride, *values.shape[axis + 2 :])
        values = lax.slice_in_dim(values.reshape(merged), start, start + size, axis=axis)
    return values


def _shifted(values: jax.Array, axis: int, first: int, count: int, taps: int) -> list[jax.Array]:
    """For each tap t, the positions first − t … first − t + count − 1, zero beyond the borders."""
    size = values.shape[axis]
    before = max(0, taps - 1 - first)
    after = max(0, first + count - size)
    padding = [(0, 0)] * values.ndim
    padding[axis] = (before, after)
    padded = jnp.pad(values, padding)
    return [
        lax.slice_in_dim(padded, before + first - tap, before + first - tap + count, axis=axis)
        for tap in range(taps)
    ]


class ConvTranspose(nnx.Module):
    """Learned transposed convolution, without bias, that starts as bilinear interpolation.

    kernel: float32 (*kernel_size, features, features); see `conv_transpose` for its convention.
    """

    def __init__(self, features: int, kernel_size: int, *, stride: int, crop: int, ndim: int = 2):
        self.stride = stride
        self.crop = crop
        self.kernel = nnx.Param(jnp.asarray(bilinear_kernel(kernel_size, features, ndim)))

    def __call__(self, x: FeatureMap, like: FeatureMap) -> FeatureMap:
        """(b, *spatial, c) to the spatial size, and the valid part, of `like`."""
        values = conv_transpose(
            x.filled(),
            self.kernel[...],
            stride=self.stride,
            crop=self.crop,
            output_size=like.spatial,
        )
        size = max(self.kernel.shape[:-2])
        field = x.field.scattered(like.field.stride, size, self.stride, self.crop)
        return dataclasses.replace(like, values=values, field=field)


class BilinearUpsample(nnx.Module):
    """Fixed bilinear interpolation: `ConvTranspose` as it starts, computed axis by axis."""

    def __init__(self, filter_size: int, *, stride: int, crop: int):
        self.filter_size = filter_size
        self.stride = stride
        self.crop = crop

    def __call__(self, x: FeatureMap, like: FeatureMap) -> FeatureMap:
        """(b, *spatial, c) to the spatial size, and the valid part, of `like`."""
        values = bilinear_upsample(
            x.filled(),
            self.filter_size,
            stride=self.stride,
            crop=self.crop,
            output_size=like.spatial,
        )
        field = x.field.scattered(like.field.stride, self.filter_size, self.stride, self.crop)
        return dataclasses.replace(like, values=values, field=field)


class Interpolate(nnx.Module):
    """Linear interpolation to exactly the size of the image, the border positions repeated.

    Blocks of pixels need not be whole numbers wide: PyTorch's `interpolate(size=…,
    align_corners=False)`, as in torchvision's and mmsegmentation's heads.
    """

    def __call__(self, x: FeatureMap, like: FeatureMap) -> FeatureMap:
        """(b, *spatial, c) to the spatial size, and the valid part, of `like`."""
        values = x.filled()
        for axis, (size, output_size) in enumerate(zip(x.spatial, like.spatial, strict=True)):
            sizes, output_sizes = jnp.asarray([size]), jnp.asarray([output_size])
            start, output_start = jnp.asarray([0]), jnp.asarray([0])
            if x.part is not None and like.part is not None:
                sizes, output_sizes = x.part.whole[:, axis], like.part.whole[:, axis]
                start, output_start = x.part.start[:, axis], like.part.start[:, axis]
            elif x.valid is not None and like.valid is not None:
                sizes, output_sizes = x.valid[:, axis], like.valid[:, axis]
            position = start[:, None] + jnp.arange(size)
            output = output_start[:, None] + jnp.arange(output_size)
            weights = interpolation_weights(sizes, output_sizes, position, output)
            weights = jnp.broadcast_to(weights, (values.shape[0], *weights.shape[1:]))
            letters = "xyz"[: len(x.spatial)]
            result = letters.replace(letters[axis], "o")
            values = jnp.einsum(
                f"bo{letters[axis]},b{letters}c->b{result}c",
                weights.astype(values.dtype),
                values,
                precision=EXACT,
            )
        sizes_by_axis = list(zip(x.spatial, like.spatial, strict=True))
        field = x.field.interpolated(like.field.stride, sizes_by_axis)
        return dataclasses.replace(like, values=values, field=field)


def interpolation_weights(
    sizes: jax.Array, output_sizes: jax.Array, position: jax.Array, output: jax.Array
) -> jax.Array:
    """How much of each position goes to each output, on one axis of canvases.

    Args:
        sizes, output_sizes: int (b,), of the whole image before and after.
        position, output: int (b, n) and (b, m), those on the canvases, counted in the whole image.

    Returns:
        float32 (b, m, n), each row with the sum 1 if what it is made of lies on the canvas.
    """
    lower, upper, share = (
        part[..., None] for part in interpolation_places(sizes, output_sizes, output)
    )
    at = position[:, None, :]
    return jnp.where(at == lower, 1 - share, 0) + jnp.where(at == upper, share, 0)


def resized(
    values: jax.Array, size: jax.Array, new_size: jax.Array, canvas_px: tuple[int, int]
) -> jax.Array:
    """Images brought to other sizes, to be looked at: float32 (b, *canvas_px, c).

    As `Interpolate`, but looked up instead of a product with `interpolation_weights`: on a CPU 40
    times as fast where there are no gradients.

    Args:
        values: (b, h, w, c).
        size, new_size: how much of the canvases is image before and after, int (b, 2), or (1, 2) of
            all.
        canvas_px: height and width of the new ones.
    """
    values = values.astype(jnp.float32)
    for axis, side in enumerate(canvas_px):
        places = interpolation_places(size[:, axis], new_size[:, axis], jnp.arange(side)[None])
        lower, upper, share = (jnp.broadcast_to(x, (len(values), side)) for x in places)
        before, after = (_looked_up(values, place, axis) for place in (lower, upper))
        share = share.reshape(-1, *[1] * axis, side, *[1] * (2 - axis))
        values = before * (1 - share) + after * share
    return values


def _looked_up(values: jax.Array, places: jax.Array, axis: int) -> jax.Array:
    """Of each image (b, …) its own positions (b, m) along an axis of the image."""
    places = places.astype(jnp.int32)
    return jax.vmap(lambda image, at: jnp.take(image, at, axis=axis, mode="clip"))(values, places)


def interpolation_places(
    sizes: jax.Array, output_sizes: jax.Array, output: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which two positions each output lies between, on one axis, and the share of the second.

    Arguments as above. All float32 (b, m), the positions whole numbers.
    """
    ratio = (sizes / output_sizes).astype(jnp.float32)[:, None]
    place = jnp.maximum((output + 0.5) * ratio - 0.5, 0)
    last = sizes[:, None] - 1
    lower = jnp.minimum(jnp.floor(place), last)
    return lower, jnp.minimum(lower + 1, last), place - lower
