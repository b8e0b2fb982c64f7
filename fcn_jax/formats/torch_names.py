"""Weights under the names of another project's PyTorch network, which then computes the same."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from fcn_jax.errors import UserError
from fcn_jax.models.build import preprocessing_name
from fcn_jax.models.upsampling import bilinear_kernel
from fcn_jax.pretrained import Provenance, model_file
from fcn_jax.pretrained.tables import torchfcn, torchvision
from fcn_jax.terminal.atomic_files import write_whole

AT_ONCE_SCALES = (1.0, 0.01, 0.0001)
"""The factors before the score layers of torchfcn's FCN8sAtOnce."""


def torchvision_state(
    provenance: Provenance, tensors: Mapping[str, np.ndarray]
) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the call that builds torchvision's network, and its state dict.

    Args:
        provenance: settings of the network.
        tensors: its weights by name, as in a model file.

    Raises:
        UserError: the network is not torchvision's FCN.
    """
    model = provenance.config.model
    depth = model.backbone.removeprefix("resnet")
    fits = (
        (depth in ("50", "101") and model.decoder == "fcn")
        and (model.output_stride, model.skips, model.head) == (8, 0, "hidden")
        and model.upsampling == "interpolate"
        and (model.context_features, model.fusion, provenance.channels) == (None, "early", 3)
        and set(model.score_scales or ()) <= {1.0}
        and len(provenance.label_maps) == 1
    )
    if not fits:
        raise UserError(
            "--format=torchvision needs a run of torchvision's FCN: config.model.backbone=resnet50 "
            "or resnet101, output_stride=8, skips=0, head=hidden, upsampling=interpolate"
        )
    _check_preprocessing("torchvision", provenance)
    (class_names,) = provenance.label_maps.values()
    call = (
        f"torchvision's fcn_{model.backbone}(weights_backbone=None, "
        f"num_classes={len(class_names)}, aux_loss={model.auxiliary_weight > 0})"
    )
    source = torchvision.fcn_resnet(int(depth))
    return call, torchvision.to_state_dict(source, tensors)


def torchfcn_state(
    provenance: Provenance, tensors: Mapping[str, np.ndarray]
) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the call that builds torchfcn's network, and its state dict; see above.

    Fixed upsampling becomes the bilinear filters that it is.

    Raises:
        UserError: the network is not one of torchfcn's.
    """
    model = provenance.config.model
    scales = (model.score_scales or ())[: model.skips + 1]
    at_once = model.skips == 2 and scales == AT_ONCE_SCALES
    fits = (
        (model.backbone, model.padding, model.head) == ("vgg16", "paper", "linear")
        and model.decoder == "fcn"
        and model.skips <= 2
        and model.upsampling in ("learned", "fixed")
        and (model.context_features, model.fusion, provenance.channels) == (None, "early", 3)
        and (at_once or set(scales) <= {1.0})
        and len(provenance.label_maps) == 1
    )
    if not fits:
        raise UserError(
            "--format=torchfcn needs a run of the paper's network: config.model.backbone=vgg16, "
            "padding=paper, head=linear, skips at most 2, upsampling=learned or fixed, and "
            "score_scales of 1, or 1,0.01,0.0001 with skips=2"
        )
    _check_preprocessing("caffe", provenance)
    net = list(torchfcn.SKIP_LAYERS)[model.skips]
    (class_names,) = provenance.label_maps.values()
    source = torchfcn.torchfcn(net)
    filters = {
        f"head/upsample{stage}/kernel": bilinear_kernel(size, len(class_names))
        for stage, size in torchfcn_filters(model.skips).items()
    }
    state = torchvision.to_state_dict(source, filters | dict(tensors))
    name = net.replace("-", "") + ("AtOnce" if at_once else "")
    return f"torchfcn.models.{name}(n_class={len(class_names)})", state


def torchfcn_filters(skips: int) -> dict[int, int]:
    """Returns the sides of the upsampling filters by the stride of the stage (Long et al. 2015)."""
    last = 32 >> skips
    return {stage: 4 for stage in (32, 16, 8) if stage > last} | {last: 2 * last}


def save_state(state: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes a state dict.

    Args:
        state: tensors by name.
        path: the file to write: .safetensors, or .pth if PyTorch is installed.

    Raises:
        UserError: the file cannot be written.
    """
    if path.suffix == model_file.SUFFIX:
        write_whole(path, lambda part: save_file(dict(state), part, metadata={"format": "pt"}))
        return
    if path.suffix != ".pth":
        raise UserError(f"--output={path} must end in {model_file.SUFFIX} or .pth")
    try:
        import torch
    except ImportError:
        instead = path.with_suffix(model_file.SUFFIX)
        raise UserError(f"writing {path} needs PyTorch; without it, --output={instead}") from None
    tensors = {name: torch.tensor(tensor) for name, tensor in state.items()}
    write_whole(path, lambda part: torch.save(tensors, part))


def _check_preprocessing(name: str, provenance: Provenance) -> None:
    model = provenance.config.model
    if preprocessing_name(model) != name:
        other = {"caffe": "torchfcn"}.get(name, name)
        raise UserError(
            f"--format={other} needs a run with {name}'s preprocessing: "
            f"config.model.preprocessing is {model.preprocessing}"
        )
