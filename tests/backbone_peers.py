"""The networks of `test_backbones.py` in PyTorch, from its operations or from torchvision and timm.

Each `..._features` takes pixels (b, c, h, w) and returns features by stage.
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from fcn_jax.pretrained.source import WeightSource


class Operations:
    """PyTorch's operations with the weights of a module of ours."""

    def __init__(self, torch: ModuleType, module: Any):
        self.torch = torch
        self.functional: Any = torch.nn.functional
        self.weights = nnx.to_pure_dict(nnx.state(module))

    def find(self, name: str) -> dict[str, Any]:
        found = self.weights
        for part in name.split("."):
            found = found[part]
        return {key: self.torch.tensor(np.array(value)) for key, value in found.items()}

    def conv(self, x: Any, name: str, stride: int = 1, padding: Any = 0, groups: int = 1) -> Any:
        weights = self.find(name)
        kernel = weights["kernel"].permute(3, 2, 0, 1)
        if isinstance(padding, tuple):  # (before, after), which differ
            x, padding = self.functional.pad(x, padding * 2), 0
        bias = weights.get("bias")
        return self.functional.conv2d(x, kernel, bias, stride, padding, 1, groups)

    def conv_relu(
        self, x: Any, name: str, stride: int = 1, padding: Any = 0, groups: int = 1
    ) -> Any:
        return self.functional.relu(self.conv(x, name, stride, padding, groups))

    def batch_norm(self, x: Any, name: str, train: bool) -> Any:
        norm = self.find(name)
        return self.functional.batch_norm(
            x, norm["mean"], norm["var"], norm["scale"], norm["bias"], training=train
        )


def squeezenet_features(peer: Operations, x: Any, train: bool, padding: str) -> dict[int, Any]:
    features = {2: peer.conv_relu(x, "conv1", 2, 1)}
    x = features[2]
    for name in [f"fire{number}" for number in range(2, 10)]:
        if name in ("fire2", "fire4", "fire6"):
            x = peer.functional.max_pool2d(x, 3, 2, 1)
        x = peer.conv_relu(x, f"{name}.squeeze1x1")
        sides = [
            peer.conv_relu(x, f"{name}.expand1x1"),
            peer.conv_relu(x, f"{name}.expand3x3", padding=1),
        ]
        x = peer.torch.cat(sides, 1)
        if name in ("fire3", "fire5", "fire9"):
            features[{"fire3": 4, "fire5": 8, "fire9": 16}[name]] = x
    return features


def vgg16_features(peer: Operations, x: Any, train: bool, padding: str) -> dict[int, Any]:
    features = {}
    for block, depth in enumerate((2, 2, 3, 3, 3), start=1):
        for layer in range(1, depth + 1):
            first = block == layer == 1
            name = f"{block}_{layer}"
            x = peer.conv(x, f"conv{name}", padding=100 if first and padding == "paper" else 1)
            if f"bn{name}" in peer.weights:
                x = peer.batch_norm(x, f"bn{name}", train)
            x = peer.functional.relu(x)
        x = peer.functional.max_pool2d(x, 2, 2, ceil_mode=padding != "original")
        features[2**block] = x
    x = peer.conv_relu(x, "fc6", padding=3 if padding == "same" else 0)
    return features | {32: peer.conv_relu(x, "fc7")}


def caffe_alexnet_features(peer: Operations, x: Any, train: bool, padding: str) -> dict[int, Any]:
    def pooled(x: Any) -> Any:
        same = padding == "same"
        return peer.functional.max_pool2d(x, 3, 2, 1 if same else 0, ceil_mode=not same)

    def normalised(x: Any) -> Any:
        return peer.functional.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

    features = {}
    border = {"same": 5, "paper": 100, "original": 0}[padding]
    x = features[4] = peer.conv_relu(x, "conv1", 4, border)
    x = features[8] = normalised(pooled(x))
    x = peer.conv_relu(x, "conv2", padding=2, groups=2)
    x = features[16] = normalised(pooled(x))
    x = peer.conv_relu(x, "conv3", padding=1)
    x = peer.conv_relu(x, "conv4", padding=1, groups=2)
    x = pooled(peer.conv_relu(x, "conv5", padding=1, groups=2))
    x = peer.conv_relu(x, "fc6", padding=(2, 3) if padding == "same" else 0)
    features[32] = peer.conv_relu(x, "fc7")
    return features


