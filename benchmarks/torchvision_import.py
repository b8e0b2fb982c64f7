"""Imports torchvision next to a PyTorch for CPUs alone, for which it has no build."""

import importlib
import sys
from typing import Any

import torch

_DECLARED: list[Any] = []


def import_torchvision() -> Any:
    """Imports torchvision, whose compiled operations have no build for CPUs alone.

    Its networks do not use them, but its import asks for three of them: they are declared if they
    are missing.

    Raises:
        ImportError: it is not installed.
        RuntimeError: it does not match this PyTorch.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        if _DECLARED:
            raise
    library = torch.library.Library("torchvision", "DEF")
    _DECLARED.append(library)  # the declarations end with it
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define(
        "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, "
        "int pooled_width, int sampling_ratio, bool aligned) -> Tensor"
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    return importlib.import_module("torchvision")
