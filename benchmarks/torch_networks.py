"""The workloads' networks in PyTorch, as one would write them there, with the same weights.

Each takes normalised images (b, 3, h, w) of any size and returns, as torchvision's networks do, a
dictionary: `out`, logits (b, k, h, w), and in training `aux` if there is an auxiliary head.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.measuring import NotMeasuredError
from benchmarks.torchvision_import import import_torchvision
from benchmarks.workloads import Workload
from fcn_jax.models.backbones.preprocess import PREPROCESSING
from fcn_jax.models.backbones.vgg import BLOCKS
from fcn_jax.models.build import preprocessing_name
from fcn_jax.pretrained import flatten
from fcn_jax.pretrained.tables.torchvision import fcn_resnet


class SkipFcn(nn.Module):
    """FCN with skips: the scores of features at several strides, added from coarse to fine.

    Args:
        layers: the backbone's layers by name, in order.
        scored: stride and number of features of each layer that is scored, by its name, from fine
            to coarse.
        num_classes: k.
        on_pixels: whether coarse positions are centred on pixels, or between pixels.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        scored: Mapping[str, tuple[int, int]],
        num_classes: int,
        *,
        on_pixels: bool,
    ):
        super().__init__()
        self.backbone = nn.ModuleDict(layers)
        self.strides = {name: stride for name, (stride, _) in scored.items()}
        self.head = nn.ModuleDict()
        for stride, features in scored.values():
            self.head[f"score{stride}"] = nn.Conv2d(features, num_classes, 1)
        for finer, stride in itertools.pairwise((1, *self.strides.values())):
            factor = stride // finer
            self.head[f"upsample{stride}"] = nn.ConvTranspose2d(
                num_classes,
                num_classes,
                2 * factor - on_pixels,
                stride=factor,
                padding=factor - 1 if on_pixels else factor // 2,
                output_padding=factor - 1 if on_pixels else 0,
                bias=False,
            )

    def forward(self, image: Any) -> dict[str, Any]:
        features = {}
        x = image
        for name, layer in self.backbone.items():
            x = layer(x)
            if name in self.strides:
                features[self.strides[name]] = x
        fused = None
        for stride in reversed(features):
            score = self.head[f"score{stride}"](features[stride])
            if fused is not None:
                score = score + fused[:, :, : score.shape[2], : score.shape[3]]
            fused = self.head[f"upsample{stride}"](score)
        assert fused is not None
        return {"out": fused[:, :, : image.shape[2], : image.shape[3]]}


