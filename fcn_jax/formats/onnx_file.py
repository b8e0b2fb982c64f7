"""Writes a network as an ONNX file that takes images of any size and reproduces `predict`.

Input: `image`, uint8 (n, height, width, channels). Outputs: `classes`, uint8 (n, height, width),
and `logits`, float32 (n, classes, height, width); with several label maps `classes_NAME` and
`logits_NAME`. All images of a batch have one size. Within the file arrays are channels-first.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fcn_jax.errors import UserError
from fcn_jax.models.fcn import suffix
from fcn_jax.models.tape import IMAGE, Operation, Tape
from fcn_jax.models.upsampling import bilinear_filter

OPSET = 17
"""The version of the operators: of 2022, which every runtime of today has."""

IR_VERSION = 8
"""The version of the file format that belongs to `OPSET`."""

MAX_BYTES = 2**31 - 1
"""Size limit of one protobuf file."""


class _Graph:
    """A graph under construction; the arrays of the tape are named by their numbers."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self._tensors = tensors
        self._constants: dict[bytes, str] = {}
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def add(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Adds an operator; returns the name of its output."""
        import onnx

        output = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """Returns the name of a constant; equal ones are stored once."""
        import onnx

        array = np.ascontiguousarray(values, dtype)
        key = array.tobytes() + str((array.shape, array.dtype)).encode()
        if key not in self._constants:
            self._constants[key] = f"constant_{len(self._constants)}"
            self.initializers.append(onnx.numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def integers(self, *values: int) -> str:
        """Returns the name of a constant int64 vector."""
        return self.constant(values, np.int64)

    def weight(self, operation: Operation, key: str) -> np.ndarray:
        """Returns a weight of an operation."""
        return self._tensors[operation.weights[key]]

    def sides(self, array: str) -> str:
        """Returns height and width of an array (n, c, h, w): int64 (2,)."""
        return self.add(
            "Slice", self.add("Shape", array), self.integers(2), self.integers(4), self.integers(0)
        )


def build(
    tape: Tape,
    tensors: Mapping[str, np.ndarray],
    *,
    channels: int,
    metadata: Mapping[str, str],
) -> bytes:
    """Returns the contents of an ONNX file.

    Args:
        tape: the operations of the network.
        tensors: its weights by name, as in a model file.
        channels: number of channels of the image.
        metadata: written into the file as it is.

    Raises:
        UserError: the package onnx is not installed, or the file would be larger than 2 GiB.
    """
    try:
        import onnx
    except ImportError:
        raise UserError("--format=onnx needs the package onnx: pip install onnx") from None
    if sum(tensor.nbytes for tensor in tensors.values()) > MAX_BYTES:
        raise UserError("--format=onnx: the weights exceed the 2 GiB of one ONNX file")
    graph = _Graph(tensors)
    names = {IMAGE: "image"}
    sides = ["height", "width"]
    outputs = []
    for label_map, number in tape.logits.items():
        names[number] = f"logits{suffix(label_map)}"
    for operation in tape.operations:
        inputs = [names[number] for number in operation.inputs]
        made = _WRITERS[operation.kind](graph, operation, inputs)
        if operation.output in names:
            graph.add("Identity", made, name=names[operation.output])
        else:
            names[operation.output] = made
    tensor = onnx.helper.make_tensor_value_info
    for label_map, number in tape.logits.items():
        largest = graph.add("ArgMax", names[number], axis=1, keepdims=0)
        classes = f"classes{suffix(label_map)}"
        graph.add("Cast", largest, name=classes, to=onnx.TensorProto.UINT8)
        outputs += [
            tensor(classes, onnx.TensorProto.UINT8, ["n", *sides]),
            tensor(names[number], onnx.TensorProto.FLOAT, ["n", None, *sides]),
        ]
    image = tensor("image", onnx.TensorProto.UINT8, ["n", *sides, channels])
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "fcn_jax", [image], outputs, graph.initializers),
        producer_name="fcn_jax",
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _preprocess(graph: _Graph, operation: Operation, inputs: Sequence[str]) -> str:
    mean, std = (np.reshape(operation.settings[key], (1, -1, 1, 1)) for key in ("mean", "std"))
    order = operation.settings["order"]
    values = graph.add("Cast", *inputs, to=1)  # TensorProto.FLOAT
    values = graph.add("Transpose", values, perm=[0, 3, 1, 2])
    if order != sorted(order):
        values = graph.add("Gather", values, graph.integers(*order), axis=1)
    return graph.add("Div", graph.add("Sub", values, graph.constant(mean)), graph.constant(std))


def _conv(graph: _Graph, operation: Operation, inputs: Sequence[str]) -> str:
    settings = operation.settings
    kernel = np.moveaxis(graph.weight(operation, "kernel"), (-1, -2), (0, 1))
    weights = [graph.constant(kernel)]
    if "bias" in operation.weights:
        weights.append(graph.constant(graph.weight(operation, "bias")))
    return graph.add(
        "Conv",
        *inputs,
        *weights,
        strides=[settings["stride"]] * 2,
        pads=[pad[side] for side in (0, 1) for pad in settings["pads"]],
        dilations=[settings["dilation"]] * 2,
        group=settings["groups"],
        kernel_shape=kernel.shape[2:],
    )


def _batch_norm(graph: _Graph, operation: Operation, inputs: Sequence[str]) -> str:
    weights = (graph.weight(operation, key) for key in ("scale", "bias", "mean", "var"))
    return graph.add(
        "BatchNormalization",
        *inputs,
        *map(graph.constant, weights),
        epsilon=operation.settings["epsilon"],
    )


def _group_norm(graph: _Graph, operation: Operation, inputs: Sequence[str]) -> str:
    # `GroupNormalization` is of a later opset. A group's positions become those of one channel.
    groups, epsilon = operation.settings["groups"], operation.settings["epsilon"]
    by_group = graph.add("Reshape", *inputs, graph.integers(0, groups, -1))
    unit = (graph.constant(np.full(groups, value)) for value in (1, 0))
    made = graph.add("InstanceNormalization", by_group, *unit, epsilon=epsilon)
    made = graph.add("Reshape", made, graph.add("Shape", *inputs))
    scale, bias = (
        graph.constant(graph.weight(operation, key).reshape(1, -1, 1, 1))
        for key in ("scale", "bias")
    )
    return graph.add("Add", graph.add("Mul", made, scale), bias)


def _mirror_pad(graph: _Graph, operation: Operation, inputs: Sequence[str]) -> str:
    # `Pad` does not mirror further than the image is long.
    before, after = operation.settings["before"], operation.settings["after"]
    (made,) = inputs
    for axis in (2, 3):
        shape = graph.add("Shape", made, start=axis, end=axis + 1)
        size = graph.add("Squeeze", shape)
        one, two = (graph.constant(value, np.int64) for value in (1, 2))
        period = graph.add("Max", graph.add("Mul", graph.add("Sub", size, one), two), one)
        end = graph.add("Add", size, graph.constant(after, np.int64))
        place = graph.add("Range", graph.constant(-before, np.int64), end, one)
        place = graph.add("Mod", place, period)
        place = graph.add("Min", place, graph.add("Sub", period, place))
        made = graph.add("Gather", made, place, axis=axis)
    return made


def _cropped(graph: _Graph, operation: Operation, inputs: Sequence[str]) -> str:
    skip, coarse = inputs
    first, factor = ([operation.settings[key]] * 2 for key in ("first", "factor"))
    size = graph.add("Mul", graph.sides(coarse), graph.integers(*factor))
    last = graph.add("Add", size, graph.integers(*first))
    return graph.add("Slice", skip, graph.integers(*first), last, graph.integers(2, 3))


def _max_pool(graph: _Graph, operation: Operation, inputs: Sequence[str]) -> str:
    window, stride, padding = (operation.settings[key] for key in ("window", "stride", "padding"))
    # Runtimes differ in ceil mode. Windows that end outside are those of a wider padding, and none
    # begins outside, because the stride is no longer than the window and nothing is padded before.
    after = padding + (stride - 1 if operation.settings["ceil"] else 0)
    if operation.settings["ceil"] and (padding or stride > window):
        raise UserError("--format=onnx: a max pooling in ceil mode with padding is not supported")
    return graph.add(
        "MaxPool",
        *inputs,
        kernel_shape=[window] * 2,
        strides=[stride] * 2,
        pads=[padding] * 2 + [after] * 2,
    )


def _average_pool(graph: _Graph, operation: Operation, inputs: Sequence[str]) -> str:
    return graph.add("AveragePool", *inputs, kernel_shape=operation.settings["window"])


def _local_response_normalization(
    graph: _Graph, operation: Operation, inputs: Sequence[str]
) -> str:
    return graph.add("LRN", *inputs, size=5, alpha=1e-4, beta=0.75, bias=1.0)


def _relu6(graph: _Graph, operation: Operation, inputs: Sequence[str]) -> str:
    return graph.add("Clip", *inputs, graph.constant(0.0), graph.constant(6.0))


def _scaled(graph: _Graph, operation: Operation, inputs: Sequence[str]) -> str:
    return graph.add("Mul", *inputs, graph.constant(operation.settings["factor"]))


def _channels(graph: _Graph, operation: Operation, inputs: Sequence[str]) -> str:
    bounds = (graph.integers(operation.settings[key]) for key in ("start", "stop"))
    return graph.add("Slice", *inputs, *bounds, graph.integers(1))


def _conv_transpose(graph: _Graph, operation: Operation, inputs: Sequence[str]) -> str:
    kernel = np.moveaxis(graph.weight(operation, "kernel"), (-2, -1), (0, 1))
    made = _transposed(graph, operation, inputs, kernel, groups=1)
    if "bias" not in operation.weights:
        return made
    bias = graph.weight(operation, "bias").reshape(1, -1, 1, 1)
    return graph.add("Add", made, graph.constant(bias))


def _bilinear_upsample(graph: _Graph, operation: Operation, inputs: Sequence[str]) -> str:
    weights = bilinear_filter(operation.settings["filter_size"])
    # The channels, which a filter of each its own needs to know, become images.
    coarse, like = inputs
    shape = graph.add("Shape", coarse)
    single = graph.add("Concat", graph.integers(-1, 1), graph.sides(coarse), axis=0)
    each = graph.add("Reshape", coarse, single)
    fine = _transposed(graph, operation, [each, like], np.outer(weights, weights)[None, None], 1)
    first = graph.add("Slice", shape, graph.integers(0), graph.integers(2), graph.integers(0))
    return graph.add("Reshape", fine, graph.add("Concat", first, graph.sides(like), axis=0))


def _transposed(
    graph: _Graph, operation: Operation, inputs: Sequence[str], kernel: np.ndarray, groups: int
) -> str:
    """A transposed convolution, from the offset `crop` on, of the sides of the second input."""
    coarse, like = inputs
    stride, crop = operation.settings["stride"], operation.settings["crop"]
    whole = graph.add(
        "ConvTranspose",
        coarse,
        graph.constant(kernel),
        strides=[stride] * 2,
        group=groups,
        kernel_shape=kernel.shape[2:],
    )
    before = max(0, -crop)
    first = graph.integers(max(0, crop), max(0, crop))
    last = graph.add("Add", first, graph.sides(like))
    there = graph.add("Add", graph.sides(whole), graph.integers(before, before))
    missing = graph.add("Max", graph.add("Sub", last, there), graph.integers(0, 0))
    pads = graph.add("Concat", graph.integers(0, 0, before, before, 0, 0), missing, axis=0)
    padded = graph.add("Pad", whole, pads)
    return graph.add("Slice", padded, first, last, graph.integers(2, 3))


def _interpolate(graph: _Graph, operation: Operation, inputs: Sequence[str]) -> str:
    coarse, like = inputs
    shape = graph.add("Shape", coarse)
    first = graph.add("Slice", shape, graph.integers(0), graph.integers(2), graph.integers(0))
    sizes = graph.add("Concat", first, graph.sides(like), axis=0)
    return graph.add(
        "Resize", coarse, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel"
    )


def _operator(kind: str, **attributes: Any) -> Callable[[_Graph, Operation, Sequence[str]], str]:
    return lambda graph, operation, inputs: graph.add(kind, *inputs, **attributes)


_WRITERS: dict[str, Callable[[_Graph, Operation, Sequence[str]], str]] = {
    "preprocess": _preprocess,
    "conv": _conv,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "mirror_pad": _mirror_pad,
    "cropped": _cropped,
    "relu": _operator("Relu"),
    "relu6": _relu6,
    "hard_swish": _operator("HardSwish"),
    "hard_sigmoid": _operator("HardSigmoid", alpha=1 / 6, beta=0.5),
    "local_response_normalization": _local_response_normalization,
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "spatial_mean": _operator("GlobalAveragePool"),
    "scaled": _scaled,
    "channels": _channels,
    "add": _operator("Add"),
    "multiply": _operator("Mul"),
    "concatenate": _operator("Concat", axis=1),
    "conv_transpose": _conv_transpose,
    "bilinear_upsample": _bilinear_upsample,
    "interpolate": _interpolate,
}
