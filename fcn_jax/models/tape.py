"""A network as a list of operations that other frameworks can run.

    tape = record(network)

The layers of this package are marked by `recorded`. `record` runs a network once, on shapes alone,
and notes which layer was given what. The room `formats` writes ONNX and PyTorch from the tape.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax.models.backbones.alexnet import local_response_normalization
from fcn_jax.models.fcn import FCN, suffix
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import both_sides
from fcn_jax.models.layers import Conv, rectify
from fcn_jax.models.pure_model import PureModel
from fcn_jax.models.recorded import Call, recording
from fcn_jax.models.upsampling import BilinearUpsample

IMAGE, PIXELS = 0, 1
"""Numbers of the image, uint8 (b, h, w, c), and of the normalised image, among the arrays."""

FUNCTIONS = {
    rectify: "relu",
    jax.nn.relu: "relu",
    jax.nn.relu6: "relu6",
    jax.nn.hard_swish: "hard_swish",
    jax.nn.hard_sigmoid: "hard_sigmoid",
    local_response_normalization: "local_response_normalization",
}
"""Functions of one position that a tape may contain, and the kinds of their operations."""


class UnknownLayerError(ValueError):
    """A network computes something that is no layer of `fcn_jax.models`."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """A layer that was called.

    Attributes:
        kind: conv, batch_norm, relu and so on: the names of the functions in `formats`.
        inputs: numbers of the arrays that it is given.
        output: number of the array that it makes.
        settings: what else determines the result: numbers and lists of numbers.
        weights: names of its weights in a model file, such as {"kernel": "backbone/conv1/kernel"}.
    """

    kind: str
    inputs: tuple[int, ...]
    output: int
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Tape:
    """The operations of a network in their order, and the numbers of the logits by label map."""

    operations: tuple[Operation, ...]
    logits: dict[str, int]


def record(network: PureModel) -> Tape:
    """Records a network that computes in float32 and without rematerialisation.

    Raises:
        UnknownLayerError: the network computes something that is no layer of `fcn_jax.models`.
    """
    channels = network.preprocessing.channels
    tapes: list[Tape] = []

    def run(variables: Any, image: jax.Array) -> None:
        model = network.model(variables)
        with recording() as calls:
            features = model.features(image)
        tapes.append(_tape(model, calls, features))  # the arrays are known by identity until here

    jax.eval_shape(run, network.variables, jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.uint8))
    return tapes[0]


def _tape(model: FCN, calls: list[Call], features: dict[str, FeatureMap]) -> Tape:
    names = {id(module): "/".join(map(str, path)) for path, module in nnx.iter_modules(model)}
    numbers = {id(features["pixels"].values): PIXELS}
    operations = [_preprocess(model)]

    def number_of(x: FeatureMap, reader: str) -> int:
        if id(x.values) not in numbers:
            raise UnknownLayerError(
                f"{reader} is given an array that no layer of fcn_jax.models has made"
            )
        return numbers[id(x.values)]

    for call in calls:
        maps = [value for value in call.arguments.values() if isinstance(value, FeatureMap)]
        module = call.arguments.get("self")
        name = names.get(id(module), "")
        inputs = tuple(number_of(x, f"{name} {call.name}".strip()) for x in maps)
        kind, settings = _kind(call)
        result = id(call.result.values)
        if kind is None:
            numbers[result] = inputs[0]
            continue
        numbers[result] = 1 + max(numbers.values())
        weights = {
            key: f"{name}/{key}"
            for key, value in (vars(module) if isinstance(module, nnx.Module) else {}).items()
            if isinstance(value, nnx.Variable)
        }
        operations.append(Operation(kind, inputs, numbers[result], settings, weights))
    logits = {
        label_map: number_of(features[f"logits{suffix(label_map)}"], "the output")
        for label_map in model.label_maps
    }
    return Tape(_needed(operations, set(logits.values())), logits)


def _preprocess(model: FCN) -> Operation:
    own = model.backbone.preprocessing
    order = list(range(own.channels))
    if own.bgr:
        order[:3] = 2, 1, 0
    settings = {"order": order, "mean": list(own.mean), "std": list(own.std)}
    return Operation("preprocess", (IMAGE,), PIXELS, settings)


def _needed(operations: list[Operation], wanted: set[int]) -> tuple[Operation, ...]:
    """The operations that the wanted arrays are made of."""
    kept = []
    for operation in reversed(operations):
        if operation.output in wanted:
            kept.append(operation)
            wanted = wanted | set(operation.inputs)
    return tuple(reversed(kept))


def _kind(call: Call) -> tuple[str | None, dict[str, Any]]:
    """The kind and the settings of a call's operation; None if it returns its input."""
    given = call.arguments
    module = given.get("self")
    match call.name:
        case "Conv.__call__":
            return "conv", _conv_settings(given["self"])
        case "BatchNorm.__call__":
            return "batch_norm", {"epsilon": given["self"].epsilon}
        case "GroupNorm.__call__":
            return "group_norm", {key: getattr(given["self"], key) for key in ("groups", "epsilon")}
        case "mirror_pad":
            return "mirror_pad", {key: given[key] for key in ("before", "after")}
        case "cropped":
            return "cropped", {key: given[key] for key in ("first", "factor")}
        case "max_pool":
            return "max_pool", {key: given[key] for key in ("window", "stride", "padding", "ceil")}
        case "average_pool":
            return "average_pool", {"window": list(given["window"])}
        case "scaled":
            return "scaled", {"factor": float(given["factor"])}
        case "FeatureMap.map":
            return _function_kind(given["function"], given["self"].values.shape[-1])
        case "Upsample.__call__":
            kind = "bilinear_upsample" if isinstance(module, BilinearUpsample) else "conv_transpose"
            settings = {key: getattr(module, key) for key in ("filter_size", "stride", "crop")}
            return kind, settings
        case "BlockUpsample.__call__":
            stride = given["self"].stride
            return "conv_transpose", {"filter_size": stride, "stride": stride, "crop": 0}
        case "Interpolate.__call__":
            return "interpolate", {}
        case "add" | "multiply" | "concatenate" | "spatial_mean":
            return call.name, {}
        case _:
            raise UnknownLayerError(f"the layer {call.name} is unknown to other formats")


def _conv_settings(conv: Conv) -> dict[str, Any]:
    size = conv.kernel.shape[:-2]
    if len(size) != 2:
        raise UnknownLayerError("only images are known to other formats, arrays of two axes")
    if conv.padding is None:
        pads = [(conv.dilation * (k - 1) // 2,) * 2 for k in size]
    else:
        pads = [both_sides(conv.padding)] * len(size)
    return {
        "stride": conv.stride,
        "pads": [list(pad) for pad in pads],
        "dilation": conv.dilation,
        "groups": conv.groups,
    }


def _function_kind(
    function: Callable[[jax.Array], jax.Array], channels: int
) -> tuple[str | None, dict[str, Any]]:
    known = FUNCTIONS.get(function)
    if known:
        return known, {}
    values = np.random.default_rng(0).standard_normal((1, 1, 1, channels)).astype(np.float32)
    with jax.ensure_compile_time_eval():
        result = np.asarray(function(jnp.asarray(values)))
    if np.array_equal(result, values):
        return None, {}
    for start in range(channels):
        stop = start + result.shape[-1]
        if np.array_equal(result, values[..., start:stop]):
            return "channels", {"start": start, "stop": stop}
    name = getattr(function, "__qualname__", str(function))
    raise UnknownLayerError(f"the function {name} of single positions is unknown to other formats")
