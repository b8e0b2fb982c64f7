"""The step of `fcn_jax/training/train_step.py` in PyTorch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.torch_networks import Normaliser, torch_network
from benchmarks.workloads import Workload, random_variables
from fcn_jax.config import OptimConfig
from fcn_jax.data.labels import IGNORE_INDEX


class TorchStep:
    """Scale, crop and flip, forward, loss over valid pixels, gradients, update.

    If the workload computes in bfloat16, the network and the loss run under autocast.

    Args:
        workload: the network, with `random_variables`, and its training.
        device: where it runs.
        layout: memory format of the weights and images.
        compiled: whether torch.compile compiles the network and the loss.
    """

    def __init__(
        self, workload: Workload, device: torch.device, layout: Any, *, compiled: bool = False
    ):
        self.config, self.crop_px = workload.config, workload.crop_px
        self.device = device
        self.layout = layout
        self.normalise = Normaliser(workload, device)
        module, names = torch_network(workload, random_variables(workload.network))
        self.module = module.to(device, memory_format=layout).train()
        self.optimizer = optimizer(self.config.optim, self.module, names)
        self.mixed = workload.dtype == "bfloat16"
        # Static as XLA's programs are: else the second batch size is compiled for any size.
        self.loss_of = torch.compile(self._loss, dynamic=False) if compiled else self._loss

    def __call__(self, batch: Mapping[str, np.ndarray]) -> Any:
        """Runs a step and returns the loss before its update, without waiting for it."""
        return self.update(*self.augment(batch))

    def update(self, image: Any, label: Any) -> Any:
        """Runs the step without scaling, cropping and flipping, on what `augment` returns."""
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
        """Scales, crops and flips images that fill their canvas; scales only what the crop shows.

        Args:
            batch: image uint8 (b, H, W, 3) and label uint8 (b, H, W), on the host.

        Returns:
            Normalised images, float32 (b, 3, h, w), zero outside, and labels, int64 (b, h, w).
        """
        random = np.random.default_rng()
        sides = np.array(self.crop_px)
        pixels = torch.as_tensor(batch["image"]).to(self.device, non_blocking=True)
        classes = torch.as_tensor(batch["label"]).to(self.device, non_blocking=True)
        count, length = classes.shape[:2]
        images = torch.zeros((count, 3, *self.crop_px), device=self.device)
        labels = torch.full(
            (count, *self.crop_px), IGNORE_INDEX, dtype=torch.long, device=self.device
        )
        for index in range(count):
            scale = random.uniform(*self.config.augment.scale)
            shown = np.minimum((sides / scale).round().astype(int), length)
            top, left = random.integers(0, length - shown + 1)
            window = (index, slice(top, top + shown[0]), slice(left, left + shown[1]))
            height, width = np.minimum((shown * scale).round().astype(int), sides).tolist()
            crop = pixels[window].permute(2, 0, 1)[None].float()
            crop = functional.interpolate(crop, (height, width), mode="bilinear")[0]
            crop_label = classes[window][None, None].float()
            crop_label = functional.interpolate(crop_label, (height, width), mode="nearest")[0, 0]
            if self.config.augment.flip and random.random() < 0.5:
                crop, crop_label = crop.flip(2), crop_label.flip(1)
            images[index, :, :height, :width] = self.normalise(crop)
            labels[index, :height, :width] = crop_label.long()
        return images.contiguous(memory_format=self.layout), labels


def optimizer(config: OptimConfig, module: Any, names: Mapping[str, str]) -> Any:
    """Builds the optimizer of `fcn_jax/training/optim.py`, with its rates and decays by part.

    Args:
        config: its settings.
        module: the network.
        names: our names of the module's parameters.
    """
    groups: dict[tuple[float, float], list[Any]] = {}
    for theirs, parameter in module.named_parameters():
        name = names[theirs]
        shares = {"backbone": config.backbone_rate, "auxiliary": config.auxiliary_rate}
        rate = config.learning_rate * shares.get(name.partition("/")[0], 1.0)
        decays = name.endswith("kernel") and "upsample" not in name
        key = (rate, config.weight_decay if decays else 0.0)
        groups.setdefault(key, []).append(parameter)
    parameters = [
        {"params": members, "lr": rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ]
    fused = next(module.parameters()).device.type == "cuda"
    if config.name == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, fused=fused)
    return torch.optim.AdamW(parameters, fused=fused)
