"""The step of `fcn_jax/step.py` in PyTorch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.torch_networks import PeerNetwork, peer_network
from benchmarks.workloads import Workload
from fcn_jax.config import OptimConfig
from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.models.backbones.preprocess import PREPROCESSING
from fcn_jax.models.build import preprocessing_name


class TorchStep:
    """Scale, crop and flip, forward, loss over valid pixels, gradients, update.

    Where the workload computes in bfloat16 the network and the loss run under autocast.
    """

    def __init__(
        self, workload: Workload, variables: tuple[Any, Any], device: torch.device, treatment: Any
    ):
        self.config, self.crop_px = workload.config, workload.crop_px
        self.device = device
        self.layout = treatment.layout
        self.preprocessing = PREPROCESSING[preprocessing_name(self.config.model)]
        network = peer_network(workload, variables)
        self.module = network.module.to(device, memory_format=self.layout).train()
        self.optimizer = optimizer(self.config.optim, network, fused=device.type == "cuda")
        self.mixed = workload.dtype == "bfloat16"
        # Static, as XLA's programs are: else the second network is compiled for any size.
        self.loss_of = (
            torch.compile(self._loss, dynamic=False) if treatment.compiled else self._loss
        )

    def __call__(self, batch: Mapping[str, np.ndarray]) -> Any:
        """The loss before the update, unwaited for."""
        return self.update(*self.augment(batch))

    def update(self, image: Any, label: Any) -> Any:
        """The step on what `augment` returns: all of it but scale, crop and flip."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            loss = self.loss_of(image, label)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _loss(self, image: Any, label: Any) -> Any:
        scores = self.module(image)
        loss = functional.cross_entropy(scores["out"], label, ignore_index=IGNORE_INDEX)
        if "aux" in scores:
            auxiliary = functional.cross_entropy(scores["aux"], label, ignore_index=IGNORE_INDEX)
            loss = loss + self.config.model.auxiliary_weight * auxiliary
        return loss

    def augment(self, batch: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
        """Scale, crop, flip; scales only what the crop shows. Of images that fill their canvas.

        Returns normalised images, float32 (b, 3, h, w), zero outside, and labels int64 (b, h, w).
        """
        random = np.random.default_rng()
        side = self.crop_px[0]
        pixels = torch.as_tensor(batch["image"]).to(self.device, non_blocking=True)
        classes = torch.as_tensor(batch["label"]).to(self.device, non_blocking=True)
        count, length = classes.shape[:2]
        mean, std = (
            torch.tensor(values, device=self.device)[:, None, None]
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        images = torch.zeros((count, 3, side, side), device=self.device)
        labels = torch.full((count, side, side), IGNORE_INDEX, dtype=torch.long, device=self.device)
        for index in range(count):
            scale = random.uniform(*self.config.augment.scale)
            shown = min(round(side / scale), length)
            top, left = random.integers(0, length - shown + 1, 2)
            window = (index, slice(top, top + shown), slice(left, left + shown))
            size = min(round(shown * scale), side)
            cut = pixels[window].permute(2, 0, 1)[None].float()
            cut = functional.interpolate(cut, (size, size), mode="bilinear")[0]
            cut_label = classes[window][None, None].float()
            cut_label = functional.interpolate(cut_label, (size, size), mode="nearest")[0, 0]
            if self.preprocessing.bgr:
                cut = cut.flip(0)
            if self.config.augment.flip and random.random() < 0.5:
                cut, cut_label = cut.flip(2), cut_label.flip(1)
            images[index, :, :size, :size] = (cut - mean) / std
            labels[index, :size, :size] = cut_label.long()
        return images.contiguous(memory_format=self.layout), labels


def optimizer(config: OptimConfig, network: PeerNetwork, *, fused: bool) -> Any:
    """With the rates and decays that `fcn_jax/optim.py` gives each part."""
    groups: dict[tuple[float, float], list[Any]] = {}
    for theirs, parameter in network.module.named_parameters():
        name = network.ours[theirs]
        part = name.partition("/")[0]
        shares = {"backbone": config.backbone_rate, "auxiliary": config.auxiliary_rate}
        rate = config.learning_rate * shares.get(part, 1.0)
        decays = name.endswith("kernel") and "upsample" not in name
        key = (rate, config.weight_decay if decays else 0.0)
        groups.setdefault(key, []).append(parameter)
    parameters = [
        {"params": members, "lr": rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ]
    if config.name == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, fused=fused)
    return torch.optim.AdamW(parameters, fused=fused)
