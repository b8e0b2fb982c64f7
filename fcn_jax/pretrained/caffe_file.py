"""Reads a .caffemodel, the protocol buffer in which Caffe stores a network, without Caffe.

Only the messages on the way to the weights are described here, with the field numbers of Caffe's
caffe.proto; the protocol-buffer reader skips all others.
"""

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from fcn_jax.errors import UserError

MAX_BYTES = 2**31 - 1  # of one protocol buffer

# LayerParameter.type is a string, V1LayerParameter.type a number.
CONVOLUTIONS = ("Convolution", "Deconvolution", 4, 39)
FULLY_CONNECTED = ("InnerProduct", 14)

# The numbers of a blob are declared as bytes, which have the encoding of Caffe's packed floats: so
# they reach NumPy as one piece, not as a hundred million Python floats. They are repeated because a
# packed field may come in several pieces.
MESSAGES = {
    "BlobShape": [("repeated", "int64", "dim", 1)],
    "BlobProto": [
        ("optional", "int32", "num", 1),
        ("optional", "int32", "channels", 2),
        ("optional", "int32", "height", 3),
        ("optional", "int32", "width", 4),
        ("repeated", "bytes", "data", 5),
        ("optional", "BlobShape", "shape", 7),
        ("repeated", "bytes", "double_data", 8),
    ],
    "LayerParameter": [
        ("optional", "string", "name", 1),
        ("optional", "string", "type", 2),
        ("repeated", "BlobProto", "blobs", 7),
    ],
    "V1LayerParameter": [
        ("optional", "bytes", "layer", 1),  # only in the format before this one
        ("optional", "string", "name", 4),
        ("optional", "int32", "type", 5),
        ("repeated", "BlobProto", "blobs", 6),
    ],
    "NetParameter": [
        ("repeated", "V1LayerParameter", "layers", 2),
        ("repeated", "LayerParameter", "layer", 100),
    ],
}
LABELS = {
    "optional": descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
    "repeated": descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED,
}
SCALARS = {
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
}


def read_caffe(path: Path) -> dict[str, np.ndarray]:
    """Reads the blobs of every layer.

    Returns:
        'layer/number' -> array of float32, or float64 if the file has that; read-only. Number 0 is
        the weights and 1 the bias of a convolution (o i h w) or a fully connected layer (o i).

    Raises:
        UserError: the file is larger than a protocol buffer may be, or in the format of 2013.
        ValueError: the file is damaged.
    """
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} is larger than 2 GiB, more than a .caffemodel can be")
    try:
        network = _net_parameter().FromString(path.read_bytes())
        layers = [*network.layers, *network.layer]
        if any(layer.HasField("layer") for layer in network.layers):
            raise UserError(
                f"{path} is in Caffe's format of 2013: convert it with Caffe's "
                "upgrade_net_proto_binary"
            )
        return {
            f"{layer.name}/{number}": _array(f"{layer.name}/{number}", layer.type, number, blob)
            for layer in layers
            for number, blob in enumerate(layer.blobs)
        }
    except message.DecodeError:
        raise ValueError("it is not a whole protocol buffer of Caffe") from None


def _array(name: str, layer_type: str | int, number: int, blob: Any) -> np.ndarray:
    # b"".join of a single piece returns it without a copy.
    if blob.double_data:
        values = np.frombuffer(b"".join(blob.double_data), "<f8")
    else:
        values = np.frombuffer(b"".join(blob.data), "<f4")
    shape = _shape(layer_type, number, blob)
    if min(shape, default=0) < 0 or math.prod(shape) != values.size:
        raise ValueError(f"{name} has {values.size} numbers for the shape {shape}")
    return values.reshape(shape)


def _shape(layer_type: str | int, number: int, blob: Any) -> tuple[int, ...]:
    """Returns the dimensions of a blob, without the unused ones of files before 2015.

    Like Caffe, uses the four fields of that time if any of them is present.
    """
    if not any(blob.HasField(field) for field in ("num", "channels", "height", "width")):
        return tuple(blob.shape.dim)
    shape = (blob.num, blob.channels, blob.height, blob.width)
    is_kernel = number == 0 and layer_type in CONVOLUTIONS
    if shape[:2] != (1, 1) or is_kernel:
        return shape
    is_matrix = number == 0 and layer_type in FULLY_CONNECTED  # even with a single output
    return shape[3:] if blob.height == 1 and not is_matrix else shape[2:]


@functools.cache
def _net_parameter() -> Any:
    """Returns the class of Caffe's message NetParameter."""
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for message_name, fields in MESSAGES.items():
        declared = file.message_type.add(name=message_name)
        for label, kind, name, number in fields:
            field = declared.field.add(name=name, number=number, label=LABELS[label])
            if kind in MESSAGES:
                field.type_name = f".caffe.{kind}"
            else:
                field.type = SCALARS[kind]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))