class Fire(nn.Module):
    """SqueezeNet's block."""

    def __init__(self, in_features: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(in_features, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.squeeze1x1(x))
        return torch.cat([torch.relu(self.expand1x1(x)), torch.relu(self.expand3x3(x))], 1)


def squeezenet_fcn8s(workload: Workload) -> nn.Module:
    """Builds SqueezeNet 1.1, scored at strides 16, 8 and 4."""
    layers = {"conv1": nn.Conv2d(3, 64, 3, stride=2, padding=1), "relu1": nn.ReLU()}
    features = 64
    for number, squeezed in enumerate((16, 16, 32, 32, 48, 48, 64, 64), start=2):
        if number in (2, 4, 6):
            layers[f"pool{number}"] = nn.MaxPool2d(3, 2, 1)
        layers[f"fire{number}"] = Fire(features, squeezed, 4 * squeezed)
        features = 8 * squeezed
    layers["dropout"] = nn.Dropout(workload.config.model.dropout)
    scored = {"fire3": (4, 128), "fire5": (8, 256), "dropout": (16, 512)}
    return SkipFcn(layers, scored, workload.num_classes, on_pixels=True)


def vgg16_fcn8s(workload: Workload) -> nn.Module:
    """Builds VGG16 with same-size padding, pooling in ceil mode, fc6 and fc7 as convolutions."""
    layers: dict[str, nn.Module] = {}
    in_features = 3
    for block, (features, depth) in enumerate(BLOCKS, start=1):
        for layer in range(1, depth + 1):
            layers[f"conv{block}_{layer}"] = nn.Conv2d(in_features, features, 3, padding=1)
            layers[f"relu{block}_{layer}"] = nn.ReLU()
            in_features = features
        layers[f"pool{block}"] = nn.MaxPool2d(2, 2, ceil_mode=True)
    fc_features = 16 if workload.small else 4096
    for name, size in (("fc6", 7), ("fc7", 1)):
        layers[name] = nn.Conv2d(in_features, fc_features, size, padding=size // 2)
        layers[f"relu_{name}"] = nn.ReLU()
        layers[f"dropout_{name}"] = nn.Dropout(workload.config.model.dropout)
        in_features = fc_features
    scored = {"pool3": (8, 256), "pool4": (16, 512), "dropout_fc7": (32, fc_features)}
    return SkipFcn(layers, scored, workload.num_classes, on_pixels=False)


class ResidualBlock(nn.Module):
    """ResNet's block of two convolutions."""

    def __init__(self, in_features: int, features: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_features, features, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.add_module(
                "conv", nn.Conv2d(in_features, features, 1, stride, bias=False)
            )
            self.shortcut.add_module("bn", nn.BatchNorm2d(features))

    def forward(self, x: Any) -> Any:
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


def resnet18_fcn32s(workload: Workload) -> nn.Module:
    """Builds ResNet-18; of a small workload the first block of each layer."""
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
        "bn1": nn.BatchNorm2d(64),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(3, 2, padding=1),
    }
    in_features = 64
    for number, features in enumerate((64, 128, 256, 512), start=1):
        for index in range(1 if workload.small else 2):
            stride = 2 if number > 1 and index == 0 else 1
            layers[f"layer{number}_{index}"] = ResidualBlock(in_features, features, stride)
            in_features = features
    layers["dropout"] = nn.Dropout(workload.config.model.dropout)
    return SkipFcn(layers, {"dropout": (32, 512)}, workload.num_classes, on_pixels=True)


class DoubleConv(nn.Module):
    """U-Net's two convolutions, each normalised and rectified."""

    def __init__(self, in_features: int, features: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_features, features, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(features)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(x)))


class UNet(nn.Module):
    """U-Net with same-size padding and batch normalisation."""

    def __init__(self, workload: Workload):
        super().__init__()
        features = workload.config.model.features or ()
        self.strides = [2**level for level in range(len(features))]
        self.backbone, self.decoder = nn.ModuleDict(), nn.ModuleDict()
        for before, stride, after in zip((3, *features), self.strides, features, strict=False):
            self.backbone[f"level{stride}"] = DoubleConv(before, after)
        for (after, before), stride in zip(
            itertools.pairwise(features), self.strides, strict=False
        ):
            self.decoder[f"up{stride}"] = nn.ConvTranspose2d(before, after, 2, 2)
            self.decoder[f"level{stride}"] = DoubleConv(2 * after, after)
        self.dropout = nn.Dropout(workload.config.model.dropout)
        self.head = nn.ModuleDict({"score1": nn.Conv2d(features[0], workload.num_classes, 1)})

    def forward(self, image: Any) -> dict[str, Any]:
        skips = {}
        x = image
        for stride in self.strides:
            if stride > 1:
                x = nn.functional.max_pool2d(x, 2, ceil_mode=True)
            x = skips[stride] = self.backbone[f"level{stride}"](x)
        x = self.dropout(x)
        for stride in reversed(self.strides[:-1]):
            skip = skips[stride]
            x = self.decoder[f"up{stride}"](x)[:, :, : skip.shape[2], : skip.shape[3]]
            x = self.decoder[f"level{stride}"](torch.cat([skip, x], 1))
        return {"out": self.head["score1"](x)}


def torchvision_fcn_resnet50(workload: Workload) -> nn.Module:
    """Builds torchvision's own network; of a small workload the first block of each layer.

    Raises:
        NotMeasuredError: torchvision is missing, or does not match this PyTorch.
    """
    try:
        segmentation = import_torchvision().models.segmentation
    except ImportError:
        raise NotMeasuredError("torchvision is not installed") from None
    except RuntimeError as error:
        raise NotMeasuredError(f"torchvision cannot be imported ({error})") from None
    network = segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=workload.num_classes, aux_loss=True
    )
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = workload.config.model.dropout
    if workload.small:
        for layer in ("layer1", "layer2", "layer3", "layer4"):
            network.backbone[layer] = network.backbone[layer][:1]
    return network