def resnet18_features(peer: Operations, x: Any, train: bool, padding: str) -> dict[int, Any]:
    def block(x: Any, name: str, stride: int) -> Any:
        y = peer.conv(x, f"{name}.conv1", stride, 1)
        y = peer.functional.relu(peer.batch_norm(y, f"{name}.bn1", train))
        y = peer.batch_norm(peer.conv(y, f"{name}.conv2", 1, 1), f"{name}.bn2", train)
        if name in ("layer2_0", "layer3_0", "layer4_0"):
            x = peer.conv(x, f"{name}.shortcut.conv", stride)
            x = peer.batch_norm(x, f"{name}.shortcut.bn", train)
        return peer.functional.relu(x + y)

    x = peer.functional.relu(peer.batch_norm(peer.conv(x, "conv1", 2, 3), "bn1", train))
    features = {2: x}
    x = peer.functional.max_pool2d(x, 3, 2, 1)
    for layer in (1, 2, 3, 4):
        x = block(x, f"layer{layer}_0", 1 if layer == 1 else 2)
        x = block(x, f"layer{layer}_1", 1)
        features[2 ** (layer + 1)] = x
    return features


RESNET_STAGES = {2: "relu", 4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}

PUBLISHED_STAGES = {
    "alexnet": {4: "features.1", 8: "features.2", 16: "features.5", 32: "classifier.5"},
    "googlenet": {
        2: "conv1",
        4: "conv3",
        8: "inception3b",
        16: "inception4e",
        32: "inception5b",
    },
    "resnet34": RESNET_STAGES,
    "resnet50": RESNET_STAGES,
    "mobilenet_v3_large": {
        2: "features.1",
        4: "features.3",
        8: "features.6",
        16: "features.12",
        32: "features.16",
    },
    "efficientnet_lite0": {
        2: "blocks.0",
        4: "blocks.1",
        8: "blocks.2",
        16: "blocks.4",
        32: "bn2",  # and its activation
    },
}
"""torchvision's and timm's networks: stage -> the module that ends it."""


def published(timm: ModuleType, name: str, **arguments: Any) -> Any:
    """Returns a network of torchvision or timm with random weights and statistics."""
    import torch
    from torchvision import models

    if name == "googlenet":
        arguments |= {"init_weights": False, "aux_logits": False}
    with torch.device("meta"):
        if name in models.list_models():
            network = models.get_model(name, weights=None, **arguments)
        else:
            network = timm.create_model(name, **arguments)
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if key.endswith("running_var") or (key.endswith("weight") and tensor.ndim == 1):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif key.endswith("weight"):
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.1, generator=generator)
            else:
                tensor.zero_()
    return network


def published_features(
    network: Any, stages: Mapping[int, str], x: Any, train: bool = False
) -> dict[int, Any]:
    """Returns the first outputs of the modules that end the stages."""
    features: dict[int, Any] = {}

    def keep(stage: int) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            features.setdefault(stage, output.clone())  # later layers may overwrite it

        return hook

    hooks = [
        network.get_submodule(name).register_forward_hook(keep(stage))
        for stage, name in stages.items()
    ]
    network.train(train)(x)
    for hook in hooks:
        hook.remove()
    return features


def backbone_from(network: Callable[[], Any], source: WeightSource, state_dict: Mapping) -> Any:
    """Returns a backbone of ours with PyTorch's weights, by the source's table."""
    graph, state = nnx.split(nnx.eval_shape(network))
    values = {name: jnp.asarray(ours(source, name, state_dict)) for name in flat(state)}
    nnx.replace_by_pure_dict(state, traverse_util.unflatten_dict(values, sep="/"))
    return nnx.merge(graph, state)


def flat(state: nnx.State) -> dict[str, Any]:
    """Returns our name, without `backbone/` -> array."""
    return traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/")


def ours(source: WeightSource, name: str, state_dict: Mapping) -> np.ndarray:
    """Returns the source's tensor for our name, in our layout."""
    theirs, layout = source.table[f"backbone/{name}"]
    return layout(state_dict[theirs].numpy())
