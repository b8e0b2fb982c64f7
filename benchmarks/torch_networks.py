"""The workloads' networks in PyTorch, as one would write them there, and the same weights in them.

Each takes normalised images (b, 3, h, w) of any size and gives, as torchvision's do, `out`, logits
(b, k, h, w), and in training `aux` where there is an auxiliary head.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.measuring import NotMeasuredError
from benchmarks.workloads import Workload
from fcn_jax.models.backbones.vgg import BLOCKS
from fcn_jax.pretrained import flat
from fcn_jax.pretrained.source import (
    KernelLayout,
    Table,
    from_iohw,
    from_oihw,
    kernels_and_biases,
    to_oihw,
    unchanged,
)
from fcn_jax.pretrained.tables.torchvision import fcn_resnet


def to_iohw(kernel: np.ndarray) -> np.ndarray:
    """A transposed convolution's (h, w, in, out) to PyTorch's (in, out, h, w)."""
    return kernel.transpose(2, 3, 0, 1)


INVERSE: dict[KernelLayout, KernelLayout] = {
    unchanged: unchanged,
    from_oihw: to_oihw,
    from_iohw: to_iohw,
}


def upsampling(channels: int, factor: int, *, on_pixels: bool) -> Any:
    """Coarse positions lie on pixels, or in the middle of factor² of them."""
    return nn.ConvTranspose2d(
        channels,
        channels,
        2 * factor - on_pixels,
        stride=factor,
        padding=factor - 1 if on_pixels else factor // 2,
        output_padding=factor - 1 if on_pixels else 0,
        bias=False,
    )


def cropped(x: Any, like: Any) -> Any:
    """To the height and width of another."""
    return x[:, :, : like.shape[2], : like.shape[3]]


def skip_head(features: Mapping[int, int], num_classes: int, *, on_pixels: bool) -> Any:
    """Scores of features by stride, coarse to fine, and what brings each to the next's size.

    The finest goes to the image's, at stride 1.
    """
    strides = [*features, 1]
    head = nn.ModuleDict()
    for stride, count in features.items():
        head[f"score{stride}"] = nn.Conv2d(count, num_classes, 1)
    for stride, finer in itertools.pairwise(strides):
        head[f"upsample{stride}"] = upsampling(num_classes, stride // finer, on_pixels=on_pixels)
    return head


def fused_scores(head: Any, by_stride: Mapping[int, Any], image: Any) -> dict[str, Any]:
    """What a network gives of the features that `skip_head` was made for, coarse to fine."""
    coarsest, *finer = by_stride
    fused, coarse = head[f"score{coarsest}"](by_stride[coarsest]), coarsest
    for fine in finer:
        score = head[f"score{fine}"](by_stride[fine])
        fused = cropped(head[f"upsample{coarse}"](fused), score) + score
        coarse = fine
    return {"out": cropped(head[f"upsample{coarse}"](fused), image)}


class Fire(nn.Module):
    def __init__(self, in_features: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(in_features, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.squeeze1x1(x))
        return torch.cat([torch.relu(self.expand1x1(x)), torch.relu(self.expand3x3(x))], 1)


class SqueezeNetFcn8s(nn.Module):
    """Scores at strides 16, 8 and 4."""

    def __init__(self, workload: Workload):
        super().__init__()
        self.backbone = nn.ModuleDict({"conv1": nn.Conv2d(3, 64, 3, stride=2, padding=1)})
        features = 64
        squeezes = (16, 16, 32, 32, 48, 48, 64, 64)
        for number, squeezed in enumerate(squeezes, start=2):
            self.backbone[f"fire{number}"] = Fire(features, squeezed, 4 * squeezed)
            features = 8 * squeezed
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.dropout = nn.Dropout(workload.config.model.dropout)
        self.head = skip_head({16: 512, 8: 256, 4: 128}, workload.num_classes, on_pixels=True)

    def forward(self, image: Any) -> dict[str, Any]:
        x = torch.relu(self.backbone["conv1"](image))
        by_stage = {}
        for stage, numbers in {4: (2, 3), 8: (4, 5), 16: (6, 7, 8, 9)}.items():
            x = self.pool(x)
            for number in numbers:
                x = self.backbone[f"fire{number}"](x)
            by_stage[stage] = x
        to_score = {16: self.dropout(x), 8: by_stage[8], 4: by_stage[4]}
        return fused_scores(self.head, to_score, image)


class Vgg16Fcn8s(nn.Module):
    """Every layer pads to the same size; poolings in ceil mode; fc6 and fc7 as convolutions."""

    def __init__(self, workload: Workload):
        super().__init__()
        features = 16 if workload.small else 4096
        self.backbone = nn.ModuleDict()
        in_features = 3
        for block, (out_features, depth) in enumerate(BLOCKS, start=1):
            for layer in range(1, depth + 1):
                conv = nn.Conv2d(in_features, out_features, 3, padding=1)
                self.backbone[f"conv{block}_{layer}"] = conv
                in_features = out_features
        self.backbone["fc6"] = nn.Conv2d(512, features, 7, padding=3)
        self.backbone["fc7"] = nn.Conv2d(features, features, 1)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.dropout = nn.Dropout(workload.config.model.dropout)
        self.head = skip_head(
            {32: features, 16: 512, 8: 256}, workload.num_classes, on_pixels=False
        )

    def forward(self, image: Any) -> dict[str, Any]:
        x = image
        by_stage = {}
        for block, (_, depth) in enumerate(BLOCKS, start=1):
            for layer in range(1, depth + 1):
                x = torch.relu(self.backbone[f"conv{block}_{layer}"](x))
            x = by_stage[2**block] = self.pool(x)
        for name in ("fc6", "fc7"):
            x = self.dropout(torch.relu(self.backbone[name](x)))
        return fused_scores(self.head, {32: x, 16: by_stage[16], 8: by_stage[8]}, image)


def torchvisions_fcn_resnet50(workload: Workload) -> Any:
    """torchvision's own network; of a small workload the first block of each layer.

    Raises:
        NotMeasuredError: torchvision is missing, or does not go with this PyTorch.
    """
    try:
        from torchvision.models.segmentation import fcn_resnet50
    except ImportError:
        raise NotMeasuredError("torchvision is not installed") from None
    except RuntimeError as error:
        raise NotMeasuredError(f"torchvision cannot be imported ({error})") from None
    network = fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=workload.num_classes, aux_loss=True
    )
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = workload.config.model.dropout
    if workload.small:
        for layer in ("layer1", "layer2", "layer3", "layer4"):
            network.backbone[layer] = network.backbone[layer][:1]
    return network


NETWORKS = {
    "squeezenet": SqueezeNetFcn8s,
    "vgg16": Vgg16Fcn8s,
    "resnet50": torchvisions_fcn_resnet50,
}
"""By `config.model.backbone`."""


@dataclasses.dataclass(frozen=True)
class PeerNetwork:
    """module: holds the weights. ours: PyTorch's names of its parameters → ours, joined by '/'."""

    module: Any
    ours: Mapping[str, str]