PARAMETERS = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
"""PyTorch's names of a layer's parameters by ours, where they differ."""

NETWORKS = {
    "squeezenet": squeezenet_fcn8s,
    "resnet18": resnet18_fcn32s,
    "vgg16": vgg16_fcn8s,
    "unet": UNet,
    "resnet50": torchvision_fcn_resnet50,
}
"""By `model.backbone`."""


def torch_network(workload: Workload, variables: Any) -> tuple[Any, dict[str, str]]:
    """Builds a workload's network in PyTorch with our weights.

    Args:
        workload: names the network.
        variables: our (params, batch_stats).

    Returns:
        The module, and our name of each of its parameters, joined by '/', by PyTorch's name.

    Raises:
        NotMeasuredError: the network cannot be made here.
    """
    module = NETWORKS[workload.config.model.backbone](workload)
    table = fcn_resnet(50).table if workload.config.model.backbone == "resnet50" else {}
    state, names = {}, {}
    for name, value in flatten(variables).items():
        value = np.asarray(value)
        if value.ndim == 4:  # to (in, out, h, w) of transposed convolutions, else (out, in, h, w)
            transposed = "upsample" in name or "decoder/up" in name
            value = value.transpose((2, 3, 0, 1) if transposed else (3, 2, 0, 1))
        # The other networks' modules have our names.
        module_name, _, last = name.replace("/", ".").rpartition(".")
        theirs = table[name][0] if table else f"{module_name}.{PARAMETERS.get(last, last)}"
        state[theirs] = torch.tensor(np.ascontiguousarray(value))
        names[theirs] = name
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    return module, names


class Normaliser:
    """Turns images of bytes into what a workload's network takes."""

    def __init__(self, workload: Workload, device: torch.device):
        preprocessing = PREPROCESSING[preprocessing_name(workload.config.model)]
        self._bgr = preprocessing.bgr
        self._mean, self._std = (
            torch.tensor(values, device=device)[:, None, None]
            for values in (preprocessing.mean, preprocessing.std)
        )

    def __call__(self, pixels: Any) -> Any:
        """Normalises RGB images of any type, (…, 3, h, w), to float32."""
        pixels = pixels.flip(-3) if self._bgr else pixels
        return (pixels.float() - self._mean) / self._std


def saved_bytes_per_image(workload: Workload) -> int:
    """Returns the bytes of the activations that PyTorch saves of an image for the backward pass.

    They are those of tensors without contents, all in the workload's dtype.
    """
    dtype = getattr(torch, workload.dtype)

    def saved_bytes(batch_size: int) -> int:
        with torch.device("meta"):
            network = NETWORKS[workload.config.model.backbone](workload).to(dtype).train()
            image = torch.empty(batch_size, 3, *workload.crop_px, dtype=dtype)
            label = torch.empty(batch_size, *workload.crop_px, dtype=torch.long)
        saved: dict[int, tuple[Any, int]] = {}

        def save(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            saved[storage._cdata] = tensor, storage.nbytes()  # a freed one's number is reused
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            for logits in network(image).values():
                nn.functional.cross_entropy(logits.float(), label)
        return sum(size for _, size in saved.values())

    return saved_bytes(2) - saved_bytes(1)
