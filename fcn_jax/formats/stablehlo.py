"""Exports a network as a StableHLO program that takes images of any size, by `jax.export`.

The program runs the operations of a tape with symbolic heights and widths. It holds the weights and
is compiled for the size at hand where it is called, on CPU, CUDA or TPU, without fcn_jax:

    program = jax.export.deserialize(bytearray(open("fcn.stablehlo", "rb").read()))
    classes = program.call(image)[""]  # uint8 (n, h, w, c) -> uint8 (n, h, w), by label map
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax import lax

from fcn_jax.errors import UserError
from fcn_jax.models.backbones.alexnet import local_response_normalization
from fcn_jax.models.interpolation import resized
from fcn_jax.models.tape import IMAGE, Tape
from fcn_jax.models.upsampling import EXACT, bilinear_kernel

PLATFORMS = ("cpu", "cuda", "tpu")

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def build(tape: Tape, tensors: Mapping[str, np.ndarray], *, channels: int) -> bytes:
    """Returns a serialised program: uint8 (n, h, w, c) -> uint8 (n, h, w) by label map.

    Args:
        tape: the operations of the network.
        tensors: its weights by name, as in a model file.
        channels: number of channels of the image.

    Raises:
        UserError: the package flatbuffers is not installed.
    """
    try:
        import flatbuffers  # noqa: F401  # JAX writes the file with it
    except ImportError:
        raise UserError(
            "--format=stablehlo needs the package flatbuffers: pip install flatbuffers"
        ) from None

    def classes(image: jax.Array) -> dict[str, jax.Array]:
        logits = run(tape, tensors, image)
        return {name: jnp.argmax(x, axis=-1).astype(jnp.uint8) for name, x in logits.items()}

    shape = jax_export.symbolic_shape(
        f"n, h, w, {channels}", constraints=("n >= 1", "h >= 1", "w >= 1")
    )
    image = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return bytes(jax_export.export(jax.jit(classes), platforms=PLATFORMS)(image).serialize())


def run(tape: Tape, tensors: Mapping[str, np.ndarray], image: jax.Array) -> dict[str, jax.Array]:
    """Runs a tape on images whose sides may be symbolic; returns the logits by label map."""
    arrays = {IMAGE: image}
    for operation in tape.operations:
        weights = {key: jnp.asarray(tensors[name]) for key, name in operation.weights.items()}
        inputs = [arrays[number] for number in operation.inputs]
        arrays[operation.output] = _FUNCTIONS[operation.kind](
            *inputs, **operation.settings, **weights
        )
    return {name: arrays[number] for name, number in tape.logits.items()}


def _preprocess(
    image: jax.Array, *, order: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    values = image.astype(jnp.float32)[..., np.asarray(order)]
    return (values - jnp.asarray(mean)) / jnp.asarray(std)


def _conv(
    x: jax.Array,
    *,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    stride: int,
    pads: Sequence[tuple[int, int]],
    dilation: int,
    groups: int,
) -> jax.Array:
    x = lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=DIMENSIONS,
        feature_group_count=groups,
    )
    return x if bias is None else x + bias


def _batch_norm(
    x: jax.Array,
    *,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    epsilon: float,
) -> jax.Array:
    scale = scale * lax.rsqrt(var + epsilon)
    return x * scale + (bias - mean * scale)


def _group_norm(
    x: jax.Array, *, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float
) -> jax.Array:
    by_group = x.reshape(*x.shape[:-1], groups, -1)
    mean = by_group.mean((1, 2, 4), keepdims=True)
    var = jnp.square(by_group - mean).mean((1, 2, 4), keepdims=True)
    return ((by_group - mean) * lax.rsqrt(var + epsilon)).reshape(x.shape) * scale + bias


def _mirror_pad(x: jax.Array, *, before: int, after: int) -> jax.Array:
    for axis in (1, 2):
        size = x.shape[axis]
        period = jnp.maximum(2 * jnp.asarray(size) - 2, 1)
        place = (jnp.arange(before + size + after) - before) % period
        x = jnp.take(x, jnp.minimum(place, period - place), axis=axis)
    return x


def _cropped(skip: jax.Array, coarse: jax.Array, *, first: int, factor: int) -> jax.Array:
    for axis in (1, 2):
        index = first + jnp.arange(factor * coarse.shape[axis])
        skip = jnp.take(skip, index, axis=axis)
    return skip


def _max_pool(x: jax.Array, *, window: int, stride: int, padding: int, ceil: bool) -> jax.Array:
    # See onnx_file.py: in ceil mode the windows are those of a wider padding.
    pads = (padding, padding + (stride - 1 if ceil else 0))
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        ((0, 0), pads, pads, (0, 0)),
    )


def _average_pool(x: jax.Array, *, window: Sequence[int]) -> jax.Array:
    total = lax.reduce_window(x, 0.0, lax.add, (1, *window, 1), (1, 1, 1, 1), "VALID")
    return total / (window[0] * window[1])


def _conv_transpose(
    x: jax.Array,
    like: jax.Array,
    *,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    filter_size: int,
    stride: int,
    crop: int,
) -> jax.Array:
    x = _transposed(x, like, kernel, stride, crop, groups=1)
    return x if bias is None else x + bias


def _bilinear_upsample(
    x: jax.Array, like: jax.Array, *, filter_size: int, stride: int, crop: int
) -> jax.Array:
    kernel = jnp.asarray(bilinear_kernel(filter_size, 1))
    kernel = jnp.broadcast_to(kernel, (filter_size, filter_size, 1, x.shape[-1]))
    return _transposed(x, like, kernel, stride, crop, groups=x.shape[-1])


def _transposed(
    x: jax.Array, like: jax.Array, kernel: jax.Array, stride: int, crop: int, groups: int
) -> jax.Array:
    """A transposed convolution, from the offset `crop` on, of the sides of `like`."""
    size = kernel.shape[0]
    x = lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        window_strides=(1, 1),
        padding=[(size - 1, size - 1)] * 2,
        lhs_dilation=(stride, stride),
        dimension_numbers=DIMENSIONS,
        feature_group_count=groups,
        precision=EXACT,
    )
    for axis in (1, 2):
        index = crop + jnp.arange(like.shape[axis])
        index = jnp.where(index < 0, x.shape[axis], index)  # negative ones count from the end
        x = jnp.take(x, index, axis=axis, mode="fill", fill_value=0)
    return x


def _interpolate(x: jax.Array, like: jax.Array) -> jax.Array:
    before, after = (jnp.asarray([list(values.shape[1:3])]) for values in (x, like))
    return resized(x, before, after, (like.shape[1], like.shape[2]))


_FUNCTIONS: dict[str, Callable[..., jax.Array]] = {
    "preprocess": _preprocess,
    "conv": _conv,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "mirror_pad": _mirror_pad,
    "cropped": _cropped,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "hard_swish": jax.nn.hard_swish,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "local_response_normalization": local_response_normalization,
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "spatial_mean": lambda x: jnp.mean(x, axis=(1, 2), keepdims=True),
    "scaled": lambda x, factor: x * factor,
    "channels": lambda x, start, stop: x[..., start:stop],
    "add": jnp.add,
    "multiply": jnp.multiply,
    "concatenate": lambda *x: jnp.concatenate(x, axis=-1),
    "conv_transpose": _conv_transpose,
    "bilinear_upsample": _bilinear_upsample,
    "interpolate": _interpolate,
}
