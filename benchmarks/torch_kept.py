"""What PyTorch keeps of an image for the backward pass: see `kept.py`."""

from typing import Any

import torch

from benchmarks.torch_networks import NETWORKS
from benchmarks.workloads import Workload


def kept_of_an_image(workload: Workload) -> int:
    """Bytes, of tensors without contents, in the workload's type from end to end."""
    return _kept(workload, 2) - _kept(workload, 1)


def _kept(workload: Workload, batch_size: int) -> int:
    dtype = getattr(torch, workload.dtype)
    with torch.device("meta"):
        network = NETWORKS[workload.config.model.backbone](workload).to(dtype).train()
        image = torch.empty(batch_size, 3, *workload.crop_px, dtype=dtype)
        label = torch.empty(batch_size, *workload.crop_px, dtype=torch.long)
    kept: dict[int, tuple[Any, int]] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = tensor, storage.nbytes()  # held, lest another take its number
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for logits in network(image).values():
            torch.nn.functional.cross_entropy(logits.float(), label)
    return sum(size for _, size in kept.values())
