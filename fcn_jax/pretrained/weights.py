"""Weights renamed to our parameter names, and the initialisation of a network from them."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from fcn_jax.config import ModelConfig
from fcn_jax.errors import ArgumentError, UserError
from fcn_jax.models.backbones.preprocess import COLOURS
from fcn_jax.models.build import preprocessing_name
from fcn_jax.models.pure_model import PureModel
from fcn_jax.pretrained import trunks
from fcn_jax.pretrained.provenance import Provenance

HEADS = ("head", "auxiliary", "deep")
"""Prefixes of the score layers' names. Their classes often differ from those of the source."""

HEAD_SETTINGS = ("padding", "output_stride", "alignment", "score_scales", "context_features")
"""Settings of `config.model`; trained score layers fit only the values they were trained with."""

MAX_LISTED = 40
"""Number of mismatches that an error names."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """Tensors under our names, and what is known about them.

    Args:
        path: the file or folder that they were read from.
        provenance: the network that they fit.
        tensors: float32 arrays in our layout, by path such as "backbone/conv1/kernel".
        origins: our name -> (the source's name, the shape in the source's layout).
        extra_tensors: tensors of the file for which our networks have no layer, such as a
            classifier's last layers, under the source's names.
        problems: messages about tensors that are missing, unexpected or not finite.
        missing_layers: our backbone layers that no file of this source contains.
        caveat: a warning for users that cannot be checked from the file.
        other: weights of the second trunk, if late fusion is initialised from two files.
    """

    path: Path
    provenance: Provenance
    tensors: Mapping[str, np.ndarray]
    origins: Mapping[str, tuple[str, tuple[int, ...]]] = dataclasses.field(default_factory=dict)
    extra_tensors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    problems: tuple[str, ...] = ()
    missing_layers: tuple[str, ...] = ()
    caveat: str = ""
    other: "Weights | None" = None

    def apply(
        self, variables: tuple[Any, Any], *, strict_heads: bool = False
    ) -> tuple[tuple[Any, Any], str]:
        """Replaces the variables for which there are weights.

        Score layers of another shape, head layers that the file lacks, and the backbone layers in
        `missing_layers` keep their values. If the images do not have three channels, the RGB
        filters of the first layer are adapted: each channel beyond the third gets their mean (Long
        et al. 2015, NYUDv2), a grey image gets their sum, and each of two channels gets half of
        their sum. If the network is for volumes and the weights are of images, kernels are
        inflated, except those of the score layers, which keep their values.

        Args:
            variables: (params, batch_stats), nested dicts of float32 arrays.
            strict_heads: whether score layers of another shape are an error, too.

        Returns:
            The new variables, and a line of text that lists the layers that were not replaced or
            were adapted.

        Raises:
            UserError: tensors are missing, unexpected, not finite or have another shape. The
                message lists all of them.
        """
        ours = {name: np.asarray(value) for name, value in flatten(variables).items()}
        # The network has two trunks, and the file has the weights of one.
        for_both_trunks = trunks.is_late(ours) and not trunks.is_late(self.tensors)
        if self.other is not None and not for_both_trunks:
            raise ArgumentError(
                "init", f"{self.path},{self.other.path}", "names two sources: set model.fusion=late"
            )
        if for_both_trunks:
            first, second = trunks.split(ours)
            other = self.other or self
            matched = trunks.join(
                [self._match(first, strict_heads), other._match(second, strict_heads)]
            )
        else:
            matched = self._match(ours, strict_heads)
        return replace_leaves(variables, matched), self._report(ours, matched, for_both_trunks)

    def notes(self, model: ModelConfig, label_maps: Mapping[str, tuple[str, ...]]) -> list[str]:
        """Lists the differences between a run and the run that the weights come from.

        Args:
            model: settings of the new run.
            label_maps: class names of the new run by label map.
        """
        notes = [f"{self.path}: {self.caveat}"] if self.caveat else []
        preprocessing = preprocessing_name(model)
        for weights in (self, self.other):
            if weights is not None and weights.provenance.preprocessing != preprocessing:
                notes.append(
                    f"{weights.path} was trained with {weights.provenance.preprocessing} "
                    f"preprocessing, and model.preprocessing is {preprocessing}"
                )
        for name, theirs in self.provenance.label_maps.items():
            ours = label_maps.get(name, ())
            if len(ours) != len(theirs):
                continue  # the score layers have another shape, so `apply` does not use them
            if ours != theirs:
                notes.append(
                    f"{self.path} has the same number of classes, but other ones "
                    f"({', '.join(theirs[:4])}, …); its score layers are used all the same"
                )
            differing = [
                f"{setting} is {getattr(self.provenance.config.model, setting)} there and "
                f"{getattr(model, setting)} here"
                for setting in HEAD_SETTINGS
                if getattr(self.provenance.config.model, setting) != getattr(model, setting)
            ]
            if differing:
                notes.append(
                    f"the score layers of {self.path} were trained with other model settings: "
                    f"{', '.join(differing)}"
                )
        return notes

    def _match(self, ours: Mapping[str, np.ndarray], strict_heads: bool) -> dict[str, np.ndarray]:
        """Returns the tensors that fit, by our name."""
        backbone = {name for name in self.tensors if name.startswith("backbone/")}
        if not backbone <= ours.keys():
            fusion = ", fusion=late" if trunks.is_late(self.tensors) else ""
            raise UserError(
                f"{self.path} holds {self.provenance.source}, which fits "
                f"model.backbone={self.provenance.backbone}{fusion}, not the backbone of "
                "this run: set this backbone, or give other weights"
            )
        matched, problems = {}, list(self.problems)
        for name, tensor in self.tensors.items():
            if name not in ours:
                continue
            shape = ours[name].shape
            fitted = tensor
            if name in backbone:
                fitted = _for_channels(fitted, shape)
            if not name.startswith(HEADS):
                fitted = _inflated(fitted, shape, name)
            if fitted.shape == shape:
                matched[name] = fitted
            elif strict_heads or not name.startswith(HEADS):
                key, given = self.origins.get(name, (name, tensor.shape))
                problems.append(f"{key} has shape {given}, which does not fit {name} {shape}")
        problems += [
            f"no tensor for {name}"
            for name in ours
            if name.startswith("backbone/")
            and name not in self.tensors
            and name.split("/")[1] not in self.missing_layers
        ]
        if problems:
            listed = "; ".join(problems[:MAX_LISTED])
            if len(problems) > MAX_LISTED:
                listed += f"; and {len(problems) - MAX_LISTED} more"
            raise UserError(f"{self.path} does not fit {self.provenance.source}: {listed}")
        return matched

    def _report(
        self,
        ours: Mapping[str, np.ndarray],
        matched: Mapping[str, np.ndarray],
        for_both_trunks: bool,
    ) -> str:
        report = f"initialized from {self.path}: {self.provenance.source}"
        if self.other is not None:
            report += f", and {self.other.path}: {self.other.provenance.source}"
        other_shape = _layers(
            name
            for name, tensor in self.tensors.items()
            if name in ours and name not in matched and tensor.shape != ours[name].shape
        )
        not_in_file = set(_layers(name for name in ours if name not in matched)) - set(other_shape)
        # With late fusion, `ours` has two layers for each name in a file of one trunk.
        unused = _layers(name for name in self.tensors if name not in ours)
        for layers, remark in [
            (other_shape, "of another shape in the file, so unchanged"),
            (sorted(not_in_file), "not in the file, so unchanged"),
            ([] if trunks.is_late(ours) else unused, "in the file, but not in this network"),
        ]:
            if layers:
                report += f"; {remark}: {', '.join(layers)}"
        adapted = {
            matched[name].shape[-2]
            for name, tensor in self.tensors.items()
            if name in matched and matched[name].shape[-2:] != tensor.shape[-2:]
        }
        for channels in adapted:
            report += f"; the first layer's colour filters adapted to {channels} channels"
        if any(
            matched[name].ndim > tensor.ndim
            for name, tensor in self.tensors.items()
            if name in matched
        ):
            report += "; kernels of two axes inflated to three"
        if for_both_trunks and self.other is None:
            report += "; in both trunks"
        last = self._last_layers()
        return (
            f"{report}; the source's last layers are not used: {', '.join(last)}"
            if last
            else report
        )

    def _last_layers(self) -> list[str]:
        """Returns the source's layers in `extra_tensors`; of more than three, only the modules."""
        names = [name for name in self.extra_tensors if not name.endswith("num_batches_tracked")]
        layers = sorted({re.split(r"[./](?=[^./]*$)", name)[0] for name in names})
        return layers if len(layers) <= 3 else sorted({re.split("[./]", n)[0] for n in names})