def peer_network(workload: Workload, variables: tuple[Any, Any]) -> PeerNetwork:
    """The workload's network in PyTorch with our (params, batch_stats). Raises NotMeasuredError."""
    module = NETWORKS[workload.config.model.backbone](workload)
    values = {name: np.asarray(value) for name, value in flat(variables).items()}
    if workload.config.model.backbone == "resnet50":
        table = fcn_resnet(50).table
    else:
        table = table_of_modules(values)
    state = {}
    ours = {}
    for name, value in values.items():
        theirs, layout = table[name]
        state[theirs] = torch.tensor(np.ascontiguousarray(INVERSE[layout](value)))
        ours[theirs] = name
    counters = {name: value for name, value in module.state_dict().items() if name not in ours}
    assert all(name.endswith("num_batches_tracked") for name in counters), counters.keys()
    module.load_state_dict(counters | state)
    return PeerNetwork(module, ours)


def table_of_modules(values: Mapping[str, np.ndarray]) -> Table:
    """Of networks whose modules are called as ours."""
    layers = {name.rpartition("/")[0] for name in values}
    table: Table = {}
    for layer in layers:
        layout = from_iohw if "upsample" in layer else from_oihw
        table |= kernels_and_biases({layer: layer.replace("/", ".")}, layout=layout)
    return table
