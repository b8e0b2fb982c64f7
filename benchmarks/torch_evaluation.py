"""A loop over images in PyTorch: one at a time at its own size, read from the same records."""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.torch_networks import peer_network
from benchmarks.workloads import Workload
from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.data.splits import Split
from fcn_jax.models.backbones.preprocess import PREPROCESSING
from fcn_jax.models.build import preprocessing_name


class TorchEvaluation:
    """Forward, argmax at the image's size, and the confusion matrix by counting."""

    def __init__(
        self, workload: Workload, variables: tuple[Any, Any], device: torch.device, layout: Any
    ):
        module = peer_network(workload, variables).module
        self.module = module.to(device, memory_format=layout).eval()
        self.device, self.layout = device, layout
        self.num_classes = workload.num_classes
        self.preprocessing = PREPROCESSING[preprocessing_name(workload.config.model)]
        self.mean, self.std = (
            torch.tensor(values, device=device)[:, None, None]
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )

    def __call__(self, split: Split) -> np.ndarray:
        """The confusion matrix of a split, int64 (k, k), true class by predicted class."""
        k = self.num_classes
        confusion = torch.zeros(k * k, dtype=torch.int64, device=self.device)
        for index in range(len(split)):
            image, label = self.read(split, index)
            predicted = self.logits(image).argmax(1)[0]
            valid = label != IGNORE_INDEX
            pairs = label[valid] * k + predicted[valid]
            confusion += torch.bincount(pairs, minlength=k * k)
        return confusion.reshape(k, k).cpu().numpy()

    def read(self, split: Split, index: int) -> tuple[Any, Any]:
        """Bytes (3, h, w) and labels int64 (h, w), on the device."""
        record = split.records[index]
        (label_feature,) = split.num_classes
        image = np.array(Image.open(io.BytesIO(record[split.image_feature])).convert("RGB"))
        label = np.array(Image.open(io.BytesIO(record[label_feature])))
        pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1)
        return pixels, torch.from_numpy(label).to(self.device).long()

    @torch.no_grad()
    def logits(self, image: Any) -> Any:
        """Of one image's bytes: (1, k, h, w)."""
        image = image.flip(0) if self.preprocessing.bgr else image
        normalised = ((image.float() - self.mean) / self.std)[None]
        return self.module(normalised.contiguous(memory_format=self.layout))["out"]
