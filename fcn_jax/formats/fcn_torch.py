"""A network exported by fcn_jax, in plain PyTorch: needs torch and safetensors, nothing else.

    from fcn_torch import load

    network = load("FOLDER")  # the folder of this file; a torch.nn.Module
    logits = network(image)  # uint8 (n, h, w, c), RGB -> {label map: float32 (n, k, h, w)}
    classes = logits[""].argmax(1)

In training mode batch normalisation uses and updates the statistics; dropout is left out.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file


def load(folder):
    """Loads the network of a folder: graph.json and model.safetensors."""
    graph = json.loads((Path(folder) / "graph.json").read_text())
    return FCN(graph, load_file(Path(folder) / "model.safetensors")).eval()


class FCN(torch.nn.Module):
    def __init__(self, graph, tensors):
        super().__init__()
        self.graph = graph
        for operation in graph["operations"]:
            for key, name in operation["weights"].items():
                tensor = tensors[name]
                if key == "kernel":  # (h, w, in, out)
                    axes = (2, 3, 0, 1) if operation["kind"] == "conv_transpose" else (3, 2, 0, 1)
                    tensor = tensor.permute(axes).contiguous()
                if key in ("mean", "var"):
                    self.register_buffer(name, tensor)
                else:
                    self.register_parameter(name, torch.nn.Parameter(tensor))

    def forward(self, image):
        arrays = {0: image}
        for one in self.graph["operations"]:
            weights = {key: getattr(self, name) for key, name in one["weights"].items()}
            inputs = [arrays[number] for number in one["inputs"]]
            function = globals()[f"_{one['kind']}"]
            if one["kind"] == "batch_norm":
                weights["training"] = self.training
            arrays[one["output"]] = function(*inputs, **one["settings"], **weights)
        return {name: arrays[number] for name, number in self.graph["logits"].items()}


def _preprocess(image, order, mean, std):
    values = image.permute(0, 3, 1, 2).float()[:, order]
    mean, std = (values.new_tensor(x)[:, None, None] for x in (mean, std))
    return (values - mean) / std


def _conv(x, kernel, stride, pads, dilation, groups, bias=None):
    (top, bottom), (left, right) = pads
    x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, kernel, bias, stride=stride, dilation=dilation, groups=groups)


def _batch_norm(x, scale, bias, mean, var, epsilon, training):
    return F.batch_norm(x, mean, var, scale, bias, training=training, eps=epsilon)


def _group_norm(x, scale, bias, groups, epsilon):
    each = x.reshape(len(x), groups, -1)
    var, mean = torch.var_mean(each, 2, correction=0, keepdim=True)
    x = ((each - mean) * torch.rsqrt(var + epsilon)).reshape(x.shape)
    return x * scale[:, None, None] + bias[:, None, None]


def _mirror_pad(x, before, after):
    for axis in (2, 3):
        period = max(2 * x.shape[axis] - 2, 1)
        place = torch.arange(-before, x.shape[axis] + after, device=x.device) % period
        x = x.index_select(axis, torch.minimum(place, period - place))
    return x


def _max_pool(x, window, stride, padding, ceil):
    return F.max_pool2d(x, window, stride, padding, ceil_mode=ceil)


def _conv_transpose(x, like, kernel, filter_size, stride, crop, bias=None):
    return _fitted(F.conv_transpose2d(x, kernel, bias, stride=stride), crop, like)


def _bilinear_upsample(x, like, filter_size, stride, crop):
    factor = (filter_size + 1) // 2
    centre = factor - 1 if filter_size % 2 else factor - 0.5
    weights = 1 - (torch.arange(filter_size).to(x) - centre).abs() / factor
    kernel = torch.outer(weights, weights).expand(x.shape[1], 1, -1, -1)
    return _fitted(F.conv_transpose2d(x, kernel, stride=stride, groups=len(kernel)), crop, like)


def _fitted(x, crop, like):
    (height, width), (h, w) = like.shape[2:], x.shape[2:]
    return F.pad(x, (-crop, width + crop - w, -crop, height + crop - h))


def _interpolate(x, like):
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


_relu, _relu6, _hard_swish, _hard_sigmoid = F.relu, F.relu6, F.hardswish, F.hardsigmoid
_add, _multiply = torch.add, torch.mul


def _concatenate(x, y):
    return torch.cat([x, y], 1)


def _cropped(skip, coarse, first, factor):
    height, width = (first + factor * size for size in coarse.shape[2:])
    return skip[:, :, first:height, first:width]


def _scaled(x, factor):
    return x * factor


def _channels(x, start, stop):
    return x[:, start:stop]


def _spatial_mean(x):
    return x.mean((2, 3), keepdim=True)


def _average_pool(x, window):
    return F.avg_pool2d(x, window, stride=1)


def _local_response_normalization(x):
    return F.local_response_norm(x, 5)
