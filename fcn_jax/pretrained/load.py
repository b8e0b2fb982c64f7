"""Weights from anywhere into the parameters of a network.

`read` finds out what a file is and brings its tensors under our names; `Weights.apply` puts them
where a network has a place for them, and tells of everything that does not fit at once.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from fcn_jax.config import ModelConfig, from_dict
from fcn_jax.errors import UserError
from fcn_jax.models.backbones.preprocess import COLOURS
from fcn_jax.models.build import preprocessing_name
from fcn_jax.models.pure_model import Network
from fcn_jax.pretrained import saved, trunks
from fcn_jax.pretrained.source import WeightSource
from fcn_jax.pretrained.tables import sources
from fcn_jax.pretrained.weight_files import read_weights

HEADS = ("head", "auxiliary")
"""Beginnings of our names of layers that score, where other classes than the source's are usual."""

HEAD_SETTINGS = ("padding", "output_stride", "alignment", "score_scales", "context_features")
"""Settings of `config.model` that change what trained score layers mean."""

LISTED = 40
"""Mismatches that are told one by one."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """Tensors under our names, and what is known of them.

    path: where they were read. about: what they are, and what they want.
    tensors: float32, laid out as ours. origins: our name → (their name, their shape).
    left_out: what the file holds beside, under its own names: a classifier's last layers.
    problems: what was missing, unexpected or not finite. absent: layers that the source never has.
    caveat: what cannot be told from the file and should be known.
    other: those of the second trunk, where late fusion was given two.
    """

    path: Path
    about: saved.About
    tensors: Mapping[str, np.ndarray]
    origins: Mapping[str, tuple[str, tuple[int, ...]]] = dataclasses.field(default_factory=dict)
    left_out: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    problems: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    caveat: str = ""
    other: "Weights | None" = None

    def apply(
        self, variables: tuple[Any, Any], *, whole: bool = False
    ) -> tuple[tuple[Any, Any], str]:
        """Replaces what there are weights for.

        Layers that score, and those of the head that are not in the source, keep their initial
        values where they have another shape, and so do layers that the source never has. The first
        layer of a network for other than three channels takes the colours' filters: their mean for
        each channel beyond the third (Long et al. 2015, NYUDv2), their sum for a grey image, shared
        where there are two channels.

        Args:
            variables: (params, batch_stats), nested dicts of float32 arrays.
            whole: whether layers that score must fit as well.

        Returns:
            The variables, and a line that says what was taken and what was left as it was.

        Raises:
            UserError: tensors missing, unexpected, of another shape or not finite: all of them in
                one message.
        """
        ours = {name: np.asarray(value) for name, value in flat(variables).items()}
        # Made for one trunk, and wanted in each of two.
        in_trunks = trunks.is_late(ours) and not trunks.is_late(self.tensors)
        if self.other is not None and not in_trunks:
            raise UserError(
                f"config.init names two sources, {self.path} and {self.other.path}: that is for "
                "config.model.fusion=late alone"
            )
        if in_trunks:
            first, second = trunks.split(ours)
            other = self.other or self
            taken = trunks.join([self._taken(first, whole), other._taken(second, whole)])
        else:
            taken = self._taken(ours, whole)
        return _replaced(variables, taken), self._report(ours, taken, in_trunks)

    def notes(self, model: ModelConfig, label_maps: Mapping[str, tuple[str, ...]]) -> list[str]:
        """What differs between a run and what its weights were made for, and should be known.

        label_maps: class names of the run.
        """
        notes = [f"{self.path}: {self.caveat}"] if self.caveat else []
        for weights in (self, self.other):
            if weights is not None and weights.about.preprocessing != preprocessing_name(model):
                notes.append(
                    f"{weights.path} was trained on {weights.about.preprocessing} pixels, and "
                    f"config.model.preprocessing is {preprocessing_name(model)}"
                )
        for name, theirs in self.about.classes.items():
            ours = label_maps.get(name, ())
            if len(ours) != len(theirs):
                continue  # then its head is not taken
            if ours != theirs:
                notes.append(
                    f"{self.path} has other classes ({', '.join(theirs[:4])}, …), as many as here: "
                    "its score layers are taken nevertheless"
                )
            made_for = from_dict({"model": self.about.config["model"]}).model
            differing = [
                f"{setting} {getattr(made_for, setting)} there and {getattr(model, setting)} here"
                for setting in HEAD_SETTINGS
                if setting in self.about.config["model"]
                and getattr(made_for, setting) != getattr(model, setting)
            ]
            if differing:
                notes.append(
                    f"the score layers of {self.path} were made for other settings of "
                    f"config.model: {', '.join(differing)}"
                )
        return notes

    def _taken(self, ours: Mapping[str, np.ndarray], whole: bool) -> dict[str, np.ndarray]:
        """Of the tensors those that fit, by our name."""
        backbone = {name for name in self.tensors if name.startswith("backbone/")}
        if not backbone <= ours.keys():
            fusion_too = ", fusion=late" if trunks.is_late(self.tensors) else ""
            raise UserError(
                f"{self.path} holds {self.about.source}, which fits "
                f"config.model.backbone={self.about.backbone}{fusion_too}, not the backbone of "
                "this run: set that, or give other weights"
            )
        taken, problems = {}, list(self.problems)
        for name, tensor in self.tensors.items():
            if name not in ours:
                continue
            wanted = ours[name].shape
            fitted = _for_channels(tensor, wanted) if name in backbone else tensor
            if fitted.shape == wanted:
                taken[name] = fitted
            elif whole or not name.startswith(HEADS):
                key, shape = self.origins.get(name, (name, tensor.shape))
                problems.append(f"{key} has shape {shape}, which does not make {name} {wanted}")
        problems += [
            f"nothing for {name}"
            for name in ours
            if name.startswith("backbone/")
            and name not in self.tensors
            and name.split("/")[1] not in self.absent
        ]
        if problems:
            listed = "; ".join(problems[:LISTED])
            if len(problems) > LISTED:
                listed += f"; and {len(problems) - LISTED} more of the kind"
            raise UserError(f"{self.path} does not fit {self.about.source}: {listed}")
        return taken

    def _report(
        self, ours: Mapping[str, np.ndarray], taken: Mapping[str, np.ndarray], in_trunks: bool
    ) -> str:
        report = f"initialized from {self.path}: {self.about.source}"
        if self.other is not None:
            report += f", and {self.other.path}: {self.other.about.source}"
        unlike = _layers(
            name
            for name, tensor in self.tensors.items()
            if name in ours and name not in taken and tensor.shape != ours[name].shape
        )
        kept = sorted(set(_layers(name for name in ours if name not in taken)) - set(unlike))
        unused = _layers(name for name in self.tensors if name not in ours)
        for layers, remark in [
            (unlike, "of another shape there, so left as they were"),
            (kept, "not in it, so left as they were"),
            # Of late fusion both trunks hold what is named once in it.
            ([] if trunks.is_late(ours) else unused, "in it, but without a place here"),
        ]:
            if layers:
                report += f"; {remark}: {', '.join(layers)}"
        adapted = {
            taken[name].shape[2]
            for name, tensor in self.tensors.items()
            if name in taken and taken[name].shape != tensor.shape
        }
        for channels in adapted:
            report += f"; its colours' filters, in the first layer, made to see {channels} channels"
        if in_trunks and self.other is None:
            report += "; in both trunks"
        last = self._last_layers()
        return report + (f"; its own last layers left out: {', '.join(last)}" if last else "")

    def _last_layers(self) -> list[str]:
        """Their names of the layers that were left out: a classifier of 1000 classes, say."""
        names = [name for name in self.left_out if not name.endswith("num_batches_tracked")]
        layers = sorted({re.split(r"[./](?=[^./]*$)", name)[0] for name in names})
        return layers if len(layers) <= 3 else sorted({re.split("[./]", n)[0] for n in names})


def read(path: str | Path) -> Weights:
    """Reads a weight file of a known source: .npz, .safetensors, .pth or .caffemodel.

    Raises:
        UserError: no such file, one that cannot be read, or one of no known source.
    """
    path = Path(path)
    theirs = read_weights(path)
    about = saved.read_about(path)
    if about is not None:
        return Weights(path, about, theirs, problems=_not_finite(theirs))
    return _from_table(path, theirs, _recognize(path, theirs))


def _recognize(path: Path, theirs: Mapping[str, np.ndarray]) -> WeightSource:
    for source in sources():
        if source.recognizes(theirs):
            return source
    titles = "; ".join(source.title for source in sources())
    first = ", ".join(list(theirs)[:3])
    raise UserError(f"{path} is of no known source (it begins with {first}); known are: {titles}")


def _from_table(path: Path, theirs: Mapping[str, np.ndarray], source: WeightSource) -> Weights:
    tensors, origins, problems = {}, {}, []
    for name, (key, layout) in source.table.items():
        if key not in theirs:
            # Heads may be left out whole: torchvision's auxiliary one often is.
            if not name.startswith("auxiliary"):
                problems.append(f"missing {key}")
            continue
        tensor = theirs[key]
        try:
            tensors[name] = layout(tensor).astype(np.float32)
        except ValueError:
            tensors[name] = tensor  # told of by its shape
        origins[name] = (key, tensor.shape)
    wanted = {key for key, _ in source.table.values()}
    problems += [
        f"unexpected {key}"
        for key in sorted(theirs)
        if key not in wanted
        and not any(key.startswith(part) or key.endswith(part) for part in source.left_out)
    ]
    problems += _not_finite({key: theirs[key] for key in wanted if key in theirs})
    model = {
        "backbone": source.backbone,
        "preprocessing": source.preprocessing,
        **source.model,
        # Its second head is there where it has weights.
        "auxiliary_weight": 0.5 if any(name.startswith("auxiliary") for name in tensors) else 0.0,
    }
    about = saved.About(source.title, {"model": model}, source.classes)
    left_out = {key: tensor for key, tensor in theirs.items() if key not in wanted}
    return Weights(
        path, about, tensors, origins, left_out, tuple(problems), source.absent, source.caveat
    )


def _not_finite(tensors: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    return tuple(
        f"{name} is not finite"
        for name, tensor in tensors.items()
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all()
    )


def _for_channels(kernel: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """A first layer's kernel (h, w, 3, out) for another number of channels; else as it is."""
    if kernel.ndim != 4 or kernel.shape[2] != COLOURS or len(wanted) != 4:
        return kernel
    channels = wanted[2]
    mean = kernel.mean(axis=2, keepdims=True)
    if channels < COLOURS:
        return np.repeat(mean * COLOURS / channels, channels, axis=2)
    return np.concatenate([kernel, *[mean] * (channels - COLOURS)], axis=2)


def _layers(names) -> list[str]:
    return sorted({name.rpartition("/")[0] for name in names})


def zeros(network: Network) -> tuple[Any, Any]:
    """(params, batch_stats) of a network, all zero: for where its own are shapes or unwanted."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), network.variables)


def flat(variables: tuple[Any, Any]) -> dict[str, Any]:
    """(params, batch_stats) by path, joined by '/'."""
    params, batch_stats = variables
    return {
        **traverse_util.flatten_dict(params, sep="/"),
        **traverse_util.flatten_dict(batch_stats, sep="/"),
    }


def _replaced(variables: tuple[Any, Any], taken: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    def replaced(tree):
        named = traverse_util.flatten_dict(tree, sep="/")
        new = {name: jnp.asarray(taken.get(name, value)) for name, value in named.items()}
        return traverse_util.unflatten_dict(new, sep="/")

    params, batch_stats = variables
    return replaced(params), replaced(batch_stats)
