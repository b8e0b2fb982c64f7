"""A loop over images in PyTorch: one at a time at its own size, read from the same records."""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.torch_networks import Normaliser, torch_network
from benchmarks.workloads import Workload, random_variables
from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.data.splits import Split


class TorchEvaluation:
    """Forward pass, argmax at the image's size, and the confusion matrix by counting."""

    def __init__(self, workload: Workload, device: torch.device, layout: Any):
        module, _ = torch_network(workload, random_variables(workload.network))
        self.module = module.to(device, memory_format=layout).eval()
        self.device, self.layout = device, layout
        self.num_classes = workload.num_classes
        self.normalise = Normaliser(workload, device)

    def __call__(self, split: Split) -> np.ndarray:
        """Returns the confusion matrix of a split, int64 (k, k): true by predicted class."""
        with torch.no_grad():
            return self._confusion(split)

    def _confusion(self, split: Split) -> np.ndarray:
        k = self.num_classes
        confusion = torch.zeros(k * k, dtype=torch.int64, device=self.device)
        for index in range(len(split)):
            pixels, label = self.read(split, index)
            image = self.normalise(pixels)[None].contiguous(memory_format=self.layout)
            predicted = self.module(image)["out"].argmax(1)[0]
            valid = label != IGNORE_INDEX
            pairs = label[valid] * k + predicted[valid]
            confusion += torch.bincount(pairs, minlength=k * k)
        return confusion.reshape(k, k).cpu().numpy()

    def read(self, split: Split, index: int) -> tuple[Any, Any]:
        """Returns an image, uint8 (3, h, w), and its label, int64 (h, w), on the device."""
        record = split.records[index]
        (label_feature,) = split.num_classes
        image = np.array(Image.open(io.BytesIO(record[split.image_feature])).convert("RGB"))
        label = np.array(Image.open(io.BytesIO(record[label_feature])))
        pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1)
        return pixels, torch.from_numpy(label).to(self.device).long()