def _for_channels(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Adapts a first layer's kernel (h, w, 3, out) to the number of channels in `shape`."""
    if kernel.ndim != 4 or kernel.shape[2] != COLOURS or len(shape) < 4:
        return kernel
    channels = shape[-2]
    mean = kernel.mean(axis=2, keepdims=True)
    if channels < COLOURS:
        return np.repeat(mean * COLOURS / channels, channels, axis=2)
    return np.concatenate([kernel, *[mean] * (channels - COLOURS)], axis=2)


def _inflated(kernel: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Repeats a kernel (h, w, in, out) along the last axis of volumes, of `shape`.

    On a volume that is equal along that axis, away from its borders, the features are those of the
    image: a convolution adds up shape[2] copies, so each is divided by their number; the decoder's
    upsampling gives each output one copy (Carreira & Zisserman 2017, section 2.1).
    """
    if kernel.ndim != 4 or len(shape) != 5:
        return kernel
    copies = 1 if name.split("/")[1].startswith("up") else shape[2]
    return np.repeat(kernel[:, :, None], shape[2], axis=2) / np.float32(copies)


def _layers(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition("/")[0] for name in names})


def zeros(network: PureModel) -> tuple[Any, Any]:
    """Returns the (params, batch_stats) of a network, filled with zeros."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), network.variables)


def flatten(variables: tuple[Any, Any]) -> dict[str, Any]:
    """Flattens (params, batch_stats) into one dictionary, by names such as "backbone/bn1/scale"."""
    params, batch_stats = variables
    # The items of an `nnx.List` have integers for keys.
    return {
        "/".join(map(str, path)): value
        for tree in (params, batch_stats)
        for path, value in traverse_util.flatten_dict(tree).items()
    }


def replace_leaves(
    variables: tuple[Any, Any], tensors: Mapping[str, np.ndarray]
) -> tuple[Any, Any]:
    """Returns a copy of (params, batch_stats) in which the leaves named in `tensors` are replaced.

    The names are those of `flatten`.
    """

    def in_tree(tree: Any) -> Any:
        new = {
            path: jnp.asarray(tensors.get("/".join(map(str, path)), value))
            for path, value in traverse_util.flatten_dict(tree).items()
        }
        return traverse_util.unflatten_dict(new)

    params, batch_stats = variables
    return in_tree(params), in_tree(batch_stats)
